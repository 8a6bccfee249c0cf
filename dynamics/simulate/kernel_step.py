"""The adaptive Tsit5 step inside an accelerator kernel: everything it needs is arithmetic on a tuple of arrays.

The numbers that steer (time, step, error) have the shape (), one member a program, or (members,), several side by side,
each with its own.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

SOLVER = diffrax.Tsit5()
TABLEAU, ORDER = SOLVER.tableau, 5
CONTROL = diffrax.PIDController(rtol=1e-3, atol=1e-3)
"""How a step follows an error is diffrax's default; only `safety`, `factormin` and `factormax` are read."""

Parts = tuple[Array, ...]


class Moving(NamedTuple):
    """On the way, before the step of length `h` that is tried next.

    `t + late` is the time: `late` is what rounding left out of `t`, so that a float32 clock never stands still.
    `k` is the velocity there; `arrives`: the step ends exactly at its target; `least`: it is as short as steps get.
    """

    y: Parts
    k: Parts
    t: Float[Array, "*members"]
    late: Float[Array, "*members"]
    h: Float[Array, "*members"]
    arrives: Bool[Array, "*members"]
    least: Bool[Array, "*members"]
    steps: Int[Array, "*members"]


class Step(NamedTuple):
    """A step that was tried: where from, its stages, and whether it is kept."""

    y: Parts
    stages: list[Parts]
    kept: Bool[Array, "*members"]


class Stepper(NamedTuple):
    """What all steps of a run share.

    **Arguments:**

    - `velocity`: (time, parts) to the motion of each part.
    - `total`: parts to their sum, of the shape of a time.
    - `count`: how many numbers the error is averaged over.
    - `t_end`: where the run ends.
    - `rtol`, `atol`: tolerances per step.
    - `jumps`: shape (jumps,), times where the velocity jumps, infinite where there is none; no step goes across one. For
      one member a program; None: nowhere.
    """

    velocity: Callable
    total: Callable
    count: int
    t_end: Array
    rtol: Array | float
    atol: Array | float
    jumps: Float[Array, " jumps"] | None = None

    def at_rest(self, y: Parts, first) -> Moving:
        """Before the first step, of length `first`, at t = 0."""
        zero = jnp.zeros_like(self.t_end)
        h = jnp.maximum(zero + first, self._shortest)
        room = self._target(zero, zero)
        arrives = h >= room
        least = jnp.zeros_like(arrives)  # the first step may be refused, however short
        k = self.velocity(self._after(zero), y)
        return Moving(y, k, zero, zero, jnp.where(arrives, room, h), arrives, least, jnp.zeros_like(zero, jnp.int32))

    def attempt(self, old: Moving, active=None) -> tuple[Moving, Step]:
        """Try one step where `active` (None: everywhere); what is not stays as it is."""
        active = jnp.ones_like(old.least) if active is None else active
        h, target = old.h, self._target(old.t, old.late)
        latest = target if self.jumps is None else _before(target)
        y1, stages = taken(
            lambda node, y: self.velocity(jnp.minimum(old.t + (old.late + node * h), latest), y), old.y, old.k, h
        )

        error = (h * combined(TABLEAU.b_error, slopes) for slopes in zip(*stages, strict=True))
        scales = (self.atol + self.rtol * jnp.maximum(jnp.abs(a), jnp.abs(b)) for a, b in zip(old.y, y1, strict=True))
        squares = tuple(jnp.square(e / scale) for e, scale in zip(error, scales, strict=True))
        size = jnp.sqrt(self.total(squares) / self.count)
        size = jnp.where(size == size, size, jnp.inf)

        kept = ((size < 1) | old.least) & active
        one = jnp.ones_like(h)  # Pallas for Triton gives the choice between two plain numbers the type of the condition
        least, most = jnp.where(kept, one, CONTROL.factormin), jnp.where(kept, CONTROL.factormax * one, CONTROL.safety)
        wanted = h * jnp.clip(CONTROL.safety * size ** (-1 / ORDER), least, most)

        sum_ = old.late + h
        ahead = old.t + sum_
        t = jnp.where(kept, jnp.where(old.arrives, target, ahead), old.t)
        late = jnp.where(kept, jnp.where(old.arrives, 0.0, sum_ - (ahead - old.t)), old.late)
        # as diffrax: nothing but rounding may be left before the end; a step almost there goes there, one tried again halfway
        room = (self._target(t, late) - t) - late
        least, wanted = wanted <= self._shortest, jnp.maximum(wanted, self._shortest)
        rounding = jnp.minimum(100 * jnp.finfo(t.dtype).eps * self.t_end, 0.01 * wanted)
        near = wanted >= room - rounding
        moved = Moving(
            y=chosen(kept, y1, old.y),
            k=chosen(kept, stages[-1], old.k),
            t=t,
            late=late,
            h=jnp.where(near, jnp.where(kept, room, 0.5 * room), wanted),
            arrives=near & kept,
            least=least,
            steps=old.steps + active.astype(jnp.int32),
        )
        if self.jumps is not None:  # the last stage saw the velocity before the jump
            k = jax.lax.cond(kept & old.arrives, lambda: self.velocity(self._after(t), moved.y), lambda: moved.k)
            moved = moved._replace(k=k)
        return moved, Step(old.y, stages, kept)

    def ahead(self, moving: Moving):
        """Where there is time left to go."""
        return (self.t_end - moving.t) - moving.late > 0

    @property
    def _shortest(self):
        return jnp.finfo(self.t_end.dtype).eps * 1e-3 * self.t_end

    def _target(self, t, late):
        """The next time that a step may not cross."""
        if self.jumps is None:
            return self.t_end
        ahead = (self.jumps - t) - late > 0
        return jnp.minimum(jnp.min(jnp.where(ahead, self.jumps, jnp.inf)), self.t_end)

    def _after(self, t):
        return t if self.jumps is None else jnp.nextafter(t, jnp.full_like(t, jnp.inf))


