"""Squared error with decayed biases: from a simplex to an orthogonal frame, and where the mean of all classes appears."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.minimiser_flows import MOST, counted, ends
from experiments.shared.minimiser_oracles import Kind, apart, hessians, kind_of, objective, unpacked
from experiments.shared.minimisers import by_formula, gram_gap, random_decays, uncertified, value_gap, worst_of

SOURCE = "derived here, from the minimum of squared error in the product of both layers"
KINDS = (
    kind_of("squared", (2, 2, 2), 4, True),
    kind_of("squared", (3, 3), 2, True),
    kind_of("squared", (2,) * 4, 4, True),
)
WIDE = (KINDS[0], KINDS[2])
"""One dimension more than the simplex takes: what the mean of all classes can grow into."""


def _critical(kind: Kind, decays):
    """r/(1+r) = mu/(kappa sqrt n) solved for the decay of the biases."""
    part = np.sqrt(decays[:, 0] * decays[:, 1]) * kind.samples / np.sqrt(kind.samples / kind.classes)
    return part / (1 - part)


def _below_threshold(kind: Kind, members: int):
    """Decays at which classes survive."""
    decays = random_decays(kind, members)
    threshold = np.sqrt(kind.samples / kind.classes) / kind.samples
    scale = np.sqrt(decays[:, 0] * decays[:, 1]) / threshold
    decays[:, :2] *= np.where(scale > 0.9, 0.9 / scale, 1.0)[:, None]
    return decays


def _simplex(kind: Kind, decays):
    """The simplex with the biases that are best for it: a stationary point for every decay of the biases."""
    undecayed = decays.copy()
    undecayed[:, 2] = 0
    states = by_formula(kind, undecayed)[1]
    states[:, -kind.classes :] = 1 / (kind.classes * (1 + decays[:, 2:]))
    return states


def _transition(kind: Kind, members: int):
    """Bisection of the decay of the biases, from a few per cent off: the least curvature at the simplex turns negative."""
    decays = _below_threshold(kind, members)
    critical = _critical(kind, decays)
    low, high = 0.98 * critical, 1.01 * critical

    def stable(ridge):
        decays[:, 2] = ridge
        curvature = np.linalg.eigvalsh(hessians(objective(kind, decays), _simplex(kind, decays)))[:, 0]
        return curvature > -1e-14

    if not (np.all(stable(low)) and not np.any(stable(high))):
        return np.full(members, np.inf)
    for _ in range(30):
        middle = (low + high) / 2
        holds = stable(middle)
        low, high = np.where(holds, middle, low), np.where(holds, high, middle)
    return np.abs(low / critical - 1)


def _both_sides(kind: Kind, members: int):
    """3 % off it: the mean of the class features at the minimum, found by descent, is zero on one side only."""
    decays = _below_threshold(kind, members)
    decays[:, 2] = _critical(kind, decays) * np.where(np.arange(members) % 2, 1.03, 0.97)
    _, states = by_formula(kind, decays)
    mean = np.linalg.norm(unpacked(kind, states)[1].mean(axis=1), axis=1)
    return np.where((mean > 1e-3) == (np.arange(members) % 2 == 1), np.where(mean > 1e-3, 0, mean), np.inf)


def _limits(kind: Kind, members: int):
    """No decay of the biases: prototypes sum to zero, b = 1/K. Decay 1e12: their Gram matrix is diagonal, b = 0."""
    decays = _below_threshold(kind, members)
    decays[:, 2] = 0
    _, without = by_formula(kind, decays)
    _, prototypes, biases = unpacked(kind, without)
    size = np.linalg.norm(prototypes, axis=(1, 2))
    simplex = np.linalg.norm(prototypes.sum(axis=1), axis=1) / size + np.abs(biases - 1 / kind.classes).max(axis=1)
    decays[:, 2] = 1e12
    _, much = by_formula(kind, decays)
    _, prototypes, biases = unpacked(kind, much)
    gram = prototypes @ prototypes.swapaxes(1, 2)
    across = np.abs(gram * (1 - np.eye(kind.classes))).max(axis=(1, 2)) / np.trace(gram, axis1=1, axis2=2)
    return np.maximum(simplex, across + np.abs(biases).max(axis=1))


def _flows(members: int):
    found = ends(KINDS[0], min(members, MOST))
    residual = np.maximum(np.abs(found.reached.value - found.minimum.value), apart(found.minimum, found.reached))
    return counted(found, residual, np.zeros(len(residual), bool), "decays off the thresholds")


_claim = functools.partial(Claim, id="mse.bias_transition", source=SOURCE)
_ASSUMED = ("squared error, balanced classes", "trained biases with decay wd_b, r = wd_b/(kappa samples)")

EXPERIMENT = Experiment(
    name="bias-transition",
    family="square-loss",
    summary="decayed biases: simplex, orthogonal frame, and the transition between them",
    claims=(
        _claim(
            name="bias-transition-value",
            statement="minimum: classes (sqrt n - mu/kappa)_+, their mean (sqrt n - (mu/kappa)(1+r)/r)_+, "
            "b = (sqrt n - z_mean)/((1+r) sqrt(K N))",
            assumptions=_ASSUMED,
            tolerance=1.1e-15,
            check=functools.partial(worst_of, value_gap, kinds=KINDS),
        ),
        _claim(
            name="bias-transition-grams",
            statement="its Gram matrices, logits and biases = those that random starts descend to",
            assumptions=_ASSUMED,
            tolerance=6.7e-7,
            check=functools.partial(worst_of, gram_gap, kinds=KINDS),
        ),
        _claim(
            name="bias-transition-certificate",
            statement="it satisfies the conditions of a global minimum of the convex problem in Z and b",
            assumptions=_ASSUMED,
            tolerance=2e-14,
            check=functools.partial(worst_of, uncertified, kinds=KINDS),
        ),
        _claim(
            name="bias-transition-threshold",
            statement="the mean of all classes appears at r/(1+r) = mu/(kappa sqrt n) (bisection of a dense Hessian)",
            assumptions=(*_ASSUMED, "dim >= classes"),
            tolerance=1e-10,
            check=functools.partial(worst_of, _transition, kinds=WIDE, most=MOST),
        ),
        _claim(
            name="bias-transition-sides",
            statement="3 % past it the mean of the prototypes is there, 3 % before it is zero",
            assumptions=(*_ASSUMED, "dim >= classes"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _both_sides, kinds=WIDE),
        ),
        _claim(
            name="bias-transition-limits",
            statement="wd_b = 0: a simplex, b = 1/K; wd_b -> infinity: an orthogonal frame, b = 0",
            assumptions=_ASSUMED,
            tolerance=1e-11,
            check=functools.partial(worst_of, _limits, kinds=KINDS),
        ),
        _claim(
            name="bias-transition-flows",
            statement="regularised flows of features, prototypes and biases end there, from every random start",
            assumptions=(*_ASSUMED, "rates and decays unequal"),
            tolerance=6.7e-7,
            check=_flows,
        ),
    ),
)
