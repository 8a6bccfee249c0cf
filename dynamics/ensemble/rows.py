"""Members as rows: pytrees of arrays with a common leading axis, on the host."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def leading_size(name: str, tree: PyTree) -> int:
    """The common length of the leading axis; refuses what has none, or an empty one."""
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        raise ValueError(f"{name} must be arrays with one common leading axis >= 1, got leading sizes {sorted(sizes)}")
    return sizes.pop()[0]


def on_host(leaf):
    """The leaf as a NumPy array; random keys, which NumPy cannot hold, as they are."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else np.asarray(leaf)


def rows_of(tree: PyTree, which) -> PyTree:
    """The chosen rows of every leaf, on the host."""
    return jax.tree.map(lambda leaf: on_host(leaf)[which], tree)
