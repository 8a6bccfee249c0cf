r"""KKT residuals of two-layer ReLU networks with any slope on the kinks, in the sense of Clarke.

Where a run slides along kinks, no single slope makes the residual small, although the weights do tend to a KKT point.
"""

from typing import NamedTuple

import numpy as np

from dynamics import validate
from dynamics.observables.sliding import on_kink
from dynamics.problems import Network
from dynamics.problems.activations import Power
from dynamics.problems.nets import Dense


class ClarkeKKT(NamedTuple):
    r"""The KKT residuals of weights scaled to margin one, see `dynamics.observables.kkt_stationarity`.

    - `stationarity`: $\varepsilon$, the least over multipliers and slopes.
    - `slackness`: $\delta$ of those multipliers.
    - `multipliers`: shape (samples,).
    - `slopes`: of every pre-activation, shape (samples, units); NaN for samples of multiplier zero.
    """

    stationarity: float
    slackness: float
    multipliers: np.ndarray
    slopes: np.ndarray


def clarke_kkt(problem: Network, state, *, tolerance: float = 1e-3) -> ClarkeKKT:
    r"""The least KKT residual over multipliers $\lambda \ge 0$ and over slopes of the pre-activations that sit on a kink, each
    anywhere between those of its two sides.

    The gradients that a sample can have form a polytope, and their non-negative multiples over all samples a cone, onto which
    the scaled weights are projected. That is convex: corners of the polytopes are added while one of them still has an acute
    angle with the residual, by non-negative least squares (SciPy), and where none has, the projection is the exact one.

    Runs on the host, in float64, for one state.

    **Arguments:**

    - `problem`: a `Network` of one hidden layer of (leaky) ReLU units, with targets +-1.
    - `state`: its weights; every sample must be classified correctly.
    - `tolerance`: which pre-activations sit on a kink, see `on_kink`.

    **Raises:** `ValueError` for another net, and where a sample is misclassified.

    **Reference:** K. Lyu, J. Li, Gradient descent maximizes the margin of homogeneous neural networks (2020).
    """
    net = problem.net
    if not (isinstance(net, Dense) and len(net.widths) == 1 and isinstance(net.activation, Power) and net.degree == 2):
        raise ValueError(f"net must have one hidden layer of (leaky) ReLU units, got {net}")
    if net.outputs is not None:
        raise ValueError(f"net must have one output, with targets +-1, got {net}")
    if not validate.is_concrete((problem, state)):
        raise ValueError("clarke_kkt runs on the host: state must be concrete, got a traced one")
    inner, outer = (np.asarray(part, float) for part in state)
    inputs, signs, slope = np.asarray(problem.inputs, float), np.asarray(problem.targets, float), net.activation.slope
    z = inputs @ inner.T
    units = np.where(z > 0, z, slope * z)
    margins = signs * (units @ outer)
    least = margins.min()
    if not least > 0:
        raise ValueError(f"state must classify every sample correctly, got {np.sum(~(margins > 0))} misclassified")
    inner, outer, units = (part / np.sqrt(least) for part in (inner, outer, units))
    free = np.asarray(on_kink(tolerance)(problem, state))
    sides = np.sort([slope, 1.0])
    fixed = np.where(z > 0, 1.0, np.where(z < 0, slope, net.activation.slope_at_zero))

    def corner(residual: np.ndarray) -> np.ndarray:
        """The slopes, shape (samples, units), of the gradients that are furthest along a residual of the inner weights."""
        up = signs[:, None] * outer * (inputs @ residual.T) > 0
        return np.where(free, np.where(up, sides[1], sides[0]), fixed)

    def gradients(slopes: np.ndarray) -> np.ndarray:
        """The gradients of the margins, shape (samples, weights)."""
        towards = (slopes * outer)[:, :, None] * inputs[:, None, :]
        return signs[:, None] * np.concatenate([towards.reshape(len(signs), -1), units], axis=1)

    weights = np.concatenate([inner.ravel(), outer])
    owners, slopes, counts, residual = _project(weights, inner.shape, corner, gradients)
    multipliers = np.bincount(owners, counts, len(signs))
    mixed = np.zeros_like(fixed)
    np.add.at(mixed, owners, counts[:, None] * slopes)
    return ClarkeKKT(
        stationarity=float(np.linalg.norm(residual)),
        slackness=float(np.max(multipliers * (margins / least - 1))),
        multipliers=multipliers,
        slopes=mixed / np.where(multipliers > 0, multipliers, np.nan)[:, None],
    )


def _project(weights, shape, corner, gradients):
    """The projection of `weights` onto the cone of all gradients: sample, slopes and multiple of each corner, the residual."""
    from scipy.optimize import nnls

    residual = weights
    owners, slopes, columns = np.zeros(0, int), np.zeros((0, shape[0])), np.zeros((0, weights.size))
    counts = np.zeros(0)
    while True:
        found = corner(residual[: shape[0] * shape[1]].reshape(shape))
        rows = gradients(found)
        angles = rows @ residual / (np.linalg.norm(rows, axis=1) * np.linalg.norm(weights))
        new = np.flatnonzero(angles > ROUNDING)
        if new.size == 0:
            return owners, slopes, counts, residual
        owners = np.concatenate([owners, new])
        slopes = np.concatenate([slopes, found[new]])
        columns = np.concatenate([columns, rows[new]])
        counts, size = nnls(columns.T, weights)
        if columns.shape[0] > new.size and size >= np.linalg.norm(residual) * (1 - ROUNDING):
            return owners, slopes, counts, weights - columns.T @ counts
        kept = counts > 0
        owners, slopes, columns, counts = owners[kept], slopes[kept], columns[kept], counts[kept]
        residual = weights - columns.T @ counts


ROUNDING = 1e-12
"""Cosines with the residual, relative to the weights, and gains of a round that count as zero."""
