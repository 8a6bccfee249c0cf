"""Global minima of cross-entropy with decay, balanced classes: explicit size of the simplex, against random starts."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.minimiser_flows import MOST, counted, ends
from experiments.shared.minimiser_oracles import Kind, apart, certificate, kind_of
from experiments.shared.minimisers import by_formula, gram_gap, judged, random_decays, uncertified, value_gap, worst_of

SOURCE = "Z. Zhu et al. 2021 (the simplex); explicit form derived here"
KINDS = (
    kind_of("entropy", (2, 2, 2), 3),
    kind_of("entropy", (3, 3), 1, True),
    kind_of("entropy", (2,) * 4, 3, True),
)
FLOWN = kind_of("entropy", (2, 2, 2), 2, True)


def _m(kind: Kind, decays) -> np.ndarray:
    return np.sqrt(kind.samples / kind.classes * decays[:, 0] * decays[:, 1])


def _explicit(kind: Kind, members: int):
    """The value as printed, at the ends of descents."""
    decays, _, _, descended = judged(kind, members)
    m, classes = _m(kind, decays), kind.classes
    present = classes * m < 1
    gap = np.log(np.where(present, 1 / m - classes + 1, 1.0))
    value = -np.log(np.where(present, 1 - (classes - 1) * m, 1 / classes)) + m * (classes - 1) * gap
    return np.abs(value - descended.value)


def _norms(kind: Kind, members: int):
    """Squared norms at the ends of descents, relative where they are above one (they reach a few hundred)."""
    decays, _, _, descended = judged(kind, members)
    m, classes, root = _m(kind, decays), kind.classes, np.sqrt(kind.samples / kind.classes)
    gap = np.log(np.maximum(1 / m - classes + 1, 1.0))
    tilt = np.sqrt(decays[:, 0] / decays[:, 1])
    prototypes = tilt * (classes - 1) * root * gap
    features = (classes - 1) * root * gap / tilt
    pairs = (descended.prototype_norm**2, prototypes), (descended.feature_norm**2, features)
    return np.max([np.abs(found - printed) / np.maximum(1, printed) for found, printed in pairs], axis=0)


def _biases(kind: Kind, members: int):
    """Those that descents end with."""
    return np.abs(judged(kind, members)[3].bias).max(axis=1)


def _thresholds(kind: Kind, members: int):
    """1e-6 on either side of K sqrt(n wd_w wd_h) = 1: the minima of both losses are zero on the same one only."""
    decays = random_decays(kind, members)
    side = np.where(np.arange(members) % 2, 1 + 1e-6, 1 - 1e-6)
    decays[:, :2] *= (side / (kind.classes * _m(kind, decays)))[:, None]
    wrong = np.zeros(members)
    for loss in ("squared", "entropy"):
        other = Kind(loss, kind.labels, kind.classes)
        formula, states = by_formula(other, decays)
        wrong = np.maximum(wrong, certificate(other, decays, states))
        wrong = np.where((formula.prototype_norm > 0) == (side < 1), wrong, np.inf)
    return wrong


def _flows(members: int):
    """Every fourth start is without the first class: it gets one, the origin is left in all K - 1 directions."""
    found = ends(FLOWN, min(members, MOST), planted_class=0)
    residual = np.maximum(np.abs(found.reached.value - found.minimum.value), apart(found.minimum, found.reached))
    return counted(found, residual, residual > 1e-3, "decay at least 10 % off the threshold")


_claim = functools.partial(Claim, id="ce.minimiser", source=SOURCE)
_ASSUMED = ("cross-entropy, balanced classes", "both decays positive", "m = sqrt(n wd_w wd_h)", "dim >= classes - 1")

EXPERIMENT = Experiment(
    name="cross-entropy-minimiser",
    family="cross-entropy",
    summary="global minima of cross-entropy with decay",
    claims=(
        _claim(
            name="cross-entropy-minimiser-value",
            statement="the minimum that the formula gives: no random start goes lower",
            assumptions=_ASSUMED,
            tolerance=2.2e-15,
            check=functools.partial(worst_of, value_gap, kinds=KINDS),
        ),
        _claim(
            name="cross-entropy-minimiser-explicit",
            statement="K m < 1: gap z = log(1/m - K + 1), value -log(1 - (K-1) m) + m (K-1) z; else zero and log K",
            assumptions=_ASSUMED,
            tolerance=2.2e-15,
            check=functools.partial(worst_of, _explicit, kinds=KINDS),
        ),
        _claim(
            name="cross-entropy-minimiser-norms",
            statement="|W|^2 = sqrt(wd_h/wd_w) (K-1) sqrt(n) z, |H|^2 = sqrt(wd_w/wd_h) (K-1) sqrt(n) z",
            assumptions=_ASSUMED,
            tolerance=3.2e-8,
            check=functools.partial(worst_of, _norms, kinds=KINDS),
        ),
        _claim(
            name="cross-entropy-minimiser-grams",
            statement="its Gram matrices and logits = those that random starts descend to",
            assumptions=_ASSUMED,
            tolerance=6.7e-7,
            check=functools.partial(worst_of, gram_gap, kinds=KINDS),
        ),
        _claim(
            name="cross-entropy-minimiser-certificate",
            statement="it satisfies the conditions of a global minimum of the convex problem in Z = H W^T",
            assumptions=_ASSUMED,
            tolerance=2e-14,
            check=functools.partial(worst_of, uncertified, kinds=KINDS),
        ),
        _claim(
            name="cross-entropy-minimiser-biases",
            statement="the biases are zero, whatever their decay",
            assumptions=(*_ASSUMED, "trained biases with decay"),
            tolerance=3.2e-8,
            check=functools.partial(worst_of, _biases, kinds=KINDS),  # two of the three train them
        ),
        _claim(
            name="cross-entropy-minimiser-threshold",
            statement="cross-entropy and squared error vanish at the same decay, K sqrt(n wd_w wd_h) = 1",
            assumptions=_ASSUMED,
            tolerance=2e-14,
            check=functools.partial(worst_of, _thresholds, kinds=(KINDS[0], KINDS[2])),
        ),
        _claim(
            name="cross-entropy-minimiser-flows",
            statement="regularised flows of features, prototypes and biases end there, from every start but the origin",
            assumptions=(*_ASSUMED, "rates and decays unequal"),
            tolerance=6.7e-7,
            check=_flows,
        ),
    ),
)
