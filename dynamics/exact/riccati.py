r"""The matrix Riccati flow $Q' = FQ - \frac{c}{2}\,QQ^\top Q$ by formula, on a factor of $QQ^\top$.

In an eigenbasis of F the rows of Q grow or fade at their rates and are damped together:
$Q(t + h) = e^{Fh}Q(t)L^{-\top}$ with $LL^\top = I + c\int_0^h Q^\top e^{2F\tau}Q\,d\tau$, up to a rotation of the columns.
Steps compose exactly, and steps with (largest rate) x h of order one keep rounding small: what a step amplifies, it damps.

**Reference:** K. Fukumizu (1998); L. Braun, C. Domine, J. Fitzgerald, A. Saxe (2022). Stepping the factor: derived here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jaxtyping import Array, Float

from dynamics.schedules import decaying_clock

Rows = Float[Array, "rows dim"]


class Riccati(NamedTuple):
    """The numbers of the flow of a factor.

    A factor has one row for each eigenvector of F that has a rate of its own. The rest of Q, which shares one rate, is its rows
    at the start times the last `dim` rows of the factor (at the start the identity): the cost is free of their number.

    - `damping`: c; `rates`: that of each row of the factor.
    - `metric`: the Gram matrix of the rest at the start.
    """

    damping: Float[Array, ""]
    rates: Float[Array, " rows"]
    metric: Float[Array, "dim dim"]


def gram(riccati: Riccati, factor: Rows, weights: Float[Array, " rows"]) -> Float[Array, "dim dim"]:
    """Q^T Q with its rows weighted."""
    own = factor.shape[0] - factor.shape[1]
    return factor.T @ (weights[:, None] * jnp.concatenate([factor[:own], riccati.metric @ factor[own:]]))


def advanced(riccati: Riccati, factor: Rows, h: Float[Array, ""]) -> Rows:
    """The factor a time `h` later."""
    spent = gram(riccati, factor, decaying_clock(-2 * riccati.rates, h))
    one = jnp.eye(spent.shape[0], dtype=spent.dtype)
    lower = jnp.linalg.cholesky(one + riccati.damping * spent)
    # an inverse, then a product: the gradient of a batched triangular solve with many right sides is far slower
    damped = jax.scipy.linalg.solve_triangular(lower, one, lower=True).T
    return jnp.exp(riccati.rates * h)[:, None] * (factor @ damped)


def nodes(riccati: Riccati, start: Rows, steps: Float[Array, " steps"]) -> Float[Array, "nodes rows dim"]:
    """The factor at the start and after each of the steps."""

    def step(factor, h):
        factor = advanced(riccati, factor, h)
        return factor, factor

    _, path = jax.lax.scan(step, start, steps)
    return jnp.concatenate([start[None], path])
