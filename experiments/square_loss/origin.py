"""Leaving the origin: growth rate, threshold of decay, and how many modes leave, for squared error and cross-entropy."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.minimiser_oracles import Kind, hessians, kind_of, objective
from experiments.shared.minimisers import random_decays, worst_of

SOURCE = "linearisation of unconstrained features at the origin, derived here"
SQUARED = (kind_of("squared", (2, 2, 2), 2), kind_of("squared", (3, 3), 1))
ENTROPY = (kind_of("entropy", (2, 2, 2), 2), kind_of("entropy", (3, 3), 1), kind_of("entropy", (1,) * 4, 1))


def _exponents(kind: Kind, decays) -> np.ndarray:
    """Of the flow at the origin, unit rates, ascending, (members, variables): the dense Jacobian's eigenvalues."""
    size = (kind.samples + kind.classes) * kind.dim
    return -np.linalg.eigvalsh(hessians(objective(kind, decays), np.zeros((len(decays), size))))[:, ::-1]


def _rate(kind: Kind, wd_h, wd_w):
    """The top eigenvalue of [[-wd_w, g], [g, -wd_h]], g = 1/(K sqrt n)."""
    g = 1 / np.sqrt(kind.classes * kind.samples)
    return -(wd_h + wd_w) / 2 + np.hypot((wd_h - wd_w) / 2, g)


def _growth(kind: Kind, members: int):
    decays = random_decays(kind, members)
    found = _exponents(kind, decays)[:, -1]
    return np.abs(found - _rate(kind, decays[:, 0], decays[:, 1]))


def _threshold(kind: Kind, members: int):
    """1e-6 on either side of K sqrt(n wd_w wd_h) = 1: unstable modes, of each of the dim directions."""
    decays = random_decays(kind, members)
    scale = kind.classes * np.sqrt(kind.samples / kind.classes * decays[:, 0] * decays[:, 1])
    side = np.where(np.arange(members) % 2, 1 + 1e-6, 1 - 1e-6)
    decays[:, :2] *= (side / scale)[:, None]
    count = np.sum(_exponents(kind, decays) > 0, axis=1)
    modes = kind.classes if kind.loss == "squared" else kind.classes - 1
    return np.abs(count - np.where(side < 1, modes * kind.dim, 0)).astype(float)


def _count(kind: Kind, members: int):
    """Below the threshold, anywhere."""
    decays = random_decays(kind, members)
    count = np.sum(_exponents(kind, decays) > 0, axis=1)
    modes = kind.classes if kind.loss == "squared" else kind.classes - 1
    below = kind.classes * np.sqrt(kind.samples / kind.classes * decays[:, 0] * decays[:, 1]) < 1
    return np.abs(count - np.where(below, modes * kind.dim, 0)).astype(float)


_claim = functools.partial(Claim, id="ufm.origin_threshold", source=SOURCE)
_ASSUMED = ("balanced classes", "no biases", "unit rates")
_BOTH = (*SQUARED, *ENTROPY)

EXPERIMENT = Experiment(
    name="origin",
    family="square-loss",
    summary="leaving the origin: rate, threshold and number of modes",
    claims=(
        _claim(
            name="origin-growth",
            statement="the fastest mode grows at the top eigenvalue of [[-wd_w, g], [g, -wd_h]], g = 1/(K sqrt n)",
            assumptions=_ASSUMED,
            tolerance=1.7e-15,
            check=functools.partial(worst_of, _growth, kinds=_BOTH),
        ),
        _claim(
            name="origin-threshold",
            statement="unstable iff K sqrt(n wd_w wd_h) < 1, for both losses (residual: modes miscounted 1e-6 off it)",
            assumptions=_ASSUMED,
            tolerance=0.0,
            check=functools.partial(worst_of, _threshold, kinds=_BOTH),
        ),
        _claim(
            name="origin-modes",
            statement="squared error: K unstable modes; cross-entropy: K - 1; each in dim directions (residual: miscounted)",
            assumptions=_ASSUMED,
            tolerance=0.0,
            check=functools.partial(worst_of, _count, kinds=_BOTH),
        ),
    ),
)
