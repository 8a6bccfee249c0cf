"""BFGS for a batch: every member its own inverse Hessian and step, members that have arrived are left alone."""

from collections.abc import Callable

import numpy as np


def bfgs(value_and_gradient: Callable, x: np.ndarray, sweeps: int = 600, reach: float = np.inf):
    """Each member's local minimum from its start, by steps no longer than `reach`: value, point, norm of the gradient there.

    `value_and_gradient(x, members)` is asked for those members that are still on their way.
    """
    every, size = np.arange(len(x)), x.shape[1]
    value, gradient = value_and_gradient(x, every)
    end = (value.copy(), x.copy(), np.linalg.norm(gradient, axis=1))
    live, fresh, stuck = every, np.ones(len(x), bool), np.zeros(len(x), int)
    inverse = np.eye(size) / np.maximum(1, end[2])[:, None, None]
    for _ in range(sweeps):
        going = (np.linalg.norm(gradient, axis=1) > 1e-13) & (stuck < 8)
        if not going.any():
            break
        if going.mean() < 0.8:
            kept = (live, x, value, gradient, inverse, fresh, stuck)
            live, x, value, gradient, inverse, fresh, stuck = (part[going] for part in kept)
        step = -np.matmul(inverse, gradient[..., None])[..., 0]
        slope = np.sum(step * gradient, axis=1)
        uphill = slope >= 0
        step[uphill], slope[uphill] = -gradient[uphill], -np.sum(gradient[uphill] ** 2, axis=1)
        length, slack = np.minimum(1, reach / np.maximum(np.linalg.norm(step, axis=1), 1e-300)), 4e-16 * np.abs(value)
        new_value, new_gradient = value_and_gradient(x + length[:, None] * step, live)
        for trial in range(25):
            (fails,) = np.nonzero(~(new_value <= value + 1e-4 * length * slope + slack))
            if fails.size == 0:
                break
            length[fails] = 0.0 if trial == 24 else length[fails] / 3
            new_value[fails], new_gradient[fails] = value_and_gradient(
                x[fails] + length[fails, None] * step[fails], live[fails]
            )
        moved = length[:, None] * step
        still = (new_value >= value) & (np.linalg.norm(new_gradient, axis=1) > 0.9 * np.linalg.norm(gradient, axis=1))
        change, x, value, gradient = new_gradient - gradient, x + moved, new_value, new_gradient
        product, square = np.sum(moved * change, axis=1), np.sum(change**2, axis=1)
        curved = product > np.maximum(1e-14 * np.sqrt(square) * np.linalg.norm(moved, axis=1), 1e-60)
        scale = np.where(curved, product, 1.0) / np.where(curved, square, 1.0)
        # the first step tells the scale; where none is left, from there again; where steps stop helping, that is rounding
        stuck, failed = stuck + still, length == 0
        inverse[fresh & curved] = scale[fresh & curved, None, None] * np.eye(size)
        inverse[failed] = np.eye(size) / np.maximum(1, np.linalg.norm(gradient[failed], axis=1))[:, None, None]
        fresh = (fresh & ~curved) | failed
        rho = np.where(curved, 1 / np.where(curved, product, 1.0), 0.0)
        turned = np.matmul(inverse, change[..., None])[..., 0]
        side = ((1 + rho * np.sum(change * turned, axis=1)) * rho / 2)[:, None] * moved - rho[:, None] * turned
        outer = side[:, :, None] * moved[:, None, :]
        inverse += outer + outer.swapaxes(1, 2)
        end[0][live], end[1][live], end[2][live] = value, x, np.linalg.norm(gradient, axis=1)
    return end


def bfgs_twice(value_and_gradient: Callable, x: np.ndarray):
    """Once more from where the first descent came to rest, with a new inverse; the end with the smaller gradient is kept."""
    one = bfgs(value_and_gradient, x)
    other = bfgs(value_and_gradient, one[1])
    better = other[2] < one[2]
    return tuple(np.where(better.reshape(-1, *(1,) * (a.ndim - 1)), b, a) for a, b in zip(one, other, strict=True))
