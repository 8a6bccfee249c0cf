"""Biases under decay: the drift of the loss against the pull to zero."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import clock, deviation, size_of, stacked
from experiments.shared.instances import HORIZON, SIMULATED, TIMES, Size, by_formula, draws, limits, sigmas, simulated, worst_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 4, corrected"


def _biases(size: Size, members: int):
    """e^{-lambda zeta2} (b0 + kappa psi 1), psi = int eta2 e^{lambda zeta2} by quadrature, both ways of moving."""
    draw = draws(size, members)
    found = by_formula(draw, size).states.biases
    nodes, weights = np.polynomial.legendre.leggauss(40)
    ts = HORIZON * (1 + nodes) / 2
    annealed = (draw.rate - draw.floor)[:, None] * (0.5 + 0.5 * np.cos(np.pi * ts / HORIZON)) + draw.floor[:, None]
    rate, last = draw.decay[:, 2], clock(draw, TIMES[-1:])[:, 0]
    psi = np.sum(weights * HORIZON / 2 * annealed * np.exp(rate[:, None] * clock(draw, ts)), axis=1)
    expected = np.exp(-rate * last)[:, None] * (draw.biases + (sigmas(draw, size)[2] * psi)[:, None])
    return deviation(found[:, -1], expected, axes=1)


def _biases_simulated(size: Size, members: int):
    """The closed form, without a quotient that is 0/0 at lambda = 0, against the solver; relative to the whole start."""
    draw = draws(size, members)
    zeta2 = clock(draw, TIMES)
    rate = draw.decay[:, 2:]
    pulled = sigmas(draw, size)[2][:, None] * -np.expm1(-rate * zeta2) / rate
    expected = np.exp(-rate * zeta2)[..., None] * draw.biases[:, None] + pulled[..., None]
    start = np.hypot(size_of(stacked(draw.features, draw.prototypes)), size_of(draw.biases, 1))
    return np.max(size_of(simulated(draw, size).states.biases - expected, 1), axis=1) / start


def _slow_biases(size: Size, members: int):
    """lambda of 1e-12 against the drift without decay: the limit is smooth."""
    draw = draws(size, members)
    slight = draw._replace(decay=np.column_stack([draw.decay[:, :2], np.full(members, 1e-12)]))
    found = by_formula(slight, size).states.biases
    drift = sigmas(draw, size)[2][:, None, None] * clock(draw, TIMES)[..., None]
    return deviation(found, draw.biases[:, None] + drift, axes=1).max(axis=1)


def _limit(size: Size, members: int):
    """The library's limit against kappa/lambda, relative to the terms of kappa over lambda."""
    draw = draws(size, members)
    expected = (sigmas(draw, size)[2] / draw.decay[:, 2])[:, None]
    wrong = np.abs(limits(draw, size).direction.biases - expected).max(axis=1)
    return wrong * draw.decay[:, 2] / (1 + draw.gamma)


_claim = functools.partial(Claim, source=SOURCE, assumptions=("balanced classes",))

EXPERIMENT = Experiment(
    name="regularised-biases",
    family="unhinged",
    summary="biases under decay",
    claims=(
        _claim(
            id="unhinged.regularised",
            name="regularised-biases",
            statement="b = e^{-lambda zeta2} (b0 + kappa psi 1), psi = int eta2 e^{lambda zeta2}",
            tolerance=1e-13,
            check=functools.partial(worst_of, _biases),
        ),
        _claim(
            id="unhinged.regularised",
            name="regularised-biases-flow",
            statement="b = e^{-lambda zeta2} b0 + kappa (1 - e^{-lambda zeta2})/lambda 1",
            tolerance=1e-7,
            check=functools.partial(worst_of, _biases_simulated, sizes=SIMULATED),
        ),
        _claim(
            id="unhinged.regularised",
            name="regularised-biases-slow",
            statement="lambda -> 0: b0 + kappa zeta2 1, smoothly",
            tolerance=1e-9,
            check=functools.partial(worst_of, _slow_biases),
        ),
        _claim(
            id="unhinged.regularised.limit",
            name="regularised-biases-limit",
            statement="b -> kappa/lambda 1",
            tolerance=1e-15,
            check=functools.partial(worst_of, _limit),
        ),
    ),
)
