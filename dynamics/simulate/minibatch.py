"""Which samples a step of stochastic descent sees."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def minibatches(
    samples: int, batch_size: int | None, key, shuffle: str, dtype
) -> Callable[[Array], Float[Array, " samples"] | None]:
    """A function of the step: samples/batch_size for each sample it sees and 0 for the others; None for all of them."""
    if batch_size is None:
        return lambda step: None

    def counted(step):
        draw, place = (step, 0) if shuffle == "step" else jnp.divmod(step, samples // batch_size)
        # the place of every sample in a random order
        order = jax.random.permutation(jax.random.fold_in(key, draw), samples)
        return jnp.where(order // batch_size == place, samples / batch_size, 0.0).astype(dtype)

    return counted
