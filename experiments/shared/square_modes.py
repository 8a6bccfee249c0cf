"""What judges the modes of the square loss: flows of whole matrices from the definition, by an extrapolated integrator.

Host arrays with a leading axis of members, NumPy alone; no closed form enters. Prototypes W (members, classes, dim), features
H (members, dim, samples) as columns, targets Y (members, classes, samples): kappa/2 |W H + b 1' - Y|^2 plus decays.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.shared.instances import Size
from experiments.shared.oracles import column

State = tuple[np.ndarray, ...]
SUBSTEPS = 2 * np.arange(1, 7)
"""Midpoint steps of the extrapolation: order 12."""


def integrate(velocity: Callable, start: State, times: np.ndarray, steps: int) -> State:
    """x' = velocity(x) of all members at times (members, times) of their own, increasing; leading axes (members, times).

    Gragg, Bulirsch, Stoer: midpoint rules extrapolated to order 12, `steps` equal steps between times and from 0 to the first.
    """
    edges = np.concatenate([np.zeros((times.shape[0], 1)), times], axis=1)
    x, path = start, []
    for k in range(times.shape[1]):
        width = (edges[:, k + 1] - edges[:, k]) / steps
        for _ in range(steps):
            x = _step(velocity, x, width)
        path.append(x)
    return tuple(np.stack(parts, axis=1) for parts in zip(*path, strict=True))


def _step(velocity, x: State, width: np.ndarray) -> State:
    wide = lambda part: width.reshape(-1, *([1] * (part.ndim - 1)))
    add = lambda x, v, share: tuple(a + share * wide(a) * b for a, b in zip(x, v, strict=True))
    slope, rows = velocity(x), []
    for n in SUBSTEPS:
        before, now = x, add(x, slope, 1 / n)
        for _ in range(n - 1):
            before, now = now, add(before, velocity(now), 2 / n)
        ended = add(now, velocity(now), 1 / n)
        rows.append([tuple(0.5 * (a + b) for a, b in zip(before, ended, strict=True))])
        for j in range(1, len(rows)):
            factor = 1 / ((n / SUBSTEPS[len(rows) - 1 - j]) ** 2 - 1)
            better, worse = rows[-1][j - 1], rows[-2][j - 1]
            rows[-1].append(tuple(a + factor * (a - b) for a, b in zip(better, worse, strict=True)))
    return rows[-1][-1]


class Terms(NamedTuple):
    """What a flow is made of, one number a member: kappa, rates of features and weights, their decays."""

    kappa: np.ndarray
    features: np.ndarray
    weights: np.ndarray
    decay_features: np.ndarray
    decay_prototypes: np.ndarray

    @property
    def speed(self) -> np.ndarray:
        """The geometric mean of the rates."""
        return np.sqrt(self.features * self.weights)

    @property
    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Of features and of weights."""
        return self.features, self.weights

    @property
    def decay(self) -> np.ndarray:
        """The geometric mean of the decays."""
        return np.sqrt(self.decay_features * self.decay_prototypes)


def terms(rng: np.random.Generator, members: int, *, decay: bool = False) -> Terms:
    """Kappa log-uniform in [0.05, 1], rates in [0.1, 10]; decays of which each times its rate is the same."""
    kappa, features, weights = 10 ** rng.uniform([-1.3, -1, -1], [0, 1, 1], (members, 3)).T
    # of the order of the targets, so that some modes die
    common = kappa * np.sqrt(features * weights) * rng.uniform(0, 1.5, members) if decay else np.zeros(members)
    return Terms(kappa, features, weights, common / features, common / weights)


def velocity_of(targets: np.ndarray, t: Terms, *, slaved: bool = False) -> Callable:
    """Of (prototypes, features), without bias, or with the bias at its optimum, the mean of Y - W H."""
    fast_w, fast_h = column(t.kappa * t.weights), column(t.kappa * t.features)
    fade_w, fade_h = column(t.weights * t.decay_prototypes), column(t.features * t.decay_features)

    def velocity(x):
        w, h = x
        wrong = w @ h - targets
        wrong = wrong - wrong.mean(axis=2, keepdims=True) if slaved else wrong
        return -fast_w * (wrong @ h.swapaxes(1, 2)) - fade_w * w, -fast_h * (w.swapaxes(1, 2) @ wrong) - fade_h * h

    return velocity


