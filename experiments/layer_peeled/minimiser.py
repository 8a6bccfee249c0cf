"""Global minima of the unhinged loss on bounded features and prototypes: three ranges of gamma, and their frames."""

import functools

import numpy as np

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import size_of
from experiments.shared.instances import SIZES, Draw, Size, draws, worst_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Lemma 1, corrected"
FOUR = (Size(4, 1, 3),)
STARTS = 4  # for a large gamma, where a start may stop at a local minimum


def _bounds(draw: Draw):
    """Radii of prototypes and of features, from a tenth to ten."""
    return 10 ** (2 * draw.spare[:, 1] - 1), 10 ** (2 * draw.spare[:, 2] - 1)


def _pull(gamma, prototypes):
    """What pulls the features of each class: (1+gamma) w_c - gamma sum_j w_j."""
    gamma = np.reshape(gamma, (-1, 1, 1))
    return (1 + gamma) * prototypes - gamma * prototypes.sum(axis=-2, keepdims=True)


def _onto(radius, x):
    """Rows of x of the given length."""
    return np.reshape(radius, (-1, 1, 1)) * x / np.linalg.norm(x, axis=-1, keepdims=True)


def _loss(gamma, features, prototypes):
    """The mean loss with one feature a class, from its definition."""
    logits = np.einsum("mip,mcp->mic", features, prototypes)
    own = np.trace(logits, axis1=1, axis2=2)
    return (-own + gamma * (logits.sum(axis=(1, 2)) - own)) / logits.shape[1]


def _descended(gamma, prototypes, radii, sweeps=400):
    """Features, prototypes and loss after alternately minimising over features and over prototypes, each in its ball.

    The loss is linear in either, so each half of a sweep is exact, and it never rises.
    """
    for _ in range(sweeps):
        features = _onto(radii[1], _pull(gamma, prototypes))
        prototypes = _onto(radii[0], _pull(gamma, features))
    features = _onto(radii[1], _pull(gamma, prototypes))
    return features, prototypes, _loss(gamma, features, prototypes)


def _inside(size: Size, members: int):
    """Gamma within (0, 2/(C-2)), off its ends: a third at the optimum."""
    draw = draws(size, members)
    top = 2 / (size.classes - 2) if size.classes > 2 else 2.0
    gamma = top * (0.1 + 0.8 * draw.spare[:, 0])
    return draw, np.where(draw.spare[:, 3] < 1 / 3, 1 / (size.classes - 1), gamma)


def _best_features(size: Size, members: int):
    """h = E2 u_c/|u_c| gives -(E2/C) sum |u_c|, and no random feature in the ball less; relative."""
    draw = draws(size, members)
    _, radius = _bounds(draw)
    u = _pull(draw.gamma, draw.prototypes)
    value = -radius * np.linalg.norm(u, axis=-1).mean(axis=-1)
    wrong = np.abs(_loss(draw.gamma, _onto(radius, u), draw.prototypes) - value)
    for trial in range(size.per_class):
        features = draw.features[:, trial :: size.per_class]
        near = _onto(radius, u) + radius[:, None, None] * 10.0**-trial * features
        length = np.linalg.norm(near, axis=-1, keepdims=True)
        near *= np.minimum(1, radius[:, None, None] / length)
        wrong = np.maximum(wrong, value - _loss(draw.gamma, near, draw.prototypes))
    return wrong / -value


def _squares(size: Size, members: int):
    """The sum of |u_c|^2 as a rank-one change of that of |w_c|^2."""
    draw = draws(size, members)
    gamma, classes, w = 3 * draw.spare[:, 0], size.classes, draw.prototypes
    total = np.sum(_pull(gamma, w) ** 2, axis=(1, 2))
    mean = np.sum(w.mean(axis=1) ** 2, axis=-1)
    own = (1 + gamma) ** 2 * np.sum(w**2, axis=(1, 2))
    return np.abs(own + gamma * classes**2 * ((classes - 2) * gamma - 2) * mean - total) / (own + total)


@functools.cache
def _minima_inside(size: Size, members: int):
    draw, gamma = _inside(size, members)
    radii = _bounds(draw)
    sweeps = 400 if size.classes != 4 else 2000  # frames of four can be next to a degenerate one
    return gamma, radii, *_descended(gamma, draw.prototypes, radii, sweeps)


def _value_inside(size: Size, members: int):
    gamma, radii, _, _, loss = _minima_inside(size, members)
    return np.abs(loss / ((1 + gamma) * radii[0] * radii[1]) + 1)


def _frame_inside(size: Size, members: int):
    """Minimisers have prototypes of sum zero and full length, features along them."""
    _, radii, features, prototypes, _ = _minima_inside(size, members)
    lengths = np.linalg.norm(prototypes, axis=-1) / radii[0][:, None] - 1
    aligned = features / radii[1][:, None, None] - prototypes / radii[0][:, None, None]
    total = np.linalg.norm(prototypes.sum(axis=1), axis=-1) / radii[0]
    return np.max([total, np.abs(lengths).max(axis=1), np.abs(aligned).max(axis=(1, 2))], axis=0)


def _unique(size: Size, members: int):
    """Pairwise cosines of the prototypes for two and three classes."""
    _, _, _, prototypes, _ = _minima_inside(size, members)
    unit = _onto(1.0, prototypes)
    first, second = np.triu_indices(size.classes, 1)
    cosines = np.sum(unit[:, first] * unit[:, second], axis=-1)
    return np.abs(cosines + 1 / (size.classes - 1)).max(axis=1)


