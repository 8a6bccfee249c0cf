"""Judges of global minima: the objective from its definition, descents from random starts, a certificate of convexity."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from experiments.shared.quasi_newton import bfgs, bfgs_twice

LossName = Literal["squared", "entropy"]


class Kind(NamedTuple):
    """What is static: the loss, the label of every sample, the dimension of feature space, whether biases are trained."""

    loss: LossName
    labels: tuple[int, ...]
    dim: int
    bias: bool | Literal["slaved"] = False

    @property
    def classes(self) -> int:
        return max(self.labels) + 1

    @property
    def samples(self) -> int:
        return len(self.labels)

    @property
    def sizes(self) -> np.ndarray:
        return np.bincount(self.labels)


def kind_of(loss: LossName, sizes, dim: int, bias: bool | Literal["slaved"] = False) -> Kind:
    """Classes of these sizes, samples sorted by class."""
    return Kind(loss, tuple(np.repeat(np.arange(len(sizes)), sizes).tolist()), dim, bias)


class Found(NamedTuple):
    """Minima of a batch."""

    value: np.ndarray
    feature_norm: np.ndarray
    prototype_norm: np.ndarray
    bias: np.ndarray
    feature_gram: np.ndarray
    prototype_gram: np.ndarray
    logits: np.ndarray


# The objective from its definition, on rows of numbers: features, prototypes, then biases where they are trained.


def packed(kind: Kind, features, prototypes, biases) -> np.ndarray:
    """Rows of numbers from arrays with a leading axis of members."""
    parts = [features, prototypes, biases] if kind.bias else [features, prototypes]
    return np.concatenate([np.reshape(part, (np.shape(part)[0], -1)) for part in parts], axis=1)


def unpacked(kind: Kind, x):
    """Features (members, samples, dim), prototypes (members, classes, dim), biases (members, classes)."""
    samples, classes, dim = kind.samples, kind.classes, kind.dim
    ends = np.cumsum([samples * dim, classes * dim])
    features, prototypes, biases = np.split(x, ends, axis=1)
    biases = biases if kind.bias else np.zeros((x.shape[0], classes), x.dtype)
    return features.reshape(-1, samples, dim), prototypes.reshape(-1, classes, dim), biases


def loss_and_slope(kind: Kind, logits, shares):
    """The loss summed with `shares` (members, samples), and its gradient in the logits."""
    target = np.eye(kind.classes)[list(kind.labels)]
    if kind.loss == "squared":
        losses, slope = np.sum((logits - target) ** 2, axis=-1) / 2, logits - target
    else:
        losses, slope = cross_entropy(logits, target)
    return np.sum(shares * losses, axis=-1), shares[..., None] * slope


def cross_entropy(logits, target):
    """log(1 + sum over others of exp(z_j - z_y)) and its gradient; right, relatively, however small the loss."""
    apart = logits - np.sum(logits * target, axis=-1, keepdims=True)
    top = np.maximum(apart.real.max(axis=-1, keepdims=True), 0)
    others = np.exp(apart - top) * (1 - target)
    total = others.sum(axis=-1, keepdims=True)
    losses = np.where(top > 0, top + np.log(np.exp(-top) + total), np.log1p(total))[..., 0]
    return losses, (others - target * total) / (np.exp(-top) + total)


def objective(kind: Kind, decays, counts=None) -> Callable:
    """x -> (objective, gradient); `counts` (members, samples): how many equal ones a sample stands for, any real number."""
    counts = np.ones((len(decays), kind.samples)) if counts is None else counts
    shares = counts / counts.sum(axis=1, keepdims=True)
    first = np.asarray(decays)[:, :1] * counts
    second, third = np.asarray(decays)[:, 1], np.asarray(decays)[:, 2]

    def value_and_gradient(x, members=slice(None)):
        features, prototypes, biases = unpacked(kind, x)
        wd_h, wd_w, wd_b = first[members, :, None], second[members, None, None], third[members, None]
        logits = features @ prototypes.swapaxes(1, 2) + biases[:, None]
        value, slope = loss_and_slope(kind, logits, shares[members])
        value = value + np.sum(wd_h * features**2, axis=(1, 2)) / 2
        value = value + np.sum(wd_w * prototypes**2, axis=(1, 2)) / 2 + np.sum(wd_b * biases**2, axis=1) / 2
        gradient = packed(
            kind,
            slope @ prototypes + wd_h * features,
            slope.swapaxes(1, 2) @ features + wd_w * prototypes,
            slope.sum(axis=1) + wd_b * biases,
        )
        return value, gradient

    return value_and_gradient


def bounded_objective(kind: Kind, norms, counts=None) -> Callable:
    """x -> (log of the mean loss, gradient) with features and prototypes scaled to root mean square norms (members, 2), in the
    order prototypes, features; the mean over features does not count how many they stand for."""
    plain = objective(kind, np.zeros((len(norms), 3)), counts)
    split = kind.samples * kind.dim
    radii = np.asarray(norms)[:, ::-1] * np.sqrt([kind.samples, kind.classes])

    def value_and_gradient(x, members=slice(None)):
        bounds = radii[members, 0, None], radii[members, 1, None]
        sizes = [np.linalg.norm(part, axis=1, keepdims=True) for part in (x[:, :split], x[:, split:])]
        units = [part / size for part, size in zip((x[:, :split], x[:, split:]), sizes, strict=True)]
        scaled = [bound * unit for bound, unit in zip(bounds, units, strict=True)]
        value, gradient = plain(np.concatenate(scaled, axis=1), members)
        slopes = []
        for bound, size, unit, slope in zip(bounds, sizes, units, (gradient[:, :split], gradient[:, split:]), strict=True):
            slopes.append(bound / size * (slope - unit * np.sum(unit * slope, axis=1, keepdims=True)))
        return np.log(value), np.concatenate(slopes, axis=1) / value[:, None]

    return value_and_gradient


def descended(kind: Kind, decays, *, seed: int = 0, counts=None, starts: int = 1, scale: float = 0.7):
    """The best local minimum over `starts` random starts of each member: value, point, norm of the gradient there."""
    fun = objective(kind, decays, counts)
    size = (kind.samples + kind.classes) * kind.dim + bool(kind.bias) * kind.classes
    rng = np.random.default_rng([43, seed, size])
    found = [bfgs_twice(fun, scale * rng.normal(size=(len(decays), size))) for _ in range(starts)]
    best = np.argmin([value for value, _, _ in found], axis=0)
    return tuple(np.stack(part)[best, np.arange(len(decays))] for part in zip(*found, strict=True))


def descended_in_balls(kind: Kind, norms, start, counts=None, rounds: int = 6):
    """The loss at the end of a descent with bounded norms, and features and prototypes at their bounds.

    Only directions matter to `bounded_objective`: between rounds they are brought back to one length.
    """
    fun, split, x = bounded_objective(kind, norms, counts), kind.samples * kind.dim, start
    for _ in range(rounds):
        blocks = [block / np.linalg.norm(block, axis=1, keepdims=True) for block in (x[:, :split], x[:, split:])]
        value, x, _ = bfgs(fun, 3 * np.concatenate(blocks, axis=1), sweeps=150, reach=1.0)
    radii = np.asarray(norms)[:, ::-1] * np.sqrt([kind.samples, kind.classes])
    features, prototypes, _ = unpacked(kind, x)
    sized = (
        radius[:, None, None] * part / np.linalg.norm(part, axis=(1, 2))[:, None, None]
        for radius, part in zip(radii.T, (features, prototypes), strict=True)
    )
    return np.exp(value), *sized


def measured(kind: Kind, value, x) -> Found:
    """Value, norms and Gram matrices of points with these values."""
    features, prototypes, biases = unpacked(kind, x)
    return Found(
        value,
        np.linalg.norm(features, axis=(1, 2)),
        np.linalg.norm(prototypes, axis=(1, 2)),
        biases,
        features @ features.swapaxes(1, 2),
        prototypes @ prototypes.swapaxes(1, 2),
        features @ prototypes.swapaxes(1, 2) + biases[:, None],
    )


def certificate(kind: Kind, decays, x) -> np.ndarray:
    """By how much points miss the conditions of a global minimum of the convex problem in the product Z, relative.

    With mu the root of the two decays and G minus the gradient of the loss in Z: |G| <= mu in spectral norm,
    <G, Z> = mu times the nuclear norm of Z, which is (decays times squared norms)/2; stationary biases.
    """
    features, prototypes, biases = unpacked(kind, x)
    logits = features @ prototypes.swapaxes(1, 2)
    shares = np.full((1, kind.samples), 1 / kind.samples)
    slope = -loss_and_slope(kind, logits + biases[:, None], shares)[1]
    mu = np.sqrt(decays[:, 0] * decays[:, 1])
    nuclear = np.linalg.norm(logits, "nuc", axis=(1, 2))
    by_norms = (decays[:, 0] * np.sum(features**2, axis=(1, 2)) + decays[:, 1] * np.sum(prototypes**2, axis=(1, 2))) / 2
    still = np.abs(slope.sum(axis=1) - decays[:, 2:] * biases).max(axis=1) if kind.bias else 0.0
    return np.max(
        [
            np.maximum(np.linalg.norm(slope, 2, axis=(1, 2)) / mu - 1, 0),
            np.abs(np.sum(slope * logits, axis=(1, 2)) - mu * nuclear),
            np.abs(by_norms - mu * nuclear),
            still * np.ones(len(mu)),
        ],
        axis=0,
    )


def apart(one: Found, other: Found) -> np.ndarray:
    """The largest difference of Gram matrices, logits or biases, (members,)."""
    pairs = zip(one[3:], other[3:], strict=True)
    return np.max([np.abs(a - b).max(axis=tuple(range(1, a.ndim))) for a, b in pairs], axis=0)


def hessians(value_and_gradient: Callable, x: np.ndarray) -> np.ndarray:
    """Those of every member, (members, variables, variables), by complex steps, which cancel nothing."""
    members, size = x.shape
    points = (x[:, None] + 1e-30j * np.eye(size)).reshape(-1, size)
    slopes = value_and_gradient(points, np.repeat(np.arange(members), size))[1]
    return slopes.imag.reshape(members, size, size) / 1e-30
