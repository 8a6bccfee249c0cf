"""How the limit without decay depends on gamma: the best one, the ends of the range, and what lies beyond."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.dense import clock, deviation, size_of, spectrum, stacked, times_at
from experiments.shared.instances import (
    SIZES,
    Draw,
    Size,
    by_formula,
    class_sides,
    common_part,
    draws,
    limits,
    sigmas,
    spread,
    undecayed,
    worst_of,
)

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Corollary 3"
SHAPES = tuple(Size(c, n, 2) for c in (2, 3, 4, 7) for n in (1, 2, 3))
THREE_OR_MORE = SIZES[0], SIZES[2]
POINTS = 24  # times of one run by formula


def _draw(size: Size, members: int, gamma) -> Draw:
    return undecayed(draws(size, members))._replace(gamma=np.broadcast_to(gamma, (members,)).astype(float))


def _split(draw: Draw, size: Size, sign: int = 1):
    """Zero-sum and common parts of 1/2 ((G0 +- sqrt(s) W0) Ybar, +- (G0 +- sqrt(s) W0)/sqrt(s))."""
    root = np.sqrt(draw.ratio)[:, None, None]
    sides = (class_sides(draw.features, size) + sign * root * draw.prototypes) / 2
    whole, common = (stacked(spread(x, size), sign * x / root) for x in (sides, common_part(sides)))
    return whole - common, common


def _top(draw: Draw, size: Size):
    return spectrum(draw, size).leading(stacked(draw.features, draw.prototypes))


def _gap(draw: Draw, size: Size):
    """Rate of convergence per unit of q: the spectral gap of the dense generator."""
    return spectrum(draw, size).gap() / np.sqrt(draw.ratio)


def _inside(size: Size, members: int):
    """Gamma over all of (0, 2/(C-2)), to 6 for two classes."""
    top = 2 / (size.classes - 2) if size.classes > 2 else 6.0
    return top * (0.001 + 0.998 * draws(size, members).spare[:, 0])


def _rate(size: Size, members: int):
    """E against the spectral gap, relative to sigma1."""
    gamma, classes = _inside(size, members), size.classes
    draw = _draw(size, members, gamma)
    rate = np.minimum(gamma * classes, 2 - (classes - 2) * gamma) / (classes * size.per_class**0.5)
    return np.abs(_gap(draw, size) - rate) / sigmas(draw, size)[0]


def _best(size: Size, members: int):
    """How far the gap at any gamma exceeds that at 1/(C-1), which is 1/((C-1) sqrt(N)) = sigma1; relative."""
    best = 1 / ((size.classes - 1) * size.per_class**0.5)
    there = _draw(size, members, 1 / (size.classes - 1))
    excess = _gap(_draw(size, members, _inside(size, members)), size) / best - 1
    return np.max([excess, np.abs(_gap(there, size) / best - 1), np.abs(sigmas(there, size)[0] / best - 1)], axis=0)


def _two_classes(size: Size, members: int):
    gamma = 1 + 9 * draws(size, members).spare[:, 0]
    return np.abs(_gap(_draw(size, members, gamma), size) * size.per_class**0.5 - 1)


def _best_leftover(size: Size, members: int):
    """At the best gamma, e^{sigma1 q} times the distance of directions, by what is constant in time: E2 and E3."""
    draw = _draw(size, members, 1 / (size.classes - 1))
    root, sigma1 = np.sqrt(draw.ratio)[:, None], sigmas(draw, size)[0][:, None]
    ts = times_at(draw, np.linspace(15, 16, POINTS) / sigma1 / root)
    moved = by_formula(draw, size, ts, scaled=True).states
    limit, _ = _split(draw, size)
    length = size_of(limit)[:, None, None]
    unit = limit / length
    distance = size_of(stacked(moved.features, moved.prototypes) - unit[:, None])
    g = class_sides(draw.features, size)
    constant = stacked(draw.features - spread(g - common_part(g), size), common_part(draw.prototypes))
    across = constant - np.sum(constant * unit, axis=(1, 2), keepdims=True) * unit
    expected = (size_of(across) / length[:, 0, 0])[:, None] * np.exp(-sigma1 * root * clock(draw, ts))
    return np.abs(distance / expected - 1).max(axis=1)


def _zero(size: Size, members: int):
    """gamma = 0: the limit with Pi replaced by I, against the dense generator and the library."""
    draw = _draw(size, members, 0.0)
    limit, found = sum(_split(draw, size)), limits(draw, size).direction
    unit = limit / size_of(limit)[:, None, None]
    gap = size_of(stacked(found.features, found.prototypes) - unit)
    return np.maximum(deviation(limit, _top(draw, size)), gap)


def _plateau(size: Size, members: int):
    """gamma = 0: the distance to the zero-sum limit stops at sqrt(2 - 2 cos), tan = |Zbar2|/|Zbar1|."""
    draw = _draw(size, members, 0.0)
    zero_sum, common = _split(draw, size)
    ts = np.geomspace(1e3, 1e9, POINTS) / draw.floor[:, None]
    moved = by_formula(draw, size, ts, scaled=True).states
    unit = (zero_sum / size_of(zero_sum)[:, None, None])[:, None]
    distance = size_of(stacked(moved.features, moved.prototypes) - unit)
    angle = np.arctan2(size_of(common), size_of(zero_sum))
    return np.abs(distance / (2 * np.sin(angle / 2))[:, None] - 1).max(axis=1)  # sqrt(2 - 2 cos) without cancellation


def _typical_tangent(members: int) -> Measured:
    """Gaussian starts: the mean of (C-1)|Zbar2|^2 - |Zbar1|^2 in standard errors, members weighted alike."""

    def residuals(size, share):
        draw = _draw(size, share, 0.0)
        weight = (1 + draw.ratio) * (1 + 1 / draw.ratio)
        zero_sum, common = (size_of(x) ** 2 / weight for x in _split(draw, size))
        excess = (size.classes - 1) * common - zero_sum
        return np.full(share, abs(excess.mean()) / (excess.std() / share**0.5))

    return worst_of(residuals, members)


def _end(size: Size, members: int):
    """gamma = 2/(C-2): E1+ and E2- grow alike; at s = 1 the limit is the sum of two projections of the start."""
    draw = _draw(size, members, 2 / (size.classes - 2))
    limit = _split(draw, size)[0] + _split(draw, size, -1)[1]
    found = limits(draw, size).direction
    gap = size_of(stacked(found.features, found.prototypes) - limit / size_of(limit)[:, None, None])
    g, w = class_sides(draw.features, size), draw.prototypes
    plus, minus = ((g + w) - common_part(g + w)) / 2, common_part(w - g) / 2
    projections = stacked(spread(plus, size), plus) + stacked(spread(-minus, size), minus)
    at_one = deviation(projections, _top(draw._replace(ratio=np.ones(members)), size))
    return np.max([deviation(limit, _top(draw, size)), gap, at_one], axis=0)


def _beyond(size: Size, members: int) -> Draw:
    """Gamma above 2/(C-2)."""
    return _draw(size, members, 2 / (size.classes - 2) * (1.2 + 2 * draws(size, members).spare[:, 0]))


def _beyond_winner(size: Size, members: int):
    """E2- wins, orthogonal to the zero-sum limit: distance sqrt(2)."""
    draw = _beyond(size, members)
    limit, zero_sum = _split(draw, size, -1)[1], _split(draw, size)[0]
    found = limits(draw, size).direction
    found = stacked(found.features, found.prototypes)
    gap = size_of(found - limit / size_of(limit)[:, None, None])
    distance = size_of(found - zero_sum / size_of(zero_sum)[:, None, None])
    return np.max([deviation(limit, _top(draw, size)), gap, np.abs(distance - 2**0.5)], axis=0)


def _beyond_accuracy(size: Size, members: int):
    """Accuracy when the winner leads by e^12, well before logits tie to rounding: distance from chance."""
    draw = _beyond(size, members)
    root, (sigma1, sigma2, _) = np.sqrt(draw.ratio)[:, None], sigmas(draw, size)
    ts = times_at(draw, np.linspace(11, 12, POINTS) / (np.abs(sigma2) - sigma1)[:, None] / root)
    moved = by_formula(draw, size, ts, scaled=True).states
    features, prototypes = moved.features[:, -1], moved.prototypes[:, -1]
    logits = features @ (prototypes - common_part(prototypes)).swapaxes(1, 2)  # a sample's logits up to a constant
    labels = np.repeat(np.arange(size.classes), size.per_class)
    return np.abs(np.mean(logits.argmax(axis=-1) == labels, axis=1) - 1 / size.classes)


_claim = functools.partial(Claim, id="unhinged.unconstrained.limit", source=SOURCE)
_FLOW = ("balanced classes", "no decay", "constant ratio of rates")

EXPERIMENT = Experiment(
    name="unconstrained-gamma",
    family="unhinged",
    summary="how the limit without decay depends on gamma",
    claims=(
        _claim(
            name="unconstrained-gamma-rate",
            statement="E = min(gamma C, 2 - (C-2) gamma)/(C sqrt(N))",
            assumptions=(*_FLOW, "0 < gamma < 2/(C-2), or C = 2"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _rate, sizes=SHAPES),
        ),
        _claim(
            name="unconstrained-gamma-best",
            statement="gamma = 1/(C-1) is fastest: E = 1/((C-1) sqrt(N)) = sigma1",
            assumptions=(*_FLOW, "0 < gamma < 2/(C-2), or C = 2"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _best, sizes=SHAPES),
        ),
        _claim(
            name="unconstrained-gamma-two-classes",
            statement="C = 2: E = 1/sqrt(N) for every gamma >= 1",
            assumptions=_FLOW,
            tolerance=1e-13,
            check=functools.partial(worst_of, _two_classes, sizes=SHAPES[:3]),
        ),
        _claim(
            name="unconstrained-gamma-leftover",
            statement="gamma = 1/(C-1): what is left of the distance is E2 and E3 of the start, constant in time",
            assumptions=(*_FLOW, "gamma = 1/(C-1)"),
            tolerance=3e-8,
            check=functools.partial(worst_of, _best_leftover),
        ),
        _claim(
            name="unconstrained-gamma-zero",
            statement="gamma = 0: the limit is Zbar1 + Zbar2",
            assumptions=(*_FLOW, "gamma = 0"),
            tolerance=1e-13,
            check=functools.partial(worst_of, _zero),
        ),
        _claim(
            name="unconstrained-gamma-plateau",
            statement="gamma = 0: the distance to Zbar1 stops at sqrt(2 - 2 cos), tan = |Zbar2|/|Zbar1|",
            assumptions=(*_FLOW, "gamma = 0"),
            tolerance=1e-13,
            check=functools.partial(worst_of, _plateau),
        ),
        _claim(
            name="unconstrained-gamma-tangent",
            statement="gamma = 0: |Zbar2|/|Zbar1| ~ 1/sqrt(C-1) (residual in standard errors)",
            assumptions=(*_FLOW, "gamma = 0", "Gaussian start"),
            tolerance=5.0,
            check=_typical_tangent,
        ),
        _claim(
            name="unconstrained-gamma-end",
            statement="gamma = 2/(C-2): the limit is the sum of E1+ and E2-, at s = 1 Pi1+ Z0 + Pi2- Z0",
            assumptions=(*_FLOW, "gamma = 2/(C-2)"),
            tolerance=1e-13,
            check=functools.partial(worst_of, _end, sizes=THREE_OR_MORE),
        ),
        _claim(
            name="unconstrained-gamma-beyond",
            statement="gamma > 2/(C-2): E2- wins, orthogonal to Zbar, at distance sqrt(2)",
            assumptions=(*_FLOW, "gamma > 2/(C-2)"),
            tolerance=2e-13,
            check=functools.partial(worst_of, _beyond_winner, sizes=THREE_OR_MORE),
        ),
        _claim(
            name="unconstrained-gamma-accuracy",
            statement="gamma > 2/(C-2): accuracy falls to chance",
            assumptions=(*_FLOW, "gamma > 2/(C-2)"),
            tolerance=0.0,
            check=functools.partial(worst_of, _beyond_accuracy, sizes=THREE_OR_MORE),
        ),
    ),
)
