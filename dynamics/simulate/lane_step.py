"""One adaptive Runge-Kutta step of several members, each with its own time, step and error; members in the last axis."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import state as tree
from dynamics.simulate.lanes_last import apart, norm, row_sum

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
"""How a step is chosen after an error, as diffrax's controller does by default."""

GROW_FIRST = 1e4
"""How much longer the second step may be: the length of the first is a guess, made short to be safe."""


TOGETHER = 3
"""Stages in one part of a step: XLA hands out the operations of a part to several threads unless they are at most eight."""


class Moving(NamedTuple):
    """Members on their way, lanes in the last axis of every array.

    `t + late` is the time: `late` is what rounding left out of `t`. `k` is the velocity there, `h` the step to try.
    """

    y: PyTree
    k: PyTree
    t: Float[Array, " lanes"]
    late: Float[Array, " lanes"]
    h: Float[Array, " lanes"]
    steps: Int[Array, " lanes"]
    stopped: Bool[Array, " lanes"]

    def arrived(self, step: "Step", kept: Bool[Array, " lanes"]) -> "Moving":
        """With the state and the velocity to which a step led, where it is kept."""
        y, k = tree.select(kept, (step.y1, step.stages[-1]), (self.y, self.k))
        return self._replace(y=y, k=k)


class Step(NamedTuple):
    """A step that was tried: where from, its length, its stages, and whether it is kept."""

    y: PyTree
    t: Float[Array, " lanes"]
    late: Float[Array, " lanes"]
    h: Float[Array, " lanes"]
    stages: list[PyTree]
    y1: PyTree
    kept: Bool[Array, " lanes"]
    reaches: Float[Array, " lanes"]


def fits(solver) -> bool:
    """Whether a diffrax solver is an explicit pair whose last stage is the first of the next step."""
    tableau = getattr(solver, "tableau", None)
    return (
        isinstance(solver, diffrax.AbstractERK)
        and isinstance(tableau, diffrax.ButcherTableau)
        and tableau.fsal
        and tableau.ssal
        and hasattr(solver, "interpolation_cls")
    )


