"""Decay at and around its threshold: when features vanish, grow or converge, and what they converge to."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import clock, deviation, size_of, spectrum, stacked, times_at
from experiments.shared.instances import (
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


def _with_decays(draw: Draw, features, prototypes) -> Draw:
    return draw._replace(decay=np.column_stack([features, prototypes, draw.decay[:, 2]]))


def _near(size: Size, members: int, factor) -> Draw:
    """Unequal decays whose product is `factor` times the squared coupling of the zero-sum directions."""
    draw = admissible(draws(size, members), size)
    sigma, skew = sigmas(draw, size)[0] * np.sqrt(factor), 4 ** (2 * draw.spare[:, 3] - 1)
    return _with_decays(draw, sigma * skew, sigma / skew)


def _equal(size: Size, members: int) -> Draw:
    """Both decays at the threshold of equal ones, (1+gamma)/(C sqrt(N))."""
    draw = admissible(draws(size, members), size)
    critical = (1 + draw.gamma) / (size.classes * size.per_class**0.5)
    return _with_decays(draw, critical, critical)


def _sign(size: Size, members: int):
    """Above and below: the sign of the top exponent, and where the norm by formula has gone at a clock of 1e9.

    Exponents of the library and of the dense generator; infinite where a sign is wrong.
    """
    spare = draws(size, members).spare
    factor = np.where(spare[:, 4] < 0.5, 0.05 + 0.9 * spare[:, 5], 1.05 + 2 * spare[:, 5])
    draw = _near(size, members, factor)
    top, found = spectrum(draw, size).exponents[:, -1], limits(draw, size).growth_exponent
    ts = times_at(draw, np.broadcast_to(np.geomspace(1e8, 1e9, POINTS), (members, POINTS)))
    size_at_end = np.asarray(by_formula(draw, size, ts, scaled=True).log_scale)[:, -1]
    right = (np.sign(top) == np.sign(1 - factor)) & (np.sign(size_at_end) == np.sign(top)) & (np.abs(size_at_end) > 100)
    return np.where(right, np.abs(found - top) / np.abs(top), np.inf)


def _at_threshold(draw: Draw, size: Size):
    """Z_pi where omega2 = 0: G = k W, W = (sigma1 G0 + s lambda1 W0) Pi/(s lambda1 + lambda2), k = lambda2/sigma1."""
    sigma, fast, slow = (x[:, None, None] for x in (sigmas(draw, size)[0], draw.ratio * draw.decay[:, 0], draw.decay[:, 1]))
    prototypes = (sigma * class_sides(draw.features, size) + fast * draw.prototypes) / (fast + slow)
    prototypes = prototypes - common_part(prototypes)
    return stacked(spread(slow / sigma * prototypes, size), prototypes)


def _converges(size: Size, members: int):
    """By formula at clocks of 1e6 to 1e9: the direction, and the norm up to rounding of the exponent, eps times the clock."""
    draw = _near(size, members, np.ones(members))
    ts = np.geomspace(1e6, 1e9, POINTS) / draw.floor[:, None]
    moved, limit = by_formula(draw, size, ts, scaled=True), _at_threshold(draw, size)
    length = size_of(limit)
    wrong = size_of(stacked(moved.states.features, moved.states.prototypes) - (limit / length[:, None, None])[:, None])
    drift = np.abs(moved.log_scale - np.log(length)[:, None]) / (1 + clock(draw, ts))
    return np.maximum(wrong, drift).max(axis=1)


def _kernel(size: Size, members: int):
    """The same limit against the start's part in the kernel of the dense generator."""
    draw = _near(size, members, np.ones(members))
    judge = spectrum(draw, size)
    wrong = deviation(_at_threshold(draw, size), judge.leading(stacked(draw.features, draw.prototypes)))
    return np.maximum(wrong, np.abs(judge.exponents[:, -1] / judge.exponents[:, 0]))


def _equal_limit(size: Size, members: int):
    """G = W = (G0 + s W0) Pi/(1+s), H = G Ybar, against the dense generator and the library."""
    draw = _equal(size, members)
    s = draw.ratio[:, None, None]
    sides = (class_sides(draw.features, size) + s * draw.prototypes) / (1 + s)
    sides = sides - common_part(sides)
    expected = stacked(spread(sides, size), sides)
    found = limits(draw, size)
    direction = stacked(found.direction.features, found.direction.prototypes)
    length = size_of(expected)
    wrong = [
        deviation(expected, spectrum(draw, size).leading(stacked(draw.features, draw.prototypes))),
        size_of(direction - expected / length[:, None, None]),
        np.abs(found.constants["log_norm"] - np.log(length)),
        np.abs(found.constants["self_duality"] - 1),
    ]
    return np.max(wrong, axis=0)


