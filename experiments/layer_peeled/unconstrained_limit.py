"""Where the flow without decay goes: the limit direction, how fast it is approached, and what it looks like."""

import functools

import numpy as np

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import SLOPES, clock, deviation, rate_of, size_of, spectrum, stacked, times_at
from experiments.shared.instances import (
    Draw,
    Size,
    admissible,
    by_formula,
    class_sides,
    common_part,
    draws,
    instance,
    limits,
    sigmas,
    spread,
    undecayed,
    worst_of,
)

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Corollary 3"
POINTS = 24  # times of one run by formula


def _draw(size: Size, members: int) -> Draw:
    """Gamma in (0, 2/(C-2)), the optimum among them."""
    return admissible(undecayed(draws(size, members)), size)


def _limit(draw: Draw, size: Size):
    """The limit of exp(-sigma1 q) Z in class means."""
    root = np.sqrt(draw.ratio)[:, None, None]
    sides = class_sides(draw.features, size) + root * draw.prototypes
    zero_sum = (sides - common_part(sides)) / 2
    return stacked(spread(zero_sum, size), zero_sum / root)


def _against_spectrum(size: Size, members: int):
    """Both forms of the limit against the part of the start in the top eigenspace of the dense generator."""
    draw = _draw(size, members)
    root = np.sqrt(draw.ratio)[:, None, None]
    g, w = class_sides(draw.features, size), draw.prototypes
    plus, minus = ((x - common_part(x)) / 2 for x in (g + w, w - g))
    features = (1 + root) / 2 * plus - (1 - root) / 2 * minus
    prototypes = (1 + root) / (2 * root) * plus - (1 - root) / (2 * root) * minus
    top = spectrum(draw, size).leading(stacked(draw.features, w))
    forms = _limit(draw, size), stacked(spread(features, size), prototypes)
    return np.max([deviation(form, top) for form in forms], axis=0)


def _library_limit(size: Size, members: int):
    """The library's direction, norm, growth exponent and rate against the dense generator."""
    draw = _draw(size, members)
    found, dense = limits(draw, size), spectrum(draw, size)
    top, gap = dense.leading(stacked(draw.features, draw.prototypes)), dense.gap()
    length = size_of(top)
    wrong_direction = size_of(stacked(found.direction.features, found.direction.prototypes) - top / length[:, None, None])
    wrong = [
        wrong_direction,
        np.abs(found.constants["log_norm"] - np.log(length)),
        np.abs(found.growth_exponent / dense.exponents[:, -1] - 1),
        np.abs(found.rate - gap) / dense.exponents[:, -1],
    ]
    return np.max(wrong, axis=0)


def _reached(size: Size, members: int):
    """Direction by formula at clocks from 1e9 to 1e12, to rounding of the two terms of the limit; and the log norm."""
    draw = _draw(size, members)
    ts = np.geomspace(1e9, 1e12, POINTS) / draw.floor[:, None]
    moved, limit = by_formula(draw, size, ts, scaled=True), _limit(draw, size)
    length = size_of(limit)
    found = stacked(moved.states.features, moved.states.prototypes)
    terms = size_of(stacked(draw.features, draw.prototypes)) * np.maximum(1, np.sqrt(draw.ratio))
    wrong = size_of(found - (limit / length[:, None, None])[:, None]) * np.minimum(1, length / terms)[:, None]
    growth = (sigmas(draw, size)[0] * np.sqrt(draw.ratio))[:, None] * clock(draw, ts)
    return np.maximum(wrong, np.abs(moved.log_scale / (growth + np.log(length)[:, None]) - 1)).max(axis=1)


def _rate(size: Size, members: int):
    """The slope of the log distance to the limit against E = sigma1 - |sigma2|; relative.

    Gamma is the optimum, or |sigma2|/sigma1 in [.4, .7] on either side: the next exponential then fades well before
    rounding is reached.
    """
    draw = _draw(size, members)
    share, classes = 0.4 + 0.3 * draw.spare[:, 1], size.classes
    below, above = (1 - share) / (classes - 1 + share), (1 + share) / (classes - 1 - share)
    kind = draw.spare[:, 2]
    draw = draw._replace(gamma=np.select([kind < 1 / 3, kind < 2 / 3], [np.full(members, 1 / (classes - 1)), below], above))
    sigma1, sigma2, _ = sigmas(draw, size)
    rate, root = sigma1 - np.abs(sigma2), np.sqrt(draw.ratio)[:, None]
    ts = times_at(draw, np.linspace(10, 30, POINTS) / rate[:, None] / root)
    moved, limit = by_formula(draw, size, ts, scaled=True).states, _limit(draw, size)
    distance = size_of(stacked(moved.features, moved.prototypes) - (limit / size_of(limit)[:, None, None])[:, None])
    return np.abs(rate_of(root * clock(draw, ts), distance) / rate - 1)


def _self_dual(size: Size, members: int):
    """The library's limit: features sqrt(s/N) times their prototypes, no deviations, means and prototypes aligned."""
    draw = _draw(size, members)
    direction = limits(draw, size).direction
    own = np.repeat(direction.prototypes, size.per_class, axis=1)
    return size_of(direction.features - np.sqrt(draw.ratio / size.per_class)[:, None, None] * own)


