"""Minority collapse under cross-entropy: step imbalance with any real ratio, with decay or with bounded norms.

K_a classes of R times the size of K_b others. By convexity features of a class agree at the minimum, so that one feature a
class stands for all of them, and the ratio R need not be whole.
"""

from typing import NamedTuple

import numpy as np

from experiments.shared.minimiser_oracles import cross_entropy, descended_in_balls, kind_of, objective, unpacked
from experiments.shared.quasi_newton import bfgs, bfgs_twice


class Step(NamedTuple):
    """`many` classes of R times the size of `few` others."""

    many: int
    few: int

    @property
    def classes(self) -> int:
        return self.many + self.few

    @property
    def kind(self):
        """One feature a class."""
        return kind_of("entropy", (1,) * self.classes, self.classes)

    def counts(self, ratio: np.ndarray, smallest: float | np.ndarray = 1.0) -> np.ndarray:
        """Class sizes (members, classes), `smallest` those of the minority."""
        smallest, ratio = np.broadcast_arrays(smallest, ratio)
        of_many = np.repeat((ratio * smallest)[:, None], self.many, axis=1)
        return np.concatenate([of_many, np.repeat(smallest[:, None], self.few, axis=1)], axis=1)


def minority(step: Step, prototypes) -> tuple[np.ndarray, np.ndarray]:
    """The largest distance between two minority prototypes over the root mean square norm of all, and their mean cosine."""
    rows = prototypes[:, step.many :]
    size = np.linalg.norm(rows, axis=2)
    first, second = np.triu_indices(step.few, 1)
    distance = np.linalg.norm(rows[:, first] - rows[:, second], axis=2).max(axis=1)
    distance /= np.sqrt(np.mean(np.sum(prototypes**2, axis=2), axis=1))
    cosines = np.sum(rows[:, first] * rows[:, second], axis=2) / (size[:, first] * size[:, second])
    return distance, cosines.mean(axis=1)


def with_decay(step: Step, decays, counts) -> tuple[np.ndarray, np.ndarray]:
    """Value and prototypes at the end of two descents; `decays` (members, 3), `counts` (members, classes).

    The lower one; of two that are as low, the one with the smaller gradient.
    """
    fun, rng = objective(step.kind, decays, counts), np.random.default_rng(79)
    one, other = (bfgs_twice(fun, 0.7 * rng.normal(size=(len(counts), 2 * step.classes**2))) for _ in range(2))
    tie = np.abs(one[0] - other[0]) < 1e-13
    first = np.where(tie, one[2] <= other[2], one[0] <= other[0])
    x = np.where(first[:, None], one[1], other[1])
    return np.where(first, one[0], other[0]), unpacked(step.kind, x)[1]


def with_bounds(step: Step, norms, counts, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same with mean |w|^2 and mean |h|^2 (over classes) at the squares of `norms` (members, 2)."""
    start = np.random.default_rng([83, seed]).normal(size=(len(counts), 2 * step.classes**2))
    value, _, prototypes = descended_in_balls(step.kind, norms, start, counts)
    return value, prototypes


def ridge_threshold(step: Step, pressure, smallest):
    """R0 = (1/(mu sqrt(n_b)) - K_b)/K_a with mu the root of both decays: merged from there on."""
    return (1 / (pressure * np.sqrt(smallest)) - step.few) / step.many


def merged_nuclear_norm(step: Step, ratio: np.ndarray) -> np.ndarray:
    """That of the minimum of loss + nu |Z|_* with merged minority prototypes and nu = 1/(K_a R + K_b).

    Such a minimum, symmetric within either group, has five numbers: a block alpha^2 (I - J) on the majority, and a 2 x 2
    product of two layers between the (normalised) means of both groups. A convex problem in these.
    """
    many, few = step.many, step.few
    unit = np.zeros((many + few, 2))
    unit[:many, 0], unit[many:, 1] = many**-0.5, few**-0.5
    block = np.zeros((many + few, many + few))
    block[:many, :many] = np.eye(many) - 1 / many
    total = many * ratio + few
    shares = np.where(np.arange(many + few) < many, ratio[:, None], 1.0) / total[:, None]

    def value_and_gradient(x, members=slice(None)):
        nu, share = 1 / total[members], shares[members]
        alpha, left, right = x[:, 0], x[:, 1:5].reshape(-1, 2, 2), x[:, 5:].reshape(-1, 2, 2)
        logits = (alpha**2)[:, None, None] * block + unit @ (left @ right.swapaxes(1, 2)) @ unit.T
        losses, slope = cross_entropy(logits, np.eye(many + few))
        slope = share[..., None] * slope
        between = unit.T @ slope @ unit
        value = np.sum(share * losses, axis=1) + nu * ((many - 1) * alpha**2 + np.sum(x[:, 1:] ** 2, axis=1) / 2)
        of_alpha = 2 * alpha * (np.sum(slope * block, axis=(1, 2)) + nu * (many - 1))
        of_left = between @ right + nu[:, None, None] * left
        of_right = between.swapaxes(1, 2) @ left + nu[:, None, None] * right
        rest = [part.reshape(len(x), 4) for part in (of_left, of_right)]
        return np.log(value), np.concatenate([of_alpha[:, None], *rest], axis=1) / value[:, None]

    start = np.random.default_rng(89).normal(size=(len(ratio), 9))
    _, x, _ = bfgs(value_and_gradient, start)
    return (many - 1) * x[:, 0] ** 2 + np.sum(x[:, 1:] ** 2, axis=1) / 2


def bounded_threshold(step: Step, product: float, low: float = 1.01, high: float = 1000.0) -> float:
    """R0 with bounded norms: the ratio at which the merged minimum of nu = 1/(K_a R + K_b) has |Z|_* = K sqrt(E_w E_h).

    The slope on minority differences is n_b/N there, the multiplier of the bound is nu: merged iff n_b/N <= nu(R).
    `product`: sqrt(E_w E_h). Three sections into forty, then a line.
    """
    wanted = step.classes * product
    for _ in range(3):
        ratios = np.geomspace(low, high, 40)
        # merged while nu(R) >= 1/(K_a R + K_b): a multiplier that small allows a larger norm than the bound
        excess = merged_nuclear_norm(step, ratios) - wanted
        first = max(int(np.argmax(excess > 0)), 1)
        low, high = ratios[first - 1], ratios[first]
    below, above = excess[first - 1], excess[first]
    return float(low - below * (high - low) / (above - below))
