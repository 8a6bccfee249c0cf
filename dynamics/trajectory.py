"""What every verb returns."""

from collections import Counter
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import status, validate
from dynamics.extras import need


class Trajectory(eqx.Module):
    """One motion, or a batch of them with further leading axes.

    **Arguments:**

    - `ts`: shape (times,): times of a flow, iteration counts of a descent.
    - `states`: the states, leading axis times; None when observables were asked for.
    - `observed`: a dictionary of observed values, leading axis times; empty when states are kept.
    - `status`: how the run ended, see `dynamics.status`. Entries after a stop are NaN.
    - `stats`: numbers about the run: `steps`, `t_end`, and `error_estimate` where a quadrature was used.
    - `log_t`: shape (times,): of a flow along a clock, whose values `ts` are, the logarithm of physical time; else None.
    - `log_scale`: shape (times,): for scaled states, of unit norm, the log of their norm; else None.
    - `determined`: what the states determine: "states" (themselves), "rotation" (up to a rotation of feature space: logits
      and Gram matrices are exact) or "mean" (the mean of a random motion).
    - `second_moment`: of a random motion E[Z Z^T], Z the features over the prototypes, shape
      (times, samples + classes, samples + classes); else None.
    """

    ts: Array
    states: PyTree
    observed: dict[str, Array]
    status: Int[Array, ""]
    stats: dict[str, Array]
    log_scale: Float[Array, " times"] | None = None
    determined: Literal["states", "rotation", "mean"] = eqx.field(static=True, default="states")
    second_moment: Float[Array, "times rows rows"] | None = None
    log_t: Float[Array, " times"] | None = None

    @property
    def ok(self) -> Bool[Array, ""]:
        """Whether the run ended well."""
        return jnp.asarray(self.status) == status.OK

    def summary(self) -> str:
        """One line on how the members ended: how many failed, the first of them, why, and how far it got."""
        codes = np.atleast_1d(np.asarray(self.status)).ravel()
        failed = np.flatnonzero(codes != status.OK)
        if failed.size == 0:
            return f"{codes.size} of {codes.size} ok"
        reasons = ", ".join(f"{count} {status.name(code)}" for code, count in sorted(Counter(codes[failed]).items()))
        first = failed[0]
        t_end = np.atleast_1d(np.asarray(self.stats["t_end"])).ravel()[first]
        return (
            f"{failed.size} of {codes.size} failed ({reasons}); first: member {first}, "
            f"{status.name(codes[first])} at t = {t_end:.6g}"
        )

    def to_xarray(self) -> Any:
        """An `xarray.Dataset` with dimensions `time`, before it `member` for a batch, and `<name>_0`, ... for further axes.

        Leaves of the states go by their field names; times that differ between the members of a batch are the coordinate `ts`,
        and `time` is only their number.

        **Raises:** `ValueError` for a batch with several leading axes, and where two things have one name.
        """
        xarray = need("xarray", "io")
        codes, ts = np.asarray(self.status), np.asarray(self.ts)
        if codes.ndim > 1:
            raise ValueError(
                f"status must have shape () or (members,), got {codes.shape}; reshape the batch to one leading axis"
            )
        lead = ("member",) * codes.ndim
        attributes = {"long_name": "how the run ended", **status.flags(codes.dtype)}
        dataset = xarray.Dataset({"status": (lead, codes, attributes)})
        dataset.attrs["determined"] = self.determined
        if lead:
            dataset = dataset.assign_coords(member=np.arange(codes.size))
        if ts.ndim > 1 and not np.all(ts == ts[:1]):
            dataset = dataset.assign_coords(ts=((*lead, "time"), ts))
        else:
            dataset = dataset.assign_coords(time=ts[0] if ts.ndim > 1 else ts)

        leaves = jax.tree_util.tree_leaves_with_path(self.states)
        states = [(jax.tree_util.keystr(path, simple=True, separator="_") or "states", leaf) for path, leaf in leaves]
        rest = {"log_t": self.log_t, "log_scale": self.log_scale, "second_moment": self.second_moment}
        timed = [*states, *self.observed.items(), *((name, leaf) for name, leaf in rest.items() if leaf is not None)]
        for dims, found in (((*lead, "time"), timed), (lead, self.stats.items())):
            for name, leaf in found:
                if name in dataset.variables or name in dataset.dims:
                    raise ValueError(
                        f"{name!r} names two things (taken: {sorted(map(str, dataset.variables))}); rename the observable"
                    )
                extra = (f"{name}_{axis}" for axis in range(np.ndim(leaf) - len(dims)))
                dataset[name] = ((*dims, *extra), np.asarray(leaf))
        return dataset