FRAMES = {
    "simplex": np.asarray(dyn.initial.simplex_etf(4, 3)),
    "two antipodal pairs": np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]),
    "one line": np.array([[1.0, 0, 0], [-1, 0, 0], [1, 0, 0], [-1, 0, 0]]),
}
"""Unit prototypes of four classes with sum zero: different cosines, one value."""


def _ties(size: Size, members: int):
    draw, gamma = _inside(size, members)
    values = []
    for frame in FRAMES.values():
        prototypes = np.broadcast_to(frame, (members, *frame.shape))
        values.append(_loss(gamma, _onto(1.0, _pull(gamma, prototypes)), prototypes))
    return np.max(np.abs(np.array(values) + 1 + gamma) / (1 + gamma), axis=0)


def _many(size: Size, members: int):
    """Four classes from random starts: one value, and cosines that are not those of a simplex.

    Starts that end next to a frame on one line get there slowly: their loss is what the tolerance is for.
    """
    _, _, _, prototypes, _ = _minima_inside(size, members)
    unit = _onto(1.0, prototypes)
    spread = np.abs(unit @ unit.swapaxes(1, 2) - np.eye(4) + 1 / 3 * (1 - np.eye(4))).max(axis=(1, 2))
    return _value_inside(size, members) if np.median(spread) > 0.1 else np.full(members, np.inf)


def _zero_gamma(size: Size, members: int):
    """Any prototypes of full length with features along them; no start goes lower."""
    draw = draws(size, members)
    gamma, radii = np.zeros(members), _bounds(draw)
    prototypes = _onto(radii[0], draw.prototypes)
    at_once = _loss(gamma, prototypes * (radii[1] / radii[0])[:, None, None], prototypes)
    lowest = _descended(gamma, draw.prototypes, radii)[2]
    best = -radii[0] * radii[1]
    return np.maximum(np.abs(at_once / best - 1), np.abs(lowest / best - 1))


def _large_gamma(size: Size, members: int):
    """The best of a few starts: its loss, its prototypes all equal, its features opposite; and no start goes lower."""
    draw = draws(size, members)
    gamma, radii = 2 / (size.classes - 2) * (1.1 + 2 * draw.spare[:, 0]), _bounds(draw)
    best = -((size.classes - 1) * gamma - 1) * radii[0] * radii[1]
    shapes = []
    for start in range(STARTS):
        moved = np.roll(draw.prototypes, start, axis=0)
        features, prototypes, loss = _descended(gamma, moved, radii)
        same = np.abs(prototypes - prototypes[:, :1]).max(axis=(1, 2)) / radii[0]
        opposite = size_of(features / radii[1][:, None, None] + prototypes / radii[0][:, None, None])
        shapes.append(np.max([np.abs(loss / best - 1), same, opposite], axis=0))
        shapes[-1] = np.where(loss < best * (1 + 1e-12), np.inf, shapes[-1])
    return np.min(shapes, axis=0)


_claim = functools.partial(Claim, id="unhinged.minimiser", source=SOURCE)
_BALLS = ("balanced classes", "|w_c| <= E1, |h| <= E2", "no biases")
_INSIDE = (*_BALLS, "0 < gamma < 2/(C-2), or C = 2")

EXPERIMENT = Experiment(
    name="minimiser",
    family="unhinged",
    summary="global minima under norm constraints, found from random starts",
    claims=(
        _claim(
            name="minimiser-features",
            statement="best features: E2 u_c/|u_c|, u_c = (1+gamma) w_c - gamma sum w; loss then -(E2/C) sum |u_c|",
            assumptions=_BALLS,
            tolerance=5e-15,
            check=functools.partial(worst_of, _best_features),
        ),
        _claim(
            name="minimiser-squares",
            statement="sum |u_c|^2 = (1+gamma)^2 sum |w_c|^2 + gamma C^2 ((C-2) gamma - 2) |mean w|^2",
            assumptions=(),
            tolerance=5e-15,
            check=functools.partial(worst_of, _squares),
        ),
        _claim(
            name="minimiser-value",
            statement="the minimum is -(1+gamma) E1 E2, also for p < C-1",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _value_inside),
        ),
        _claim(
            name="minimiser-frame",
            statement="minimisers: prototypes of sum zero and norm E1, features along them",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _frame_inside),
        ),
        _claim(
            name="minimiser-unique",
            statement="C = 2, 3: the simplex is the only minimiser",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _unique, sizes=SIZES[:2]),
        ),
        _claim(
            name="minimiser-ties",
            statement="C = 4: the simplex, two antipodal pairs and a frame on one line all attain it",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _ties, sizes=FOUR),
        ),
        _claim(
            name="minimiser-many",
            statement="C = 4: random starts end in minimisers that are not simplices",
            assumptions=_INSIDE,
            tolerance=3e-8,
            check=functools.partial(worst_of, _many, sizes=FOUR),
        ),
        _claim(
            name="minimiser-zero-gamma",
            statement="gamma = 0: the minimum is -E1 E2, attained by any prototypes of norm E1",
            assumptions=(*_BALLS, "gamma = 0"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _zero_gamma),
        ),
        _claim(
            name="minimiser-large-gamma",
            statement="gamma > 2/(C-2): equal prototypes, opposite features, minimum -((C-1) gamma - 1) E1 E2",
            assumptions=(*_BALLS, "gamma > 2/(C-2)"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _large_gamma, sizes=(SIZES[0], SIZES[2])),
        ),
    ),
)
