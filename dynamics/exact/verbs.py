"""The two verbs by formula, and what can be said of a motion without following it."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dynamics import state as tree
from dynamics import status, validate
from dynamics.exact.closed_form import ClosedForm, NoClosedForm, trajectory
from dynamics.exact.dispatch import choose
from dynamics.exact.limit import Limit
from dynamics.exact.stochastic import check_stochastic, second_moments
from dynamics.problems import LayerPeeled, Peeled, Problem
from dynamics.rates import Rates
from dynamics.trajectory import Trajectory, blank, check_observe, check_steps, check_times, good_times


def flow(problem: Problem, state: PyTree, rates: Rates, ts, *, scaled: bool = False, observe: dict | None = None) -> Trajectory:
    """Gradient flow by formula; same arguments and same result as `dynamics.flow`.

    Nothing is integrated where the rates have a constant ratio. Otherwise two 2x2 systems are, by a sixth-order
    exponential integrator on a fixed grid, and `stats["error_estimate"]` states its relative error. The square loss determines
    states up to a rotation (`determined == "rotation"`): its error is that of Gram matrices and logits.

    Errors relative to the state while the motion amplifies rounding little: 1e-12 in float64. In float32 1e-6 for losses linear
    in the logits, spherical and anchored square ones and anchored cross-entropy, 3e-6 for the square loss of both layers, 1e-5
    for cross-entropy of both.

    **Arguments:**

    - `problem`, `state`, `rates`, `ts`, `observe`: as in `dynamics.flow`.
    - `scaled`: states of unit norm (features and prototypes together, biases as they are; all weights of a network) and the log
      of the norm in `log_scale`: right at clocks far past the range of floating-point numbers.

    **Raises:** `NoClosedForm` with the reasons; `ValueError` for anything out of range that is known before tracing.
    """
    form = choose(problem, rates)
    state, problem, rates = _prepared(problem, state, rates)
    ts = check_times(ts, _dtype(state))
    check_observe(observe, scaled)
    return _at_once(_flow, form, observe, (problem, state, rates, ts))(form, problem, state, rates, ts, scaled, observe)


def _flow(form: ClosedForm, problem: Problem, state: PyTree, rates: Rates, ts, scaled, observe) -> Trajectory:
    begins = problem.start_code(state)
    valid = tree.all_finite(state) & good_times(ts) & rates.valid() & problem.valid() & (begins != status.BAD_INPUT)
    return trajectory(form.flow(problem, state, rates, ts), problem, ts, valid, begins, scaled, observe)


def descent(
    problem: LayerPeeled,
    state: Peeled,
    rates: Rates,
    steps: int,
    *,
    every: int = 1,
    dt=1.0,
    momentum=0.0,
    nesterov: bool = False,
    batch_size: int | None = None,
    shuffle: Literal["step", "epoch"] = "step",
    scaled: bool = False,
    observe: dict | None = None,
) -> Trajectory:
    """Gradient descent by formula; same arguments and same result as `dynamics.descent`.

    Errors relative to the state over a few stable steps: 1e-13 in float64, 5e-6 in float32.

    With a batch size the states are the mean over all draws of minibatches, and `second_moment` holds E[Z Z^T] of features
    over prototypes Z (a matrix of (samples + classes)^2 numbers at every kept iterate).

    **Arguments:**

    - `problem`, `state`, `rates`, `steps`, `every`, `dt`, `momentum`, `nesterov`, `observe`: as in `dynamics.descent`.
    - `batch_size`, `shuffle`: as in `dynamics.descent`; no key, the moments are over all of them. Only fresh draws at every
      step have moments in closed form, for a loss linear in the logits and without momentum.
    - `scaled`: as in `exact.flow`.

    **Raises:** `NoClosedForm` with the reasons; `ValueError` for anything out of range that is known before tracing.
    """
    form = choose(problem, rates)
    steps, every = check_steps(steps, every, dt, momentum, nesterov)
    if batch_size is not None:
        check_stochastic(problem, batch_size, shuffle, momentum, scaled, observe)
    state, problem, rates = _prepared(problem, state, rates)
    # no momentum, known before tracing, halves the recurrences: it stays a plain zero
    still = validate.is_concrete(momentum) and float(momentum) == 0
    dt, momentum = jnp.asarray(dt, _dtype(state)), 0.0 if still else jnp.asarray(momentum, _dtype(state))
    check_observe(observe, scaled)
    run = steps, every, dt, momentum, nesterov
    moved = _at_once(_descent, form, observe, (problem, state, rates, run))(form, problem, state, rates, run, scaled, observe)
    if batch_size is None:
        return moved
    moments = second_moments(problem, state, rates, steps, every, dt, batch_size)
    return dataclasses.replace(
        moved, determined="mean", second_moment=blank(jnp.broadcast_to(~moved.ok, moved.ts.shape), moments)
    )


def _descent(form: ClosedForm, problem: LayerPeeled, state: Peeled, rates: Rates, run, scaled, observe) -> Trajectory:
    steps, every, dt, momentum, _ = run
    begins = problem.start_code(state)
    valid = tree.all_finite((state, dt, momentum)) & rates.valid() & problem.valid() & (begins != status.BAD_INPUT)
    valid = valid & (dt >= 0) & (momentum >= 0) & (momentum < 1)
    motion = form.descent(problem, state, rates, *run)
    return trajectory(motion, problem, every * jnp.arange(steps // every + 1), valid, begins, scaled, observe)


def _at_once(verb: Callable, form: ClosedForm, observe: dict | None, inputs) -> Callable:
    """The verb, compiled as one program where it is called outside of any.

    Not for functions that are made anew for every call: each would be compiled again.
    """
    lasting = all("<" not in getattr(f, "__qualname__", "<") for f in (observe or {}).values())
    return eqx.filter_jit(verb) if form.compiled and lasting and validate.is_concrete(inputs) else verb


def limit(problem: Problem, state: PyTree, rates: Rates) -> Limit:
    """What the motion tends to as the clocks go to infinity: direction, growth exponent, convergence rate, constants.

    **Raises:** `NoClosedForm` where no closed form applies, or the rates have no constant ratio.
    """
    form = choose(problem, rates)
    _need_constant_ratio(problem, rates)
    state, problem, rates = _prepared(problem, state, rates)
    return form.limit(problem, state, rates)


def max_step(problem: LayerPeeled, rates: Rates, *, momentum=0.0, nesterov: bool = False) -> Float[Array, ""]:
    """The largest `dt` of a descent at which every decaying mode stays stable, at the peak of the schedules.

    Growing modes (below the threshold of decay) grow at any step. Infinite where nothing decays.

    **Raises:** `NoClosedForm` where no closed form applies, or the rates have no constant ratio.
    """
    form = choose(problem, rates)
    _need_constant_ratio(problem, rates)
    check_steps(0, 1, 1.0, momentum, nesterov)
    return form.max_step(problem, rates, momentum, nesterov)


def _prepared(problem, state: PyTree, rates: Rates):
    state = problem.check(state)
    return state, *tree.cast((problem, rates), _dtype(state))


def _dtype(state: PyTree):
    """That of a checked state."""
    return jax.tree.leaves(state)[0].dtype


def _need_constant_ratio(problem, rates: Rates) -> None:
    if not rates.constant_ratio and not problem.anchored:
        raise NoClosedForm("the two rates have no constant ratio: neither limit nor stability bound is known by formula")
