"""Flow with unequal decays: the exact trajectory in its two forms, and its special cases."""

import functools

import numpy as np

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import clock, dense, deviation, size_of, stacked
from experiments.shared.instances import (
    SIMULATED,
    TIMES,
    Draw,
    Size,
    by_formula,
    class_sides,
    common_part,
    draws,
    sigmas,
    simulated,
    spread,
    undecayed,
    worst_of,
)

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 4, corrected"
LATE = (2, 5)  # indices into TIMES


@functools.cache
def _exact(size: Size, members: int):
    """The draws and, by formula, the states stacked, (members, times, samples + classes, dim)."""
    draw = draws(size, members)
    return draw, _motion(draw, size)


def _motion(draw: Draw, size: Size):
    states = by_formula(draw, size).states
    return stacked(states.features, states.prototypes)


@functools.cache
def _simulated(size: Size, members: int):
    return simulated(draws(size, members), size)


def _against_formula(size: Size, members: int):
    draw = draws(size, members)
    return dyn.compare(_simulated(size, members), by_formula(draw, size)).residuals.max(axis=-1)


@functools.cache
def _dense(size: Size, members: int):
    """States at the late times by the exponential of the dense generator."""
    draw = draws(size, members)
    return [dense(draw, size, clock(draw, TIMES)[:, k]) for k in LATE]


def _against_expm(size: Size, members: int):
    _, found = _exact(size, members)
    return np.max([deviation(found[:, k], z) for k, z in zip(LATE, _dense(size, members), strict=True)], axis=0)


def _scalars(draw: Draw, sigma):
    """m, d and r^2 of the 2x2 generator at the late times, (late, members)."""
    zeta2 = clock(draw, TIMES[list(LATE)]).T
    zeta1 = draw.ratio * zeta2
    fast, slow = draw.decay[:, 0] * zeta1, draw.decay[:, 1] * zeta2
    half = (fast - slow) / 2
    return zeta1, zeta2, -(fast + slow) / 2, half, half**2 + sigma**2 * zeta1 * zeta2


def _parts(draw: Draw, size: Size):
    """The two couplings with the part of the classes each acts on."""
    sigma1, sigma2, _ = sigmas(draw, size)
    return (sigma1, lambda x: x - common_part(x)), (sigma2, common_part)


def _judge(size: Size, members: int, form):
    """`form(draw, sigma, g, w)` moves class sides and prototypes to the late times, (late, members, classes, dim) each."""
    draw = draws(size, members)
    g, w = class_sides(draw.features, size), draw.prototypes
    zero_sum, common = (form(draw, sigma, part(g), part(w)) for sigma, part in _parts(draw, size))
    sides, prototypes = (x + y for x, y in zip(zero_sum, common, strict=True))
    clocks = clock(draw, TIMES[list(LATE)])
    worst = []
    for k in range(len(LATE)):
        rest = np.exp(-draw.decay[:, 0] * draw.ratio * clocks[:, k])[:, None, None] * (draw.features - spread(g, size))
        moved = stacked(spread(sides[k], size) + rest, prototypes[k])
        worst.append(deviation(moved, _dense(size, members)[k]))
    return np.max(worst, axis=0)


def _class_means(size: Size, members: int):
    """exp(S) = e^m [cosh r + sinhc r [[-d, sigma zeta1], [sigma zeta2, d]]]."""

    def form(draw, sigma, g, w):
        zeta1, zeta2, m, d, square = _scalars(draw, sigma)
        r = np.sqrt(square)
        cosh, sinhc = np.exp(m) * np.cosh(r), np.exp(m) * np.where(r > 0, np.sinh(r) / np.where(r > 0, r, 1), 1)
        times = lambda scalar, x: scalar[..., None, None] * x
        return (
            times(cosh - d * sinhc, g) + times(sinhc * sigma * zeta1, w),
            times(sinhc * sigma * zeta2, g) + times(cosh + d * sinhc, w),
        )

    return _judge(size, members, form)


def _projectors(size: Size, members: int):
    """a and b in the roots theta of the paper, as printed but for the sign in b; each of H+-, W+- has its own."""

    def form(draw, sigma, g, w):
        sides, prototypes = 0.0, 0.0
        for sign in (1, -1):
            signed = sign * sigma
            zeta1, zeta2, m, _, square = _scalars(draw, signed)
            theta1, theta2 = m - np.sqrt(square), m + np.sqrt(square)
            low, high, split = np.exp(theta1), np.exp(theta2), theta2 - theta1
            slow = draw.decay[:, 0] * zeta1
            a = ((signed * zeta1 - slow - theta1) * high - (signed * zeta1 - slow - theta2) * low) / split
            b = ((slow + theta2 + signed * zeta2) * high - (slow + theta1 + signed * zeta2) * low) / split
            projected = (sign * g + w) / 2
            sides = sides + a[..., None, None] * (sign * projected)
            prototypes = prototypes + b[..., None, None] * projected
        return sides, prototypes

    return _judge(size, members, form)