def taken(velocity: Callable, y: Parts, k: Parts, h) -> tuple[Parts, list[Parts]]:
    """The end of a step of length `h` from `y`, and the velocities of its stages; `velocity` is of (node, parts)."""
    stages = [k]
    for row, node in zip(TABLEAU.a_lower, TABLEAU.c, strict=True):
        y1 = tuple(a + h * combined(row, slopes) for a, *slopes in zip(y, *stages, strict=True))
        stages.append(velocity(float(node), y1))
    # the last stage was evaluated at the end of the step
    return y1, stages


def within(step: Step, h, where) -> Parts:
    """The state at a fraction of a step of length `h`, by the method's own interpolation."""
    weights = [where * functools.reduce(lambda sum_, c: sum_ * where + c, row) for row in interpolation()]
    return tuple(a + h * combined(weights, slopes) for a, *slopes in zip(step.y, *step.stages, strict=True))


def combined(weights, slopes) -> Array:
    """The combination of slopes by weights, those that are zero left out."""
    pairs = zip(weights, slopes, strict=True)
    weighed = [(float(w) if isinstance(w, float | np.floating) else w, slope) for w, slope in pairs]
    terms = [w * slope for w, slope in weighed if not (isinstance(w, float) and w == 0)]
    return functools.reduce(jnp.add, terms)


def chosen(flag, yes: Parts, no: Parts) -> Parts:
    """`yes` where the flag is set."""
    return tuple(jnp.where(flag, a, b) for a, b in zip(yes, no, strict=True))


@functools.cache
def interpolation() -> tuple[tuple[float, ...], ...]:
    """Of each stage, the weight at a fraction x of a step over x, a polynomial: its coefficients, highest power first.

    The weights are polynomials of degree 4 without a constant, read off diffrax's interpolation at four fractions.
    """
    stages = len(TABLEAU.c) + 1
    places = np.arange(1, 5) / 4
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        unit = jnp.eye(1 + stages)
        curve = SOLVER.interpolation_cls(t0=jnp.asarray(0.0), t1=jnp.asarray(1.0), y0=unit[0], y1=None, k=unit[1:])
        values = np.stack([np.asarray(curve.evaluate(jnp.asarray(place)))[1:] for place in places])
    coefficients = np.linalg.solve(np.vander(places, 4), values / places[:, None])
    return tuple(tuple(map(float, row)) for row in coefficients.T)


def _before(t):
    return jnp.nextafter(t, jnp.zeros_like(t))