class Stepper(NamedTuple):
    """What all steps of a run share.

    **Arguments:**

    - `solver`: a diffrax solver that `fits`: its coefficients are used.
    - `velocity`: (times (lanes,), state) to the motion, lanes last.
    - `t_end`: where the run ends.
    - `jumps`: (jumps, lanes) or (jumps, 1), where the velocity jumps; no step goes across one.
    - `rtol`, `atol`: tolerances per step.
    - `norm_cap`: (lanes,) or a number.
    """

    solver: Any
    velocity: Callable
    t_end: Float[Array, ""]
    jumps: Float[Array, "jumps lanes"]
    rtol: float
    atol: float
    norm_cap: Array

    def at_rest(self, y: PyTree, lanes: int, first: float) -> Moving:
        """Before the first step, which has the length `first`."""
        zeros = jnp.zeros(lanes, self.t_end.dtype)
        stopped = ~(norm(y) <= self.norm_cap)
        k = self.velocity(self._after(zeros), y)
        return Moving(y, k, zeros, zeros, zeros + first, jnp.zeros(lanes, jnp.int32), stopped)

    def attempt(self, moving: Moving, active: Bool[Array, " lanes"]) -> tuple[Moving, Step]:
        """Try one step in the active lanes; the others make a step of length zero and stay as they are.

        The state and the velocity are still those before it, of which what lies within the step is made; see `arrived`.
        """
        h, target, arrives = apart(self._length, moving, active)
        stages = [self.velocity(self._after(moving.t), moving.y) if self.jumps.shape[0] else moving.k]
        rows = [*zip(self.solver.tableau.a_lower, self.solver.tableau.c, strict=True)]
        y1 = moving.y
        for begin in range(0, len(rows), TOGETHER):
            some = functools.partial(self._stages, rows[begin : begin + TOGETHER])
            stages, y1 = apart(some, moving, h, target, stages)
        # the last stage was evaluated at the end of the step
        still = jax.lax.stop_gradient((moving.y, y1, h, stages))  # what steps are made of is not what is differentiated
        error = apart(self._error, *still)
        runaway = ~(apart(norm, still[1]) <= self.norm_cap)
        times = moving._replace(y=None, k=None)
        moved, step = apart(self._judged, times, active, h, target, arrives, error, runaway)
        return moved._replace(y=moving.y, k=moving.k), step._replace(y=moving.y, stages=stages, y1=y1)

    def _length(self, moving: Moving, active):
        """The length of the step, where it may end at most, and whether it ends there."""
        t = moving.t
        ahead = jnp.where(self.jumps > t, self.jumps, self.t_end)
        target = jnp.min(jnp.concatenate([ahead, jnp.broadcast_to(self.t_end, (1, *t.shape))]), axis=0)
        room = (target - t) - moving.late
        arrives = moving.h >= room * (1 - 100 * jnp.finfo(t.dtype).eps)
        return jnp.where(active, jnp.where(arrives, room, moving.h), 0.0), target, arrives

    def _stages(self, rows, moving: Moving, h, target, stages):
        """Further stages, and where the last of them was evaluated."""
        y1 = moving.y
        for row, node in rows:
            time = moving.t + (moving.late + float(node) * h)
            time = jnp.minimum(time, jnp.nextafter(target, moving.t)) if self.jumps.shape[0] else time
            y1 = apart(functools.partial(_along, row), moving.y, h, *stages)
            stages = [*stages, self.velocity(time, y1)]
        return stages, y1

    def _error(self, y, y1, h, stages) -> Float[Array, " lanes"]:
        """The error of the step over what the tolerances allow, in the root mean square."""

        def scaled(old, new, *slopes):
            error = h * _combined(self.solver.tableau.b_error, slopes)
            return jnp.square(error / (self.atol + self.rtol * jnp.maximum(jnp.abs(old), jnp.abs(new))))

        squares = jax.tree.map(functools.partial(row_sum, scaled), y, y1, *stages)
        count = sum(leaf.size // leaf.shape[-1] for leaf in jax.tree.leaves(y))
        error = jnp.sqrt(sum(jax.tree.leaves(squares)) / count)
        return jnp.where(jnp.isnan(error), jnp.inf, error)

    def _judged(self, moving: Moving, active, h, target, arrives, error, runaway) -> tuple[Moving, Step]:
        """What becomes of a step with such an error, states and velocities apart."""
        t = moving.t
        least = jnp.finfo(t.dtype).eps * 1e-3 * self.t_end
        kept = active & ((error < 1) | (h <= least))
        wanted = SAFETY * jnp.maximum(error, jnp.finfo(t.dtype).tiny) ** (-1 / self.solver.order(None))
        longest = jnp.where(moving.steps == 0, GROW_FIRST, GROW).astype(t.dtype)
        factor = jnp.clip(wanted, jnp.where(kept, 1.0, SHRINK), jnp.where(kept, longest, SAFETY))
        reached = moving.late + h
        ahead = t + reached
        reaches = jnp.where(arrives, target, ahead)
        late = jnp.where(arrives, 0.0, reached - (ahead - t))
        step = Step(None, t, moving.late, h, [], None, kept, reaches)
        moved = moving._replace(
            t=jnp.where(kept, reaches, t),
            late=jnp.where(kept, late, moving.late),
            h=jnp.where(active, jnp.maximum(h * factor, least), moving.h),
            steps=moving.steps + active,
            stopped=moving.stopped | (kept & runaway),
        )
        return moved, step

    def within(self, step: Step, times: Float[Array, " lanes"]) -> PyTree:
        """The state at times within a step, by the solver's own interpolation."""
        where = ((times - step.t) - step.late) / step.h
        weights = _interpolation(self.solver, where)
        weights = weights[:2] + [step.h * weight for weight in weights[2:]]
        used = _used_weights(self.solver)
        parts = [part for part, use in zip((step.y, step.y1, *step.stages), used, strict=True) if use]
        weights = [weight for weight, use in zip(weights, used, strict=True) if use]
        return apart(lambda *trees: jax.tree.map(lambda *leaves: _combined(weights, leaves), *trees), *parts)

    def _after(self, t):
        """A time at which the velocity is that of what follows."""
        return jnp.nextafter(t, self.t_end) if self.jumps.shape[0] else t


def _interpolation(solver, where: Float[Array, " lanes"]) -> list[Array]:
    """The weights of start, end and slopes (per unit step) in the state at a fraction of a step, each (lanes,).

    An interpolation is linear in them, so its weights are its values on unit vectors.
    """
    stages = len(solver.tableau.c) + 1
    unit = jnp.asarray(np.eye(2 + stages), where.dtype)

    def weights(fraction):
        whole = jnp.ones((), where.dtype)
        curve = solver.interpolation_cls(t0=0 * whole, t1=whole, y0=unit[0], y1=unit[1], k=unit[2:])
        return curve.evaluate(fraction)

    return list(jax.vmap(weights, out_axes=1)(where))


def _used_weights(solver) -> np.ndarray:
    """Which of these weights are not zero throughout."""
    with jax.ensure_compile_time_eval():
        found = jax.jit(lambda where: jnp.stack(_interpolation(solver, where)))(jnp.asarray([0.3, 0.7]))
        return np.any(np.asarray(found) != 0, axis=1)


def _along(row, y, h, *stages):
    """`y` and a step along a combination of stages."""
    return jax.tree.map(lambda start, *slopes: start + h * _combined(row, slopes), y, *stages)


def _combined(weights, slopes):
    """The combination of slopes by weights. Numbers among these do not change the dtype; those that are zero are left out."""
    weights = [float(weight) if isinstance(weight, np.floating) else weight for weight in weights]
    pairs = zip(weights, slopes, strict=True)
    terms = [weight * slope for weight, slope in pairs if not (isinstance(weight, float) and weight == 0)]
    return sum(terms[1:], terms[0])
