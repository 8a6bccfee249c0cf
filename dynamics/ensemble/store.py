"""Finished chunks on disk: written whole or not at all."""

import os
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree


def write_chunk(folder: Path, number: int, index: np.ndarray, status: np.ndarray, values: PyTree) -> Path:
    """Write one chunk as `chunk-<number>.npz`: `index`, `status`, and a leaf a key, named by its path in `values`."""
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {f"values{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree_util.tree_leaves_with_path(values)}
    target = folder / f"chunk-{number:06d}.npz"
    partial = folder / f".tmp-{target.name}-{os.getpid()}"
    try:
        with partial.open("wb") as file:
            np.savez(file, index=index, status=status, **leaves)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target
