"""Where the flow with unequal decays goes: exponents, limit, rate, and that the limit is always self-dual."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import SLOPES, clock, deviation, rate_of, size_of, spectrum, stacked, times_at
from experiments.shared.instances import (
    SIZES,
    Draw,
    Size,
    admissible,
    by_formula,
    class_sides,
    common_part,
    draws,
    limits,
    sigmas,
    spread,
    worst_of,
)

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Corollary 5, with unequal decays"
POINTS = 24  # times of one run by formula


def _draw(size: Size, members: int) -> Draw:
    """Unequal decays, gamma in (0, 2/(C-2)), the optimum among them."""
    return admissible(draws(size, members), size)


def _omegas(draw: Draw, sigma):
    """The two exponents of a coupling per unit of the weights' clock, the upper one in the form that does not cancel."""
    s, (fast, slow) = draw.ratio, draw.decay.T[:2]
    gap = np.sqrt((s * fast - slow) ** 2 + 4 * s * sigma**2)
    return -(s * fast + slow + gap) / 2, 2 * s * (sigma**2 - fast * slow) / (gap + s * fast + slow)


def _limit(draw: Draw, size: Size):
    """The limit of exp(-omega2 zeta2) Z in class means."""
    s, (fast, slow), sigma = draw.ratio, draw.decay.T[:2], sigmas(draw, size)[0]
    lower, upper = _omegas(draw, sigma)
    g, w = (x - common_part(x) for x in (class_sides(draw.features, size), draw.prototypes))
    times = lambda scalar, x: (scalar / (upper - lower))[:, None, None] * x
    sides = times(upper + slow, g) + times(s * sigma, w)
    return stacked(spread(sides, size), times(sigma, g) + times(upper + s * fast, w))


def _exponents(size: Size, members: int):
    """Those of both couplings and -s lambda1, repeated by their dimensions, against the spectrum; relative to its width."""
    draw, classes = _draw(size, members), size.classes
    sigma1, sigma2, _ = sigmas(draw, size)
    values = [*_omegas(draw, sigma1), *_omegas(draw, sigma2), -draw.ratio * draw.decay[:, 0]]
    repeats = classes - 1, classes - 1, 1, 1, classes * (size.per_class - 1)
    expected = np.sort(np.repeat(np.stack(values, axis=1), repeats, axis=1), axis=1)
    found = spectrum(draw, size).exponents
    return np.abs(found - expected).max(axis=1) / np.abs(found).max(axis=1)


def _against_spectrum(size: Size, members: int):
    """Both forms of the limit against the part of the start in the top eigenspace of the dense generator."""
    draw = _draw(size, members)
    s, (fast, slow), sigma = draw.ratio, draw.decay.T[:2], sigmas(draw, size)[0]
    lower, upper = _omegas(draw, sigma)
    g, w = class_sides(draw.features, size), draw.prototypes
    features, prototypes = 0.0, 0.0
    for sign in (1, -1):
        pi_h = (upper + slow + sign * s * sigma) / (upper - lower)
        pi_w = (upper + s * fast + sign * sigma) / (upper - lower)
        projected = (sign * g + w - common_part(sign * g + w)) / 2
        features = features + pi_h[:, None, None] * spread(sign * projected, size)
        prototypes = prototypes + pi_w[:, None, None] * projected
    top = spectrum(draw, size).leading(stacked(draw.features, w))
    forms = _limit(draw, size), stacked(features, prototypes)
    return np.max([deviation(form, top) for form in forms], axis=0)


def _library_limit(size: Size, members: int):
    """The library's direction, norm, growth exponent and rate against the dense generator; exponents by its width."""
    draw = _draw(size, members)
    found, dense = limits(draw, size), spectrum(draw, size)
    top, width = dense.leading(stacked(draw.features, draw.prototypes)), np.abs(dense.exponents).max(axis=1)
    length = size_of(top)
    wrong = [
        size_of(stacked(found.direction.features, found.direction.prototypes) - top / length[:, None, None]),
        np.abs(found.constants["log_norm"] - np.log(length)),
        np.abs(found.growth_exponent - dense.exponents[:, -1]) / width,
        np.abs(found.rate - dense.gap()) / width,
    ]
    return np.max(wrong, axis=0)


