"""Fixed prototypes: each feature relaxes on its own, in continuous and in discrete time."""

import functools

import numpy as np
from scipy.linalg import expm

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import clock, coupling, deviation, rate_of, size_of
from experiments.shared.instances import HORIZON, SIZES, TIMES, Draw, Size, draws, instance, worst_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 6"
STEPS = 60
LONG = np.geomspace(1e-1, 1e6, 24)  # times of the approach to the limit, in units of the clock


def _clock(draw: Draw, ts):
    """The features' clock."""
    return draw.ratio[:, None] * clock(draw, ts)


def _pull(draw: Draw, size: Size):
    """W M, what pulls each feature."""
    return coupling(draw, size).swapaxes(1, 2) @ draw.prototypes


def _frozen(draw, size, **fields):
    return instance(draw, size, decay=True, anchored=True, **fields)


@functools.cache
def _library(size: Size, members: int):
    """Features by formula at TIMES and over STEPS of descent, the limit, and the bound on the step."""

    def one(draw):
        problem, state, rates = _frozen(draw, size)
        flow = dyn.exact.flow(problem, state, rates, TIMES).states
        descent = dyn.exact.descent(problem, state, rates, STEPS, every=STEPS // 4).states
        moved = dyn.descent(problem, state, rates, STEPS, every=STEPS // 4).states
        step = dyn.exact.max_step(problem, rates)
        return flow, descent, moved, dyn.exact.limit(problem, state, rates), step

    return dyn.ensemble.run(one, draws(size, members), progress=False).values


def _formula(draw: Draw, size: Size, zeta):
    """e^{-lambda zeta} H0 + (1 - e^{-lambda zeta})/lambda W M."""
    rate, zeta = draw.decay[:, :1, None, None], zeta[..., None, None]
    pulled = -np.expm1(-rate * zeta) / rate
    return np.exp(-rate * zeta) * draw.features[:, None] + pulled * _pull(draw, size)[:, None]


def _against_formula(size: Size, members: int):
    """The solver, on one size."""
    draw = draws(size, members)

    def one(member):
        problem, state, rates = _frozen(member, size)
        moved = dyn.flow(problem, state, rates, TIMES, rtol=1e-10, atol=1e-10)
        return moved.states

    states = dyn.ensemble.run(one, draw, progress=False).values
    still = np.abs(states.prototypes - draw.prototypes[:, None]).max(axis=(1, 2, 3))
    still = np.maximum(still, np.abs(states.biases - draw.biases[:, None]).max(axis=(1, 2)))
    return np.maximum(still, deviation(states.features, _formula(draw, size, _clock(draw, TIMES))).max(axis=1))


def _against_expm(size: Size, members: int):
    """The library's formula and the theorem's, against the exponential of the affine system of features and pull."""
    draw = draws(size, members)
    zeta = _clock(draw, TIMES)[:, -1]
    generator = np.zeros((members, 2, 2))
    generator[:, 0, 0], generator[:, 0, 1] = -draw.decay[:, 0], 1.0
    kept, pulled = expm(zeta[:, None, None] * generator)[:, 0].T[..., None, None]
    judge = kept * draw.features + pulled * _pull(draw, size)
    forms = _library(size, members)[0].features[:, -1], _formula(draw, size, zeta[:, None])[:, 0]
    return np.max([deviation(form, judge) for form in forms], axis=0)


def _fixed_point(size: Size, members: int):
    """H - W M/lambda shrinks by e^{-lambda zeta}: relative to H and W M/lambda."""
    draw = draws(size, members)
    target = _pull(draw, size) / draw.decay[:, :1, None]
    found = _library(size, members)[0].features
    kept = np.exp(-draw.decay[:, :1] * _clock(draw, TIMES))[..., None, None]
    wrong = (found - target[:, None]) - kept * (draw.features - target)[:, None]
    return np.max(size_of(wrong) / (size_of(found) + size_of(target)[:, None]), axis=1)


def _targets(size: Size, members: int):
    """The library's limit, class by class, and for prototypes of sum zero."""
    draw = draws(size, members)
    limit = _library(size, members)[3]
    found = limit.direction.features * np.exp(limit.constants["log_norm"])[:, None, None]
    w, rate, gamma = draw.prototypes, draw.decay[:, 0], draw.gamma
    own, rest = (x[:, None, None] / (rate * size.classes * size.per_class)[:, None, None] for x in (1 + gamma, gamma))
    target = own * w - rest * w.sum(axis=1, keepdims=True)
    zero_sum = w - w.mean(axis=1, keepdims=True)
    pulled = _pull(draw._replace(prototypes=zero_sum), size) / rate[:, None, None]
    repeated = lambda x: np.repeat(x, size.per_class, axis=1)
    return np.maximum(deviation(found, repeated(target)), deviation(pulled, repeated(own * zero_sum)))


def _iterates(size: Size, members: int):
    """Descent by formula and by iteration, against the product of 1 - eta lambda and against a plain loop."""
    draw = draws(size, members)
    rate, pull = draw.decay[:, :1, None], _pull(draw, size)
    features, kept, loop, product = draw.features, np.ones_like(rate), [draw.features], [np.ones_like(rate)]
    for k in range(STEPS):
        cosine = 0.5 + 0.5 * np.cos(np.pi * min(k / HORIZON, 1))
        eta = (draw.ratio * (draw.floor + (draw.rate - draw.floor) * cosine))[:, None, None]
        features, kept = features + eta * (pull - rate * features), kept * (1 - eta * rate)
        loop.append(features)
        product.append(kept)
    every = slice(None, None, STEPS // 4)
    loop, target = np.stack(loop[every], axis=1), (pull / rate)[:, None]
    theorem = target + np.stack(product[every], axis=1) * (draw.features[:, None] - target)
    _, exact, moved, _, _ = _library(size, members)
    scale = np.maximum(size_of(loop), size_of(target))
    return np.max([size_of(x - loop) / scale for x in (theorem, exact.features, moved.features)], axis=(0, 2))


def _stable_step(size: Size, members: int):
    """The largest step 2/(lambda max eta): 0.99 of it converges, 1.01 of it does not, iterating at a constant rate."""
    draw = draws(size, members)
    step = _library(size, members)[4]  # times a rate that only falls: its peak is at the start
    eta = step * draw.ratio * np.maximum(draw.rate, draw.floor)
    wrong = np.abs(eta * draw.decay[:, 0] / 2 - 1)
    pull, rate = _pull(draw, size), draw.decay[:, :1, None]
    for factor, converges in ((0.99, True), (1.01, False)):
        features = draw.features
        for _ in range(1000):
            features = features + factor * eta[:, None, None] * (pull - rate * features)
        shrunk = size_of(features - pull / rate) < 1e-3 * size_of(draw.features - pull / rate)
        wrong = np.where(shrunk == converges, wrong, np.inf)
    return wrong


def _approach(draw: Draw, size: Size):
    """Clocks and distances of direction between the library's formula and its limit, (members, LONG)."""

    def one(member):
        problem, state, rates = _frozen(member, size)
        rates = dyn.Rates.equal(1.0)
        limit = dyn.exact.limit(problem, state, rates).direction.features
        moved = dyn.exact.flow(problem, state, rates, member.spare).states.features
        return moved, limit

    # with decay the window ends before rounding, at lambda zeta = 25
    rate = draw.decay[:, :1]
    clocks = np.where(rate > 0, np.linspace(5, 25, LONG.size) / np.where(rate > 0, rate, 1), LONG)
    moved, limit = dyn.ensemble.run(one, draw._replace(spare=clocks), progress=False).values
    unit = lambda x: x / size_of(x)[..., None, None]
    return clocks, size_of(unit(moved) - unit(limit)[:, None])


def _algebraic(size: Size, members: int):
    """lambda = 0: the slope of log distance over log clock, over the last three decades, against -1."""
    draw = draws(size, members)
    clocks, distance = _approach(draw._replace(decay=np.zeros_like(draw.decay)), size)
    late = clocks[0] > 1e3
    slope = np.polyfit(np.log(clocks[0, late]), np.log(distance[:, late]).T, 1)[0]
    return np.abs(slope + 1)


def _exponential(size: Size, members: int):
    """lambda > 0: the fitted rate against lambda; relative."""
    draw = draws(size, members)
    clocks, distance = _approach(draw, size)
    return np.abs(rate_of(clocks, distance) / draw.decay[:, 0] - 1)


_claim = functools.partial(Claim, id="unhinged.anchored", source=SOURCE)
_ONE = SIZES[:1]
_FIXED = ("balanced classes", "prototypes fixed", "any rate over time")

EXPERIMENT = Experiment(
    name="anchored",
    family="unhinged",
    summary="features under fixed prototypes",
    claims=(
        _claim(
            name="anchored-flow",
            statement="simulated H = e^{-lambda zeta} H0 + (1 - e^{-lambda zeta})/lambda W M; prototypes and biases stay",
            assumptions=_FIXED,
            tolerance=1e-7,
            check=functools.partial(worst_of, _against_formula, sizes=_ONE),
        ),
        _claim(
            name="anchored-expm",
            statement="the formula = the exponential of the affine system",
            assumptions=_FIXED,
            tolerance=1e-13,
            check=functools.partial(worst_of, _against_expm),
        ),
        _claim(
            name="anchored-fixed-point",
            statement="H - W M/lambda = e^{-lambda zeta} (H0 - W M/lambda)",
            assumptions=(*_FIXED, "lambda > 0"),
            tolerance=5e-15,
            check=functools.partial(worst_of, _fixed_point),
        ),
        _claim(
            name="anchored-targets",
            statement="H -> ((1+gamma) w_c - gamma sum w)/(lambda C N), for W of sum zero (1+gamma) w_c/(lambda C N)",
            assumptions=(*_FIXED, "lambda > 0"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _targets),
        ),
        _claim(
            name="anchored-descent",
            statement="H_k - W M/lambda = prod (1 - eta_j lambda) (H0 - W M/lambda), iterated and by formula",
            assumptions=(*_FIXED, "lambda > 0"),
            tolerance=1e-13,
            check=functools.partial(worst_of, _iterates),
        ),
        _claim(
            name="anchored-step",
            statement="descent is stable iff 0 < eta lambda < 2",
            assumptions=("prototypes fixed", "constant rate", "lambda > 0"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _stable_step),
        ),
        _claim(
            name="anchored-algebraic",
            statement="lambda = 0: the direction's error falls like 1/zeta",
            assumptions=("prototypes fixed", "no decay"),
            tolerance=5e-3,
            check=functools.partial(worst_of, _algebraic, sizes=_ONE),
        ),
        _claim(
            name="anchored-exponential",
            statement="lambda > 0: the direction's error falls like e^{-lambda zeta}",
            assumptions=("prototypes fixed", "lambda > 0"),
            tolerance=1e-3,
            check=functools.partial(worst_of, _exponential, sizes=_ONE),
        ),
    ),
)
