"""Gradient flow of a network along a clock."""

from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import state as tree
from dynamics import status, validate
from dynamics.observables import misclassified
from dynamics.problems import Network, Problem
from dynamics.rates import Rates
from dynamics.schedules import Constant
from dynamics.simulate.bisection import Bisection
from dynamics.simulate.clock import At, Clock, LogLoss, LogTime, Polar
from dynamics.simulate.clock_frames import Frame, Given, augmented, measured, plain
from dynamics.simulate.general_flow import TrustedTimes
from dynamics.simulate.kink_steps import KinkSteps, RungeKutta4
from dynamics.simulate.prepared import Prepared, ending, look, prepare
from dynamics.trajectory import Trajectory, blank, floating

FAR = 1e5
"""Logarithms of times, and falls of the log-loss, beyond which explicit solvers take too many steps."""

ROUNDING = 2.3e-4
"""What rounding may do to margins, as a change of their losses: it bounds the logarithms of times, at 1e12 in float64."""

LAG = 0.01
"""By how much, relatively, the log-loss of a state may be off its clock before the clock is taken to have ended."""

KINK_STEP = 0.4
"""The step of the polar clock for nets with kinks, over the norm of the weights to the power of the degree."""


class Plan(NamedTuple):
    """How a clock is run: what is integrated, by which solver, and with which steps; no `step` is by the error of each."""

    clock: Clock
    frame: Frame
    solver: diffrax.AbstractSolver
    atol: float
    step: float | None


class Solved(NamedTuple):
    """What came of the integration: entries (kept values, E, log time) at `ts`, `past` the end or not, and the end itself."""

    saved: PyTree
    past: Bool[Array, " times"]
    last_x: Float[Array, ""]
    last_weights: PyTree
    last: PyTree
    result: diffrax.RESULTS
    events: dict[str, Bool[Array, ""]] | None
    steps: Int[Array, ""]


def clock_flow(
    problem: Problem, state: PyTree, rates: Rates, ts, clock, until, *, observe, rtol, atol, solver, max_steps: int, norm_cap
) -> Trajectory:
    """`dynamics.flow` along a clock."""
    if not isinstance(problem, Network):
        raise ValueError(f"clock is for a dynamics.Network, got a {type(problem).__name__}")
    if validate.is_concrete(problem.decay) and np.any(np.asarray(problem.decay) != 0):
        raise ValueError(f"clock needs a problem without decay, got decay = {validate.shown(problem.decay)}")
    run = prepare(problem, state, rates, ts, observe, rtol, atol, solver, norm_cap)
    if run.rates.built != "equal" or run.rates.rescaled or not isinstance(run.rates.weights, Constant):
        raise ValueError("clock needs one constant rate of all weights: give Rates.equal(number), not rescaled")
    validate.positive("the rate", run.rates.weights.value)
    plan = _plan(run, clock, until, {"rtol": rtol, "atol": atol, "solver": solver})
    with jax.default_matmul_precision("highest"):
        return _moved(run, plan, until, observe, max_steps)


def _plan(run: Prepared, clock, until, asked: dict) -> Plan:
    """The clock that is meant, and how it is run; `asked` are the tolerances and the solver as the caller gave them."""
    problem = run.problem
    assert isinstance(problem, Network)
    kinked = problem.net.kinked
    if isinstance(clock, str) and clock == "auto":
        clock = Polar() if kinked else LogLoss()
    if not isinstance(clock, Clock):
        raise ValueError(f"clock must be 'auto' or one of dynamics.clocks, such as dynamics.clocks.LogLoss(), got {clock!r}")
    if not (until is None or isinstance(until, LogTime)):
        raise ValueError(f"until must be a dynamics.LogTime, got {until!r}")
    reach = _reach(run, clock, until)
    if reach > FAR:
        if kinked or not isinstance(clock, LogLoss):
            raise ValueError(
                f"until and the LogLoss clock go beyond {FAR:g} with clock=LogLoss() and a net without kinks, got {reach:.6g} "
                f"with {clock!r} and {problem.net!r}"
            )
        solver = diffrax.Kvaerno4() if asked["solver"] is None else run.solver
        return Plan(clock, augmented(clock), solver, run.rtol if asked["atol"] is None else run.atol, None)
    if isinstance(clock, Polar) and (kinked or clock.step is not None):
        for name, value in asked.items():
            if value is not None:
                raise ValueError(f"{name} is of no use to steps of fixed size, which {clock!r} takes here, got {value!r}")
        return Plan(clock, plain(clock), RungeKutta4(), run.atol, KINK_STEP if clock.step is None else float(clock.step))
    # the scaled time becomes as small as 1/|g|^2
    return Plan(clock, plain(clock), run.solver, 1e-5 * run.rtol if asked["atol"] is None else run.atol, None)


