"""Data sets for networks that a sweep file may name; a new one is one function that returns (inputs, targets).

A random one is drawn from its own `seed`, so that members that differ elsewhere share it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics import validate

Data = tuple[Float[Array, "samples ..."], Array]


def given(inputs, targets) -> Data:
    """Data written out: inputs, shape (samples, ...), and targets, shape (samples,): +-1, or class labels."""
    targets = np.asarray(targets, float)
    whole = np.all(targets == np.round(targets))
    return jnp.asarray(inputs), jnp.asarray(targets.astype(int) if whole else targets)


def gaussian(samples: int, dim: int, seed: int = 0) -> Data:
    """Standard normal points with targets +1 and -1 in turn, wherever they lie."""
    return jax.random.normal(_key(seed), _shape(samples, dim)), _signs(samples)


def separable(samples: int, dim: int, gap: float = 0.3, seed: int = 0) -> Data:
    """Standard normal points with targets +1 and -1 in turn, each moved to its side of a random plane through the origin, and
    away from it by `gap` >= 0."""
    validate.nonnegative("gap", gap)
    for_points, for_plane = jax.random.split(_key(seed))
    points, signs = jax.random.normal(for_points, _shape(samples, dim)), _signs(samples)
    normal = jax.random.normal(for_plane, (dim,))
    normal = normal / jnp.linalg.norm(normal)
    heights = points @ normal
    return points + (signs * (jnp.abs(heights) + gap) - heights)[:, None] * normal, signs


def clusters(samples: int, dim: int, classes: int, spread: float = 0.1, seed: int = 0) -> Data:
    """Points about a standard normal centre of each class, `spread` >= 0 standard deviations wide; labels 0, 1, ... in turn."""
    validate.nonnegative("spread", spread)
    for_points, for_centres = jax.random.split(_key(seed))
    labels = jnp.arange(validate.whole("samples", samples, 1)) % validate.whole("classes", classes, 2)
    centres = jax.random.normal(for_centres, (classes, validate.whole("dim", dim, 1)))
    return centres[labels] + spread * jax.random.normal(for_points, (samples, dim)), labels


def _key(seed):
    if validate.is_concrete(seed) and not 0 <= seed < 2**31:
        raise ValueError(f"seed must lie in [0, 2**31), got {seed}")
    return jax.random.key(seed)


def _shape(samples: int, dim: int) -> tuple[int, int]:
    return validate.whole("samples", samples, 1), validate.whole("dim", dim, 1)


def _signs(samples: int) -> Float[Array, " samples"]:
    return 1.0 - 2.0 * (jnp.arange(samples) % 2)
