"""The constants in the rates at which loss and norm of a homogeneous network go, given the margin it ends with."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamics import validate


class RateConstants(NamedTuple):
    r"""Limits along gradient flow at unit rate, the loss being the sum over samples.

    - `loss`: of $\mathcal{L}\,t\,(\log t)^{2-2/L}$.
    - `norm`: of $\rho/(\log t)^{1/L}$, $\rho$ the norm of all weights.
    """

    loss: Float[Array, "..."]
    norm: Float[Array, "..."]


def rate_constants(margin, degree) -> RateConstants:
    r"""$L^{-2}\bar\gamma^{-2/L}$ and $\bar\gamma^{-1/L}$, for any homogeneous network that separates its samples.

    They are approached with relative error of order $\log\log t/\log t$; a rate r divides that of the loss by r.

    **Arguments:**

    - `margin`: $\bar\gamma > 0$, the limit of the least margin over $\rho^L$; any shape.
    - `degree`: L > 0, the degree of homogeneity.

    **Raises:** `ValueError` for concrete values out of range.

    **Reference:** K. Lyu, J. Li (2020), Theorem 4.3, gives the orders; the constants: derived here.
    """
    validate.positive("margin", margin)
    validate.positive("degree", degree)
    margin = jnp.asarray(margin, jnp.result_type(margin, float))
    return RateConstants(margin ** (-2 / degree) / degree**2, margin ** (-1 / degree))
