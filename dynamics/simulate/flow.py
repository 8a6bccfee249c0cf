"""Gradient flow of any problem."""

from typing import Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dynamics import validate
from dynamics.problems import LayerPeeled, Problem
from dynamics.rates import Rates
from dynamics.reduce import choose
from dynamics.simulate.clock import Clock, LogTime
from dynamics.simulate.clock_flow import clock_flow
from dynamics.simulate.general_flow import general_flow
from dynamics.simulate.lane_flow import Ends, lane_flow
from dynamics.simulate.lane_step import fits
from dynamics.simulate.paths import batched_by, differentiated_by, pushed_forward
from dynamics.simulate.prepared import Prepared, Run, as_trajectory, closing, ending, lifted, look, prepare, velocity
from dynamics.trajectory import Trajectory

METHODS = ("auto", "general", "forward", "kernel")


def flow(
    problem: Problem,
    state: PyTree,
    rates: Rates,
    ts,
    *,
    clock: Clock | Literal["auto"] | None = None,
    until: LogTime | None = None,
    observe: dict | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
    norm_cap=None,
    method: Literal["auto", "general", "forward", "kernel"] = "auto",
    reduce: Literal["auto", "off"] = "auto",
) -> Trajectory:
    r"""Gradient flow $x' = \eta(t)\,\mathrm{force}(x)$ from `state` at t = 0, by an adaptive ODE solver.

    Takes one member; composes with `jax.jit`, `jax.vmap` (every member keeps its own steps) and `jax.grad`.

    **Arguments:**

    - `problem`: what is minimised.
    - `state`: where it starts.
    - `rates`: learning rates over time; their jumps are handed to the step controller.
    - `ts`: shape (times,), strictly increasing, >= 0: times, or values of the clock, which is 0 at the start.
    - `clock`: one of `dynamics.clocks`, for a `Network` without decay at one constant rate: the curve is followed by another
      parameter than time, and `log_t` of the result is the logarithm of physical time, minus infinity at the start. "auto" is
      `LogLoss` for smooth nets and `Polar` for nets with kinks. To a fall of the log-loss or a logarithm of time beyond 1e5, as
      `ts` and `until` say, `LogLoss` goes by an implicit solver, and to 1e12 at most (1.9e3 in float32).
    - `until`: with a clock, the physical time at which the run ends, should the last of `ts` not come before.
    - `observe`: a dictionary of observables `f(problem, state)`; given, their values are kept instead of the states.
    - `rtol`, `atol`: tolerances per step; None is 1e-8 in float64 and 1e-5 in float32; along a clock `atol` of None is
      1e-5 `rtol`, beyond 1e5 `rtol`.
    - `solver`: any diffrax solver; None is Tsit5, or Dopri8 for `rtol` below 1e-8.
    - `max_steps`: the run ends with status `max_steps` after as many.
    - `norm_cap`: the run ends with status `norm_cap` once the state's norm passes it; None is the square root of the dtype's
      largest number.
    - `method`: "auto" moves members that `jax.vmap` brings together a few side by side, in the last axis of every array, each
      with its own steps (explicit solvers whose last stage is the first of the next step, such as Tsit5, Dopri5 and Dopri8;
      on a CPU), and takes reverse-mode derivatives the general way; "general" is diffrax throughout; "forward" is "auto"
      with forward-mode derivatives (`jax.jvp`, `jax.jacfwd`) in place of reverse-mode ones; "kernel" makes one program of
      each member on an accelerator, which runs its whole loop in fast memory: small `LayerPeeled` problems with
      cross-entropy, squared error or a linear loss, Tsit5, no derivatives; meant for CUDA, through Pallas' Triton backend,
      and interpreted elsewhere, slower than "auto".
    - `reduce`: "auto" moves a smaller problem where that is exact and pays, see `dynamics.reduce.choose`; "off" never does.
      Only "auto" methods reduce, and only where no derivative is taken.

    **Returns:** a `Trajectory`; after a stop its entries are NaN. Along a clock the first entry past a stop, wanted or not,
    holds the stop itself, with its value of the clock in `ts`. Where a clock comes to an end, as the log-loss at a sample that
    no unit reaches, the status is `outside_assumptions`; `dynamics.clocks.unseparated` lists such members.
    `stats["error_estimate"]` of `LogLoss` is the largest difference of a state's log-loss from the clock, relatively where
    that is above 1.

    **Raises:** `ValueError` on the host for anything out of range that is known before tracing.
    """
    validate.choice("method", method, METHODS)
    validate.choice("reduce", reduce, ("auto", "off"))
    max_steps = validate.whole("max_steps", max_steps, 1)
    if clock is not None:
        if method not in ("auto", "general"):
            raise ValueError(f"method must be 'auto' or 'general' with a clock, got {method!r}")
        how = {"observe": observe, "rtol": rtol, "atol": atol, "solver": solver, "max_steps": max_steps, "norm_cap": norm_cap}
        return clock_flow(problem, state, rates, ts, clock, until, **how)
    if until is not None:
        raise ValueError(f"until needs a clock, such as clock='auto', got until = {until!r} without one")
    if method == "kernel":
        from dynamics.simulate.kernel import kernel_flow  # Pallas is slow to import

        if solver is not None and type(solver) is not diffrax.Tsit5:
            raise ValueError(f"method='kernel' has Tsit5 built in, got solver={solver!r}")
        limits = {"max_steps": max_steps, "norm_cap": norm_cap}
        return kernel_flow(problem, state, rates, ts, observe=observe, rtol=rtol, atol=atol, **limits)
    run = prepare(problem, state, rates, ts, observe, rtol, atol, solver, norm_cap)
    if method == "forward" and not fits(run.solver):
        raise ValueError(f"method='forward' needs an explicit pair such as Tsit5 or Dopri8, got {run.solver!r}")
    run = run._replace(closed=closing(run, observe))
    arrays, static = eqx.partition(run, eqx.is_array)

    def general(arrays: Prepared) -> Run:
        return general_flow(eqx.combine(arrays, static), observe, max_steps)

    def reduced(arrays: Prepared) -> Run:
        """The motion of the reduced problem where there is one. Derivatives go the general way: a basis has none everywhere."""
        run = eqx.combine(arrays, static)
        alike = norm_cap is None and not run.rates.rescaled
        reduction = None
        if isinstance(run.problem, LayerPeeled) and not run.closed:
            reduction = choose(run.problem, run.start, observe=observe, alike=alike, saves=run.ts.shape[0])
        if reduction is None:
            return in_lanes(run, observe, max_steps)
        run = run._replace(problem=reduction.problem, start=reduction.state, reduction=reduction)
        moved = in_lanes(run, observe, max_steps)
        return moved._replace(values=lifted(run, moved.values)) if observe is None else moved

    if method == "general" or not fits(run.solver):
        moved = general(arrays)
    elif method == "forward":
        moved = in_lanes(run, observe, max_steps, pushed_forward)
    else:
        fast = reduced if reduce == "auto" else lambda arrays: in_lanes(eqx.combine(arrays, static), observe, max_steps)
        moved = differentiated_by(general, fast)(arrays)
    return as_trajectory(run.ts, moved, observe, run.begins)


