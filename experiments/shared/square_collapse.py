"""Balanced starts of both layers under the square loss, integrated until they collapse: without bias, or at the best one.

Host arrays with a leading axis of members, NumPy alone; features are columns.
"""

import functools
from typing import NamedTuple

import numpy as np

from experiments.shared.instances import Size
from experiments.shared.oracles import column
from experiments.shared.square_modes import Terms, integrate, one_hot, orthogonal, terms, velocity_of

SIZES = (Size(3, 2, 4), Size(2, 3, 2), Size(4, 2, 5))
"""With dim >= classes: all targets are fitted."""
AT = np.array([0.3, 1, 2, 3.5, 5, 8, 9, 10, 12])
LATE = np.array([0.3, 0.8, 1.5, 2.5, 4, 7, 12, 18, 22, 26])
"""Times in units of 1/(kappa s sqrt(n))."""


class Start(NamedTuple):
    """A balanced start; in `half` and `turn` what it is made of: W = half, H = (turn half)' for rates one."""

    terms: Terms
    half: np.ndarray
    turn: np.ndarray
    prototypes: np.ndarray
    features: np.ndarray


@functools.cache
def balanced_start(size: Size, members: int, slaved: bool) -> Start:
    """Any prototypes of singular values about those of the limit; features turned not too far from those of the limit."""
    rng = np.random.default_rng([41, *size, slaved])
    classes, per_class, dim = size
    t = terms(rng, members)
    values = rng.uniform(0.5, 1.5, (members, 1, classes)) * per_class**0.25
    half = orthogonal(rng, members, classes) * values @ orthogonal(rng, members, classes)
    near = one_hot([per_class] * classes).T + 0.5 * rng.normal(size=(members, classes * per_class, classes))
    near = near - near.mean(axis=1, keepdims=True) if slaved else near
    u, _, v = np.linalg.svd(near, full_matrices=False)
    turn, into, skew = u @ v, orthogonal(rng, members, dim)[:, :classes], column((t.weights / t.features) ** 0.25)
    mean = rng.normal(size=(members, dim, 1)) if slaved else 0.0  # of the features: frozen, and without effect
    return Start(t, half, turn, skew * half @ into, (turn @ half @ into / skew).swapaxes(1, 2) + mean)


class Seen(NamedTuple):
    """What is measured along the integrated flow, (members, times, ...)."""

    times: np.ndarray
    fitted: np.ndarray
    own: np.ndarray
    within: np.ndarray
    ratio: np.ndarray


@functools.cache
def collapsed(size: Size, members: int, slaved: bool) -> Seen:
    """W H - Y, its class means times the root of the class size, deviations of features, tr(S_W S_B^+)."""
    classes, per_class, _ = size
    s = balanced_start(size, members, slaved)
    times = (LATE if slaved else AT) / (s.terms.kappa * s.terms.speed * per_class**0.5)[:, None]
    hot = one_hot([per_class] * classes)
    w, h = integrate(velocity_of(hot, s.terms, slaved=slaved), (s.prototypes, s.features), times, 6)
    h = h - h.mean(axis=-1, keepdims=True) if slaved else h
    fitted = w @ h - hot + (1 / classes if slaved else 0.0)
    means = h @ hot.T / per_class
    within = h - means @ hot
    u, spread, _ = np.linalg.svd(means - means.mean(axis=-1, keepdims=True), full_matrices=False)
    seen = np.square(u[..., : classes - 1].swapaxes(-1, -2) @ within).sum(axis=-1)
    ratio = (seen / spread[..., : classes - 1] ** 2).sum(axis=-1) / per_class
    return Seen(times, fitted, fitted @ hot.T / per_class**0.5, within, ratio)
