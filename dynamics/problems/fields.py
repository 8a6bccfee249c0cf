"""Checks on the fields of a problem, on the host."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dynamics import validate
from dynamics.problems.base import StaticArray


def static_labels(labels, num_classes: int) -> StaticArray:
    """Labels as a static field; refuses what is not one integer a sample with every class present."""
    if not validate.is_concrete(labels):
        raise ValueError("labels must be concrete: they are static, one compiled program each")
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"labels must have shape (samples,) with samples >= 1, got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got dtype {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        bad = labels[(labels < 0) | (labels >= num_classes)][0]
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {bad}")
    empty = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if empty.size:
        raise ValueError(f"labels must hold every class of 0..{num_classes - 1}; class {empty[0]} is empty")
    return StaticArray(labels.astype(np.int32))


def static_weights(weights, labels: np.ndarray) -> StaticArray:
    """Sample weights as a static field; refuses what is not >= 0 with mean one."""
    if not validate.is_concrete(weights):
        raise ValueError("sample_weights must be concrete: they are static, like the labels")
    weights = np.asarray(weights, float)
    validate.shape("sample_weights", weights, labels.shape, "(samples,)")
    validate.nonnegative("sample_weights", weights)
    if abs(weights.mean() - 1) > 1e-6:
        raise ValueError(f"sample_weights must have mean one, got mean {weights.mean():.6g}")
    idle = np.flatnonzero(np.bincount(labels, weights) == 0)
    if idle.size:
        raise ValueError(f"sample_weights must be positive on some sample of every class; class {idle[0]} has none")
    return StaticArray(weights)


def kernel_matrix(name: str, kernel, size: int | None, meaning: str) -> Array | None:
    """A kernel as an array; refuses what is not symmetric positive semi-definite."""
    if kernel is None:
        return None
    shape = np.shape(kernel)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{name} must be square, {meaning}, got shape {shape}")
    if size is not None:
        validate.shape(name, kernel, (size, size), meaning)
    validate.finite(name, kernel)
    if validate.is_concrete(kernel):
        values = np.asarray(kernel, float)
        resolution = 1e-10 if np.asarray(kernel).dtype == np.float64 else 1e-4
        slack = resolution * np.max(np.abs(values), initial=0.0)
        if np.max(np.abs(values - values.T), initial=0.0) > slack:
            raise ValueError(f"{name} must be symmetric, largest asymmetry {np.max(np.abs(values - values.T)):.3g}")
        lowest = np.linalg.eigvalsh(values)[0]
        if lowest < -slack:
            raise ValueError(f"{name} must be positive semi-definite, smallest eigenvalue {lowest:.3g}")
    return jnp.asarray(kernel)
