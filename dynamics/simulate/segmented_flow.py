"""Gradient flow that can be run a few steps at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import state as tree
from dynamics import validate
from dynamics.problems import Problem
from dynamics.rates import Rates
from dynamics.segmented import Segmented
from dynamics.simulate.general_flow import step_control
from dynamics.simulate.prepared import Run, as_trajectory, choices, ending, prepare, velocity
from dynamics.trajectory import blank, check_norm_cap, check_observe, check_times, observe_state

FIRST_STEP = 0.01
"""The step that diffrax tries first where it is left to choose."""


class Moving(NamedTuple):
    """What changes from step to step: the state at `t`, the end of the step to try, and what solver and controller keep."""

    y: PyTree
    t: Float[Array, ""]
    t_next: Float[Array, ""]
    made_jump: Bool[Array, ""]
    solver: PyTree
    control: PyTree
    steps: Int[Array, ""]
    stopped: Bool[Array, ""]  # at a norm past the cap or not finite
    failed: Bool[Array, ""]  # the solver gave up


class Saved(NamedTuple):
    """Values at the times passed so far, zeros at the others, and the number of the time to save next."""

    values: PyTree
    upcoming: Int[Array, ""]


class Carry(NamedTuple):
    """A run between two segments."""

    problem: Problem
    rates: Rates
    valid: Bool[Array, ""]
    begins: Int[Array, ""]
    moving: Moving
    saved: Saved


class Solve(NamedTuple):
    """Diffrax's pieces of one run."""

    term: Any
    method: Any
    control: Any


def segmented_flow(
    build: Callable,
    ts,
    *,
    observe: dict | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
    norm_cap=None,
    segment: int = 16,
) -> Segmented:
    """`dynamics.flow` a few steps at a time: the same steps, statuses and trajectory, whatever the segment.

    **Arguments:**

    - `build`: (member) or (member, key) to (problem, state, rates).
    - `ts`, `observe`, `rtol`, `atol`, `solver`, `max_steps`, `norm_cap`: as in `dynamics.flow`.
    - `segment`: steps of one advance.

    **Raises:** `ValueError` on the host for anything out of range that is known before tracing.
    """
    check_observe(observe)
    max_steps = validate.whole("max_steps", max_steps, 1)
    segment = validate.whole("segment", segment, 1)
    ts = check_times(ts, jnp.result_type(float))

    def look(problem, y):
        return observe_state(observe, problem, problem.complete(y))

    def begin(*member) -> Carry:
        problem, state, rates = build(*member)
        run = prepare(problem, state, rates, ts, observe, rtol, atol, solver, norm_cap)
        solve = _solve(run.rates, run.ts[-1], run.rtol, run.atol, run.solver)
        shapes = jax.eval_shape(look, run.problem, run.start)
        zeros = jax.tree.map(lambda leaf: jnp.zeros((ts.shape[0], *leaf.shape), leaf.dtype), shapes)
        with jax.default_matmul_precision("highest"):
            moving = _at_rest(solve, run.start, (run.problem, run.rates), run.ts[-1])
            first = jax.lax.cond(
                run.ts[0] == 0,
                lambda: jax.tree.map(lambda all, one: all.at[0].set(one), zeros, look(run.problem, run.start)),
                lambda: zeros,
            )
        moving = moving._replace(stopped=~(tree.norm(run.start) <= run.norm_cap))
        saved = Saved(first, jnp.where(run.ts[0] == 0, 1, 0))
        return jax.tree.map(jnp.asarray, Carry(run.problem, run.rates, run.valid, run.begins, moving, saved))

    def going(valid, moving: Moving):
        t_end = ts[-1].astype(moving.t.dtype)
        return valid & (moving.t < t_end) & ~moving.stopped & ~moving.failed & (moving.steps < max_steps)

    def advance(carry: Carry) -> Carry:
        dtype = carry.moving.t.dtype
        times, cap = ts.astype(dtype), check_norm_cap(norm_cap, dtype)
        solve = _solve(carry.rates, times[-1], *choices(rtol, atol, solver, dtype))

        def step(counted):
            count, old, saved = counted
            on = going(carry.valid, old)
            new, keep, within = _step(solve, old, (carry.problem, carry.rates), times[-1])
            saved = _save(saved, times, keep & on, old.t_next, lambda t: look(carry.problem, within.evaluate(t)))
            new = new._replace(stopped=~(tree.norm(new.y) <= cap))
            return count + 1, tree.select(on, new, old), saved

        with jax.default_matmul_precision("highest"):
            _, moving, saved = jax.lax.while_loop(
                lambda counted: (counted[0] < segment) & _anywhere(going(carry.valid, counted[1])),
                step,
                (0, carry.moving, carry.saved),
            )
        return carry._replace(moving=moving, saved=saved)

    def end(carry: Carry):
        moving, times = carry.moving, ts.astype(carry.moving.t.dtype)
        sound, short = ~moving.stopped & ~moving.failed, moving.t < times[-1]
        code = ending(
            carry.valid,
            whole=sound & ~short,
            out_of_steps=sound & short,
            runaway=moving.stopped & tree.all_finite(moving.y),
        )
        t_end = jnp.where(carry.valid, moving.t, 0.0)
        values = blank((times > t_end) | ~carry.valid, carry.saved.values)
        run = Run(values, code, jnp.where(carry.valid, moving.steps, 0), t_end)
        return as_trajectory(times, run, observe, carry.begins)

    return Segmented(
        begin=begin,
        advance=advance,
        done=lambda carry: ~going(carry.valid, carry.moving),
        steps=lambda carry: jnp.where(carry.valid, carry.moving.steps, 0),
        end=end,
    )


