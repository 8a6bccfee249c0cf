"""How many directions the features fill: ranks that are numbers, from the singular values of the features as they are."""

import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Float

from dynamics.observables.base import observable
from dynamics.problems import LayerPeeled, Peeled


def relative_spectrum(state: Peeled) -> Float[Array, " rank"]:
    """Singular values of the features over the largest, decreasing; NaN at zero. No square leaves the float range."""
    sizes = jnp.linalg.svd(state.features, compute_uv=False)
    return sizes / sizes[0]


@observable(scale_invariant=True)
def stable_rank(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    r"""$\|H\|_F^2 / \|H\|_2^2$, between 1 and the rank; NaN for zero features."""
    return jnp.sum(jnp.square(relative_spectrum(state)))


@observable(scale_invariant=True)
def effective_rank(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    r"""$\exp(-\sum_k p_k \ln p_k)$ with $p$ the singular values over their sum, between 1 and the rank; NaN for zero features.

    **Reference:** O. Roy, M. Vetterli, The effective rank: a measure of effective dimensionality (2007).
    """
    sizes = relative_spectrum(state)
    return jnp.exp(jnp.sum(entr(sizes / jnp.sum(sizes))))
