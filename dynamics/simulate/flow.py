"""Gradient flow of any problem, integrated by diffrax."""

import warnings
from typing import Literal, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import state as tree
from dynamics import status, validate
from dynamics.problems import Problem
from dynamics.rates import Rates, check_rates
from dynamics.trajectory import Trajectory, blank, check_norm_cap, check_observe, check_times, ended, good_times, observe_state


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
    method: Literal["auto", "general"] = "auto",
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
    if method not in ("auto", "general"):
        raise ValueError(f"method must be 'auto' or 'general', got {method!r}")
    max_steps = validate.whole("max_steps", max_steps, 1)
    run = prepare(problem, state, rates, ts, observe, rtol, atol, solver, norm_cap)
    # the solver raises at times out of order
    times = jnp.where(run.valid, run.ts, jnp.arange(run.ts.shape[0], dtype=run.ts.dtype))

    def moved(t, y, args):
        motion = velocity(t, y, args)
        return tree.select(run.valid, motion, jax.tree.map(jnp.zeros_like, motion))

    def stop(t, y, args, **_):
        return ~(tree.norm(y) <= run.norm_cap)

    with jax.default_matmul_precision("highest"):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(moved),  # pyright: ignore[reportArgumentType]
            run.solver,
            t0=jnp.zeros((), times.dtype),
            t1=times[-1],
            dt0=None,
            y0=run.start,
            args=(run.problem, run.rates),
            saveat=diffrax.SaveAt(
                subs=[
                    diffrax.SubSaveAt(ts=times, fn=lambda t, y, args: observe_state(observe, args[0], args[0].complete(y))),
                    diffrax.SubSaveAt(t1=True, fn=lambda t, y, args: (t, y)),
                ]
            ),
            stepsize_controller=step_control(run.rates, times[-1], run.rtol, run.atol),
            event=diffrax.Event(stop),
            max_steps=max_steps,
            throw=False,
        )
    assert solution.ys is not None
    saved, (last_time, last_state) = solution.ys
    results = diffrax.RESULTS
    code = ending(
        run.valid,
        whole=solution.result == results.successful,
        out_of_steps=(solution.result == results.max_steps_reached) | (solution.result == results.max_steps_rejected),
        runaway=(solution.result == results.event_occurred) & tree.all_finite(last_state),
    )
    saved = _with_start(times, saved, observe_state(observe, run.problem, run.problem.complete(run.start)))
    return moved_as(run.ts, saved, observe, run.valid, ended(code, run.begins), solution.stats["num_steps"], last_time[0])


class Prepared(NamedTuple):
    """A checked run of one member, every floating number in the dtype of the state.

    A bad member, not `valid`, moves nowhere from a harmless start: it costs a few steps and cannot hold up its batch.
    `begins` is the status of the start.
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


def velocity(t, y, args):
    """The motion of a state; `args` is (problem, rates)."""
    problem, rates = args
    return problem.pace(problem.force(y), y, rates, t)


def step_control(rates: Rates, t_end, rtol: float, atol: float):
    """Steps by the error of each, and to either side of every jump of the rates."""
    controller = diffrax.PIDController(rtol=rtol, atol=atol, dtmin=jnp.finfo(t_end.dtype).eps * 1e-3 * t_end)
    jumps = rates.jumps()
    return diffrax.ClipStepSizeController(controller, jump_ts=jumps.astype(t_end.dtype)) if jumps.shape[0] else controller


def ending(valid, *, whole, out_of_steps, runaway) -> Int[Array, ""]:
    """The status of a solve: the whole way, out of steps, stopped at a finite norm past the cap, else nothing finite left."""
    code = jnp.where(runaway, status.NORM_CAP, status.NON_FINITE)
    code = jnp.where(out_of_steps, status.MAX_STEPS, code)
    code = jnp.where(whole, status.OK, code)
    return jnp.where(valid, code, status.BAD_INPUT).astype(jnp.int32)


def moved_as(ts, saved: PyTree, observe, valid, code, steps, last_time) -> Trajectory:
    """The trajectory of a run that ended at `last_time`: what was saved up to there, NaN after."""
    last_time = jnp.where(valid, last_time, 0.0)
    saved = blank((ts > last_time) | ~valid, saved)
    return Trajectory(
        ts=ts,
        states=saved if observe is None else None,
        observed={} if observe is None else saved,
        status=code,
        stats={"steps": jnp.where(valid, steps, 0), "t_end": last_time},
    )


def _with_start(ts, saved: PyTree, at_start: PyTree) -> PyTree:
    """The start at t = 0 where the first step, not being finite, spoiled it; elsewhere what was saved, with its derivative."""

    def one(values, first):
        spoiled = (ts == 0) & ~jnp.all(jnp.isfinite(values).reshape(ts.shape[0], -1), axis=1)
        return jnp.where(spoiled.reshape(-1, *(1,) * first.ndim), first, values)

    return jax.tree.map(one, saved, at_start)