def _deviations(size: Size, members: int):
    """Simulated deviations from class means; relative to the start's, once not yet lost in the solver's tolerance."""
    draw, moved = draws(size, members), _simulated(size, members).states.features
    rest = moved - spread(class_sides(moved, size), size)
    start = draw.features - spread(class_sides(draw.features, size), size)
    kept = np.exp(-draw.decay[:, :1] * draw.ratio[:, None] * clock(draw, TIMES))[..., None, None]
    scale = np.maximum(size_of(start)[:, None], size_of(moved))
    return np.max(size_of(rest - kept * start[:, None]) / scale, axis=1)


def _matched(size: Size, members: int) -> Draw:
    """s lambda1 = lambda2."""
    draw = draws(size, members)
    decay = draw.decay.copy()
    decay[:, 0] = decay[:, 1] / draw.ratio
    return draw._replace(decay=decay)


def _same_directions(size: Size, members: int):
    """By formula with decay against the dense exponential without, times e^{-lambda2 zeta2}."""
    draw = _matched(size, members)
    found = _motion(draw, size)
    clocks = clock(draw, TIMES)
    kept = np.exp(-draw.decay[:, 1:2] * clocks)[..., None, None]
    free = [dense(undecayed(draw), size, clocks[:, k]) for k in LATE]
    return np.max([deviation(found[:, k], kept[:, k] * z) for k, z in zip(LATE, free, strict=True)], axis=0)


def _no_coupling(size: Size, members: int):
    """sigma2 = 0 at the best gamma: each common part decays by its own lambda, also where r = 0 (s lambda1 = lambda2)."""
    worst = []
    for draw in (draws(size, members), _matched(size, members)):
        draw = draw._replace(gamma=np.full(members, 1 / (size.classes - 1)))
        found = _motion(draw, size)
        zeta2 = clock(draw, TIMES)
        samples = size.classes * size.per_class
        common = stacked(common_part(class_sides(found[..., :samples, :], size)), common_part(found[..., samples:, :]))
        fast, slow = draw.decay[:, :1] * draw.ratio[:, None] * zeta2, draw.decay[:, 1:2] * zeta2
        kept = np.exp(-np.where(np.arange(2 * size.classes) < size.classes, fast[..., None], slow[..., None]))
        worst.append(size_of(common - kept[..., None] * common[:, :1]) / size_of(found))
    return np.max(worst, axis=(0, 2))


_claim = functools.partial(Claim, id="unhinged.regularised", source=SOURCE)
_DECAYED = ("balanced classes", "constant ratio of rates")

EXPERIMENT = Experiment(
    name="regularised",
    family="unhinged",
    summary="exact gradient flow with unequal decays",
    claims=(
        _claim(
            name="regularised-flow",
            statement="simulated flow = formula, biases included",
            assumptions=_DECAYED,
            tolerance=1e-7,
            check=functools.partial(worst_of, _against_formula, sizes=SIMULATED),
        ),
        _claim(
            name="regularised-expm",
            statement="formula = exponential of the dense generator",
            assumptions=_DECAYED,
            tolerance=1e-12,
            check=functools.partial(worst_of, _against_expm),
        ),
        _claim(
            name="regularised-class-means",
            statement="(G, W) -> e^m [cosh r + sinhc r [[-d, sigma zeta1], [sigma zeta2, d]]] (G, W)",
            assumptions=_DECAYED,
            tolerance=1e-12,
            check=functools.partial(worst_of, _class_means),
        ),
        _claim(
            name="regularised-projectors",
            statement="H = sum a H0 + a3 D0, W = sum b W0 over four projections, b with its second bracket corrected",
            assumptions=_DECAYED,
            tolerance=1e-12,
            check=functools.partial(worst_of, _projectors),
        ),
        _claim(
            name="regularised-deviations",
            statement="deviations from class means only decay: D = e^{-lambda1 zeta1} D0",
            assumptions=_DECAYED,
            tolerance=5e-8,
            check=functools.partial(worst_of, _deviations, sizes=SIMULATED),
        ),
        _claim(
            name="regularised-directions",
            statement="s lambda1 = lambda2: e^{-lambda2 zeta2} times the path without decay",
            assumptions=(*_DECAYED, "s lambda1 = lambda2"),
            tolerance=1e-11,
            check=functools.partial(worst_of, _same_directions),
        ),
        _claim(
            name="regularised-no-coupling",
            statement="sigma = 0 and r = 0: no division by either",
            assumptions=(*_DECAYED, "gamma = 1/(C-1)"),
            tolerance=3e-14,
            check=functools.partial(worst_of, _no_coupling),
        ),
    ),
)
