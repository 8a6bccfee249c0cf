"""Gradient descent at a constant ratio of rates: every mode is multiplied by scalars, in whatever order."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import deviation, size_of, spectrum, stacked
from experiments.shared.descents import STEPS, descended, proportional_rates
from experiments.shared.instances import SIZES, Size, class_sides, common_part, draws, sigmas, undecayed, worst_of
from experiments.shared.oracles import column, mode_exponents, stack

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorems 2 and 4, in discrete time"
SIZE = SIZES[2]
PARTS = (lambda x: x - common_part(x), common_part)


@functools.cache
def _stepped(size: Size, members: int):
    """The draws, rates of constant ratio that change from step to step, and the simulated iterates."""
    draw = draws(size, members)
    rates = proportional_rates(draw)
    return draw, rates, descended(draw, size, rates).simulated


@functools.cache
def _freely_stepped(size: Size, members: int):
    """The same without decay."""
    draw, rates, _ = _stepped(size, members)
    draw = undecayed(draw)
    return draw, rates, descended(draw, size, rates).simulated


def _order_free(size: Size, members: int):
    draw, rates, states = _stepped(size, members)
    order = np.random.default_rng(2).permuted(np.tile(np.arange(STEPS), (members, 1)), axis=1)
    shuffled = descended(draw, size, np.take_along_axis(rates, order[:, None], axis=2)).simulated
    whole = lambda x: np.concatenate([stack(x)[:, -1].reshape(members, -1), x.biases[:, -1]], axis=1)
    return deviation(whole(shuffled), whole(states), axes=1)


def _exponents(size: Size, members: int):
    """The spectrum of the dense generator against the roots for sigma1, sigma2 and what only decays."""
    draw = draws(size, members)
    decays = draw.decay[:, 0], draw.decay[:, 1]
    zero_sum, common = (mode_exponents(sigma, draw.ratio, decays) for sigma in sigmas(draw, size)[:2])
    rest = size.classes * (size.per_class - 1)
    expected = [*zero_sum] * (size.classes - 1) + [*common] + [-draw.ratio * decays[0]] * rest
    expected = np.sort(np.stack(expected, axis=1), axis=1)
    return np.abs(spectrum(draw, size).exponents - expected).max(axis=1) / np.abs(expected).max(axis=1)


def _products(size: Size, members: int):
    draw, rates, states = _stepped(size, members)
    modes = spectrum(draw, size)
    factors = np.prod(1 + rates[:, 1, :, None] * modes.exponents[:, None], axis=1)
    expected = modes.vectors @ (factors[..., None] * (modes.covectors @ stacked(draw.features, draw.prototypes)))
    return deviation(stack(states)[:, -1], expected)


def _constant_rate(size: Size, members: int):
    """Steps below 1/|omega_1|, where the logarithm is real."""
    draw = draws(size, members)
    modes = spectrum(draw, size)
    eta = 0.95 * draw.spare[:, 2] / np.abs(modes.exponents).max(axis=1)
    rates = np.broadcast_to(np.stack([draw.ratio * eta, eta], axis=1)[..., None], (members, 2, STEPS))
    states = descended(draw, size, rates).simulated
    slowed = np.log1p(eta[:, None] * modes.exponents) / eta[:, None]
    start = modes.covectors @ stacked(draw.features, draw.prototypes)
    expected = modes.vectors @ (np.exp(slowed * STEPS * eta[:, None])[..., None] * start)
    return deviation(stack(states)[:, -1], expected)


def _undecayed(size: Size, members: int):
    """G/sqrt(s) +- W in each of the two spaces."""
    draw, rates, states = _freely_stepped(size, members)
    root = np.sqrt(draw.ratio)
    sides = lambda x: (class_sides(x.features, size) / root.reshape(-1, *[1] * (x.features.ndim - 1)), x.prototypes)
    (g, w), (g0, w0) = sides(states), sides(draw)
    worst, whole = np.zeros(members), np.hypot(size_of(g[:, -1]), size_of(w[:, -1]))
    for sigma, part in zip(sigmas(draw, size), PARTS, strict=False):
        for sign in (1, -1):
            factor = np.prod(1 + sign * rates[:, 1] * (root * sigma)[:, None], axis=1)
            apart = part(g[:, -1] + sign * w[:, -1]) - column(factor) * part(g0 + sign * w0)
            worst = np.maximum(worst, size_of(apart) / whole)
    return worst


def _invariants(size: Size, members: int):
    """At every iterate, over the squared size of the state: the invariant is a small difference of what grows."""
    draw, rates, states = _freely_stepped(size, members)
    g, w = class_sides(states.features, size) / np.sqrt(draw.ratio)[:, None, None, None], states.prototypes
    square = lambda x: np.swapaxes(x, -1, -2) @ x
    worst, whole = np.zeros(members), (size_of(g) ** 2 + size_of(w) ** 2)[:, 1:]
    for sigma, part in zip(sigmas(draw, size), PARTS, strict=False):
        found = square(part(g)) - square(part(w))
        left = np.cumprod(1 - rates[:, 1] ** 2 * (draw.ratio * sigma**2)[:, None], axis=1)
        worst = np.maximum(worst, (size_of(found[:, 1:] - column(left) * found[:, :1]) / whole).max(axis=1))
    return worst


_claim = functools.partial(
    Claim, id="beyond.gd", source=SOURCE, assumptions=("balanced classes", "constant ratio of rates, any steps")
)
_check = functools.partial(functools.partial, worst_of, sizes=(SIZE,))

EXPERIMENT = Experiment(
    name="gd-ratio",
    family="beyond",
    summary="gradient descent at a constant ratio of rates",
    claims=(
        _claim(
            name="gd-order-free",
            statement="the end point does not depend on the order of the steps",
            tolerance=2e-14,
            check=_check(_order_free),
        ),
        _claim(
            name="gd-exponents",
            statement="exponents: omega_{1,2}(sigma1), C-1 times; omega_{1,2}(sigma2); -s lambda1, C(N-1) times",
            tolerance=1e-14,
            check=functools.partial(worst_of, _exponents),
        ),
        _claim(
            name="gd-products",
            statement="each mode is multiplied by prod_k (1 + e2_k omega)",
            tolerance=1e-13,
            check=_check(_products),
        ),
        _claim(
            name="gd-constant-rate",
            statement="descent at rate eta is the flow with log(1 + eta omega)/eta for omega",
            assumptions=("balanced classes", "constant rates", "eta |omega_1| < 1"),
            tolerance=1e-13,
            check=_check(_constant_rate),
        ),
        _claim(
            name="gd-undecayed",
            statement="without decay G/sqrt(s) +- W is multiplied by prod_k (1 +- e2_k sqrt(s) sigma) in each space",
            tolerance=1e-13,
            check=_check(_undecayed),
        ),
        _claim(
            name="gd-invariants",
            statement="without decay G P G^T/s - W P W^T is multiplied by prod_k (1 - e2_k^2 s sigma^2) (flow: kept)",
            tolerance=1e-14,
            check=_check(_invariants),
        ),
    ),
)
