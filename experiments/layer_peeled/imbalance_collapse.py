"""Step imbalance: minority classes collapse onto each other and vanish beside the majority; what weights change."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.dense import clock, deviation, size_of, stacked
from experiments.shared.imbalanced import drawn, moved, pull_of
from experiments.shared.instances import TIMES, Draw
from experiments.shared.oracles import column, dense_motion, mode_exponential, moved_by, sides_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Corollaries 3 and 5, for two class sizes"
SIZES = (3, 3, 1, 1)
SMALL = (1, 2, 4)
MAJORITY, MINORITY = slice(0, 2), slice(2, 4)
Q = 400.0 * np.arange(1, 7)  # values of sqrt(zeta1 zeta2)


def _constant(draw: Draw) -> Draw:
    """The same draws at constant rates."""
    return draw._replace(floor=draw.rate)


def _times(draw: Draw, q):
    """When sqrt(zeta1 zeta2) is q at constant rates, (members, 6)."""
    return q / (np.sqrt(draw.ratio) * draw.rate)[:, None]


def _prototypes(found):
    return found.directions[:, :, sum(SIZES) :]


@functools.cache
def _collapsed(members: int):
    """Undecayed, at gamma = 1/(C-1), until far beyond the collapse."""
    draw = _constant(drawn(SIZES, members))
    draw = draw._replace(gamma=np.full(members, 1 / 3), decay=np.zeros((members, 3)))
    return draw, moved(draw, SIZES, _times(draw, Q))


def _vanishing(members: int) -> Measured:
    """The slope of log |minority|/|majority| against q, for prototypes and for class sides."""
    _, found = _collapsed(members)
    scale = (1 + 1 / 3) / sum(SIZES)
    slope = scale * (np.sqrt(3) - np.sqrt(2))  # sigma_maj, and sigma_mix = scale sqrt((k_b a + k_a b)/C)
    errors = []
    for sides in (_prototypes(found), sides_of(found.directions[:, :, : sum(SIZES)], SIZES)):
        log = np.log(size_of(sides[:, :, MINORITY]) / size_of(sides[:, :, MAJORITY]))
        errors.append(np.abs(np.diff(log) / np.diff(Q) / -slope - 1).max(axis=1))
    return Measured.worst(np.max(errors, axis=0))


def _merging(members: int) -> Measured:
    """Distance of the directions of the two minority prototypes, at the last time."""
    _, found = _collapsed(members)
    first, second = (x / size_of(x, 1)[:, None] for x in np.moveaxis(_prototypes(found)[:, -1, MINORITY], 1, 0))
    return Measured.worst(size_of(first - second, 1))


def _majority_zero_sum(members: int) -> Measured:
    """The sum of the majority prototypes over their size, at the last time."""
    _, found = _collapsed(members)
    w = _prototypes(found)[:, -1, MAJORITY]
    return Measured.worst(size_of(w.sum(axis=1), 1) / size_of(w))


def _difference(members: int) -> Measured:
    """The two minority classes' differences of class sides and of prototypes, by the mode sigma = (1+gamma)/n."""
    draw = drawn(SIZES, members)
    found = moved(draw, SIZES, TIMES)
    states = column(np.exp(found.log_norms)) * found.directions
    apart = lambda sides: np.diff(sides[..., MINORITY, :], axis=-2)
    g0, w0 = apart(sides_of(draw.features, SIZES)), apart(draw.prototypes)
    weights = clock(draw, TIMES)
    clocks = draw.ratio[:, None] * weights, weights
    matrix = mode_exponential((1 + draw.gamma[:, None]) / sum(SIZES), clocks, draw.decay.T[:2, :, None])
    expected = np.concatenate(moved_by(matrix, g0[:, None], w0[:, None]), axis=-2)
    sides = apart(sides_of(states[:, :, : sum(SIZES)], SIZES)), apart(states[:, :, sum(SIZES) :])
    whole = size_of(states)
    return Measured.worst((size_of(np.concatenate(sides, axis=-2) - expected) / whole).max(axis=1))


