"""What a closed form is, and how its motion becomes a trajectory."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import state as tree
from dynamics import status, validate
from dynamics.problems import LayerPeeled, Peeled, Problem
from dynamics.rates import Rates
from dynamics.trajectory import Trajectory, blank, check_observe, ended, observe_state


class AllTimes(NamedTuple):
    """What a motion gives at all times at once; scalars as in `Motion`, features and prototypes over exp(log_scale).

    - `log_scale(scalars)`; `largest(scalars)`: a bound on the entries, shape (times,), by a few times the largest.
    - `biases(scalars)`: shape (times, classes).
    - `states(scalars, factor)`: features and prototypes times a factor of shape (times,), leading axis times.
    - `summary(scalars, factor)`: of one time, a `dynamics.observables.Summary`.
    """

    log_scale: Callable[[PyTree], Float[Array, " times"]]
    largest: Callable[[PyTree], Float[Array, " times"]]
    biases: Callable[[PyTree], Float[Array, "times classes"]]
    states: Callable[[PyTree, Float[Array, " times"]], tuple[Array, Array]]
    summary: Callable[[PyTree, Float[Array, ""]], Any]


class Motion(NamedTuple):
    """A motion by formula: `scalars` have the times as leading axis; `place` turns those of one time into the state.

    `place` returns a state and a logarithm: features and prototypes (all weights of a network) are over its exponential,
    biases are as they are.
    `code` is the status of the motion as far as the formula can tell, from `assume`; `determined` as in `Trajectory`;
    `all_times`: what needs no state at a time, where there is such a thing.
    """

    scalars: PyTree
    place: Callable[[PyTree], tuple[PyTree, Float[Array, ""]]]
    error_estimate: Float[Array, ""] | None = None
    code: Int[Array, ""] | None = None
    determined: Literal["states", "rotation"] = "states"
    all_times: AllTimes | None = None


class ClosedForm(NamedTuple):
    """One family of exact solutions. A new one is a file with these functions and a row in `dispatch.CLOSED_FORMS`.

    - `obstacles(problem, rates)`: why it does not apply, by types and static fields only; empty where it does.
    - `flow(problem, state, rates, ts)`, `descent(problem, state, rates, steps, every, dt, momentum, nesterov)`: motions.
    - `limit(problem, state, rates)`: see `exact.limit`; `max_step(problem, rates, momentum, nesterov)`: see `exact.max_step`.
    - `compiled`: nothing on the host depends on values (no `assume`): a call outside a program is compiled as one.
    """

    name: str
    obstacles: Callable[[Any, Rates], list[str]]
    flow: Callable[..., Motion]
    descent: Callable[..., Motion]
    limit: Callable[..., Any]
    max_step: Callable[..., Float[Array, ""]]
    compiled: bool = False


class NoClosedForm(ValueError):
    """No known closed form covers the problem; the message lists each with the reasons."""


def assume(holds: Bool[Array, ""], why: Callable[[], str]) -> Int[Array, ""]:
    """A condition on values: `NoClosedForm(why())` where they are concrete and it fails, the member's status where traced."""
    if validate.is_concrete(holds) and not bool(holds):
        raise NoClosedForm(why())
    return jnp.where(holds, status.OK, status.OUTSIDE_ASSUMPTIONS).astype(jnp.int32)


def common_obstacles(problem, rates: Rates) -> list[str]:
    """What rules out every solution of a linear loss in the features themselves."""
    if not isinstance(problem, LayerPeeled):
        return [f"the problem is a {type(problem).__name__}, not a LayerPeeled"]
    reasons = []
    if problem.label_coupling is None:
        reasons.append(f"the loss {type(problem.loss).__name__} is not linear in the logits")
    if problem.normalize:
        reasons.append("the loss sees normalised features")
    if rates.rescaled:
        reasons.append("the rates are rescaled by the feature norms")
    return reasons


def trajectory(
    motion: Motion,
    problem: Problem,
    ts: Array,
    valid: Bool[Array, ""],
    begins: Int[Array, ""],
    scaled: bool,
    observe: dict | None,
) -> Trajectory:
    """The trajectory of a motion from a start of code `begins`; NaN where not representable, and the status says so."""
    check_observe(observe, scaled, motion.determined)
    with jax.default_matmul_precision("highest"):
        saved, log_scale, finite = _saved(motion, problem, scaled, observe)
    code = jnp.asarray(status.OK if motion.code is None else motion.code)
    shown = finite & valid & (code == status.OK)
    code = jnp.where((code == status.OK) & ~jnp.all(finite), status.NON_FINITE, code)
    stats: dict[str, Array] = {
        "steps": jnp.zeros((), jnp.int32),
        "t_end": jnp.max(jnp.where(shown, ts, jnp.zeros((), ts.dtype))),
    }
    if motion.error_estimate is not None:
        stats["error_estimate"] = motion.error_estimate
    saved = blank(~shown, saved)
    return Trajectory(
        ts=ts,
        states=saved if observe is None else None,
        observed={} if observe is None else saved,
        status=ended(jnp.where(valid, code, status.BAD_INPUT), begins),
        stats=stats,
        log_scale=blank(~shown, log_scale) if scaled else None,
        determined=motion.determined,
    )


def _saved(motion: Motion, problem: Problem, scaled: bool, observe: dict | None):
    """States or observed values, the log of their scale, and whether they are finite; leading axis times."""
    whole, scalars = motion.all_times, motion.scalars
    if whole is None or (scaled and observe is None):
        return _one_by_one(motion, problem, scaled, observe)
    log_scale = whole.log_scale(scalars)
    factor = jnp.ones_like(log_scale) if scaled else jnp.exp(log_scale)
    biases = whole.biases(scalars)
    finite = jnp.isfinite(factor * whole.largest(scalars)) & jnp.all(jnp.isfinite(biases), axis=-1)
    if observe is None:
        return Peeled(*whole.states(scalars, factor), biases), log_scale, finite

    def from_summary(scalars, factor):
        summary = whole.summary(scalars, factor)
        known = {name: f.from_summary(problem, summary) for name, f in observe.items() if getattr(f, "from_summary", None)}
        size = jnp.hypot(summary.feature_norm, summary.prototype_norm)
        return {name: value for name, value in known.items() if value is not None}, size

    observed, size = jax.vmap(from_summary)(scalars, factor)
    others = {name: f for name, f in observe.items() if name not in observed}
    if others:
        seen, log_scale, finite = _one_by_one(motion, problem, scaled, others)
        observed = {name: observed.get(name, seen.get(name)) for name in observe}
    elif scaled:
        log_scale = jnp.where(size > 0, log_scale + jnp.log(jnp.where(size > 0, size, 1.0)), -jnp.inf)
    return observed, log_scale, finite


def _one_by_one(motion: Motion, problem: Problem, scaled: bool, observe: dict | None):
    """The same from one state after the other."""

    def at(scalars):
        state, log_scale = motion.place(scalars)
        if scaled:
            size = tree.norm((state.features, state.prototypes) if isinstance(state, Peeled) else state)
            positive = size > 0
            factor = jnp.where(positive, 1 / jnp.where(positive, size, 1.0), 1.0)
            log_scale = jnp.where(positive, log_scale + jnp.log(jnp.where(positive, size, 1.0)), -jnp.inf)
        else:
            factor = jnp.exp(log_scale)
        if isinstance(state, Peeled):
            state = Peeled(factor * state.features, factor * state.prototypes, state.biases)
        else:
            state = jax.tree.map(lambda weights: factor * weights, state)
        return observe_state(observe, problem, state), log_scale, tree.all_finite(state)

    return jax.lax.map(at, motion.scalars)