def blank(where: Bool[Array, " times"], values: PyTree) -> PyTree:
    """NaN in every entry of the marked times; integers and booleans become floats to hold it."""

    def one(leaf):
        return jnp.where(jnp.reshape(where, where.shape + (1,) * (leaf.ndim - 1)), jnp.nan, leaf)

    return jax.tree.map(one, floating(values))


def floating(values: PyTree) -> PyTree:
    """Integers and booleans as floats, which can hold the NaN of what was not reached."""

    def one(leaf):
        return leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf.astype(jnp.result_type(float))

    return jax.tree.map(one, values)


def check_times(ts, dtype) -> Float[Array, " times"]:
    """Times in the dtype of the clock: shape (times,), finite, >= 0 and strictly increasing once rounded to it."""
    ts = jnp.asarray(ts)
    if ts.ndim != 1 or ts.shape[0] == 0:
        raise ValueError(f"ts must have shape (times,) with times >= 1, got {ts.shape}")
    validate.nonnegative("ts", ts)
    validate.increasing("ts", ts)
    rounded = jnp.asarray(ts, dtype)
    validate.increasing(f"ts rounded to {jnp.dtype(dtype)}", rounded)
    return rounded


def good_times(ts: Float[Array, " times"]) -> Bool[Array, ""]:
    """Whether times, traced or not, are finite, >= 0 and strictly increasing."""
    return jnp.all(jnp.isfinite(ts)) & (ts[0] >= 0) & jnp.all(jnp.diff(ts) > 0)


def check_steps(steps: int, every: int, dt, momentum, nesterov) -> tuple[int, int]:
    """The step counts of a descent, once they and its other numbers are in range."""
    steps, every = validate.whole("steps", steps, 0), validate.whole("every", every, 1)
    if steps % every:
        raise ValueError(f"every must divide steps, got every = {every} and steps = {steps}")
    validate.nonnegative("dt", dt)
    validate.nonnegative("momentum", momentum)
    if validate.is_concrete(momentum) and np.any(np.asarray(momentum) >= 1):
        raise ValueError(f"momentum must lie in [0, 1), got {validate.shown(momentum)}")
    if not isinstance(nesterov, bool):
        raise ValueError(f"nesterov must be True or False, got {nesterov!r}")
    return steps, every


def check_norm_cap(norm_cap, dtype) -> Float[Array, ""]:
    """The norm past which a run is stopped; None is the square root of the dtype's largest number."""
    if norm_cap is None:
        return jnp.asarray(jnp.finfo(dtype).max ** 0.5, dtype)
    validate.positive("norm_cap", norm_cap)
    return jnp.asarray(norm_cap, dtype)


def check_observe(observe, scaled: bool = False, determined: str = "states") -> None:
    """Refuse what is not a dictionary of functions, or not invariant where scaled or rotated states ask for it."""
    if observe is None:
        return
    if not isinstance(observe, dict) or not all(isinstance(k, str) and callable(f) for k, f in observe.items()):
        raise ValueError(f"observe must be a dictionary of names to functions of (problem, state), got {observe!r}")
    for key, function in observe.items():
        if scaled and not getattr(function, "scale_invariant", False):
            raise ValueError(
                f"observe[{key!r}] is not known to be scale-invariant and scaled=True gives states of unit norm; "
                "use scaled=False, or mark the function with observables.observable(scale_invariant=True)"
            )
        if determined == "rotation" and not getattr(function, "rotation_invariant", False):
            raise ValueError(
                f"observe[{key!r}] is not known to be rotation-invariant and the formula gives states up to a rotation of "
                "feature space; mark the function with observables.observable(rotation_invariant=True) if it is, or simulate"
            )


def observe_state(observe, problem, state) -> PyTree:
    """The observed values of one state, or the state itself when nothing is asked for."""
    if observe is None:
        return state
    observed = {}
    for key, function in observe.items():
        value = function(problem, state)
        try:
            observed[key] = jnp.asarray(value)
        except (TypeError, ValueError):
            raise ValueError(f"observe[{key!r}] must return a number or an array, got {type(value).__name__}") from None
    return observed


def ended(code: Int[Array, ""], start_code: Int[Array, ""]) -> Int[Array, ""]:
    """The status of a run that began at a start of this code."""
    return jnp.where(code == status.OK, start_code, code).astype(jnp.int32)