def _collapse(size: Size, members: int):
    """NC1 and NC3 vanish in the limit; NC2, the distance from a simplex, does not (C = 2 has no other frame)."""
    draw = _draw(size, members)
    watch = dyn.observables

    def one(direction):
        problem = dyn.LayerPeeled.balanced(size.classes, size.per_class)
        return [f(problem, direction) for f in (watch.nc1, watch.nc2, watch.nc3)]

    nc1, nc2, nc3 = dyn.ensemble.run(one, limits(draw, size).direction, progress=False).values
    simplex_like = size.classes > 2 and np.median(nc2) < 0.1
    return np.full(members, np.inf) if simplex_like else np.maximum(nc1, nc3)


def _bias_ratio(size: Size, members: int):
    """Largest over smallest bias once the drift has added 1e9, gamma off the optimum."""
    draw = _draw(size, members)
    best = draw.gamma == 1 / (size.classes - 1)
    draw = draw._replace(gamma=np.where(best, draw.gamma * (0.1 + 0.8 * draw.spare[:, 0]), draw.gamma))
    drift = np.abs(sigmas(draw, size)[2])[:, None]
    ts = times_at(draw, np.geomspace(1e8, 1e9, POINTS) / drift)
    biases = np.abs(by_formula(draw, size, ts, scaled=True).states.biases[:, -1])
    return biases.max(axis=1) / biases.min(axis=1) - 1


def _still_biases(size: Size, members: int):
    """What the library pulls biases by at the optimum, exactly."""

    def one(draw):
        problem, state, _ = instance(draw, size, loss=dyn.losses.Unhinged(), bias=True)
        return abs(problem.force(state).biases).max()

    return dyn.ensemble.run(one, draws(size, members), progress=False).values


def _degenerate(size: Size, members: int):
    """No winning mode in the start, sqrt(s) W0 = -G0 in the zero-sum part: the common direction takes over.

    Gamma is small, so that it has grown by e^30 before the winner comes up out of rounding.
    """
    draw = undecayed(draws(size, members))
    draw = draw._replace(gamma=(0.05 + 0.05 * draw.spare[:, 0]) / (size.classes - 1))
    root, g, w = np.sqrt(draw.ratio)[:, None, None], class_sides(draw.features, size), draw.prototypes
    draw = draw._replace(prototypes=common_part(w) - (g - common_part(g)) / root)
    _, sigma2, _ = sigmas(draw, size)
    ts = times_at(draw, np.linspace(29, 30, POINTS) / sigma2[:, None] / root[:, :, 0])
    moved = by_formula(draw, size, ts, scaled=True).states
    sides = common_part(g + root * w)
    expected = stacked(spread(sides, size), sides / root)
    found = stacked(moved.features[:, -1], moved.prototypes[:, -1])
    return size_of(found - expected / size_of(expected)[:, None, None])


_claim = functools.partial(Claim, id="unhinged.unconstrained.limit", source=SOURCE)
_INSIDE = ("balanced classes", "no decay", "constant ratio of rates", "0 < gamma < 2/(C-2), or C = 2")

EXPERIMENT = Experiment(
    name="unconstrained-limit",
    family="unhinged",
    summary="limit and rate of the flow without decay",
    claims=(
        _claim(
            name="unconstrained-limit-vector",
            statement="exp(-sigma1 q) Z -> 1/2 ((G0 + sqrt(s) W0) Pi Ybar, (W0 + G0/sqrt(s)) Pi), also by projections",
            assumptions=_INSIDE,
            tolerance=1e-12,
            check=functools.partial(worst_of, _against_spectrum),
        ),
        _claim(
            name="unconstrained-limit-library",
            statement="direction, norm, exponent sigma1 and rate E of the limit = the dense generator's spectrum",
            assumptions=_INSIDE,
            tolerance=1e-12,
            check=functools.partial(worst_of, _library_limit),
        ),
        _claim(
            name="unconstrained-limit-reached",
            statement="at clocks of 1e9 to 1e12 the direction is the limit, the log norm sigma1 q + log |limit|",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _reached),
        ),
        _claim(
            name="unconstrained-limit-rate",
            statement="distance of directions = Theta(exp(-E q)), E = sigma1 - |sigma2|",
            assumptions=(*_INSIDE, "a generic start"),
            tolerance=1e-5,
            limited_by=SLOPES,
            check=functools.partial(worst_of, _rate),
        ),
        _claim(
            name="unconstrained-limit-self-dual",
            statement="the limit satisfies H = sqrt(s/N) W Y",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _self_dual),
        ),
        _claim(
            name="unconstrained-limit-collapse",
            statement="the limit is collapsed within classes and self-dual (NC1, NC3), but in general no simplex (NC2)",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _collapse),
        ),
        _claim(
            name="unconstrained-limit-biases",
            statement="max b / min b -> 1 as biases drift",
            assumptions=(*_INSIDE, "gamma != 1/(C-1)"),
            tolerance=5e-8,
            check=functools.partial(worst_of, _bias_ratio),
        ),
        _claim(
            name="unconstrained-limit-still-biases",
            statement="gamma = 1/(C-1): biases never move",
            assumptions=("balanced classes", "no decay", "gamma = 1/(C-1)"),
            tolerance=0.0,
            check=functools.partial(worst_of, _still_biases),
        ),
        _claim(
            name="unconstrained-limit-degenerate",
            statement="a start without the winning mode: the next one decides, nothing is divided by 0",
            assumptions=("balanced classes", "no decay", "(G0 + sqrt(s) W0) Pi = 0"),
            tolerance=1e-10,
            check=functools.partial(worst_of, _degenerate),
        ),
    ),
)
