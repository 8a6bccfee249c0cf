"""Squared error with both layers free from an aligned and balanced start: every mode is logistic."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import clock
from experiments.shared.instances import SIZES, TIMES, Size, draws, worst_of
from experiments.shared.nonlinear import annealed, forces, integrate_all
from experiments.shared.oracles import States, column


def _logistic(size: Size, members: int):
    """Singular values of W G^T along the integrated gradient, G the class sums over root N, against the logistic law."""
    rng, draw = np.random.default_rng([41, *size]), draws(size, members)
    modes = min(size.classes, size.dim)
    left = np.linalg.qr(rng.normal(size=(members, size.classes, size.classes)))[0][..., :modes]
    right = np.linalg.qr(rng.normal(size=(members, size.dim, size.dim)))[0][:, :modes]
    begin = 10 ** rng.uniform(-2, 0.7, (members, modes))  # u_0, below and above root N
    balance = np.sqrt(draw.ratio)[:, None]
    prototypes = (left * np.sqrt(begin / balance)[:, None]) @ right
    sides = (left * np.sqrt(begin * balance)[:, None]) @ right
    features = np.repeat(sides, size.per_class, axis=1) / np.sqrt(size.per_class)
    labels, still = np.repeat(np.arange(size.classes), size.per_class), np.zeros((members, size.classes))

    def velocity(t, parts):
        force, eta = forces("square", States(parts[0], parts[1], still), labels), annealed(draw, t)
        return [column(draw.ratio * eta) * force.features, column(eta) * force.prototypes]

    h, w = integrate_all(velocity, [features, prototypes], TIMES)
    g = h.reshape(*h.shape[:2], size.classes, size.per_class, size.dim).sum(axis=3) / np.sqrt(size.per_class)
    found = np.swapaxes(left, 1, 2)[:, None] @ w @ np.swapaxes(g, 2, 3) @ left[:, None]
    root = np.sqrt(size.per_class)
    fading = np.exp(-2 * balance * root * clock(draw, TIMES) / labels.size)
    expected = root / (1 + (root / begin - 1)[:, None] * fading[..., None])
    wrong = found - expected[..., None] * np.eye(modes)
    return np.abs(wrong).max(axis=(1, 2, 3)) / expected.max(axis=(1, 2))


EXPERIMENT = Experiment(
    name="joint-square-modes",
    family="beyond",
    summary="squared error with both layers free: logistic modes",
    claims=(
        Claim(
            name="joint-square-logistic",
            id="beyond.anchored_losses",
            statement="modes of W^T G: u = sqrt(N)/(1 + (sqrt(N)/u_0 - 1) e^{-2 sqrt(s N) zeta2/n}), by integration",
            source="A. M. Saxe, J. L. McClelland, S. Ganguli (2014), for the layer-peeled model; derived here",
            assumptions=("balanced classes, no bias, no decay, rates of constant ratio s", "features aligned and balanced"),
            tolerance=2e-12,
            check=functools.partial(worst_of, _logistic, sizes=SIZES),
        ),
    ),
)
