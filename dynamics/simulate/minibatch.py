"""Which samples a step of stochastic descent sees."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamics.problems import Problem, check_batch_size


def check_minibatches(problem: Problem, batch_size: int | None, shuffle: str) -> None:
    """Refuse a batch size out of range, or one that does not divide the samples of an epoch."""
    if shuffle not in ("step", "epoch"):
        raise ValueError(f"shuffle must be 'step' or 'epoch', got {shuffle!r}")
    if batch_size is None:
        return
    check_batch_size(batch_size, problem.num_samples)
    if shuffle == "epoch" and problem.num_samples % batch_size:
        raise ValueError(
            f"batch_size must divide the number of samples when shuffle='epoch', got {batch_size} of {problem.num_samples}"
        )


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
