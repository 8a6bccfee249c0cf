"""What closed forms of losses that are not linear ask: of the problem by its fields, of the start up to rounding."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dynamics.exact.closed_form import assume
from dynamics.problems import LayerPeeled
from dynamics.rates import Rates

Rows = Float[Array, "rows dim"]


def plain_obstacles(problem, rates: Rates, loss: type) -> list[str]:
    """What rules out a solution for one loss, features as they are and gradients as they are."""
    if not isinstance(problem, LayerPeeled):
        return [f"the problem is a {type(problem).__name__}, not a LayerPeeled"]
    reasons = []
    if not isinstance(problem.loss, loss):
        reasons.append(f"the loss is {type(problem.loss).__name__}, not {loss.__name__}")
    if problem.normalize:
        reasons.append("the loss sees normalised features")
    if problem.kernel is not None or problem.feature_kernel is not None:
        reasons.append("a kernel multiplies the features' gradient")
    if rates.rescaled:
        reasons.append("the rates are rescaled by the feature norms")
    return reasons


def rounding(dtype) -> float:
    """The relative deviation that still counts as rounding: 1000 eps."""
    return 1000 * float(jnp.finfo(dtype).eps)


def centred(rows: Rows) -> Rows:
    """Rows minus their mean."""
    return rows - jnp.mean(rows, axis=0)


def longest(rows: Rows) -> Float[Array, ""]:
    """The largest norm of a row."""
    return jnp.sqrt(jnp.max(jnp.sum(rows**2, axis=-1), initial=0.0))


def mean_square(rows: Rows) -> Float[Array, ""]:
    """The mean squared norm of a row."""
    return jnp.sum(rows**2) / rows.shape[0]


def small(gap, scale) -> Bool[Array, ""]:
    """Whether a deviation is rounding of numbers of size `scale`."""
    return gap <= rounding(jnp.result_type(gap)) * scale


def assume_small(gap: Float[Array, ""], scale: Float[Array, ""], what: str):
    """`assume` that a deviation is rounding; `what` says in words what deviates."""

    def why():
        return f"{what}: off by {float(gap / scale):.1e} of its size, where {rounding(gap.dtype):.1e} passes as rounding"

    return assume(small(gap, scale), why)


def assume_simplex(rows: Rows, what: str):
    """`assume` that the centred rows have equal norms and cosines -1/(rows - 1) (a simplex ETF of any size, also zero)."""
    apart, count = centred(rows), rows.shape[0]
    even = jnp.eye(count, dtype=rows.dtype) - 1 / count
    gap = jnp.max(jnp.abs(apart @ apart.T - mean_square(apart) * (count / (count - 1)) * even))
    return assume_small(gap, longest(rows) * longest(apart), f"the centred {what} are no simplex ETF")