def _equal_constants(size: Size, members: int):
    """pi_h+ = pi_w+ = 1, pi_h- = -pi_w- = (1-s)/(1+s): the limit by projections of the start."""
    draw = _equal(size, members)
    s, g, w = draw.ratio[:, None, None], class_sides(draw.features, size), draw.prototypes
    plus, minus = ((x - common_part(x)) / 2 for x in (g + w, w - g))
    skew = (1 - s) / (1 + s)
    limit = stacked(spread(plus - skew * minus, size), plus - skew * minus)
    return deviation(limit, spectrum(draw, size).leading(stacked(draw.features, w)))


def _same_rate(size: Size, members: int):
    """s = 1, equal decays: the gap of the spectrum, and the library's rate, at any decay against those without."""
    draw = admissible(draws(size, members), size)._replace(ratio=np.ones(members))
    decayed = _with_decays(draw, 3 * draw.spare[:, 5], 3 * draw.spare[:, 5])
    sigma1, sigma2, _ = sigmas(draw, size)
    rate = sigma1 - np.abs(sigma2)
    return np.maximum(np.abs(spectrum(decayed, size).gap() - rate), np.abs(limits(decayed, size).rate - rate)) / sigma1


def _critical_rate(size: Size, members: int):
    """The threshold at the best gamma: omega = lambda min(1, s), by the spectrum and by the library."""
    draw = draws(size, members)._replace(gamma=np.full(members, 1 / (size.classes - 1)))
    critical = sigmas(draw, size)[0]
    draw, rate = _with_decays(draw, critical, critical), critical * np.minimum(1, draw.ratio)
    return np.maximum(np.abs(spectrum(draw, size).gap() / rate - 1), np.abs(limits(draw, size).rate / rate - 1))


_claim = functools.partial(Claim, id="unhinged.regularised.limit", source=SOURCE)
_INSIDE = ("balanced classes", "constant ratio of rates", "0 < gamma < 2/(C-2), or C = 2")

EXPERIMENT = Experiment(
    name="regularised-threshold",
    family="unhinged",
    summary="decay at and around its threshold",
    claims=(
        _claim(
            name="regularised-threshold-sign",
            statement="|Z| -> inf where sigma1^2 > lambda1 lambda2, |Z| -> 0 where sigma1^2 < lambda1 lambda2",
            assumptions=_INSIDE,
            tolerance=1e-12,
            check=functools.partial(worst_of, _sign),
        ),
        _claim(
            name="regularised-threshold-converges",
            statement="sigma1^2 = lambda1 lambda2: Z converges to Z_pi, decays equal or not",
            assumptions=_INSIDE,
            tolerance=1e-14,
            check=functools.partial(worst_of, _converges),
        ),
        _claim(
            name="regularised-threshold-kernel",
            statement="sigma1^2 = lambda1 lambda2: Z_pi is the start's part in the kernel of the generator",
            assumptions=_INSIDE,
            tolerance=1e-11,
            check=functools.partial(worst_of, _kernel),
        ),
        _claim(
            name="regularised-threshold-equal",
            statement="lambda1 = lambda2 = (1+gamma)/(C sqrt(N)): G = W = (G0 + s W0) Pi/(1+s), k = 1",
            assumptions=(*_INSIDE, "equal decays"),
            tolerance=1e-12,
            check=functools.partial(worst_of, _equal_limit),
        ),
        _claim(
            name="regularised-threshold-constants",
            statement="equal decays at threshold: pi_h+ = pi_w+ = 1, pi_h- = -pi_w- = (1-s)/(1+s)",
            assumptions=(*_INSIDE, "equal decays"),
            tolerance=1e-12,
            check=functools.partial(worst_of, _equal_constants),
        ),
        _claim(
            name="regularised-threshold-same-rate",
            statement="s = 1, equal decays: omega does not depend on lambda",
            assumptions=(*_INSIDE, "equal rates", "equal decays"),
            tolerance=1e-13,
            check=functools.partial(worst_of, _same_rate),
        ),
        _claim(
            name="regularised-threshold-rate",
            statement="gamma = 1/(C-1), equal decays at threshold: omega = lambda min(1, s)",
            assumptions=("balanced classes", "constant ratio of rates", "gamma = 1/(C-1)", "equal decays"),
            tolerance=1e-13,
            check=functools.partial(worst_of, _critical_rate),
        ),
    ),
)
