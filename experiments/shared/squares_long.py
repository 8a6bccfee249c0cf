"""The Riccati formula evaluated directly in many digits: slow, for times at which float64 would lose all of them."""

import mpmath as mp
import numpy as np

from experiments.shared.squares import Shape, Starts


def gram_at(shape: Shape, start: Starts, t: float, clock: float) -> np.ndarray:
    """All inner products of prototypes and features at time `t` of one member; `clock` is t over the fastest growth rate.

    M = e^{Ft} Q [1 + c Q^T P Q]^{-1} Q^T e^{Ft}, P the integral of e^{2Fs}, from the eigenvalues of F as a matrix.
    """
    classes, samples, dim = shape.classes, sum(shape.sizes), shape.dim
    with mp.workdps(int(60 + 1.8 * clock)):
        number = lambda x: mp.mpf(float(x))
        kappa, ratio, decay, time = 1 / mp.mpf(samples), number(start.ratio), number(start.decay), number(t)
        delta = number(start.imbalance) if dim > 1 else _delta(start)
        c, skew = kappa * ratio, kappa * ratio * delta / 2
        pull, matrix = kappa * mp.sqrt(ratio), mp.zeros(classes + samples)
        for k in range(classes):
            matrix[k, k] = skew - decay
            for i, label in enumerate(shape.labels):
                target = mp.mpf(int(label == k)) - (mp.mpf(shape.sizes[k]) / samples if shape.slaved else 0)
                matrix[k, classes + i] = matrix[classes + i, k] = pull * target
        for i in range(samples):
            matrix[classes + i, classes + i] = -skew - decay
        scales = [mp.mpf(1)] * classes + [mp.sqrt(ratio)] * samples
        rows = mp.matrix(np.concatenate([start.prototypes, start.features]).tolist())
        rows = mp.matrix([[rows[i, j] / scales[i] for j in range(dim)] for i in range(classes + samples)])
        values, vectors = mp.eigsy(matrix)
        seen = vectors.T * rows
        spent = mp.eye(dim)
        tiny = mp.mpf(10) ** (-mp.mp.dps // 2)
        for i, rate in enumerate(values):
            weight = c * (time if abs(rate) < tiny else mp.expm1(2 * rate * time) / (2 * rate))
            row = seen[i, :]
            spent += weight * (row.T * row)
            for j in range(dim):
                seen[i, j] *= mp.exp(rate * time)
        moved = vectors * (seen * mp.inverse(spent) * seen.T) * vectors.T
        size = range(classes + samples)
        return np.array([[float(scales[i] * moved[i, j] * scales[j]) for j in size] for i in size])


def _delta(start: Starts):
    """In one dimension every start has one."""
    squares = [sum(mp.mpf(float(x)) ** 2 for x in side.ravel()) for side in (start.prototypes, start.features)]
    return squares[0] - squares[1] / mp.mpf(float(start.ratio))
