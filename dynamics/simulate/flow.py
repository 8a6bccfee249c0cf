"""Gradient flow of any problem."""

from typing import Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dynamics import validate
from dynamics.problems import Problem
from dynamics.rates import Rates
from dynamics.simulate.general_flow import general_flow
from dynamics.simulate.lane_flow import lane_flow
from dynamics.simulate.lane_step import fits
from dynamics.simulate.paths import batched_by, differentiated_by
from dynamics.simulate.prepared import Prepared, Run, as_trajectory, ending, prepare, velocity
from dynamics.trajectory import Trajectory, observe_state

METHODS = ("auto", "general", "forward")


def flow(
    problem: Problem,
    state: PyTree,
    rates: Rates,
    ts,
    *,
    observe: dict | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
    norm_cap=None,
    method: Literal["auto", "general", "forward"] = "auto",
) -> Trajectory:
    r"""Gradient flow $x' = \eta(t)\,\mathrm{force}(x)$ from `state` at t = 0, by an adaptive ODE solver.

    Takes one member; composes with `jax.jit`, `jax.vmap` (every member keeps its own steps) and `jax.grad`.

    **Arguments:**

    - `problem`: what is minimised.
    - `state`: where it starts.
    - `rates`: learning rates over time; their jumps are handed to the step controller.
    - `ts`: shape (times,), strictly increasing, >= 0.
    - `observe`: a dictionary of observables `f(problem, state)`; given, their values are kept instead of the states.
    - `rtol`, `atol`: tolerances per step; None is 1e-8 in float64 and 1e-5 in float32.
    - `solver`: any diffrax solver; None is Tsit5, or Dopri8 for `rtol` below 1e-8.
    - `max_steps`: the run ends with status `max_steps` after as many.
    - `norm_cap`: the run ends with status `norm_cap` once the state's norm passes it; None is the square root of the dtype's
      largest number.
    - `method`: "general" is the diffrax path; "auto" chooses, today always "general".

    **Returns:** a `Trajectory`; after a stop its entries are NaN.

    **Raises:** `ValueError` on the host for anything out of range that is known before tracing.
    """
    validate.choice("method", method, METHODS)
    max_steps = validate.whole("max_steps", max_steps, 1)
    run = prepare(problem, state, rates, ts, observe, rtol, atol, solver, norm_cap)
    if method == "forward" and not fits(run.solver):
        raise ValueError(f"method='forward' needs an explicit pair such as Tsit5 or Dopri8, got {run.solver!r}")
    arrays, static = eqx.partition(run, eqx.is_array)

    def general(arrays) -> Run:
        return general_flow(eqx.combine(arrays, static), observe, max_steps)

    def batch(has_axis, arrays) -> Run:
        (has_axis,) = has_axis
        if has_axis.ts or jax.default_backend() != "cpu":
            return jax.vmap(general, (jax.tree.map(lambda flag: 0 if flag else None, has_axis),))(arrays)
        return _in_lanes(arrays, static, has_axis, observe, max_steps)

    move = general
    if method != "general" and fits(run.solver):
        move = batched_by(batch)
        move = differentiated_by(general, move) if method == "auto" else move
    return as_trajectory(run.ts, move(arrays), observe, run.begins)


def _in_lanes(arrays: Prepared, static: Prepared, has_axis: Prepared, observe, max_steps: int) -> Run:
    """Many members; the leaves of `arrays` marked in `has_axis` have a leading axis."""
    members = next(leaf.shape[0] for leaf, flag in zip(*map(jax.tree.leaves, (arrays, has_axis)), strict=True) if flag)

    def whole(leaf, flag):
        return leaf if flag else jnp.broadcast_to(leaf, (members, *leaf.shape))

    start = jax.tree.map(whole, arrays.start, has_axis.start)
    valid, norm_cap = whole(arrays.valid, has_axis.valid), whole(arrays.norm_cap, has_axis.norm_cap)
    args, has_lanes = (arrays.problem, arrays.rates), (has_axis.problem, has_axis.rates)

    def nouns(args) -> tuple[Problem, Rates]:
        return eqx.combine(args, (static.problem, static.rates))

    def look(y, args):
        problem, _ = nouns(args)
        return observe_state(observe, problem, problem.complete(y))

    def stiffness(y, args):
        problem, rates = nouns(args)
        return problem.stiffness(y) * jnp.maximum(rates.features(0.0), rates.weights(0.0))

    axes = (0, jax.tree.map(lambda flag: 0 if flag else None, has_lanes))
    size = sum(leaf.size for leaf in jax.tree.leaves(start)) // members
    ends = lane_flow(
        lambda t, y, args: velocity(t, y, nouns(args)),
        look,
        lambda args: nouns(args)[1].jumps(),
        start,
        args,
        has_lanes,
        arrays.ts,
        valid,
        norm_cap,
        jax.vmap(stiffness, axes)(start, args) if members > 1 else None,
        solver=static.solver,
        rtol=static.rtol,
        atol=static.atol,
        max_steps=max_steps,
        lanes=lanes_for(size, members),
    )
    short = ends.t_end < arrays.ts[-1]
    code = ending(valid, whole=~ends.stopped & ~short, out_of_steps=~ends.stopped & short, runaway=ends.stopped & ends.finite)
    return Run(ends.values, code, ends.steps, ends.t_end)


def lanes_for(size: int, members: int) -> int:
    """How many members of so many numbers move side by side: what a step touches should fit in a core's second cache."""
    if members == 1 or size > LARGE:
        return 1
    return 16 if size <= MEDIUM and members > 8 else 8


MEDIUM, LARGE = 1024, 4096
"""Numbers of a member up to which sixteen, and eight, move side by side."""
