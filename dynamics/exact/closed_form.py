"""What a closed form is, and how its motion becomes a trajectory."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import state as tree
from dynamics import status, validate
from dynamics.problems import LayerPeeled, Peeled
from dynamics.rates import Rates
from dynamics.trajectory import Trajectory, blank, check_observe, ended, observe_state


class Motion(NamedTuple):
    """A motion by formula: `scalars` have the times as leading axis; `place` turns those of one time into the state.

    `place` returns a state and a logarithm: features and prototypes are over its exponential, biases are as they are.
    `code` is the status of the motion as far as the formula can tell, from `assume`; `determined` as in `Trajectory`.
    """

    scalars: PyTree
    place: Callable[[PyTree], tuple[Peeled, Float[Array, ""]]]
    error_estimate: Float[Array, ""] | None = None
    code: Int[Array, ""] | None = None
    determined: Literal["states", "rotation"] = "states"


class ClosedForm(NamedTuple):
    """One family of exact solutions. A new one is a file with these functions and a row in `dispatch.CLOSED_FORMS`.

    - `obstacles(problem, rates)`: why it does not apply, by types and static fields only; empty where it does.
    - `flow(problem, state, rates, ts)`, `descent(problem, state, rates, steps, every, dt, momentum, nesterov)`: motions.
    - `limit(problem, state, rates)`: see `exact.limit`; `max_step(problem, rates, momentum, nesterov)`: see `exact.max_step`.
    """

    name: str
    obstacles: Callable[[Any, Rates], list[str]]
    flow: Callable[..., Motion]
    descent: Callable[..., Motion]
    limit: Callable[..., Any]
    max_step: Callable[..., Float[Array, ""]]


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
    problem: LayerPeeled,
    ts: Array,
    valid: Bool[Array, ""],
    begins: Int[Array, ""],
    scaled: bool,
    observe: dict | None,
) -> Trajectory:
    """The trajectory of a motion from a start of code `begins`; NaN where not representable, and the status says so."""
    check_observe(observe, scaled, motion.determined)

    def at(scalars):
        state, log_scale = motion.place(scalars)
        moving = (state.features, state.prototypes)
        if scaled:
            size = tree.norm(moving)
            positive = size > 0
            factor = jnp.where(positive, 1 / jnp.where(positive, size, 1.0), 1.0)
            log_scale = jnp.where(positive, log_scale + jnp.log(jnp.where(positive, size, 1.0)), -jnp.inf)
        else:
            factor = jnp.exp(log_scale)
        state = Peeled(factor * state.features, factor * state.prototypes, state.biases)
        return observe_state(observe, problem, state), log_scale, tree.all_finite(state)

    with jax.default_matmul_precision("highest"):
        saved, log_scale, finite = jax.lax.map(at, motion.scalars)
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
