"""Squared error without biases, classes of different sizes: which of them decay loses."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.minimiser_oracles import Kind, apart, certificate, descended, kind_of, measured, objective, unpacked
from experiments.shared.minimisers import by_formula, judged, random_decays, worst_of

SOURCE = "the minimum of squared error in the product of both layers; this phrasing derived here"
KINDS = (
    kind_of("squared", (4, 2, 1), 3),
    kind_of("squared", (4, 3, 2, 1), 4),
    kind_of("squared", (2, 5), 2),
)
CENTRED = (kind_of("squared", (4, 2, 1), 3, "slaved"), kind_of("squared", (5, 1), 1, "slaved"))


def _minimum(kind: Kind, members: int):
    """Values, Gram matrices against descents; values at the state itself."""
    decays, formula, states, found = judged(kind, members)
    at_state = np.abs(objective(kind, decays)(states)[0] - formula.value)
    return np.max([at_state * 1e9, np.abs(found.value - formula.value) * 1e9, apart(formula, found)], axis=0)


def _certified(kind: Kind, members: int):
    decays, _, states, _ = judged(kind, members)
    return certificate(kind, decays, states)


def _norms(kind: Kind, members: int):
    """|w_k|^2 = sqrt(wd_h/wd_w) (sqrt(n_k) - mu/kappa)_+ at the ends of descents; zero, to 1e-9, exactly where lost."""
    decays, _, _, found = judged(kind, members)
    mu = np.sqrt(decays[:, 0] * decays[:, 1])[:, None]
    expected = np.sqrt(decays[:, :1] / decays[:, 1:2]) * np.maximum(np.sqrt(kind.sizes) - kind.samples * mu, 0)
    squares = np.diagonal(found.prototype_gram, axis1=1, axis2=2)
    off = np.abs(kind.samples * mu / np.sqrt(kind.sizes) - 1) > 1e-3
    lost = kind.sizes <= kind.samples**2 * mu**2
    wrong = off & (lost != (squares < 1e-9))
    return np.where(wrong.any(axis=1), np.inf, np.abs(squares - expected).max(axis=1))


def _sides(kind: Kind, members: int):
    """1 % on either side of a random class's threshold, that class is there or exactly zero, features and prototype."""
    rng = np.random.default_rng([53, *kind.sizes])
    chosen, side = rng.integers(0, kind.classes, members), np.arange(members) % 2
    mu = np.sqrt(kind.sizes[chosen]) / kind.samples * np.where(side, 1.01, 0.99)
    tilt = 10 ** rng.uniform(-1, 1, members)
    decays = np.stack([mu * tilt, mu / tilt, np.zeros(members)], axis=1)
    states = by_formula(kind, decays)[1]
    features, prototypes, _ = unpacked(kind, states)
    rows = np.arange(members)
    of_class = np.array(kind.labels)[None] == chosen[:, None]
    size = np.abs(prototypes[rows, chosen]).max(axis=1) + np.where(of_class[..., None], np.abs(features), 0).max(axis=(1, 2))
    certified = certificate(kind, decays, states)
    return np.where((size == 0) == (side == 1), certified, np.inf)


def _centred(kind: Kind, members: int):
    """Slaved biases against descents that train them."""
    decays = random_decays(kind, members)
    decays[:, 2] = 0
    formula, states = by_formula(kind, decays)
    value, x, _ = descended(kind, decays, starts=2)
    wrong = [np.abs(value - formula.value) * 1e9, apart(formula, measured(kind, value, x)), certificate(kind, decays, states)]
    return np.max(wrong, axis=0)


def _example(members: int) -> Measured:
    """Counts (9, 4, 1), both decays .1, kappa = 1/N: singular values 3, 2, 1 against 1.4."""
    kind = kind_of("squared", (9, 4, 1), 3)
    decays = np.array([[0.1, 0.1, 0.0]])
    value, x, _ = descended(kind, decays, starts=3)
    logits = measured(kind, value, x).logits[0]
    singular = np.linalg.svd(logits, compute_uv=False)
    return Measured(float(np.abs(singular - [1.6, 0.6, 0.0]).max()), 1, "three random starts")


_claim = functools.partial(Claim, id="mse.minority", source=SOURCE)
_ASSUMED = ("squared error, any class sizes", "no biases", "kappa = 1/N")

EXPERIMENT = Experiment(
    name="square-minority",
    family="square-loss",
    summary="squared error: decay loses small classes one by one",
    claims=(
        _claim(
            name="square-minority-minimum",
            statement="minimum: class k has the singular value (sqrt(n_k) - mu/kappa)_+ (residual: of Gram matrices, logits, "
            "and 1e9 times that of the value)",
            assumptions=_ASSUMED,
            tolerance=6.7e-7,
            check=functools.partial(worst_of, _minimum, kinds=KINDS),
        ),
        _claim(
            name="square-minority-certificate",
            statement="it satisfies the conditions of a global minimum of the convex problem in Z",
            assumptions=_ASSUMED,
            tolerance=2e-14,
            check=functools.partial(worst_of, _certified, kinds=KINDS),
        ),
        _claim(
            name="square-minority-lost",
            statement="descents from random starts lose class k, w_k = h = 0, iff n_k <= N^2 wd_w wd_h",
            assumptions=_ASSUMED,
            tolerance=6.7e-7,
            check=functools.partial(worst_of, _norms, kinds=KINDS),
        ),
        _claim(
            name="square-minority-sides",
            statement="1 % on either side of sqrt(n_k) = mu/kappa class k is there, or exactly zero, and certified optimal",
            assumptions=_ASSUMED,
            tolerance=2e-14,
            check=functools.partial(worst_of, _sides, kinds=KINDS),
        ),
        _claim(
            name="square-minority-example",
            statement="counts (9, 4, 1), decays .1: the third class is lost, the second kept",
            assumptions=_ASSUMED,
            tolerance=1e-9,
            check=_example,
        ),
        _claim(
            name="square-minority-centred",
            statement="slaved biases, any class sizes: the centred labels' singular values, thresholded",
            assumptions=("squared error, any class sizes", "slaved biases without decay"),
            tolerance=6.7e-7,
            check=functools.partial(worst_of, _centred, kinds=CENTRED),
        ),
    ),
)
