"""Gradient descent at any rates: one 2x2 matrix a step and mode; small steps; kinds of decay and of update."""

import functools

import jax
import numpy as np
import optax

import dynamics as dyn
from dynamics.verify import Claim, measured_order
from experiments.registry import Experiment
from experiments.shared.dense import clock, deviation, size_of, spectrum, stacked
from experiments.shared.descents import EIGHTHS, HALVINGS, STEPS, descended, halved, problem_of, random_rates, rates_of
from experiments.shared.instances import SIZES, Draw, Size, class_sides, common_part, draws, sigmas, spread, worst_of
from experiments.shared.oracles import balanced_pull, column, descend, moved_by, stack, worst_gap

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorems 2 and 4, in discrete time"
END = 2.5


@functools.cache
def _stepped(size: Size, members: int):
    """The draws, rates that change from step to step, the library's two answers, and the plain loop's."""
    draw = draws(size, members)
    rates = random_rates(draw)
    return draw, rates, *descended(draw, size, rates), descend(balanced_pull(draw, size), draw, rates, draw.decay)


def _formula(size: Size, members: int):
    *_, formula, looped = _stepped(size, members)
    return worst_gap(formula, looped)


def _simulated(size: Size, members: int):
    _, _, simulated, _, looped = _stepped(size, members)
    return worst_gap(simulated, looped)


def _matrices(size: Size, members: int):
    """Products of 2x2 matrices for sigma1 and sigma2, later factors on the left, and of scalars for deviations."""
    draw, rates, simulated, _, _ = _stepped(size, members)
    g, w = class_sides(draw.features, size), draw.prototypes
    lam1, lam2 = draw.decay[:, :1], draw.decay[:, 1:2]
    kept = np.prod(1 - lam1 * rates[:, 0], axis=1)
    features, prototypes = column(kept) * (draw.features - spread(g, size)), 0.0
    for sigma, part in zip(sigmas(draw, size), (lambda x: x - common_part(x), common_part), strict=False):
        ones = np.ones_like(rates[:, 0])
        entries = (
            1 - lam1 * rates[:, 0],
            sigma[:, None] * rates[:, 0],
            sigma[:, None] * rates[:, 1],
            1 - lam2 * rates[:, 1],
        )
        factors = np.stack([entry * ones for entry in entries], axis=-1).reshape(*ones.shape, 2, 2)
        product = functools.reduce(lambda phi, k: factors[:, k] @ phi, range(STEPS), np.eye(2))
        sides, own = moved_by(product, part(g), part(w))
        features, prototypes = features + spread(sides, size), prototypes + own
    return deviation(stack(simulated)[:, -1], stacked(features, prototypes))


def _biases(size: Size, members: int):
    draw, rates, simulated, _, _ = _stepped(size, members)
    rest = (sigmas(draw, size)[2] / draw.decay[:, 2])[:, None]
    kept = np.prod(1 - draw.decay[:, 2:] * rates[:, 1], axis=1)[:, None]
    unit = size_of(draw.biases, 1) + size_of(rest + 0 * draw.biases, 1)
    return size_of(simulated.biases[:, -1] - (kept * (draw.biases - rest) + rest), 1) / unit


def _order(size: Size, members: int):
    """Of the error against the flow, its worst over the eighths of the time."""
    draw = draws(size, members)
    steps, states = 0.5 ** np.arange(HALVINGS), halved(draw, size, END)
    modes = spectrum(draw, size)
    start = modes.covectors @ stacked(draw.features, draw.prototypes)
    grown = np.exp(clock(draw, END * np.arange(1, EIGHTHS + 1) / EIGHTHS)[..., None] * modes.exponents[:, None])
    flow = modes.vectors[:, None] @ (grown[..., None] * start[:, None])
    errors = deviation(states, flow[:, None]).max(axis=2)
    return np.abs(np.array([measured_order(steps, row) for row in errors]) - 1)


@functools.cache
def _decoupled_program(size: Size):
    """Descent by an optimiser that shrinks the parameters beside the momentum, in units of the step."""

    def one(draw, rates, momentum):
        state, decay = dyn.Peeled(draw.features, draw.prototypes, draw.biases), dyn.Peeled(*draw.decay)
        shrink = lambda update, x: jax.tree.map(lambda u, lam, part: u + lam * part, update, decay, x)
        optimizer = optax.chain(optax.trace(momentum), optax.stateless(shrink), optax.scale(-1.0))
        problem = problem_of(draw._replace(decay=0 * draw.decay), size, bias=True)
        return dyn.descent(problem, state, rates_of(rates), STEPS, optimizer=optimizer).states

    return jax.jit(jax.vmap(one))


def _decoupled(size: Size, members: int, least: float = 0.0, most: float = 0.0):
    """The distance of decoupled from coupled decay, for momentum between the two bounds."""
    draw = draws(size, members)
    draw = draw._replace(decay=0.05 + draw.decay)
    rates, momentum = random_rates(draw), least + (most - least) * draw.spare[:, 1]
    coupled = descended(draw, size, rates, momentum, "heavy ball").simulated
    return worst_gap(jax.tree.map(np.asarray, _decoupled_program(size)(draw, rates, momentum)), coupled)