def _threshold(members: int) -> Measured:
    """Decays with lambda1 lambda2 from 0.2 to 5 times sigma^2 of that mode, none within a quarter of it.

    The residual is the part of members whose minority difference grows above the threshold, or shrinks below it.
    """
    draw = _constant(drawn(SIZES, members))
    factor = 10 ** np.interp(draw.spare[:, 0], [0, 0.5, 0.5, 1], np.log10([0.2, 0.8, 1.25, 5]))
    level, skew = np.sqrt(factor) * (1 + draw.gamma) / sum(SIZES), 2 ** (2 * draw.spare[:, 1] - 1)
    draw = draw._replace(decay=np.stack([level * skew, level / skew, level], axis=1))
    found = moved(draw, SIZES, _times(draw, np.arange(10.0, 70.0, 10.0)))
    apart = np.diff(_prototypes(found)[:, :, MINORITY], axis=2)
    log = np.log(size_of(apart)) + found.log_norms
    wrong = (log[:, -1] > log[:, -2]) != (factor < 1)
    return Measured(float(wrong.mean()), members, "", {"members that survive": float((factor < 1).mean())})


def _weighted(members: int, sizes, power: float) -> Measured:
    """Against the motion by all eigenvectors of the dense generator, at the last time."""
    draw = drawn(sizes, members)
    found = moved(draw, sizes, TIMES, power)
    clocks = draw.ratio * clock(draw, TIMES)[:, -1], clock(draw, TIMES)[:, -1]
    start = stacked(draw.features, draw.prototypes)
    states = column(np.exp(found.log_norms[:, -1])) * found.directions[:, -1]
    return Measured.worst(deviation(states, dense_motion(pull_of(draw, sizes, power), start, clocks, draw.decay.T[:2])))


def _reversed(members: int) -> Measured:
    """Majority over minority prototypes, weighted by 1/n_c; undecayed, at gamma = 1/(C-1), at the last time."""
    draw, _ = _collapsed(members)
    w = _prototypes(moved(draw, SIZES, _times(draw, Q), -1.0))[:, -1]
    return Measured.worst(size_of(w[:, MAJORITY]) / size_of(w[:, MINORITY]))


_claim = functools.partial(
    Claim, id="beyond.imbalance", source=SOURCE, assumptions=("class sizes 3, 3, 1, 1", "no decay", "gamma = 1/(C-1)")
)
_DECAYED = ("class sizes 3, 3, 1, 1", "constant ratio of rates", "any decays")

EXPERIMENT = Experiment(
    name="imbalance-collapse",
    family="beyond",
    summary="what becomes of minority classes",
    claims=(
        _claim(
            name="minority-vanishes",
            statement="minority over majority falls as exp(-(sigma_maj - sigma_mix) q), prototypes and class sides",
            tolerance=5e-14,
            check=_vanishing,
        ),
        _claim(
            name="minority-merges",
            statement="minority prototypes tend to one direction",
            tolerance=1e-15,
            check=_merging,
        ),
        _claim(
            name="majority-zero-sum",
            statement="the limit lives on zero-sum combinations of the majority",
            tolerance=1e-14,
            check=_majority_zero_sum,
        ),
        _claim(
            name="minority-difference",
            statement="minority zero-sum combinations move by the balanced formula with sigma = (1+gamma) sqrt(n_min)/n",
            assumptions=_DECAYED,
            tolerance=1e-14,
            check=_difference,
        ),
        _claim(
            name="minority-threshold",
            statement="they survive iff sqrt(lambda1 lambda2) < (1+gamma) sqrt(n_min)/n (residual: exceptions)",
            assumptions=_DECAYED,
            tolerance=0.0,
            check=_threshold,
        ),
        _claim(
            name="weights-root",
            statement="class sizes 1, 2, 4, samples weighted by n_c^{-1/2}: formula = the dense generator",
            assumptions=("constant ratio of rates", "any decays"),
            tolerance=2e-13,
            check=functools.partial(_weighted, sizes=SMALL, power=-0.5),
        ),
        _claim(
            name="weights-inverse",
            statement="samples weighted by 1/n_c: formula = the dense generator",
            assumptions=_DECAYED,
            tolerance=2e-13,
            check=functools.partial(_weighted, sizes=SIZES, power=-1.0),
        ),
        _claim(
            name="weights-over-correct",
            statement="samples weighted by 1/n_c: now the majority vanishes beside the minority",
            tolerance=1e-30,
            check=_reversed,
        ),
    ),
)
