"""Functions of a symmetric matrix, with derivatives that exist where eigenvalues are equal."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Square = Float[Array, "size size"]


@jax.custom_jvp
def act(
    matrix: Square,
    basis: Square,
    eigenvalues: Float[Array, " size"],
    values: Float[Array, "rows size"],
    slopes: Float[Array, "rows size"],
    x: Float[Array, "samples size"],
) -> Float[Array, "samples size"]:
    """f(matrix) applied to each row of `x`, given f and its derivative at the eigenvalues; f may differ from row to row.

    `basis` and `eigenvalues` are those of the matrix, taken as constants: the first derivative in the matrix is that of the
    whole, by divided differences of f. Second derivatives in the matrix are not.

    **Reference:** Ju. L. Daleckii, S. G. Krein (1965); N. J. Higham, Functions of Matrices (2008), Theorem 3.11.
    """
    return ((x @ basis) * values) @ basis.T


@act.defjvp
def _derivative(primals, tangents):
    matrix, basis, eigenvalues, values, slopes, x = primals
    turned = x @ basis
    inside = turned * tangents[3] + (tangents[5] @ basis) * values
    rotated = basis.T @ tangents[0] @ basis
    inside = inside + jnp.squeeze((_differences(eigenvalues, values, slopes) * rotated) @ turned[..., None], -1)
    return act(*primals), inside @ basis.T


def _differences(eigenvalues, values, slopes) -> Float[Array, "rows size size"]:
    """(f(a) - f(b))/(a - b) for all pairs; where f hardly changes between them the mean of its two slopes."""
    apart = eigenvalues[:, None] - eigenvalues
    change = values[:, :, None] - values[:, None, :]
    flat = 0.5 * (slopes[:, :, None] + slopes[:, None, :])
    size = jnp.abs(values[:, :, None]) + jnp.abs(values[:, None, :])
    near = jnp.abs(apart * flat) <= float(jnp.finfo(values.dtype).eps) ** (1 / 3) * size
    return jnp.where(near, flat, change / jnp.where(near | (apart == 0), 1.0, apart))
