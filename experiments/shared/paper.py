"""The numerical figures of the unhinged paper, at the paper's own size: settings, iterates, formula.

p = 512 dimensions, C = 100 classes, N = 10 samples a class, 50 000 full-batch steps. Features start N(0, 1); prototypes start
N(0, 2/p) (figure 15: N(0, 1), anchored).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from dynamics.state import norm

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023)"
CLASSES, PER_CLASS, DIM, STEPS = 100, 10, 512, 50_000
EVERY = 500
GAMMA = 1 / (CLASSES - 1)
ROOT = PER_CLASS**0.5


def threshold(gamma: float) -> float:
    """The decay at which norms neither grow nor vanish, equal decays."""
    return (1 + gamma) / (CLASSES * ROOT)


class Setting(NamedTuple):
    """One curve: the weight of other classes' logits, the decay of both layers, the rate of the weights, the ratio s."""

    gamma: float = GAMMA
    decay: float = 0.0
    rate: float = 0.1
    ratio: float = 1.0


class Start(NamedTuple):
    """A start, full and reduced to class means, and the size of the deviations that the reduction leaves out."""

    full: dyn.Peeled
    reduced: dyn.Peeled
    deviation: float


@functools.cache
def start(seed: int, prototype_variance: float = 2 / DIM) -> Start:
    """The random start of one seed."""
    rng = np.random.default_rng([2023, seed])
    features = rng.normal(size=(CLASSES * PER_CLASS, DIM))
    prototypes = rng.normal(size=(CLASSES, DIM)) * prototype_variance**0.5
    full = dyn.Peeled(features, prototypes)
    reduced = dyn.reduce.class_means(problem(Setting()), full)
    return Start(full, reduced.state, float(norm(reduced.deviations)))


def problem(setting: Setting, anchored: bool = False) -> dyn.LayerPeeled:
    """The balanced layer-peeled problem of a setting."""
    loss, decay = dyn.losses.Unhinged(setting.gamma), dyn.Decay(setting.decay, setting.decay)
    return dyn.LayerPeeled.balanced(CLASSES, PER_CLASS, loss=loss, decay=decay, anchored=anchored)


def rates(setting: Setting) -> dyn.Rates:
    """Constant rates."""
    return dyn.Rates.proportional(dyn.schedules.Constant(setting.rate), setting.ratio)


@functools.partial(jax.jit, static_argnames=("anchored", "steps", "every", "by_formula"))
def _reduced_path(state, setting: Setting, anchored: bool, steps: int, every: int, by_formula: bool) -> dyn.Trajectory:
    full = dyn.Peeled(jnp.zeros((CLASSES * PER_CLASS, DIM)), state.prototypes)
    reduced = dyn.reduce.class_means(problem(setting, anchored), full).problem
    verb = dyn.exact.descent if by_formula else dyn.descent
    return verb(reduced, state, rates(setting), steps, every=every)


class Path(NamedTuple):
    """What the figures show of one run, each of shape (times,).

    Distances are to the limit of the flow: between unit-norm states, features or prototypes; `plain_distance` is that of the
    prototypes themselves to their limit at the threshold of decay.
    """

    steps: np.ndarray
    distance: np.ndarray
    feature_distance: np.ndarray
    prototype_distance: np.ndarray
    plain_distance: np.ndarray
    norm: np.ndarray
    feature_norm: np.ndarray
    prototype_norm: np.ndarray
    limit_norm: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray

    @property
    def log_norm_ratio(self) -> np.ndarray:
        """log of feature norm over prototype norm."""
        return np.log(self.feature_norm / self.prototype_norm)

    @property
    def descent(self) -> np.ndarray:
        """Minus the loss, which a log axis can show."""
        return -self.loss


@functools.cache
def path(seed: int, setting: Setting, *, by_formula: bool, steps: int = STEPS, every: int = EVERY, anchored=False) -> Path:
    """One run: real iterates of the class means and deviations, or the discrete closed form.

    The deviations from the class means only decay; their factor is iterated as a plain product. References are the limits of
    the flow, from the start by the printed formulas: (G0 + s W0) Pi for the features and prototypes, or the anchored pull.
    """
    begin = start(seed, 1.0 if anchored else 2 / DIM)
    moved = _reduced_path(begin.reduced, setting, anchored, steps, every, by_formula)
    g, w = np.asarray(moved.states.features), np.asarray(moved.states.prototypes)
    shrink = np.cumprod(np.full(steps, 1 - setting.rate * setting.ratio * setting.decay))
    deviation = begin.deviation * np.concatenate([[1.0], shrink])[::every]
    g0, w0 = np.asarray(begin.reduced.features), np.asarray(begin.reduced.prototypes)
    if anchored:
        aim = (1 + setting.gamma) * w0 - setting.gamma * w0.sum(0)
        aim_g, aim_w = aim, w0
    else:
        # at the threshold, and for s = 1 at any equal decays, both limits lie along this; its norm is the limit's at threshold
        aim = g0 + setting.ratio * w0
        aim_g = aim_w = (aim - aim.mean(0)) / (1 + setting.ratio)

    def size(x):
        return np.sqrt(np.sum(x**2, axis=(-2, -1)))

    size_g, size_w = np.hypot(size(g), deviation), size(w)
    whole = np.hypot(size_g, size_w)
    aim_whole = np.hypot(size(aim_g), size(aim_w))

    def gap(x, x_size, y, y_size):
        return size(x / x_size[:, None, None] - y / y_size)

    both = np.hypot(gap(g, whole, aim_g, aim_whole), gap(w, whole, aim_w, aim_whole))
    coupling = (1 + setting.gamma) * w - setting.gamma * w.sum(1, keepdims=True)
    loss = -np.sum(coupling * g, axis=(1, 2)) / (CLASSES * ROOT)
    return Path(
        np.asarray(moved.ts),
        np.hypot(both, deviation / whole),
        np.hypot(gap(g, size_g, aim_g, size(aim_g)), deviation / size_g),
        gap(w, size_w, aim_w, size(aim_w)),
        size(w - aim_w),
        whole,
        size_g,
        size_w,
        np.full(size_w.shape, size(aim_w)),
        loss,
        _accuracy(begin.full, g, w, shrink, every),
    )


def _accuracy(full: dyn.Peeled, g, w, shrink, every) -> np.ndarray:
    """Accuracy over all samples at the kept times."""
    features = np.asarray(full.features).reshape(CLASSES, PER_CLASS, DIM)
    deviations = features - features.mean(1, keepdims=True)
    kept = np.concatenate([[1.0], shrink])[::every]
    hits = []
    for mean, prototypes, factor in zip(g / ROOT, w, kept, strict=True):
        logits = (mean[:, None] + factor * deviations) @ prototypes.T
        hits.append(np.mean(logits.argmax(-1) == np.arange(CLASSES)[:, None]))
    return np.array(hits)
