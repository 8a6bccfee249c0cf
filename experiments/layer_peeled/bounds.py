"""What bounds the unhinged loss: logistic losses, cross-entropy; on the sphere a threshold that decides."""

import functools
from typing import NamedTuple

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.instances import Size, draws, worst_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Appendix A"
SAMPLES = 16  # a member
ON_SPHERE = tuple(Size(classes, 1, classes + 1) for classes in (2, 3, 4, 7))


class _Cases(NamedTuple):
    """Samples with their logits: the own one, the others (minus infinity at the own class), and the library's losses."""

    gamma: np.ndarray
    logits: np.ndarray
    target: np.ndarray
    others: np.ndarray
    loss: np.ndarray
    at_best_gamma: np.ndarray
    cross_entropy: np.ndarray

    @property
    def scale(self):
        """What rounding is relative to."""
        return 1 + np.abs(self.logits).max(axis=(1, 2)) * (1 + self.gamma)

    def excess(self, below, above):
        """How far `below` exceeds `above`, relative to the logits."""
        return np.max(np.maximum(below - above, 0.0), axis=1) / self.scale


@functools.cache
def _cases(size: Size, members: int) -> _Cases:
    """Logits from a tenth to a hundred in size; gamma is 0, 1/(C-1) or up to 5."""
    rng = np.random.default_rng([1, *size])
    classes = size.classes
    scale = 10 ** rng.uniform(-1, 2, (members, 1, 1))
    logits = scale * (rng.normal(size=(members, SAMPLES, classes)) + rng.normal(size=(members, 1, 1)))
    labels = rng.integers(0, classes, (members, SAMPLES))
    kind = rng.integers(0, 4, members)
    gamma = np.select([kind == 0, kind == 1], [0.0, 1 / (classes - 1)], rng.uniform(0, 5, members))

    def one(case):
        gamma, logits, labels = case
        losses = dyn.losses.Unhinged(gamma), dyn.losses.Unhinged(), dyn.losses.CrossEntropy()
        return [jax.vmap(loss)(logits, labels) for loss in losses]

    own = np.arange(classes) == labels[..., None]
    target, others = np.sum(np.where(own, logits, 0.0), axis=-1), np.where(own, -np.inf, logits)
    values = dyn.ensemble.run(one, (gamma, logits, labels), progress=False).values
    return _Cases(gamma, logits, target, others, *values)


def _softplus(x):
    return np.logaddexp(0.0, x)


def _logistic(size: Size, members: int):
    case = _cases(size, members)
    bound = _softplus(-case.target) + case.gamma[:, None] * _softplus(case.others).sum(axis=-1)
    return case.excess(case.loss, bound)


def _softmax(size: Size, members: int):
    case = _cases(size, members)
    others = case.gamma[:, None] * (size.classes - 1)
    log_share = case.target - np.logaddexp.reduce(case.logits, axis=-1)
    return case.excess(case.loss, (others - 1) * case.target - others * log_share)


def _cross_entropy(size: Size, members: int):
    case = _cases(size, members)
    return case.excess(case.at_best_gamma, case.cross_entropy)


def _logistic_gap(size: Size, members: int):
    """The first gap is softplus(z_y) + gamma sum softplus(-z_j) > 0, and vanishes as z_y -> -inf, z_j -> inf."""
    case = _cases(size, members)
    gamma = case.gamma[:, None]
    gap = _softplus(case.target) + gamma * np.where(np.isinf(case.others), 0.0, _softplus(-case.others)).sum(axis=-1)
    bound = _softplus(-case.target) + gamma * _softplus(case.others).sum(axis=-1)
    far = (1 + case.gamma * (size.classes - 1)) * _softplus(-40.0)
    wrong = np.where(gap.min(axis=1) > 0, 0.0, np.inf)
    return np.max([np.max(np.abs(bound - case.loss - gap), axis=1) / case.scale, far / case.scale, wrong], axis=0)


def _softmax_gap(size: Size, members: int):
    """The second gap is 0 at gamma = 0 and at least gamma (C-1) log(C-1) otherwise; relative to the logits."""
    case = _cases(size, members)
    others = case.gamma[:, None] * (size.classes - 1)
    log_share = case.target - np.logaddexp.reduce(case.logits, axis=-1)
    gap = (others - 1) * case.target - others * log_share - case.loss
    short = case.excess(others * np.log(size.classes - 1), gap)
    return np.where(case.gamma == 0, np.abs(gap).max(axis=1) / case.scale, short)


def _on_sphere(size: Size, members: int):
    """Unit features from at random to next to their prototype, unit simplex prototypes: loss and logits."""
    rng = np.random.default_rng([2, *size])
    frame = np.asarray(dyn.initial.simplex_etf(size.classes, size.dim))
    labels = rng.integers(0, size.classes, (members, SAMPLES))
    pull = 3 * rng.uniform(size=(members, SAMPLES, 1))
    features = rng.normal(size=(members, SAMPLES, size.dim)) + pull * frame[labels]
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    gamma = draws(size, members).gamma
    return gamma, labels, frame, _loss_on_frame(gamma, features @ frame.T, labels), features @ frame.T