def _reach(run: Prepared, clock: Clock, until: LogTime | None) -> float:
    """How far a run goes, where that is known before it, as the logarithm of a time or a fall of the log-loss."""
    asked = {}
    if until is not None:
        asked["until"] = float(until.value)
    if isinstance(clock, LogLoss) and validate.is_concrete(run.ts):
        asked["ts of the LogLoss clock"] = float(jnp.max(run.ts))
    eps = float(jnp.finfo(run.ts.dtype).eps)
    for name, value in asked.items():
        if value > ROUNDING / eps:
            raise ValueError(
                f"{name} must be at most {ROUNDING / eps:.3g} in {run.ts.dtype}, got {value:.6g}: beyond, the rounding of "
                f"margins changes their losses by more than {ROUNDING:g}, relatively"
            )
    return min(asked.values(), default=0.0)


def _moved(run: Prepared, plan: Plan, until: LogTime | None, observe, max_steps: int) -> Trajectory:
    problem, clock = run.problem, plan.clock
    assert isinstance(problem, Network)
    rate = run.rates.weights(0.0)
    begin, _ = measured(problem, run.start, rate)
    valid = run.valid & (problem.decay == 0) & (rate > 0)
    admitted = jnp.asarray(True)
    if clock.after_separation:
        wrong = misclassified(problem, run.start)
        admitted = (wrong == 0) & (begin.outward > 0)
        if validate.is_concrete((admitted, valid)) and bool(valid) and not bool(admitted):
            raise ValueError(
                f"clock {clock!r} is asked before separation: at the start {int(wrong)} of {problem.num_samples} samples are "
                f"misclassified, and <g, weights> = {float(begin.outward):.6g}"
            )
    inside = begin.radius <= run.norm_cap
    moves = valid & admitted & (begin.pull > 0) & inside
    solved = _solved(run, plan, Given(problem, begin), moves, until, observe, max_steps)

    count = run.ts.shape[0]
    place = jnp.where(jnp.any(solved.past), jnp.argmax(solved.past), count)
    later = (jnp.arange(count) > place) | ~valid

    def entered(values, value):
        here = (jnp.arange(count) == place).reshape(-1, *(1,) * (values.ndim - 1))
        return jnp.where(here, value, values)

    t_end = jnp.where(place < count, clock.value(solved.last_x, begin), run.ts[-1])
    t_end = jnp.where(moves, t_end, 0.0)
    ts, values, levels, log_times = blank(later, jax.tree.map(entered, (run.ts, *solved.saved), (t_end, *solved.last)))
    stats = {"steps": jnp.where(moves, solved.steps, 0), "t_end": t_end}
    if isinstance(clock, LogLoss):
        stats["error_estimate"] = jnp.max(jnp.where(later, 0.0, _lag(levels, begin.log_inverse_loss + ts)))
    code = _code(solved, valid, measured(problem, solved.last_weights, rate)[0])
    code = jnp.where(valid & ~admitted, status.OUTSIDE_ASSUMPTIONS, code)
    code = jnp.where(valid & (begin.pull == 0), status.FIXED_POINT, code)
    code = jnp.where(valid & ~inside, status.NORM_CAP, code)
    return Trajectory(
        ts=ts,
        states=values if observe is None else None,
        observed={} if observe is None else values,
        status=code,
        stats=stats,
        log_t=log_times - jnp.log(rate),
    )