def _differs(size: Size, members: int):
    return 0.05 / _decoupled(size, members, 0.5, 0.9)


def _alternate(draw: Draw, size: Size, rates):
    """G and W after steps in which W sees the new H; no decay."""
    pull, h, w = balanced_pull(draw, size), draw.features, draw.prototypes
    for k in range(STEPS):
        h = h + column(rates[:, 0, k]) * (pull @ w)
        w = w + column(rates[:, 1, k]) * (np.swapaxes(pull, 1, 2) @ h)
    return class_sides(h, size), w


def _alternating(size: Size, members: int):
    draw = draws(size, members)
    rates = random_rates(draw)
    g, w = class_sides(draw.features, size), draw.prototypes
    expected = 0.0
    for sigma, part in zip(sigmas(draw, size), (lambda x: x - common_part(x), common_part), strict=False):
        a, b = part(g), part(w)
        for k in range(STEPS):
            up, down = sigma * rates[:, 0, k], sigma * rates[:, 1, k]
            factor = np.stack([np.ones_like(up), up, down, 1 + up * down], -1).reshape(-1, 2, 2)
            a, b = moved_by(factor, a, b)
        expected = expected + np.concatenate([a, b], axis=1)
    return deviation(np.concatenate(_alternate(draw, size, rates), axis=1), expected)


def _area(size: Size, members: int):
    """The area of two starts in each mode's plane, at rates of a tenth so that it is not lost in their growth."""
    draw, other = draws(size, members), draws(size, members, 1)
    rates = 0.1 * random_rates(draw)
    moved = [_alternate(x._replace(gamma=draw.gamma), size, rates) for x in (draw, other)]
    start = [(class_sides(x.features, size), x.prototypes) for x in (draw, other)]
    worst = np.zeros(members)
    for part in (lambda x: x - common_part(x), common_part):
        areas, extents = [], []
        for pair in (start, moved):
            (g, w), (g2, w2) = [[part(side) for side in sides] for sides in pair]
            areas.append(np.sum(g * w2 - g2 * w, axis=(1, 2)))
            extents.append(size_of(g) * size_of(w2) + size_of(g2) * size_of(w))
        worst = np.maximum(worst, np.abs(areas[1] - areas[0]) / extents[1])
    return worst


_claim = functools.partial(Claim, id="beyond.gd", source=SOURCE, assumptions=("balanced classes", "any rates, step by step"))
_on = lambda size, residuals: functools.partial(worst_of, residuals, sizes=(size,))

EXPERIMENT = Experiment(
    name="gd",
    family="beyond",
    summary="gradient descent by formula, at any rates",
    claims=(
        _claim(
            name="gd-formula",
            statement="descent by formula = a plain loop, iterate by iterate",
            tolerance=2e-14,
            check=_on(SIZES[2], _formula),
        ),
        _claim(
            name="gd-simulated",
            statement="simulated descent = a plain loop, iterate by iterate",
            tolerance=2e-14,
            check=_on(SIZES[2], _simulated),
        ),
        _claim(
            name="gd-matrices",
            statement="Phi = prod_k (I + [-lambda1 e1, sigma e1; sigma e2, -lambda2 e2]); D: prod_k (1 - lambda1 e1)",
            tolerance=2e-14,
            check=_on(SIZES[2], _matrices),
        ),
        _claim(
            name="gd-biases",
            statement="b_K = prod_k (1 - lambda e2)(b0 - kappa/lambda) + kappa/lambda",
            tolerance=2e-14,
            check=_on(SIZES[2], _biases),
        ),
        _claim(
            name="gd-order",
            statement="descent tends to the flow at order 1 in the step",
            assumptions=("rates sampled at the start of each step", "constant ratio of rates"),
            tolerance=0.05,
            check=_on(SIZES[0], _order),
        ),
        _claim(
            name="gd-decoupled-decay",
            statement="decoupled decay = coupled decay without momentum",
            tolerance=2e-14,
            check=_on(SIZES[0], _decoupled),
        ),
        _claim(
            name="gd-decoupled-differs",
            statement="with momentum they differ, by 5 % at least (residual: 0.05 over the difference)",
            assumptions=("momentum in (0.5, 0.9)", "decay at least 0.05"),
            tolerance=1.0,
            check=_on(SIZES[0], _differs),
        ),
        _claim(
            name="gd-alternating",
            statement="W stepped after H: factors [1, 0; e2 sigma, 1][1, e1 sigma; 0, 1]",
            assumptions=("balanced classes", "no decay"),
            tolerance=5e-14,
            check=_on(SIZES[0], _alternating),
        ),
        _claim(
            name="gd-alternating-area",
            statement="W stepped after H has determinant one: the area of two starts in a mode's plane is conserved",
            assumptions=("balanced classes", "no decay"),
            tolerance=2e-14,
            check=_on(SIZES[0], _area),
        ),
    ),
)
