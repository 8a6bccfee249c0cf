"""What several tests share: seeded starts, central differences, refusals before tracing."""

import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import pytest

import dynamics as dyn

ROOT = pathlib.Path(__file__).parents[1]
UNSORTED = np.array([2, 0, 1, 1, 2, 1, 0, 1])
"""Labels of three classes of sizes 2, 4, 2, in no order."""

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""`jax.jit` with cheap code generation: what is computed does not depend on it."""


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers, drawn on the host."""
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def start(problem: dyn.LayerPeeled, dim: int, seed: int = 0, dtype=float) -> dyn.Peeled:
    """A random state, biases included."""
    rows = problem.num_samples + problem.num_classes
    numbers = draw(rows, dim, seed=seed).astype(dtype)
    biases = draw(problem.num_classes, seed=seed).astype(dtype)
    return dyn.Peeled(numbers[: problem.num_samples], numbers[problem.num_samples :], biases)


def spoiled(array, value) -> np.ndarray:
    """A copy with one entry replaced."""
    array = np.array(array)
    array.flat[1] = value
    return array


def relative(x, y) -> float:
    """The norm of x - y over the norm of y, all leaves together; in the precision of numpy."""
    a, b = (np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(z)]) for z in (x, y))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


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
