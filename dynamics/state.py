"""What can be asked of any state, a pytree of arrays."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from dynamics import validate


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm of all leaves together; its gradient at a zero state is zero."""
    square = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def inner(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """The sum over all entries of the product."""
    return jnp.sum(jnp.stack(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), x, y))))


def select(condition: Bool[Array, "..."], yes: PyTree, no: PyTree) -> PyTree:
    """`yes` where the condition holds, else `no`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def cast(tree: PyTree, dtype) -> PyTree:
    """Every floating leaf in `dtype`, so that hyper-parameters never promote the state."""

    def one(leaf):
        if validate.is_numeric(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return jnp.asarray(leaf, dtype)
        return leaf

    return jax.tree.map(one, tree)
