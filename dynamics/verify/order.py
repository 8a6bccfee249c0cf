"""Order of convergence, measured."""

import numpy as np


def measured_order(steps, errors, *, floor: float = 0.0) -> float:
    """The slope of log error against log step, fitted by least squares.

    **Arguments:**

    - `steps`: step sizes, shape (sizes,), > 0 and different.
    - `errors`: the errors they gave, shape (sizes,), > 0.
    - `floor`: errors not above it are rounding and are left out.

    **Raises:** `ValueError` where fewer than two errors are left.
    """
    steps, errors = np.asarray(steps, float), np.asarray(errors, float)
    if steps.ndim != 1 or steps.shape != errors.shape:
        raise ValueError(f"steps and errors must have one shape (sizes,), got {steps.shape} and {errors.shape}")
    if not (np.all(np.isfinite(steps)) and np.all(steps > 0) and np.unique(steps).size == steps.size):
        raise ValueError(f"steps must be finite, > 0 and different, got {steps}")
    kept = np.isfinite(errors) & (errors > max(floor, 0.0))
    if kept.sum() < 2:
        raise ValueError(f"at least two errors above floor = {floor:g} are needed, got {errors}")
    return float(np.polyfit(np.log(steps[kept]), np.log(errors[kept]), 1)[0])
