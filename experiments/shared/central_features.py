"""Features on the central path: of within-class covariance one, their projected flow, ratios, least-squares loss.

Host arrays with a leading axis of members, NumPy alone; features are columns, (members, dim, samples).
"""

import functools

import numpy as np

from experiments.shared.instances import Size
from experiments.shared.square_modes import integrate, one_hot, orthogonal

TIMES = np.array([20.0, 60, 120, 220, 380, 600])


def targets_of(size: Size) -> np.ndarray:
    return one_hot([size.per_class] * size.classes)


def class_means(x, size: Size):
    """Class means, and those less their mean; x (..., dim, samples)."""
    means = x @ targets_of(size).T / size.per_class
    return means, means - means.mean(axis=-1, keepdims=True)


def covariance(x):
    return x @ np.swapaxes(x, -1, -2) / x.shape[-1]


@functools.cache
def unit_start(size: Size, members: int, *, zero: bool = False) -> np.ndarray:
    """Features of within-class covariance one; ratios from 0.03 to 10, or one of them zero."""
    rng = np.random.default_rng([97, *size])
    samples, hot, modes = size.classes * size.per_class, targets_of(size), min(size.dim, size.classes - 1)
    noise = rng.normal(size=(members, samples, size.dim))
    noise = noise - hot.T @ (hot @ noise) / size.per_class
    within = np.sqrt(samples) * np.linalg.qr(noise)[0].swapaxes(1, 2)
    omega = 10 ** rng.uniform(-1.5, 1, (members, modes))
    omega[:, -1] *= not zero
    basis = np.linalg.svd(np.eye(size.classes) - 1 / size.classes)[0][:, : size.classes - 1]
    right = basis @ orthogonal(rng, members, size.classes - 1)[:, :, :modes]
    left = orthogonal(rng, members, size.dim)[:, :, :modes]
    return within + ((left * omega[:, None]) @ right.swapaxes(1, 2) + rng.normal(size=(members, size.dim, 1))) @ hot


def least_squares(x, size: Size):
    """Prototypes and bias of least squares, by the normal equations of centred features."""
    hot = targets_of(size)
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    w = np.linalg.solve(covariance(centred), centred @ (hot - 1 / size.classes).T / x.shape[-1]).swapaxes(-1, -2)
    return w, 1 / size.classes - w @ mean


def projected_velocity(size: Size):
    """Minus the gradient in the features at slaved prototypes and bias, less its part normal to {S_W = const}."""
    hot = targets_of(size)

    def velocity(state):
        (x,) = state
        w, b = least_squares(x, size)
        gradient = w.swapaxes(1, 2) @ (w @ x + b - hot) / x.shape[-1]
        within = x - class_means(x, size)[0] @ hot
        # normal to the constraint: symmetric matrices times the deviations; the inverse is of the identity up to rounding,
        # which would else be amplified
        normal = np.linalg.solve(covariance(within), within @ gradient.swapaxes(1, 2) / x.shape[-1])
        return (-gradient + 0.5 * (normal + normal.swapaxes(1, 2)) @ within,)

    return velocity


@functools.cache
def moved_features(size: Size, members: int) -> np.ndarray:
    """Features along the projected flow, the start first, (members, times, dim, samples)."""
    x = unit_start(size, members)
    (path,) = integrate(projected_velocity(size), (x,), np.broadcast_to(TIMES, (members, TIMES.size)), 5)
    return np.concatenate([x[:, None], path], axis=1)


def signal_to_noise(x, size: Size):
    """Signal-to-noise ratios: singular values of S_W^(-1/2) (class means - their mean)."""
    means, centred = class_means(x, size)
    root = np.linalg.cholesky(covariance(x - means @ targets_of(size)))
    return np.linalg.svd(np.linalg.solve(root, centred), compute_uv=False)[..., : min(size.dim, size.classes - 1)]


def least_squares_loss(x, size: Size):
    """The least-squares loss, by orthogonal projection of the targets onto the features and a constant."""
    rows = np.concatenate([x, np.ones((*x.shape[:-2], 1, x.shape[-1]))], axis=-2)
    q = np.linalg.qr(np.swapaxes(rows, -1, -2))[0]
    hot = np.broadcast_to(targets_of(size).T, (*q.shape[:-1], size.classes))
    rest = hot - q @ (np.swapaxes(q, -1, -2) @ hot)
    return np.square(rest - q @ (np.swapaxes(q, -1, -2) @ rest)).sum(axis=(-2, -1)) / (2 * x.shape[-1])
