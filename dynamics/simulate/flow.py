"""Gradient flow of any problem, integrated by diffrax."""

import warnings
from typing import Literal

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

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
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a dynamics problem, got {type(problem).__name__}")
    state = problem.check(state)
    dtype = jnp.result_type(*jax.tree.leaves(state))
    check_rates(rates)
    problem, rates = tree.cast((problem, rates), dtype)
    ts = check_times(ts, dtype)
    check_observe(observe)
    rtol, atol = _tolerances(rtol, atol, dtype)
    max_steps = validate.whole("max_steps", max_steps, 1)
    if method not in ("auto", "general"):
        raise ValueError(f"method must be 'auto' or 'general', got {method!r}")
    norm_cap = check_norm_cap(norm_cap, dtype)
    if solver is None:
        solver = diffrax.Tsit5() if rtol >= 1e-8 else diffrax.Dopri8()
    elif not isinstance(solver, diffrax.AbstractSolver):
        raise ValueError(f"solver must be a diffrax solver, got {solver!r}")

    begins = problem.start_code(state)
    valid = tree.all_finite(state) & good_times(ts) & rates.valid() & problem.valid() & (begins != status.BAD_INPUT)
    asked, ts = ts, jnp.where(valid, ts, jnp.arange(ts.shape[0], dtype=dtype))  # the solver raises at times out of order
    # a bad member moves nowhere from a harmless start: it costs a few steps and cannot hold up its batch
    start = tree.select(valid, state, jax.tree.map(jnp.ones_like, state))

    def velocity(t, y, args):
        problem, rates = args
        moved = problem.pace(problem.force(y), y, rates, t)
        return tree.select(valid, moved, jax.tree.map(jnp.zeros_like, moved))

    def stop(t, y, args, **_):
        return ~(tree.norm(y) <= norm_cap)

    t_end = ts[-1]
    controller = diffrax.PIDController(rtol=rtol, atol=atol, dtmin=jnp.finfo(dtype).eps * 1e-3 * t_end)
    jumps = rates.jumps()
    if jumps.shape[0]:
        controller = diffrax.ClipStepSizeController(controller, jump_ts=jumps.astype(dtype))
    with jax.default_matmul_precision("highest"):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),  # pyright: ignore[reportArgumentType]
            solver,
            t0=jnp.zeros((), dtype),
            t1=t_end,
            dt0=None,
            y0=start,
            args=(problem, rates),
            saveat=diffrax.SaveAt(
                subs=[
                    diffrax.SubSaveAt(ts=ts, fn=lambda t, y, args: observe_state(observe, args[0], args[0].complete(y))),
                    diffrax.SubSaveAt(t1=True, fn=lambda t, y, args: (t, y)),
                ]
            ),
            stepsize_controller=controller,
            event=diffrax.Event(stop),
            max_steps=max_steps,
            throw=False,
        )
    assert solution.ys is not None
    saved, (last_time, last_state) = solution.ys
    code = _status(solution.result, valid, tree.all_finite(last_state))
    last_time = jnp.where(valid, last_time[0], 0.0)
    saved = _with_start(ts, saved, observe_state(observe, problem, problem.complete(start)))
    saved = blank((ts > last_time) | ~valid, saved)
    return Trajectory(
        ts=asked,
        states=saved if observe is None else None,
        observed={} if observe is None else saved,
        status=ended(code, begins),
        stats={"steps": jnp.where(valid, solution.stats["num_steps"], 0), "t_end": last_time},
    )


def _with_start(ts, saved: PyTree, at_start: PyTree) -> PyTree:
    """The start at t = 0 where the first step, not being finite, spoiled it; elsewhere what was saved, with its derivative."""

    def one(values, first):
        spoiled = (ts == 0) & ~jnp.all(jnp.isfinite(values).reshape(ts.shape[0], -1), axis=1)
        return jnp.where(spoiled.reshape(-1, *(1,) * first.ndim), first, values)

    return jax.tree.map(one, saved, at_start)


def _tolerances(rtol, atol, dtype) -> tuple[float, float]:
    usual = 1e-8 if dtype == jnp.float64 else 1e-5
    chosen = []
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and validate.tolerance(name, value, dtype) < 100 * float(jnp.finfo(dtype).eps):
            warnings.warn(f"{name} = {value:g} is within 100 eps of {jnp.dtype(dtype)}: rounding may dominate", stacklevel=3)
        chosen.append(usual if value is None else float(value))
    return chosen[0], chosen[1]


def _status(result: diffrax.RESULTS, valid, finite):
    results = diffrax.RESULTS
    # the event marks a runaway norm; when nothing finite is left, or no step however small keeps it finite, say so instead
    code = jnp.full((), status.NON_FINITE)
    code = jnp.where(result == results.event_occurred, jnp.where(finite, status.NORM_CAP, status.NON_FINITE), code)
    out_of_steps = (result == results.max_steps_reached) | (result == results.max_steps_rejected)
    code = jnp.where(out_of_steps, status.MAX_STEPS, code)
    code = jnp.where(result == results.successful, status.OK, code)
    return jnp.where(valid, code, status.BAD_INPUT).astype(jnp.int32)
