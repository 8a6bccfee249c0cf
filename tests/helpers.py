"""What several tests share: seeded starts, central differences, refusals before tracing."""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import dynamics as dyn

ROOT = pathlib.Path(__file__).parents[1]
UNSORTED = np.array([2, 0, 1, 1, 2, 1, 0, 1])
"""Labels of three classes of sizes 2, 4, 2, in no order."""


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers, drawn on the host."""
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def start(problem: dyn.LayerPeeled, dim: int, seed: int = 0, dtype=float) -> dyn.Peeled:
    """A random state, biases included."""
    rows = problem.num_samples + problem.num_classes
    numbers = draw(rows, dim, seed=seed).astype(dtype)
    biases = draw(problem.num_classes, seed=seed).astype(dtype)
    return dyn.Peeled(numbers[: problem.num_samples], numbers[problem.num_samples :], biases)


def relative(x, y) -> float:
    """The norm of x - y over the norm of y, all leaves together; in the precision of numpy."""
    a, b = (np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(z)]) for z in (x, y))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def central_difference(function: Callable, x, width: float = 1e-6):
    """The derivative of a scalar or vector function in every number of the pytree `x`: a pytree like x, one value each.

    A vector-valued function gives its Jacobian: the outputs are the leading axis.
    """
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), x))
    steps = width * jnp.maximum(1.0, jnp.abs(flat))
    both = jnp.concatenate([flat + jnp.diag(steps), flat - jnp.diag(steps)])
    values = jax.vmap(lambda moved: ravel_pytree(function(unravel(moved)))[0])(both)
    slopes = (values[: flat.size] - values[flat.size :]) / (2 * steps[:, None])
    return slopes.T


def jacobian(function: Callable, x):
    """The same by automatic differentiation."""
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, float), x))
    return jax.jacfwd(lambda moved: ravel_pytree(function(unravel(moved)))[0])(flat)


def gradient_gap(function: Callable, x, width: float = 1e-6) -> float:
    """The largest difference between automatic and central derivatives, over the largest derivative (or one)."""
    auto, central = np.asarray(jacobian(function, x)), np.asarray(central_difference(function, x, width))
    return float(np.max(np.abs(auto - central)) / max(1.0, np.max(np.abs(central))))


def refused(call: Callable, *words: str) -> None:
    """`call` raises a `ValueError` with all the words, on the host: no frame of JAX or diffrax lies above the check."""
    filtering = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        with pytest.raises(ValueError) as caught:
            call()
    finally:
        jax.config.update("jax_traceback_filtering", filtering)
    text = str(caught.value)
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"
    above = {str(entry.path) for entry in caught.traceback}
    traced = [path for path in above if any(package in path for package in ("/jax/", "/diffrax/", "/equinox/_jit"))]
    assert not traced, f"raised from inside {traced}"