def _reached(size: Size, members: int):
    """Direction by formula at clocks from 1e9 to 1e12, to rounding of the two terms of the limit; the log norm, by that of
    the fastest mode."""
    draw = _draw(size, members)
    ts = np.geomspace(1e9, 1e12, POINTS) / draw.floor[:, None]
    moved, limit = by_formula(draw, size, ts, scaled=True), _limit(draw, size)
    length = size_of(limit)
    terms = size_of(stacked(draw.features, draw.prototypes)) * np.maximum(1, np.sqrt(draw.ratio))
    wrong = size_of(stacked(moved.states.features, moved.states.prototypes) - (limit / length[:, None, None])[:, None])
    wrong = wrong * np.minimum(1, length / terms)[:, None]
    lower, upper = (omega[:, None] * clock(draw, ts) for omega in _omegas(draw, sigmas(draw, size)[0]))
    log_gap = np.abs(moved.log_scale - upper - np.log(length)[:, None]) / (1 + np.abs(lower))
    return np.maximum(wrong, log_gap).max(axis=1)


def _well_separated(size: Size, members: int) -> Draw:
    """As many draws whose slowest competing exponent is alone: the next one fades half as fast again."""
    draw = _draw(size, 4 * members)
    exponents = spectrum(draw, size).exponents
    behind = exponents[:, -1:] - exponents
    first = np.where(behind > 1e-10, behind, np.inf).min(axis=1, keepdims=True)
    second = np.where(behind > first * (1 + 1e-10), behind, np.inf).min(axis=1)
    chosen = np.flatnonzero(second > 1.5 * first[:, 0])[:members]
    return Draw(*(leaf[chosen] for leaf in draw))


def _rate(size: Size, members: int):
    """The slope of the log distance to the limit against omega2(sigma1) - omega2(|sigma2|); relative."""
    draw = _well_separated(size, members)
    sigma1, sigma2, _ = sigmas(draw, size)
    rate = _omegas(draw, sigma1)[1] - _omegas(draw, np.abs(sigma2))[1]
    ts = times_at(draw, np.linspace(10, 30, POINTS) / rate[:, None])
    moved, limit = by_formula(draw, size, ts, scaled=True).states, _limit(draw, size)
    distance = size_of(stacked(moved.features, moved.prototypes) - (limit / size_of(limit)[:, None, None])[:, None])
    return np.abs(rate_of(clock(draw, ts), distance) / rate - 1)


def _rest_never_leads(size: Size, members: int):
    """-s lambda1 <= omega2(|sigma2|), equal exactly where sigma2 = 0 and s lambda1 <= lambda2; excess by the width."""
    draw = _draw(size, members)
    sigma2 = np.abs(sigmas(draw, size)[1])
    sigma2 = np.where(sigma2 < 1e-12, 0.0, sigma2)  # zero at the optimum
    rest, upper = -draw.ratio * draw.decay[:, 0], _omegas(draw, sigma2)[1]
    equal = np.abs(rest - upper) <= 1e-14 * np.abs(rest)
    predicted = (sigma2 == 0) & (-rest <= draw.decay[:, 1])
    return np.where(equal == predicted, np.maximum(rest - upper, 0.0) / -rest, np.inf)


def _self_dual(size: Size, members: int):
    """G = k W in the library's limit, both forms of k."""
    draw = _draw(size, members)
    direction, sigma = limits(draw, size).direction, sigmas(draw, size)[0]
    upper = _omegas(draw, sigma)[1]
    forms = (upper + draw.decay[:, 1]) / sigma, draw.ratio * sigma / (upper + draw.ratio * draw.decay[:, 0])
    own = spread(direction.prototypes, size)
    return np.max([size_of(direction.features - k[:, None, None] * own) for k in forms], axis=0)


