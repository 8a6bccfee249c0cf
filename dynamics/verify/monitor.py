"""Checks that a run carries along: what to observe, and what came of it."""

from collections.abc import Callable, Sequence
from typing import Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamics.trajectory import Trajectory


class Monitored(Protocol):
    """What makes a monitor: such as `dynamics.observables.Monitor`, where its parts are described."""

    @property
    def name(self) -> str: ...
    @property
    def observe(self) -> Callable: ...
    @property
    def judge(self) -> Callable[[Array], Array]: ...
    @property
    def tolerance(self) -> float: ...


class Watched(eqx.Module):
    """What a monitor says of a run, or of each member of a batch.

    **Arguments:**

    - `name`, `tolerance`: of the monitor.
    - `residuals`: shape (..., times); NaN after the end of the run.
    - `held`: whether every residual up to the end of the run, and there was one, is at most the tolerance; a NaN is not.
    - `worst`: the largest residual, infinite where one is NaN.
    - `violated`: how many residuals are not within the tolerance.
    - `first_time`, `first_value`: the time of the first of these, and the residual there; NaN where there is none.
    """

    name: str = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)
    residuals: Float[Array, "*members times"]
    held: Bool[Array, "*members"]
    worst: Float[Array, "*members"]
    violated: Int[Array, "*members"]
    first_time: Float[Array, "*members"]
    first_value: Float[Array, "*members"]

    def __str__(self):
        held = np.atleast_1d(np.asarray(self.held)).ravel()
        found = f"{self.name}: held by {held.sum()} of {held.size}, worst {np.max(self.worst):.3e}"
        if held.all():
            return f"{found} (tolerance {self.tolerance:g})"
        member = int(np.argmin(held))
        time, value = (np.ravel(np.asarray(x))[member] for x in (self.first_time, self.first_value))
        place = "nothing to judge" if np.isnan(time) else f"{value:.3e} at t = {time:.6g}"
        return f"{found} (tolerance {self.tolerance:g}); first violation of member {member}: {place}"


def watch(monitors: Sequence[Monitored]) -> dict[str, Callable]:
    """The `observe` of a run that carries the monitors along; more observables may be added to it.

    **Raises:** `ValueError` where two monitors have one name.
    """
    names = [monitor.name for monitor in monitors]
    if len(set(names)) < len(names):
        raise ValueError(f"monitors must have different names, got {', '.join(names)}")
    return {monitor.name: monitor.observe for monitor in monitors}


def report(moved: Trajectory, monitors: Sequence[Monitored]) -> dict[str, Watched]:
    """What each monitor says of a run, or a batch of them, that observed `watch(monitors)`.

    A run that stopped is judged up to where it got, `moved.stats["t_end"]`: how it ended stands in its status.

    **Raises:** `ValueError` where the run did not carry a monitor, or a monitor does not judge time by time.
    """
    missing = [monitor.name for monitor in monitors if monitor.name not in moved.observed]
    if missing:
        raise ValueError(
            f"moved must have observed {', '.join(missing)}: run with observe=dynamics.verify.watch(monitors); "
            f"it has {', '.join(sorted(moved.observed)) or 'no observed values'}"
        )
    return {monitor.name: _judged(moved, monitor) for monitor in monitors}


def _judged(moved: Trajectory, monitor: Monitored) -> Watched:
    members = jnp.shape(moved.status)
    values = jnp.asarray(moved.observed[monitor.name])
    times = values.shape[len(members)]
    flat = jax.vmap(monitor.judge)(values.reshape(-1, *values.shape[len(members) :]))
    if flat.shape[1:] != (times,):
        raise ValueError(f"judge of {monitor.name} must give shape (times,) = ({times},), got {flat.shape[1:]}")
    residuals = flat.reshape(*members, times)
    ts = jnp.broadcast_to(moved.ts, residuals.shape)
    judged = (ts <= jnp.asarray(moved.stats["t_end"])[..., None]) | ~jnp.isnan(residuals)
    off = judged & ~(residuals <= monitor.tolerance)
    place, any_off = jnp.argmax(off, axis=-1)[..., None], jnp.any(off, axis=-1)

    def at_first(x):
        return jnp.where(any_off, jnp.take_along_axis(x, place, axis=-1)[..., 0], jnp.nan)

    return Watched(
        name=monitor.name,
        tolerance=monitor.tolerance,
        residuals=residuals,
        held=jnp.any(judged, axis=-1) & ~any_off,
        worst=jnp.max(jnp.where(judged, jnp.where(jnp.isnan(residuals), jnp.inf, residuals), -jnp.inf), axis=-1),
        violated=jnp.sum(off, axis=-1),
        first_time=at_first(ts),
        first_value=at_first(residuals),
    )
