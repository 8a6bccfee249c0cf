"""An orthonormal basis of the span of rows, whatever their rank."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BLOCK = 16
"""Rows that are orthogonalised together, so that the basis is read once for all of them."""

product = functools.partial(jnp.matmul, precision="highest")


@jax.custom_jvp
def orthonormal(rows: Float[Array, "count dim"]) -> Float[Array, "count dim"]:
    """Rows that span the given ones, the leading ones the leading ones: orthonormal, or zero where nothing new is added.

    Gram-Schmidt, each row projected twice; what is then left of a row that adds only rounding is dropped. In plain products,
    as fast here as LAPACK's QR on one thread, whose threads on shared cores wait for each other a hundred times as long.

    **Reference:** L. Giraud, J. Langou, M. Rozloznik, J. van den Eshof, Rounding error analysis of the classical Gram-Schmidt
    orthogonalization process (2005).
    """
    count, dim = rows.shape
    block = min(BLOCK, count)
    blocks = -(-count // block)
    # of length about one: squares stay in the float range
    rows = _over(rows, jnp.max(jnp.abs(rows), axis=1, keepdims=True))
    rows = jnp.pad(rows, ((0, blocks * block - count), (0, 0)))

    def some(i, basis):
        x = jax.lax.dynamic_slice_in_dim(rows, i * block, block)
        # a direction made of rounding must not stay for a moment: later rows would lose their part along it
        rounding = 50 * jnp.finfo(x.dtype).eps * jnp.linalg.norm(x, axis=1)
        for least in (rounding, jnp.full_like(rounding, 0.5)):
            x = _within(x - product(product(x, basis.T), basis), least)
        return jax.lax.dynamic_update_slice_in_dim(basis, x, i * block, 0)

    return jax.lax.fori_loop(0, blocks, some, jnp.zeros_like(rows))[:count]


def _within(x: Float[Array, "block dim"], least: Float[Array, " block"]) -> Float[Array, "block dim"]:
    """The rows of one block made orthonormal; zero where no more than `least` of a row is left."""

    def one(k, basis):
        row = x[k]
        for _ in range(2):
            row = row - product(product(basis, row), basis)
        length = jnp.linalg.norm(row)
        # not (length <= least), so that NaN stays NaN
        return basis.at[k].set(jnp.where(length <= least[k], 0.0, _over(row, length)))

    return jax.lax.fori_loop(0, x.shape[0], one, jnp.zeros_like(x))


def _over(x: Array, size: Array) -> Array:
    """x / size; x itself, zeros, where the size is zero."""
    return x / jnp.where(size == 0, 1.0, size)


@orthonormal.defjvp
def _turning(primals, tangents):
    """For rows X = L Q of full rank, L lower triangular: L^-1 dX = dQ + L^-1 dL Q, and dQ Q^T is antisymmetric."""
    (rows,), (moved,) = primals, tangents
    basis = orthonormal(rows)
    solved = jax.scipy.linalg.solve_triangular(product(rows, basis.T), moved, lower=True)
    inside = product(solved, basis.T)
    above = jnp.triu(inside, 1)
    return basis, solved + product(above - above.T - inside, basis)
