"""What all ways of moving along a gradient flow begin with and end in."""

import warnings
from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import state as tree
from dynamics import status, validate
from dynamics.problems import Problem
from dynamics.rates import Rates, check_rates
from dynamics.reduce import Reduction, kept_in_flow, view
from dynamics.simulate.paths import Closed
from dynamics.trajectory import (
    Trajectory,
    check_norm_cap,
    check_observe,
    check_times,
    ended,
    good_times,
    observe_state,
)


class Prepared(NamedTuple):
    """A checked run of one member, every floating number in the dtype of the state.

    A bad member, not `valid`, moves nowhere from a harmless start: it costs a few steps and cannot hold up its batch.
    `begins` is the status of the start. With a `reduction`, problem and start are the reduced ones. `closed`: the observables
    that close over traced numbers, as functions of the state whose numbers are leaves.
    """

    problem: Problem
    start: PyTree
    rates: Rates
    ts: Float[Array, " times"]
    valid: Bool[Array, ""]
    begins: Int[Array, ""]
    norm_cap: Float[Array, ""]
    rtol: float
    atol: float
    solver: diffrax.AbstractSolver
    reduction: Reduction | None = None
    closed: dict[str, Closed] = {}


def prepare(problem, state, rates, ts, observe, rtol, atol, solver, norm_cap) -> Prepared:
    """The run that the arguments of `flow` ask for; raises `ValueError` on the host where they are out of range."""
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a dynamics problem, got {type(problem).__name__}")
    state = problem.check(state)
    dtype = jnp.result_type(*jax.tree.leaves(state))
    check_rates(rates)
    problem, rates = tree.cast((problem, rates), dtype)
    ts = check_times(ts, dtype)
    check_observe(observe)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and validate.tolerance(name, value, dtype) < 100 * float(jnp.finfo(dtype).eps):
            warnings.warn(f"{name} = {value:g} is within 100 eps of {jnp.dtype(dtype)}: rounding may dominate", stacklevel=3)
    rtol, atol, solver = choices(rtol, atol, solver, dtype)
    begins = problem.start_code(state)
    valid = tree.all_finite(state) & good_times(ts) & rates.valid() & problem.valid() & (begins != status.BAD_INPUT)
    start = tree.select(valid, state, jax.tree.map(jnp.ones_like, state))
    return Prepared(problem, start, rates, ts, valid, begins, check_norm_cap(norm_cap, dtype), rtol, atol, solver)


def choices(rtol, atol, solver, dtype) -> tuple[float, float, diffrax.AbstractSolver]:
    """Tolerances and solver, the usual ones where None is given."""
    usual = 1e-8 if dtype == jnp.float64 else 1e-5
    rtol, atol = (usual if value is None else float(value) for value in (rtol, atol))
    if solver is None:
        solver = diffrax.Tsit5() if rtol >= 1e-8 else diffrax.Dopri8()
    elif not isinstance(solver, diffrax.AbstractSolver):
        raise ValueError(f"solver must be a diffrax solver, got {solver!r}")
    return rtol, atol, solver


def closing(run: Prepared, observe: dict | None) -> dict[str, Closed]:
    """The observables that close over traced numbers, such as those of a member: what moves many has to know them."""
    arrays, static = eqx.partition((run.problem, run.start), eqx.is_array)

    def closes(function) -> bool:
        consts = jax.make_jaxpr(lambda arrays: observe_state({"": function}, *eqx.combine(arrays, static)))(arrays).consts
        return any(isinstance(const, jax.core.Tracer) for const in consts)

    found = {name: function for name, function in (observe or {}).items() if closes(function)}
    return {
        name: Closed(lambda state, name=name, f=f: observe_state({name: f}, run.problem, state)[name], run.start)
        for name, f in found.items()
    }


def velocity(t, y, args):
    """The motion of a state; `args` is (problem, rates)."""
    problem, rates = args
    return problem.pace(problem.force(y), y, rates, t)


def look(run: Prepared, observe, t, y):
    """What is kept of a state at time `t`: the observed values, or the state itself, still reduced if it is."""
    if run.closed:
        observe = observe | {name: lambda problem, state, f=f: f(state) for name, f in run.closed.items()}
    if run.reduction is None:
        return observe_state(observe, run.problem, run.problem.complete(y))
    if observe is None:
        return y
    problem, state = view(run.reduction, observe)(y, kept_in_flow(run.reduction.full, run.rates, t))
    return observe_state(observe, problem, problem.complete(state))


def lifted(run: Prepared, states: PyTree) -> PyTree:
    """States of the full problem for reduced ones at `run.ts`."""
    reduction = run.reduction
    if reduction is None:
        return states
    kept = kept_in_flow(reduction.full, run.rates, run.ts)
    return jax.vmap(lambda state, kept: reduction.full.complete(reduction.lift(state, kept)))(states, kept)


def ending(valid, *, whole, out_of_steps, runaway) -> Int[Array, ""]:
    """The status of a solve: the whole way, out of steps, stopped at a finite norm past the cap, else nothing finite left."""
    code = jnp.where(runaway, status.NORM_CAP, status.NON_FINITE)
    code = jnp.where(out_of_steps, status.MAX_STEPS, code)
    code = jnp.where(whole, status.OK, code)
    return jnp.where(valid, code, status.BAD_INPUT).astype(jnp.int32)


class Run(NamedTuple):
    """A run that ended at `t_end`: what was kept, NaN after the end, and how it ended."""

    values: PyTree
    code: Int[Array, ""]
    steps: Int[Array, ""]
    t_end: Float[Array, ""]


def as_trajectory(ts, run: Run, observe, begins) -> Trajectory:
    """What the verb returns of a run that began at a start of code `begins`."""
    return Trajectory(
        ts=ts,
        states=run.values if observe is None else None,
        observed={} if observe is None else run.values,
        status=ended(run.code, begins),
        stats={"steps": run.steps, "t_end": run.t_end},
    )
