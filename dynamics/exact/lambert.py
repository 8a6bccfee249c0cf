r"""Lambert's W of arguments given by their logarithm: what moves at a rate that its own exponential slows down.

$w = W(z)$ solves $w e^w = z$; with $\ell = \log w$ that is $\ell + e^\ell = \log z$, which is also $\ell' = 1/(1 + e^\ell)$
at unit speed of $\log z$: a logistic loss followed along its gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

HALLEY_STEPS = 3
"""The guess is at most 0.57 off and an error e becomes at most e^3/12: the third step leaves 1e-19."""


@jax.custom_jvp
def log_lambert_growth(log_w: Float[Array, "*shape"], by: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""How much $\log W(z)$ grows when $\log z$ grows by `by` >= 0, from where it was `log_w`.

    The root d of $d + e^{\ell}(e^{d} - 1) = \mathrm{by}$, $\ell$ = `log_w`, to a few eps of d itself: small steps do not
    cancel, huge ones do not overflow, and `log_w` of either sign may be past the range of the exponential (far above it
    nothing grows).
    """
    shift = jnp.maximum(log_w, 0.0)  # everything over e^shift
    scale = jnp.exp(-shift)
    positive = by > 0
    # two upper bounds, of which the lower one is near: e^l (e^d - 1) <= by, and d <= by
    far = jnp.logaddexp(log_w, jnp.log(jnp.where(positive, by, 1.0))) - log_w
    growth = jnp.minimum(by, jnp.where(log_w > 0, jnp.log1p(by * scale), far))
    # from below zero, x = log w at the end solves x + e^x = c: x <= (c - 1)/2, x <= c and x <= log c, of which one is near
    c = log_w + by + jnp.exp(-jnp.maximum(-log_w, 0.0))
    end = jnp.minimum(jnp.minimum(c, 0.5 * (c - 1)), jnp.where(c < 1, jnp.inf, jnp.log(jnp.maximum(c, 1.0))))
    growth = jnp.where(log_w < 0, jnp.clip(end - log_w, 0.0, growth), growth)

    for _ in range(HALLEY_STEPS):
        bend = jnp.exp(log_w - shift + growth)
        slope = scale + bend
        missing = scale * (growth - by) - bend * jnp.expm1(-growth)
        newton = missing / slope
        growth = growth - newton / (1 - 0.5 * newton * (bend / slope))
    return jnp.where(positive, growth, 0.0 * by)


@log_lambert_growth.defjvp
def _derivative(primals, tangents):
    log_w, _ = primals
    growth = log_lambert_growth(*primals)
    end = log_w + growth
    toward = jax.nn.sigmoid(-end) * tangents[1] + jax.nn.sigmoid(end) * jnp.expm1(-growth) * tangents[0]
    return growth, toward