def _loss_on_frame(gamma, logits, labels):
    own = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return -own + gamma[:, None] * (logits.sum(axis=-1) - own)


def _threshold(size: Size, gamma):
    return -(1 + gamma) * np.sqrt((size.classes - 2) / (2 * (size.classes - 1)))


def _least(size: Size, members: int):
    """No loss below -(1+gamma), and that value where a feature is its prototype."""
    gamma, labels, frame, loss, _ = _on_sphere(size, members)
    reached = _loss_on_frame(gamma, (frame @ frame.T)[labels], labels)
    return np.maximum(np.max(-(1 + gamma)[:, None] - loss, axis=1), np.abs(reached + (1 + gamma)[:, None]).max(axis=1))


def _decides(size: Size, members: int):
    """The share of samples below the threshold that are decided wrongly; too few below would prove nothing."""
    gamma, labels, _, loss, logits = _on_sphere(size, members)
    below = loss < _threshold(size, gamma)[:, None]
    wrong = below & (logits.argmax(axis=-1) != labels)
    return wrong.sum(axis=1) / np.maximum(below.sum(axis=1), 1) if below.mean() > 0.2 else np.full(members, np.inf)


def _tight(size: Size, members: int):
    """On the bisector of two prototypes the loss is the threshold and the two logits tie above all others."""
    gamma, _, frame, _, _ = _on_sphere(size, members)
    half = frame[0] + frame[1]
    if size.classes == 2:  # opposite prototypes: anything orthogonal to both
        half = np.linalg.svd(frame)[2][-1]
    logits = frame @ (half / np.linalg.norm(half))
    loss = _loss_on_frame(gamma, np.broadcast_to(logits, (members, 1, size.classes)), np.zeros((members, 1), int))[:, 0]
    tie = abs(logits[0] - logits[1]) + max(0.0, (logits - logits[0]).max())
    return np.abs(loss - _threshold(size, gamma)) + tie


_claim = functools.partial(Claim, id="unhinged.bounds", source=SOURCE)
_SPHERE = ("unit features", "prototypes a unit simplex")
_on_sphere_check = functools.partial(functools.partial, worst_of, sizes=ON_SPHERE)

EXPERIMENT = Experiment(
    name="bounds",
    family="unhinged",
    summary="upper bounds of the unhinged loss, and a threshold that decides correctness",
    claims=(
        _claim(
            name="bounds-logistic",
            statement="loss <= log(1+e^{-z_y}) + gamma sum_{j != y} log(1+e^{z_j})",
            assumptions=("gamma >= 0",),
            tolerance=1e-15,
            check=functools.partial(worst_of, _logistic),
        ),
        _claim(
            name="bounds-softmax",
            statement="loss <= (gamma(C-1)-1) z_y - gamma(C-1) log softmax_y",
            assumptions=("gamma >= 0",),
            tolerance=1e-15,
            check=functools.partial(worst_of, _softmax),
        ),
        _claim(
            name="bounds-cross-entropy",
            statement="gamma = 1/(C-1): loss <= cross-entropy",
            assumptions=("gamma = 1/(C-1)",),
            tolerance=1e-15,
            check=functools.partial(worst_of, _cross_entropy),
        ),
        _claim(
            name="bounds-logistic-gap",
            statement="the logistic bound is never attained, only approached",
            assumptions=("gamma >= 0",),
            tolerance=1e-14,
            check=functools.partial(worst_of, _logistic_gap),
        ),
        _claim(
            name="bounds-softmax-gap",
            statement="the softmax bound is attained at gamma = 0 and missed by gamma (C-1) log(C-1) or more otherwise",
            assumptions=("gamma >= 0",),
            tolerance=1e-15,
            check=functools.partial(worst_of, _softmax_gap),
        ),
        _claim(
            name="bounds-least",
            statement="loss >= -(1+gamma), attained by the prototypes",
            assumptions=_SPHERE,
            tolerance=1e-14,
            check=_on_sphere_check(_least),
        ),
        _claim(
            name="bounds-decision",
            statement="loss < -(1+gamma) sqrt((C-2)/(2(C-1))) implies a correct decision",
            assumptions=_SPHERE,
            tolerance=0.0,
            check=_on_sphere_check(_decides),
        ),
        _claim(
            name="bounds-tight",
            statement="the threshold is tight: the bisector of two prototypes attains it and ties",
            assumptions=_SPHERE,
            tolerance=1e-14,
            check=_on_sphere_check(_tight),
        ),
    ),
)
