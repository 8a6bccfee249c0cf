"""The flow by formula against a dense matrix exponential and, for rates that vary, against an adaptive ODE solver."""

import jax
import numpy as np
import pytest

import dynamics as dyn
from dynamics.schedules import Cosine, Exponential, Piecewise, Polynomial, Warmup
from tests import cases, oracle_rates, oracles
from tests.cases import Shape, balanced

BALANCED = Shape(balanced(3, 2), 4)
GROUPS = Shape((2, 0, 1, 0, 3, 0, 4, 1, 0, 2), 3)  # sizes 4, 2, 2, 1, 1
BY_SAMPLE = Shape((1, 2, 0, 0, 2, 0), 3, loss="by_sample", weighted=True, kernel=True)
ANCHORED = Shape((2, 0, 1, 0, 1), 2, anchored=True, weighted=True, kernel=True, feature_kernel=True)
SHAPES = {
    "balanced": BALANCED,
    "two-classes-optimum": Shape(balanced(2, 3), 1, loss="optimum"),
    "one-sample-each": Shape((3, 0, 1, 2), 5, bias=False, feature_kernel=True),
    "groups-unsorted": GROUPS,
    "weighted-unsorted": Shape((1, 2, 0, 0, 2, 0, 0), 6, weighted=True),
    "by-label": Shape(balanced(5, 4), 2, loss="by_label"),
    "by-sample": BY_SAMPLE,
    "both-kernels": Shape((2, 0, 1, 0, 1), 2, weighted=True, kernel=True, feature_kernel=True),
    "anchored": ANCHORED,
}
TS = np.array([0.0, 0.7, 4.0, 12.0])


