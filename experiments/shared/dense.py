"""What judges the formulas: the dense linear system of the flow, entry by entry from the definition of the loss.

Host arrays with a leading axis of members, float64, NumPy and SciPy alone; nothing here knows of modes or closed forms.
A state is one matrix, features over prototypes, (samples + classes, dim).
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import expm

from experiments.shared.instances import HORIZON, Draw, Kernels, Size

EXPM = "the judge: SciPy's expm is itself right to 1e-12 of the largest entry, states are smaller"
SLOPES = "slopes fitted to float64 distances: the next slower exponential, and rounding below 1e-9"
"""What limits residuals that these judges find."""


def stacked(features, prototypes) -> np.ndarray:
    """Features over prototypes."""
    return np.concatenate([features, prototypes], axis=-2)


def size_of(x, axes: int = 2) -> np.ndarray:
    """The norm over the last axes."""
    return np.sqrt(np.sum(np.square(x), axis=tuple(range(-axes, 0))))


def deviation(x, y, axes: int = 2) -> np.ndarray:
    """The norm of x - y over the norm of y, over the last axes."""
    return size_of(np.subtract(x, y), axes) / size_of(y, axes)


def clock(draw: Draw, ts) -> np.ndarray:
    """The integral of the weights' rate from 0 to `ts`, (times,) or (members, times), by Gauss-Legendre quadrature."""
    ts = np.broadcast_to(np.asarray(ts, float), (draw.rate.shape[0], np.shape(ts)[-1]))
    nodes, weights = np.polynomial.legendre.leggauss(24)
    end = np.minimum(ts, HORIZON)[..., None]
    cosine = 0.5 + 0.5 * np.cos(np.pi * 0.5 * end * (1 + nodes) / HORIZON)
    rate, floor = draw.rate[:, None, None], draw.floor[:, None, None]
    early = np.sum(weights * 0.5 * end * (floor + (rate - floor) * cosine), axis=-1)
    return early + draw.floor[:, None] * np.maximum(ts - HORIZON, 0.0)


def coupling(draw: Draw, size: Size) -> np.ndarray:
    """Minus the gradient of the mean loss in the logits, (members, classes, samples)."""
    own = np.repeat(np.eye(size.classes, dtype=bool), size.per_class, axis=1)
    return np.where(own, 1.0, -draw.gamma[:, None, None]) / own.shape[1]


def generator(draw: Draw, size: Size) -> np.ndarray:
    """A of Z' = A Z, per unit of the weights' clock."""
    pull, ratio = coupling(draw, size), draw.ratio[:, None, None]
    samples, classes = np.eye(size.classes * size.per_class), np.eye(size.classes)
    top = np.concatenate([-ratio * draw.decay[:, :1, None] * samples, ratio * pull.swapaxes(1, 2)], axis=2)
    return np.concatenate([top, np.concatenate([pull, -draw.decay[:, 1:2, None] * classes], axis=2)], axis=1)


def dense(draw: Draw, size: Size, clocks) -> np.ndarray:
    """Z at the given clock of the weights, (members,), by the exponential of the whole generator."""
    return expm(np.asarray(clocks)[:, None, None] * generator(draw, size)) @ stacked(draw.features, draw.prototypes)


class Spectrum(NamedTuple):
    """Eigendecomposition of the generator: ascending exponents (members, k), vectors in columns, covectors in rows."""

    exponents: np.ndarray
    vectors: np.ndarray
    covectors: np.ndarray

    def leading(self, z: np.ndarray) -> np.ndarray:
        """The part of z in the top eigenspace."""
        top = self.exponents > self.exponents[:, -1:] - 1e-10
        return (self.vectors * top[:, None, :]) @ (self.covectors @ z)

    def gap(self) -> np.ndarray:
        """The top exponent minus the next different one."""
        top = self.exponents[:, -1:]
        return (top - np.where(self.exponents > top - 1e-10, -np.inf, self.exponents).max(axis=1, keepdims=True))[:, 0]


def spectrum(draw: Draw, size: Size) -> Spectrum:
    """By `eigh`: the generator is symmetric once features are measured in units of the root of the ratio of rates."""
    samples = size.classes * size.per_class
    units = np.where(np.arange(samples + size.classes) < samples, np.sqrt(draw.ratio)[:, None], 1.0)
    symmetric = generator(draw, size) * units[:, None, :] / units[:, :, None]
    exponents, vectors = np.linalg.eigh(0.5 * (symmetric + symmetric.swapaxes(1, 2)))
    return Spectrum(exponents, vectors * units[:, :, None], vectors.swapaxes(1, 2) / units[:, None, :])


def times_at(draw: Draw, clocks) -> np.ndarray:
    """Times at about the given clocks of the weights, (members, times), in the same order."""
    at_horizon = clock(draw, [HORIZON])
    late = HORIZON + (clocks - at_horizon) / draw.floor[:, None]
    return np.where(clocks > at_horizon, late, HORIZON * clocks / at_horizon)


def rate_of(clocks, distance, low: float = 1e-9, high: float = 1e-6) -> np.ndarray:
    """Minus the fitted slope of log distance against the clock, both (members, times), where low < distance < high.

    NaN with fewer than four points. The next slower exponential is still felt above the window, rounding below it.
    """
    kept = (distance > low) & (distance < high)
    count = np.where(kept.sum(axis=1) < 4, np.nan, kept.sum(axis=1))[:, None]
    logs = np.where(kept, np.log(np.where(kept, distance, 1.0)), 0.0)
    x, y = (np.where(kept, v - np.where(kept, v, 0.0).sum(axis=1, keepdims=True) / count, 0.0) for v in (clocks, logs))
    return -np.sum(x * y, axis=1) / np.sum(x * x, axis=1)


def product(kernels: Kernels) -> np.ndarray:
    """The kernel across samples times that across coordinates, on features flattened sample by sample."""
    size = kernels.across_samples.shape[1] * kernels.across_features.shape[1]
    return np.einsum("mij,mpq->mipjq", *kernels).reshape(-1, size, size)


def kernel_generator(draw: Draw, size: Size, theta) -> np.ndarray:
    """The generator of any kernel on features flattened sample by sample, (samples dim)^2, per unit of the weights' clock."""
    pull, dim = coupling(draw, size), np.eye(size.dim)
    wide = np.einsum("mci,pq->mcpiq", pull, dim).reshape(len(pull), size.classes * size.dim, -1)
    top = draw.ratio[:, None, None] * theta @ wide.swapaxes(1, 2)
    decays = np.repeat([draw.ratio * draw.decay[:, 0], draw.decay[:, 1]], wide.shape[:0:-1], axis=0).T
    generator = np.zeros((len(pull), decays.shape[1], decays.shape[1]))
    k = wide.shape[2]
    generator[:, :k, k:], generator[:, k:, :k] = top, wide
    return generator - decays[:, :, None] * np.eye(decays.shape[1])


def under_kernel(draw: Draw, size: Size, theta, clocks) -> np.ndarray:
    """Z at the given clock of the weights, (members,), under any kernel."""
    start = stacked(draw.features, draw.prototypes)
    motion = expm(clocks[:, None, None] * kernel_generator(draw, size, theta))
    return (motion @ start.reshape(len(start), -1, 1)).reshape(start.shape)
