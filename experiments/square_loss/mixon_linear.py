"""Unconstrained features with a trained bias near the origin: the linearised motion, and what the whole flow keeps of it."""

import functools

import jax
import numpy as np

from dynamics.exact import square_modes
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.instances import SIZES, Size, worst_of
from experiments.shared.oracles import column
from experiments.shared.square_modes import integrate, norm_of, one_hot, terms, velocity_with_bias

SOURCE = "D. Mixon, H. Parshall, J. Pi (2020), any kappa and rates"
FRACTIONS = np.array([0.1, 0.25, 0.5, 1.0])
_linear_formula = jax.jit(
    jax.vmap(
        lambda w, g, ts, n, bias, kappa, rates: jax.vmap(
            lambda t: square_modes.mpp_linear(w, g, t, n, bias=bias, kappa=kappa, rates=rates)
        )(ts),
        in_axes=(0, 0, 0, None, 0, 0, 0),
    )
)


@functools.cache
def _linearised(size: Size, members: int):
    """Terms, start, times, and the flow with W H left out of the logits."""
    rng = np.random.default_rng([71, *size])
    classes, per_class, dim = size
    t, samples = terms(rng, members), classes * per_class
    w, h = rng.normal(size=(members, classes, dim)), rng.normal(size=(members, dim, samples))
    b = np.broadcast_to(rng.choice([0.0, 0.5, -1.0], (members, 1, 1)), (members, classes, 1))
    fastest = t.kappa * np.maximum(t.speed * per_class**0.5 * (1 + classes * np.abs(b[:, 0, 0])), t.weights * samples)
    times = np.minimum(12 / fastest, 5 / (t.kappa * t.speed * per_class**0.5))[:, None] * FRACTIONS
    hot = one_hot([per_class] * classes)
    return t, (w, h, b), times, integrate(velocity_with_bias(hot, t, product=False), (w, h, b), times, 5)


def _linear(size: Size, members: int):
    """Prototypes and class sides against the formula; deviations from class means do not move."""
    t, (w, h, b), times, (moved, features, _) = _linearised(size, members)
    hot = one_hot([size.per_class] * size.classes)
    side = lambda h: np.swapaxes(h @ hot.T, -1, -2) / size.per_class**0.5
    found = _linear_formula(w, side(h), times, float(size.per_class), b[:, 0, 0], t.kappa, t.rates)
    formula = np.concatenate([np.asarray(x) for x in found], axis=2)
    simulated = np.concatenate([moved, side(features)], axis=2)
    return (norm_of(simulated - formula) / norm_of(formula)).max(axis=1)


def _frozen(size: Size, members: int):
    _, (_, h, _), _, (_, features, _) = _linearised(size, members)
    within = (
        np.eye(size.classes * size.per_class)
        - one_hot([size.per_class] * size.classes).T @ one_hot([size.per_class] * size.classes) / size.per_class
    )
    return (norm_of((features - h[:, None]) @ within) / norm_of(features)).max(axis=1)


def _linear_bias(size: Size, members: int):
    t, (_, _, b), times, (_, _, biases) = _linearised(size, members)
    formula = square_modes.mpp_bias(
        b, times[:, None], size.classes, size.classes * size.per_class, kappa=column(t.kappa), rate=column(t.weights)
    )
    return np.abs(biases[..., 0] - np.swapaxes(formula, 1, 2)).max(axis=(1, 2))


def _lines_up(size: Size, members: int):
    """The whole flow from starts of 1e-8: |P(W - G')|/|P(W + G')| falls as exp(-2 sqrt(n) kappa s t), until t = 4 of these."""
    rng = np.random.default_rng([73, *size])
    classes, per_class, dim = size
    t = terms(rng, members)
    t = t._replace(weights=t.features)  # else the bias may be so fast that few of the other times are seen
    w = 1e-8 * rng.normal(size=(members, classes, dim))
    h = 1e-8 * rng.normal(size=(members, dim, classes * per_class))
    b, hot = np.zeros((members, classes, 1)), one_hot([per_class] * classes)
    pull = t.kappa * t.speed * per_class**0.5
    times = 4 / pull[:, None] * np.array([0.05, 0.2, 1.0])
    moved, features, _ = integrate(velocity_with_bias(hot, t), (w, h, b), times, 12)
    centred = np.eye(classes) - 1 / classes
    apart = lambda w, h, sign: norm_of(centred @ (w - sign * np.swapaxes(h @ hot.T, -1, -2) / per_class**0.5))
    begin = apart(w, h, 1) / apart(w, h, -1)
    ratio = apart(moved, features, 1) / apart(moved, features, -1)
    return np.abs(ratio / begin[:, None] / np.exp(-2 * pull[:, None] * times) - 1).max(axis=1)


_near = functools.partial(Claim, id="mse.mpp_linear", source=SOURCE)
_check = functools.partial(functools.partial, worst_of, sizes=SIZES)
_LINEAR = ("balanced classes, one-hot", "W H left out of the logits", "no decay", "b in the span of 1 at the start")

EXPERIMENT = Experiment(
    name="square-trained-bias-linear",
    family="square-loss",
    summary="unconstrained features with a trained bias near the origin",
    claims=(
        _near(
            name="mpp-linear",
            statement="P W = P(cosh r W0 + sinh r G0'), the common part with phi, r = kappa s sqrt(n) t, and so for G",
            assumptions=_LINEAR,
            tolerance=1e-12,
            check=_check(_linear),
        ),
        _near(
            name="mpp-linear-within",
            statement="deviations of features from their class means do not move",
            assumptions=_LINEAR,
            tolerance=1e-13,
            check=_check(_frozen),
        ),
        _near(
            name="mpp-linear-bias",
            statement="b = 1/K + (b0 - 1/K) exp(-eta2 kappa N t)",
            assumptions=_LINEAR,
            tolerance=1e-12,
            check=_check(_linear_bias),
        ),
        _near(
            name="mpp-lines-up",
            statement="whole flow from starts of 1e-8: |P(W - G')|/|P(W + G')| falls as exp(-2 kappa s sqrt(n) t)",
            assumptions=("balanced classes, one-hot", "no decay", "equal rates", "until exp(4) times the start"),
            tolerance=1e-9,
            check=_check(_lines_up),
        ),
    ),
)