def _outside(size: Size, members: int):
    """gamma > 2/(C-2): the common direction wins with the exponent of |sigma2|, features opposite to prototypes."""
    draw = draws(size, members)
    draw = draw._replace(gamma=2 / (size.classes - 2) * (1.2 + 2 * draw.spare[:, 0]))
    sigma2 = sigmas(draw, size)[1]
    lower, upper = _omegas(draw, np.abs(sigma2))
    s, (fast, slow) = draw.ratio, draw.decay.T[:2]
    g, w = common_part(class_sides(draw.features, size)), common_part(draw.prototypes)
    times = lambda scalar, x: (scalar / (upper - lower))[:, None, None] * x
    sides, prototypes = times(upper + slow, g) + times(s * sigma2, w), times(sigma2, g) + times(upper + s * fast, w)
    limit, dense = stacked(spread(sides, size), prototypes), spectrum(draw, size)
    found = limits(draw, size)
    gap = stacked(found.direction.features, found.direction.prototypes) - limit / size_of(limit)[:, None, None]
    width = np.abs(dense.exponents).max(axis=1)
    wrong = [
        deviation(limit, dense.leading(stacked(draw.features, draw.prototypes))),
        size_of(gap),
        np.abs(found.growth_exponent - upper) / width,
        np.abs(dense.exponents[:, -1] - upper) / width,
    ]
    return np.max(wrong, axis=0)


_claim = functools.partial(Claim, id="unhinged.regularised.limit", source=SOURCE)
_INSIDE = ("balanced classes", "constant ratio of rates", "0 < gamma < 2/(C-2), or C = 2")

EXPERIMENT = Experiment(
    name="regularised-limit",
    family="unhinged",
    summary="limit and rate of the flow with unequal decays",
    claims=(
        _claim(
            name="regularised-limit-exponents",
            statement="exponents omega_{1,2} = (-(s lambda1 + lambda2) -/+ Delta)/2, and -s lambda1",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _exponents),
        ),
        _claim(
            name="regularised-limit-vector",
            statement="exp(-omega2 zeta2) Z -> (pi_h+- H1+-, pi_w+- W1+-), and the same in class means",
            assumptions=_INSIDE,
            tolerance=1e-12,
            check=functools.partial(worst_of, _against_spectrum),
        ),
        _claim(
            name="regularised-limit-library",
            statement="direction, norm, exponent and rate of the limit = the dense generator's spectrum",
            assumptions=_INSIDE,
            tolerance=1e-12,
            check=functools.partial(worst_of, _library_limit),
        ),
        _claim(
            name="regularised-limit-reached",
            statement="at clocks of 1e9 to 1e12 the direction is the limit, the log norm omega2 zeta2 + log |limit|",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _reached),
        ),
        _claim(
            name="regularised-limit-rate",
            statement="distance of directions ~ exp(-omega zeta2), omega = omega2(sigma1) - omega2(|sigma2|)",
            assumptions=(*_INSIDE, "a generic start"),
            tolerance=1e-3,
            limited_by=SLOPES,
            check=functools.partial(worst_of, _rate),
        ),
        _claim(
            name="regularised-limit-rest",
            statement="deviations never control the rate: -s lambda1 <= omega2(|sigma2|)",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _rest_never_leads),
        ),
        _claim(
            name="regularised-limit-self-dual",
            statement="G = k W for any decays and s, k = (omega2 + lambda2)/sigma1 = s sigma1/(omega2 + s lambda1)",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _self_dual),
        ),
        _claim(
            name="regularised-limit-outside",
            statement="gamma > 2/(C-2): E2- wins with omega2(|sigma2|)",
            assumptions=("balanced classes", "constant ratio of rates", "gamma > 2/(C-2)"),
            tolerance=2e-13,
            check=functools.partial(worst_of, _outside, sizes=(SIZES[0], SIZES[2])),
        ),
    ),
)
