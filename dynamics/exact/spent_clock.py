r"""The clock that cross-entropy spends on the path of a linear loss, by one quadrature and its inverse.

From a symmetric start the logits of cross-entropy are those of the unhinged loss at a slower clock x,

$$x' = 1/(1 + e^{m(x)}/(C-1)), \quad m(x) = (p\,e^x)^2 - (f e^{-x})^2, \quad\text{so}\quad
x + \tfrac{1}{C-1}\int_0^x e^{m} = \tau.$$

The margin m only grows. The integral is a table of Gauss-Legendre panels that end where m has given values, so that every
panel is smooth whatever p and f are; a time looks up its panel and solves inside it.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics.exact.lambert import log_lambert_growth

HALLEY_STEPS = 4
NODES, CHECK_NODES = 16, 12
_BELOW = (-40.0, -16.0, -6.0, -2.5, -1.0)  # below e^-40 the integrand is nothing beside the 1
_NEAR = tuple(math.exp(-5.0 * j) for j in range(1, 9))
_ABOVE = (1.0, 2.0, 4.0, 8.0)


def _margins(dtype) -> np.ndarray:
    """Where panels end, as margins of a start at a margin of at most 1."""
    far = np.arange(16.0, math.log(float(jnp.finfo(dtype).max)) + 16.0, 8.0)
    return np.concatenate([_BELOW, np.negative(_NEAR), _NEAR[::-1], _ABOVE, far])


def _margin(grow, fade, x):
    """m and its slope."""
    ahead, behind = (grow * jnp.exp(x)) ** 2, (fade * jnp.exp(-x)) ** 2
    return ahead - behind, 2 * (ahead + behind)


def _edges(grow, fade) -> Float[Array, " edges"]:
    """Where x starts and where its margin has the given values, increasing; past the last one nothing is spent.

    Where p = 0 the margin stays below zero, and is nothing long before the last edge.
    """
    dtype = grow.dtype
    start, _ = _margin(grow, fade, jnp.zeros((), dtype))
    margins = jnp.asarray(_margins(dtype), dtype)
    margins = margins + jnp.where(margins >= 1, jnp.maximum(start - 1, 0.0), 0.0)
    lead = 0.5 * jnp.log(0.5 * (jnp.abs(margins) + jnp.hypot(margins, 2 * grow * fade)))
    x = jnp.where(margins > 0, lead - jnp.log(grow), jnp.log(fade) - lead)
    cap = 0.9 * math.log(float(jnp.finfo(dtype).max))
    return jnp.concatenate([jnp.zeros((1,), dtype), jnp.clip(x, 0.0, cap)])


def _table(grow, fade, log_others: float, nodes: int):
    r"""Panel edges, the integral up to each, and the integral from an edge on; integrals are over $e^{\rm shift}$."""
    fixed = jax.lax.stop_gradient((grow, fade))
    edges = _edges(*fixed)
    places, weights = (jnp.asarray(a, edges.dtype) for a in np.polynomial.legendre.leggauss(nodes))
    top = math.log(float(jnp.finfo(edges.dtype).max)) - 12  # room for the slope
    shift = jnp.clip(_margin(*fixed, edges[0])[0] - log_others, 0.0, top)

    def pace(x):
        """The integrand and its slope."""
        margin, slope = _margin(grow, fade, jnp.minimum(x, edges[-1]))
        waiting = jnp.exp(jnp.minimum(margin - log_others - shift, top))
        return jnp.exp(-shift) + waiting, waiting * slope

    def panel(left, width):
        half = 0.5 * width[..., None]
        return jnp.sum(half * weights * pace(left[..., None] + half * (1 + places))[0], axis=-1)

    sums = jnp.cumsum(panel(edges[:-1], jnp.diff(edges)))
    return edges, jnp.concatenate([jnp.zeros((1,), edges.dtype), sums]), shift, pace, panel


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def spent_clock(
    grow: Float[Array, ""], fade: Float[Array, ""], clock: Float[Array, " times"], log_others: float
) -> Float[Array, " times"]:
    """x at the given clocks tau >= 0, for p = `grow`, f = `fade` (both >= 0), `log_others` = log(C - 1)."""
    edges, sums, shift, pace, panel = _table(grow, fade, log_others, NODES)
    target = clock * jnp.exp(-shift)
    at = jnp.searchsorted(sums, target, side="right") - 1
    left, spent = edges[at], sums[at]
    width = edges[jnp.minimum(at + 1, edges.shape[0] - 1)] - left

    # as if the margin were linear across the panel: then it is Lambert's W
    begin, _ = _margin(grow, fade, left)
    rise = _margin(grow, fade, left + width)[0] - begin
    bends = (width > 0) & (rise > 0)
    slope = jnp.where(bends, rise / jnp.where(bends, width, 1.0), 1.0)
    missing = (target - spent) * jnp.exp(shift)
    flat = missing * jax.nn.sigmoid(log_others - begin)
    step = jnp.where(bends, log_lambert_growth(begin - log_others, slope * missing) / slope, flat)
    step = jnp.where(width > 0, jnp.minimum(step, width), step)

    def improve(_, step):
        value, bend = pace(left + step)
        newton = (panel(left, step) - (target - spent)) / value
        return step - newton / (1 - 0.5 * newton * (bend / value))

    return left + jax.lax.fori_loop(0, HALLEY_STEPS, improve, step)


@spent_clock.defjvp
def _derivative(log_others, primals, tangents):
    grow, fade, clock = primals
    x = spent_clock(grow, fade, clock, log_others)

    def spent(grow, fade):
        edges, sums, shift, pace, panel = _table(grow, fade, log_others, NODES)
        at = jnp.searchsorted(edges, x, side="right") - 1
        return sums[at] + panel(edges[at], x - edges[at]), (pace(x)[0], jnp.exp(-shift))

    _, moved, (value, unit) = jax.jvp(spent, (grow, fade), tangents[:2], has_aux=True)
    return x, (unit * tangents[2] - moved) / value


def quadrature_error(grow, fade, x: Float[Array, " times"], log_others: float) -> Float[Array, ""]:
    """The relative error of the clocks spent at x that fewer nodes would make: far above the real one."""

    def spent(nodes):
        edges, sums, _, _, panel = _table(grow, fade, log_others, nodes)
        at = jnp.searchsorted(edges, x, side="right") - 1
        return sums[at] + panel(edges[at], x - edges[at])

    fine = spent(NODES)
    return jax.lax.stop_gradient(jnp.max(jnp.abs(spent(CHECK_NODES) - fine) / jnp.where(fine > 0, fine, 1.0)))
