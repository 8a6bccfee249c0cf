"""Features seen through their directions: unit rows, the pull along the sphere, and starts that face the wrong way."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Rows = Float[Array, "rows dim"]


def unit_rows(x: Rows) -> Rows:
    """Each row divided by its norm; a zero row becomes NaN, it has no direction."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def tangential_pull(features: Rows, pull: Rows, adjusted: Float[Array, ""] | float | None = None) -> Rows:
    r"""Minus the gradient of $-\langle v, h/|h|\rangle$ in each row h: $(I - \hat h\hat h^T)v/|h|$, v the rows of `pull`.

    `adjusted` is the $\epsilon$ of the adjusted prototype: where $\beta = \cos(v, h) < -1 + \epsilon$ the pull is that of
    $v + \delta$, which has cosine $-1 + \epsilon$ with h: its tangential part has norm
    $|\beta|\,|v|\,\sqrt{1-(1-\epsilon)^2}/(1-\epsilon)$ instead of $|v|\sqrt{1-\beta^2}$. At $\beta = -1$ exactly, where
    no tangent is preferred, it is the coordinate axis least along h.

    **Reference:** "On the Dynamics Under the Unhinged Loss and Beyond", JMLR 24 (2023), Appendix D.3, with
    $w_y - \hat h\hat h^T w_y$ where Eq. 104 prints a plus.
    """
    norms = jnp.linalg.norm(features, axis=-1, keepdims=True)
    unit = features / norms
    along = jnp.sum(pull * unit, axis=-1, keepdims=True)
    across = pull - along * unit
    if adjusted is not None:
        across = jnp.where(along < 0, _adjusted(unit, pull, along, across, adjusted), across)
    return across / norms


def _adjusted(unit: Rows, pull: Rows, along: Array, across: Rows, epsilon) -> Rows:
    strength = _norms(pull)
    behind = -along > (1 - epsilon) * strength
    size = _norms(across)
    # at rounding there is no direction left in what is across
    some = size > 8 * jnp.finfo(unit.dtype).eps * strength
    least = jnp.arange(unit.shape[-1]) == jnp.argmin(jnp.abs(unit), axis=-1)[..., None]
    axis = least - jnp.sum(least * unit, axis=-1, keepdims=True) * unit
    tangent = jnp.where(some, across / jnp.where(some, size, 1.0), axis / _norms(axis))
    lifted = -along * jnp.sqrt(epsilon * (2 - epsilon)) / (1 - epsilon)
    return jnp.where(behind, lifted * tangent, across)


def anti_aligned(features: Rows, pull: Rows) -> Bool[Array, " rows"]:
    """Whether each feature points opposite to what pulls it, to rounding: a fixed point on the sphere."""
    strength = _norms(pull)
    pulled = strength > 0
    apart = unit_rows(features) + pull / jnp.where(pulled, strength, 1.0)
    return (pulled & (_norms(apart) <= 8 * jnp.finfo(features.dtype).eps))[..., 0]


def _norms(x: Rows) -> Float[Array, "rows 1"]:
    """Norms of rows; the gradient of a zero row is zero."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