def with_and_without_decay(shape: Shape, members: int) -> cases.Numbers:
    """The first `members` without, as many more with decay."""
    batches = [cases.numbers(shape, members, 1, decay=decay) for decay in (False, True)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def test_the_oracle_moves_along_minus_the_gradient():
    rng = np.random.default_rng(5)
    labels, weights = np.array([1, 0, 2, 0]), np.array([0.5, 1.5, 0.7, 1.3])
    x = oracles.Point(rng.normal(size=(4, 2)), rng.normal(size=(3, 2)), rng.normal(size=3))
    for loss in ("linear", "cross_entropy", "squared_error"):
        for normalize in (False, True):
            rows = rng.normal(size=(4, 3))
            plain = oracles.Plain(labels, loss, rows, weights, (0.1, 0.2, 0.3), bias=True, normalize=normalize)
            steps = 1e-30j * np.eye(x.flat().size)  # a complex step cancels nothing
            gradient = [plain.objective(x.like(x.flat() + step)).imag / 1e-30 for step in steps]
            assert oracles.relative(-plain.force(x).flat(), np.array(gradient)) <= 1e-14


@pytest.mark.parametrize("name", SHAPES)
def test_against_the_dense_exponential(name):
    shape = SHAPES[name]
    x = with_and_without_decay(shape, 5)

    @jax.jit
    @jax.vmap
    def exact(x):
        rates = dyn.Rates(x["rates"][0], x["rates"][1])
        return dyn.exact.flow(cases.problem(shape, x), cases.start(x), rates, TS)

    moved = exact(x)
    assert np.all(moved.status == dyn.status.OK)
    for i in range(10):
        one = cases.member(x, i)
        truth = oracles.dense_flow(cases.plain(shape, one), cases.point(one), np.outer(TS, one["rates"]))
        error = oracles.worst(
            oracles.relative(part, true)
            for k, point in enumerate(truth)
            for part, true in zip(cases.at(moved.states, i, k), point, strict=True)
        )
        assert error <= (1e-10 if i >= 5 else 1e-11)


def warm_cosine(x):
    a, b = x["rates"] + 0.1
    after = Cosine(a, 6.0, 0.1 * a)
    eta = oracle_rates.warmup(1.5, oracle_rates.cosine(a, 6.0, 0.1 * a), 0.2)
    rates = dyn.Rates.proportional(Warmup(1.5, after, 0.2), b)
    return rates, lambda t, side: b * eta(t, side), eta, [1.5, 7.5]


def shared_steps(x):
    values, cuts = x["rates"][0] * np.array([1.0, 0.3, 2.0]), np.array([0.7, 5.0])  # 0.7 is also a time to save
    eta = oracle_rates.piecewise(values, cuts)
    return dyn.Rates.equal(Piecewise(values, cuts)), eta, eta, cuts


def cosine_and_steps(x):
    a, b = x["rates"] + 0.1
    values, cuts = b * np.array([1.0, 0.1, 3.0, 0.0]), x["cuts"]
    rates = dyn.Rates(Cosine(a, 11.0), Piecewise(values, cuts))
    return rates, oracle_rates.cosine(a, 11.0), oracle_rates.piecewise(values, cuts), [11.0, *cuts]


def warm_steps_and_polynomial(x):
    a, b = x["rates"] + 0.1
    values, cut = a * np.array([1.0, 0.2]), x["cuts"][:1]
    rates = dyn.Rates(Warmup(1.3, Piecewise(values, cut)), Polynomial(b, 9.0, 0.7, 0.1 * b))
    eta1 = oracle_rates.warmup(1.3, oracle_rates.piecewise(values, cut))
    return rates, eta1, oracle_rates.polynomial(b, 9.0, 0.7, 0.1 * b), [1.3, *(1.3 + cut), 9.0]


def growing_and_cosine(x):
    a, b = x["rates"] + 0.1
    rates = dyn.Rates(Exponential(a, -0.1), Cosine(b, 5.0))
    return rates, oracle_rates.exponential(a, -0.1), oracle_rates.cosine(b, 5.0), [5.0]


def steps_and_fading(x):
    values, cut = x["rates"][0] * np.array([1.0, 0.2]), x["cuts"][:1]
    rates = dyn.Rates(Piecewise(values, cut), Exponential(x["rates"][1], 0.3))
    return rates, oracle_rates.piecewise(values, cut), oracle_rates.exponential(x["rates"][1], 0.3), cut


VARYING = {
    "warm-cosine": (BALANCED, warm_cosine),
    "shared-steps": (GROUPS, shared_steps),
    "cosine-and-steps": (BALANCED, cosine_and_steps),
    "warm-steps-and-polynomial": (GROUPS, warm_steps_and_polynomial),
    "growing-and-cosine": (BY_SAMPLE, growing_and_cosine),
    "anchored-steps-and-fading": (ANCHORED, steps_and_fading),
}


def worst_error(states, i: int, truth: list[oracles.Point]) -> float:
    """The largest error of any part of member i at any time, over the part's norm then or, if larger, at the start.

    An ODE solver resolves what has decayed only relative to where it came from.
    """
    return oracles.worst(
        np.linalg.norm(part - true) / max(np.linalg.norm(true), np.linalg.norm(begin))
        for k, point in enumerate(truth)
        for part, true, begin in zip(cases.at(states, i, k), point, truth[0], strict=True)
    )


@pytest.mark.parametrize("name", VARYING)
def test_varying_rates_against_an_ode_solver(name):
    shape, rates_of = VARYING[name]
    x = with_and_without_decay(shape, 3)
    # jumps inside panels, at times to save, within a panel of each other, and past the end
    x["cuts"] = np.resize([[1.37, 1.38, 7.123], [0.7, 4.0, 11.99], [0.05, 3.999, 13.0]], (6, 3))

    @jax.jit
    @jax.vmap
    def exact(x):
        return dyn.exact.flow(cases.problem(shape, x), cases.start(x), rates_of(x)[0], TS)

    moved = exact(x)
    assert np.all(moved.status == dyn.status.OK)
    for i in range(6):
        one = cases.member(x, i)
        _, eta1, eta2, cuts = rates_of(one)
        truth = oracles.dop853(cases.plain(shape, one), cases.point(one), eta1, eta2, TS, cuts)
        error = worst_error(moved.states, i, truth)
        assert error <= 1e-9
        if "error_estimate" in moved.stats:
            assert error <= 10 * moved.stats["error_estimate"][i] + 1e-11
