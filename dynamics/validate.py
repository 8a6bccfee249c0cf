"""Checks on the host, before anything is traced. A traced value is never judged here: it becomes a status of its member."""

import difflib
import math
from collections.abc import Iterable, Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def is_concrete(x) -> bool:
    """Whether every leaf of `x` has a value now (is not traced)."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(x))


def is_numeric(x) -> bool:
    """Whether `x` is a number or an array of numbers; other leaves (sentinels of tree maps) are nobody's business."""
    return isinstance(x, bool | int | float | complex | np.generic | np.ndarray | jax.Array)


def shown(x) -> str:
    """A short text of a value for a message."""
    array = np.asarray(x)
    return str(array) if array.size <= 8 else f"an array of shape {array.shape}"


def finite(name: str, x) -> None:
    """Refuse a concrete value with a NaN or an infinity."""
    if is_numeric(x) and is_concrete(x) and not np.all(np.isfinite(np.asarray(x))):
        raise ValueError(f"{name} must be finite, got {shown(x)}")


def nonnegative(name: str, x) -> None:
    """Refuse a concrete value that is negative or not finite."""
    finite(name, x)
    if is_numeric(x) and is_concrete(x) and np.any(np.asarray(x, float) < 0):
        raise ValueError(f"{name} must be >= 0, got {shown(x)}")


def positive(name: str, x) -> None:
    """Refuse a concrete value that is not finite and above zero."""
    finite(name, x)
    if is_numeric(x) and is_concrete(x) and np.any(np.asarray(x, float) <= 0):
        raise ValueError(f"{name} must be > 0, got {shown(x)}")


def increasing(name: str, x) -> None:
    """Refuse concrete values along the last axis that are not strictly increasing."""
    if is_numeric(x) and is_concrete(x) and np.any(np.diff(np.asarray(x, float)) <= 0):
        raise ValueError(f"{name} must be strictly increasing (no duplicates), got {shown(x)}")


def whole(name: str, x, at_least: int) -> int:
    """A Python integer of at least `at_least`."""
    if isinstance(x, bool) or not isinstance(x, int | np.integer):
        raise ValueError(f"{name} must be a Python integer >= {at_least}, got {x!r}")
    if x < at_least:
        raise ValueError(f"{name} must be >= {at_least}, got {x}")
    return int(x)


def nearest(word, names: Iterable[str]) -> str:
    """A hint for a word that is none of the names: the nearest of them, else all."""
    names = list(names)
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def choice(name: str, x, names: Iterable[str]) -> None:
    """Refuse what is none of the names."""
    names = list(names)
    if x not in names:
        raise ValueError(f"{name}: unknown {x!r}; {nearest(x, names)}")


def shape(name: str, x, wanted: Sequence[int | str], meaning: str) -> None:
    """Refuse an array whose shape is not `wanted`; strings in `wanted` stand for any size."""
    got = np.shape(x)
    matches = len(got) == len(wanted) and all(isinstance(w, str) or g == w for g, w in zip(got, wanted, strict=True))
    if not matches:
        wanted_text = "(" + ", ".join(str(w) for w in wanted) + ("," if len(wanted) == 1 else "") + ")"
        raise ValueError(f"{name} must have shape {meaning} = {wanted_text}, got {tuple(got)}")


def floating_dtype(name: str, dtype) -> jnp.dtype:
    """A floating dtype that the current settings can hold."""
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating dtype, got {dtype}")
    if dtype == jnp.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(
            f"{name} is float64 but 64-bit numbers are off; call jax.config.update('jax_enable_x64', True) "
            "before the first array is made, or set JAX_ENABLE_X64=1"
        )
    return dtype


def tolerance(name: str, x, dtype) -> float:
    """A Python float of at least twice the resolution of `dtype`."""
    if not isinstance(x, int | float | np.integer | np.floating) or isinstance(x, bool):
        raise ValueError(f"{name} must be a Python number, got {x!r}")
    floor = 2 * float(jnp.finfo(dtype).eps)
    if not (math.isfinite(x) and x >= floor):
        raise ValueError(f"{name} must be finite and >= {floor:.3g} (2 eps of {jnp.dtype(dtype)}), got {x!r}")
    return float(x)