def velocity_with_bias(targets: np.ndarray, t: Terms, *, product: bool = True) -> Callable:
    """Of (prototypes, features, biases (members, classes, 1)), no decay; `product=False` leaves W H out of the logits."""
    fast_w, fast_h = column(t.kappa * t.weights), column(t.kappa * t.features)

    def velocity(x):
        w, h, b = x
        wrong = b - targets
        wrong = wrong + w @ h if product else wrong
        return (
            -fast_w * (wrong @ h.swapaxes(1, 2)),
            -fast_h * (w.swapaxes(1, 2) @ wrong),
            -fast_w * wrong.sum(axis=2, keepdims=True),
        )

    return velocity


def one_hot(sizes) -> np.ndarray:
    """(classes, samples), sorted by class."""
    return np.repeat(np.eye(len(sizes)), sizes, axis=1)


def orthogonal(rng: np.random.Generator, members: int, k: int) -> np.ndarray:
    """Random orthogonal matrices (members, k, k)."""
    return np.linalg.qr(rng.normal(size=(members, k, k)))[0]


class Aligned(NamedTuple):
    """Starts that share their singular vectors with the targets: the numbers of each mode and the matrices made of them.

    Every third member has one-hot targets of unequal class sizes, the others targets of random singular values, two of which
    are equal and, where there are three, one zero.
    """

    terms: Terms
    targets: np.ndarray
    left: np.ndarray
    right: np.ndarray
    sigma: np.ndarray
    start: np.ndarray
    imbalance: np.ndarray
    prototypes: np.ndarray
    features: np.ndarray

    def matrix(self, strengths: np.ndarray) -> np.ndarray:
        """W H of the given strengths of modes (members, times, modes)."""
        return (self.left[:, None] * strengths[:, :, None]) @ self.right[:, None]


@functools.cache
def aligned(size: Size, members: int, *, balanced: bool) -> Aligned:
    """Random aligned starts: balanced ones with decay, of positive modes; or unbalanced ones without, of either sign."""
    rng = np.random.default_rng([17, *size, balanced])
    classes, per_class, dim = size
    samples, modes = classes * per_class, min(classes, dim)
    t = terms(rng, members, decay=balanced)
    left, right = orthogonal(rng, members, classes)[:, :, :modes], orthogonal(rng, members, samples)[:, :modes]
    sigma = rng.uniform(0.3, 2, (members, modes))
    sigma[:, 1] = sigma[:, 0]
    if modes > 2:
        sigma[:, 2] = 0.0
    sizes = np.maximum(np.arange(classes), 1)
    sizes[-1] += samples - sizes.sum()
    hot = np.arange(0, members, 3)
    order = np.argsort(-sizes)[:modes]
    left[hot] = np.eye(classes)[:, order]
    right[hot] = (one_hot(sizes) / np.sqrt(sizes)[:, None])[order]
    sigma[hot] = np.sqrt(sizes[order])
    targets = (left * sigma[:, None]) @ right
    start = 10 ** rng.uniform(-2.5, 0.3, (members, modes)) * (1 if balanced else rng.choice([-1, 1], (members, modes)))
    imbalance = np.zeros_like(start)
    if not balanced:
        imbalance = 10 ** rng.uniform(-2, 1, start.shape) * rng.choice([-1, 1], start.shape)
    half = 0.5 * np.abs(imbalance)
    larger = half + np.hypot(half, start)
    smaller = start**2 / larger
    w2, h2 = np.where(imbalance < 0, smaller, larger), np.where(imbalance < 0, larger, smaller)
    skew = np.sqrt(t.weights / t.features)[:, None]
    w, h = np.sqrt(w2 * skew), np.sign(start) * np.sqrt(h2 / skew)
    turn = orthogonal(rng, members, dim)[:, :, :modes]
    prototypes, features = (left * w[:, None]) @ turn.swapaxes(1, 2), (turn * h[:, None]) @ right
    return Aligned(t, targets, left, right, sigma, start, imbalance, prototypes, features)


def norm_of(x: np.ndarray) -> np.ndarray:
    """The Frobenius norm over the last two axes."""
    return np.sqrt(np.square(x).sum(axis=(-2, -1)))