def _solve(rates: Rates, t_end, rtol: float, atol: float, method) -> Solve:
    """The pieces; an implicit solver's root finder has, where it asks for them, the tolerances of the steps."""
    steps = diffrax.PIDController(rtol=rtol, atol=atol)
    finder = getattr(method, "root_finder", None)
    for name in ("rtol", "atol", "norm"):
        asked = getattr(finder, name, 0.0)
        if not (callable(asked) or isinstance(asked, float)):
            method = eqx.tree_at(lambda m, name=name: getattr(m.root_finder, name), method, getattr(steps, name))
    term = diffrax.ODETerm(velocity)  # pyright: ignore[reportArgumentType]
    return Solve(term, method, step_control(rates, t_end, rtol, atol))


def _at_rest(solve: Solve, y: PyTree, args, t_end) -> Moving:
    """Before the first step."""
    term, method, control = solve
    t, first = jnp.zeros_like(t_end), jnp.asarray(FIRST_STEP, t_end.dtype)
    t_next, memory = control.init(term, t, t_end, y, first, args, method.func, method.error_order(term))
    t_next = jnp.minimum(t_next, t_end)
    no = jnp.asarray(False)
    return Moving(y, t, t_next, no, method.init(term, t, t_next, y, args), memory, jnp.asarray(0), no, no)


def _step(solve: Solve, old: Moving, args, t_end):
    """One step as diffrax takes it: where it leads, whether it is kept, and the motion within it."""
    term, method, control = solve
    y, error, dense, solver, result = method.step(term, old.t, old.t_next, old.y, args, old.solver, old.made_jump)
    error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
    keep, t, t_next, made_jump, memory, verdict = control.adapt_step_size(
        old.t, old.t_next, old.y, y, args, error, method.error_order(term), old.control
    )
    t = jnp.minimum(t, t_end)
    # nothing but rounding may be left before the end: a step almost there goes there, one tried again goes half the way
    to_end = jnp.where(keep, t_end, t + 0.5 * (t_end - t))
    new = Moving(
        y=tree.select(keep, y, old.y),
        t=t,
        t_next=jnp.where(t_next > _ulps_below(t_end, 100), to_end, t_next),
        made_jump=jnp.where(keep, made_jump, old.made_jump),
        solver=tree.select(keep, solver, old.solver),
        control=memory,
        steps=old.steps + 1,
        stopped=old.stopped,
        failed=(keep & ~diffrax.is_okay(result)) | ~diffrax.is_okay(verdict),
    )
    return new, keep, method.interpolation_cls(t0=old.t, t1=old.t_next, **dense)


def _save(saved: Saved, times, kept, up_to, look: Callable) -> Saved:
    """The times up to the end of a step that was kept."""
    size = times.shape[0]

    def pending(upcoming):
        return kept & (upcoming < size) & (times[jnp.minimum(upcoming, size - 1)] <= up_to)

    def one(saved: Saved) -> Saved:
        now, seen = pending(saved.upcoming), look(times[jnp.minimum(saved.upcoming, size - 1)])
        row = jnp.where(now, saved.upcoming, size)
        return Saved(jax.tree.map(lambda all, one: all.at[row].set(one, mode="drop"), saved.values, seen), saved.upcoming + now)

    return jax.lax.while_loop(lambda saved: _anywhere(pending(saved.upcoming)), one, saved)


def _ulps_below(x: Float[Array, ""], count: int) -> Float[Array, ""]:
    """The number `count` floating-point numbers below a positive one."""
    bits = jax.lax.bitcast_convert_type(x, {4: jnp.int32, 8: jnp.int64}[x.dtype.itemsize])
    return jax.lax.bitcast_convert_type(bits - count, x.dtype)


@custom_vmap
def _anywhere(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether the flag is set in any member of the surrounding batches: a loop on it selects nothing member by member."""
    return flag


@_anywhere.def_vmap
def _anywhere_in_batch(size, batched, flag):
    return _anywhere(jnp.any(flag)), False