def in_lanes(run: Prepared, observe, max_steps: int, together=batched_by) -> Run:
    """Move a member; under `jax.vmap` all members together, a few side by side."""
    arrays, static = eqx.partition(run, eqx.is_array)

    def batch(has_axis, arrays) -> Run:
        (has_axis,) = has_axis
        if has_axis.ts and arrays.ts.shape[0] == 1:  # of one member
            arrays, has_axis = arrays._replace(ts=arrays.ts[0]), has_axis._replace(ts=False)
        if has_axis.ts or jax.default_backend() != "cpu":
            axes = jax.tree.map(lambda flag: 0 if flag else None, has_axis)
            return jax.vmap(lambda arrays: general_flow(eqx.combine(arrays, static), observe, max_steps), (axes,))(arrays)
        run, valid = eqx.combine(arrays, static), _everywhere(arrays, has_axis, "valid")
        ends = ends_in_lanes(run, has_axis, observe, max_steps)
        short = ends.t_end < run.ts[-1]
        code = ending(
            valid, whole=~ends.stopped & ~short, out_of_steps=~ends.stopped & short, runaway=ends.stopped & ends.finite
        )
        return Run(ends.values, code, ends.steps, ends.t_end)

    return together(batch)(arrays)


def ends_in_lanes(run: Prepared, has_axis: Prepared, observe, max_steps: int, lanes: int | None = None) -> Ends:
    """The ends of many members; the arrays of `run` marked in `has_axis` have a leading axis (members,)."""
    arrays, static = eqx.partition(run, eqx.is_array)
    start = _everywhere(arrays, has_axis, "start")
    valid = _everywhere(arrays, has_axis, "valid")
    members = valid.shape[0]
    rest = {"start": None, "valid": None, "norm_cap": None, "ts": None, "begins": None}
    args, has_lanes = arrays._replace(**rest), has_axis._replace(**rest)

    def of(args) -> Prepared:
        return eqx.combine(args, static)

    def stiffness(y, args):
        run = of(args)
        return run.problem.stiffness(y) * jnp.maximum(run.rates.features(0.0), run.rates.weights(0.0))

    axes = (0, jax.tree.map(lambda flag: 0 if flag else None, has_lanes))
    return lane_flow(
        lambda t, y, args: velocity(t, y, (of(args).problem, of(args).rates)),
        lambda t, y, args: look(of(args), observe, t, y),
        lambda args: of(args).rates.jumps(),
        start,
        args,
        has_lanes,
        run.ts,
        valid,
        _everywhere(arrays, has_axis, "norm_cap"),
        jax.vmap(stiffness, axes)(start, args) if members > 1 else None,
        solver=run.solver,
        rtol=run.rtol,
        atol=run.atol,
        max_steps=max_steps,
        lanes=lanes or lanes_for(sum(leaf.size for leaf in jax.tree.leaves(start)) // members, members),
    )


def steps_in_lanes(problem: Problem, states: PyTree, rates: Rates, ts, *, max_steps: int = 100_000, **options):
    """The steps of flows from many starts, and those for which a lane was a member's; their sums tell how long lanes wait.

    `states` have a leading axis; `options` are `rtol`, `atol` and `solver` of `dynamics.flow`. Both results are (members,).
    """
    asked = {"observe": {}, "rtol": None, "atol": None, "solver": None, "norm_cap": None} | options

    def of(state) -> Prepared:
        return prepare(problem, state, rates, ts, **asked)

    runs = jax.vmap(lambda state: eqx.filter(of(state), eqx.is_array))(states)
    one = of(jax.tree.map(lambda leaf: leaf[0], states))
    run = eqx.combine(runs._replace(ts=one.ts), eqx.filter(one, eqx.is_array, inverse=True))
    flags = jax.tree.map(lambda _: True, eqx.filter(run, eqx.is_array))._replace(ts=False)
    ends = ends_in_lanes(run, flags, {"": lambda problem, state: jnp.zeros(())}, max_steps)
    return ends.steps, ends.held


def _everywhere(arrays: Prepared, has_axis: Prepared, name: str) -> PyTree:
    """A part of a run with a leading axis (members,) on every leaf."""
    leaves, flags = jax.tree.leaves(arrays), jax.tree.leaves(has_axis)
    members = next(leaf.shape[0] for leaf, flag in zip(leaves, flags, strict=True) if flag)

    def whole(leaf, flag):
        return leaf if flag else jnp.broadcast_to(leaf, (members, *leaf.shape))

    return jax.tree.map(whole, getattr(arrays, name), getattr(has_axis, name))


def lanes_for(size: int, members: int) -> int:
    """How many members of so many numbers move side by side: what a step touches should fit in a core's second cache."""
    if members == 1 or size > LARGE:
        return 1
    return 16 if size <= MEDIUM and members > 8 else 8


MEDIUM, LARGE = 1024, 4096
"""Numbers of a member up to which sixteen, and eight, move side by side."""
