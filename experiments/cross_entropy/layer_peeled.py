"""Cross-entropy with bounded norms, balanced classes: the layer-peeled program, a simplex with both norms at their bounds."""

import functools

import numpy as np

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.minimiser_oracles import Kind, descended_in_balls, kind_of, loss_and_slope
from experiments.shared.minimisers import problem_of, worst_of

SOURCE = "C. Fang, H. He, Q. Long, W. Su 2021; J. Lu, S. Steinerberger 2022"
KINDS = (kind_of("entropy", (2, 2, 2), 4), kind_of("entropy", (3, 3), 3), kind_of("entropy", (1,) * 5, 6))


def _bounds(kind: Kind, members: int) -> np.ndarray:
    """Norms of prototypes and of features, (members, 2), log-uniform in (1/3, 3)."""
    return 3 ** np.random.default_rng([71, *kind.labels]).uniform(-1, 1, (members, 2))


@functools.cache
def _by_formula(kind: Kind, members: int):
    def one(norms):
        best = dyn.exact.minimiser(problem_of(kind, np.zeros(3)), dim=kind.dim, norms=(norms[0], norms[1]))
        return best.value, best.feature_gram, best.prototype_gram, best.logits

    return dyn.ensemble.run(one, _bounds(kind, members), progress=False).values


@functools.cache
def _descended(kind: Kind, members: int):
    """From random starts: value, and features and prototypes brought to their bounds."""
    norms = _bounds(kind, members)
    rng = np.random.default_rng([73, *kind.labels])
    return descended_in_balls(kind, norms, rng.normal(size=(members, (kind.samples + kind.classes) * kind.dim)))


def _value(kind: Kind, members: int):
    return np.abs(_by_formula(kind, members)[0] - _descended(kind, members)[0])


def _explicit(kind: Kind, members: int):
    """The value and the gap as printed, E_w and E_h the squared norms, at the end of the descents."""
    e_w, e_h = (_bounds(kind, members) ** 2).T
    ratio = kind.classes / (kind.classes - 1)
    value, features, prototypes = _descended(kind, members)
    logits = features @ prototypes.swapaxes(1, 2)
    target = np.eye(kind.classes)[list(kind.labels)] > 0
    gaps = logits[:, target][:, :, None] - logits
    wrong = np.where(target, 0, np.abs(gaps - (ratio * np.sqrt(e_w * e_h))[:, None, None])).max(axis=(1, 2))
    printed = np.log(1 + (kind.classes - 1) * np.exp(-ratio * np.sqrt(e_w * e_h)))
    return np.maximum(np.abs(printed - value), wrong * 1e-6)


def _grams(kind: Kind, members: int):
    _, features, prototypes = _descended(kind, members)
    found = (
        features @ features.swapaxes(1, 2),
        prototypes @ prototypes.swapaxes(1, 2),
        features @ prototypes.swapaxes(1, 2),
    )
    pairs = zip(found, _by_formula(kind, members)[1:], strict=True)
    return np.max([np.abs(a - b).max(axis=(1, 2)) for a, b in pairs], axis=0)


def _certified(kind: Kind, members: int):
    """Frank-Wolfe gap over the ball |Z|_* <= sqrt(K N E_w E_h), which holds all products: R |G| - <G, Z> = 0."""
    logits = np.asarray(_by_formula(kind, members)[3])
    slope = -loss_and_slope(kind, logits, np.full((1, kind.samples), 1 / kind.samples))[1]
    radius = np.sqrt(kind.classes * kind.samples) * _bounds(kind, members).prod(axis=1)
    return np.abs(radius * np.linalg.norm(slope, 2, axis=(1, 2)) - np.sum(slope * logits, axis=(1, 2)))


_claim = functools.partial(Claim, id="ce.layer_peeled", source=SOURCE)
_ASSUMED = ("cross-entropy, balanced classes", "mean |w|^2 <= E_w, mean |h|^2 <= E_h", "dim >= classes - 1")

EXPERIMENT = Experiment(
    name="layer-peeled-program",
    family="cross-entropy",
    summary="cross-entropy with bounded norms",
    claims=(
        _claim(
            name="layer-peeled-value",
            statement="the minimum that the formula gives = that of random starts",
            assumptions=_ASSUMED,
            tolerance=3.2e-13,
            check=functools.partial(worst_of, _value, kinds=KINDS),
        ),
        _claim(
            name="layer-peeled-explicit",
            statement="value log(1 + (K-1) exp(-K/(K-1) sqrt(E_w E_h))); gaps K/(K-1) sqrt(E_w E_h) (residual: 1e-6 of theirs)",
            assumptions=_ASSUMED,
            tolerance=3.2e-13,
            check=functools.partial(worst_of, _explicit, kinds=KINDS),
        ),
        _claim(
            name="layer-peeled-grams",
            statement="a simplex with both norms at their bounds: Gram matrices and logits of random starts",
            assumptions=_ASSUMED,
            tolerance=6.7e-7,
            check=functools.partial(worst_of, _grams, kinds=KINDS),
        ),
        _claim(
            name="layer-peeled-certificate",
            statement="it closes the Frank-Wolfe gap of the convex problem over the nuclear-norm ball",
            assumptions=_ASSUMED,
            tolerance=3.2e-13,
            check=functools.partial(worst_of, _certified, kinds=KINDS),
        ),
    ),
)
