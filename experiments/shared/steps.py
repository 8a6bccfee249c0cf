r"""Step imbalance of any ratio, which varies from member to member although labels are static.

Under a linear loss classes of any sizes $n_c$ move as one sample a class does, the class sides $G_c = \sqrt{n_c}\times$ class
mean, under the coupling $C\sqrt{n_c}A_c/n$ by label: an array. (What is left of the features only decays.) Sizes need not even
be whole then; here their mean is one. Two large classes come first, then two small ones, at gamma = 1/(C-1).
"""

import numpy as np

import dynamics as dyn

CLASSES, LARGE, DIM = 4, 2, 4
GAMMA = 1 / (CLASSES - 1)


def sizes_of(imbalance) -> np.ndarray:
    """Class sizes of mean one, (..., classes)."""
    small = 2 / (np.asarray(imbalance) + 1)
    return np.stack([imbalance * small, imbalance * small, small, small], axis=-1)


def coupling_of(sizes) -> np.ndarray:
    """Rows C sqrt(n_c) A_c/n, (..., classes, classes)."""
    rows = np.where(np.eye(CLASSES, dtype=bool), 1.0, -GAMMA)
    return rows * np.sqrt(sizes)[..., None] * CLASSES / np.sum(sizes, axis=-1)[..., None, None]


def sigmas_of(imbalance) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular values of the difference of the large classes, of large and small ones, and of the small classes."""
    large, small = sizes_of(imbalance)[..., 0], sizes_of(imbalance)[..., -1]
    first, mixed, last = ((1 + GAMMA) / CLASSES * np.sqrt(square) for square in (large, (large + small) / 2, small))
    return first, mixed, last


def problem_of(coupling, decay) -> dyn.LayerPeeled:
    """The problem with one sample a class; `decay` of features and of prototypes."""
    loss = dyn.losses.Linear(coupling)
    return dyn.LayerPeeled.balanced(CLASSES, 1, loss=loss, decay=dyn.Decay(decay[0], decay[1]))


def state_of(start) -> dyn.Peeled:
    """The state of class sides over prototypes, (2 classes, dim)."""
    return dyn.Peeled(start[:CLASSES], start[CLASSES:])


def rates_of(rate, ratio) -> dyn.Rates:
    """Constant rates of the weights, and of the features `ratio` times as large."""
    return dyn.Rates.proportional(dyn.schedules.Constant(rate), ratio)