def _solved(run: Prepared, plan: Plan, given: Given, moves, until: LogTime | None, observe, max_steps: int) -> Solved:
    """Integrate a member; one that does not move ends in a few steps where it began."""
    clock, frame, begin = plan.clock, plan.frame, given.begin
    first, xs = clock.inner(jnp.zeros_like(run.ts[0]), begin), clock.inner(run.ts, begin)
    # the solver raises at times out of order, or out of its range by rounding
    xs = jnp.where(moves, jnp.clip(xs, first, xs[-1]), jnp.arange(xs.shape[0], dtype=xs.dtype))
    first = jnp.where(moves, first, 0.0)

    def velocity(x, y, given):
        motion = frame.velocity(x, y, given)
        return tree.select(moves, motion, jax.tree.map(jnp.zeros_like, motion))

    def seen(x, y, given):
        return floating(look(run, observe, x, y[0])), *frame.read(x, y, given)

    def below_cap(t, y, args, **_):
        return (run.norm_cap - tree.norm(y[0])).astype(float)  # diffrax takes events in the usual dtype alone

    def in_step(t, y, args, **_):
        expected = clock.value(t, begin) + begin.log_inverse_loss
        return (LAG - jnp.where(moves, _lag(frame.read(t, y, args)[0], expected), 0.0)).astype(float)

    def after_stop(t, y, args, **_):
        return (frame.read(t, y, args)[1] - log_time).astype(float)

    events = {"cap": below_cap}
    if isinstance(clock, LogLoss):
        events["lag"] = in_step
    if until is not None:
        log_time = until.value + jnp.log(begin.rate)
        events["stop"] = after_stop
    if plan.step is None:
        furthest = jnp.maximum(jnp.abs(first), jnp.abs(xs[-1]))
        least = 8 * jnp.finfo(xs.dtype).eps * furthest
        # an implicit method loses order here: steps by the last error alone are refused every second time
        gain, last = (0.4, 0.2) if isinstance(plan.solver, diffrax.AbstractImplicitSolver) else (1.0, 0.0)
        steps = diffrax.PIDController(rtol=run.rtol, atol=plan.atol, pcoeff=last, icoeff=gain, dtmin=least, force_dtmin=False)
    else:
        steps = KinkSteps(plan.step, given.problem.degree)
    subs = [diffrax.SubSaveAt(ts=xs, fn=seen), diffrax.SubSaveAt(t1=True, fn=lambda x, y, given: (x, y[0], seen(x, y, given)))]
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),  # pyright: ignore[reportArgumentType]
        plan.solver,
        t0=first,
        t1=xs[-1],
        dt0=None,
        y0=frame.begin(given, run.start),
        args=given,
        saveat=diffrax.SaveAt(subs=subs),
        stepsize_controller=steps,
        event=diffrax.Event(events, Bisection()),
        max_steps=max_steps,
        throw=False,
        adjoint=TrustedTimes(ts=xs),
    )
    assert solution.ys is not None
    saved, end = solution.ys
    last_x, last_weights, last = jax.tree.map(lambda leaf: leaf[0], end)
    past = (xs > last_x) & moves | ~moves & (run.ts > 0)
    return Solved(saved, past, last_x, last_weights, last, solution.result, solution.event_mask, solution.stats["num_steps"])


def _code(solved: Solved, valid, end: At) -> Int[Array, ""]:
    """The status of an integration that came to `end`."""
    results, result = diffrax.RESULTS, solved.result
    met = solved.events or {}
    code = ending(
        valid,
        whole=(result == results.successful) | ((result == results.event_occurred) & met.get("stop", False)),
        out_of_steps=(result == results.max_steps_reached) | (result == results.max_steps_rejected),
        runaway=met["cap"] & tree.all_finite(solved.last_weights),
    )
    # the steps shrank to nothing, the loss stopped falling, or nothing pulls any more
    halted = (result == results.dt_min_reached) | met.get("lag", False) | ((end.pull == 0) & (code == status.OK))
    return jnp.where(valid & halted, status.OUTSIDE_ASSUMPTIONS, code)


def _lag(found, expected):
    """By how much one log-loss is off another, relatively where they are large."""
    return jnp.abs(found - expected) / jnp.maximum(1.0, jnp.abs(expected))
