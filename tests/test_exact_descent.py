"""Descent by formula against a plain loop of 2000 steps."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

import dynamics as dyn
from dynamics.schedules import Cosine, Piecewise
from tests import cases, oracle_rates, oracles
from tests.cases import Shape, balanced

STEPS, EVERY = 2000, 500


class Run(NamedTuple):
    shape: Shape
    nesterov: bool = False
    varying: bool = True


RUNS = {
    "balanced": Run(Shape(balanced(4, 2), 2)),
    "groups-nesterov": Run(Shape((2, 0, 1, 0, 3, 0, 4, 1, 0, 2), 3), nesterov=True),
    "weighted-by-sample-constant": Run(Shape((1, 2, 0, 0, 2, 0), 2, loss="by_sample", weighted=True), varying=False),
    "kernels-nesterov": Run(Shape((2, 0, 1, 0, 1), 2, kernel=True, feature_kernel=True), nesterov=True),
    "anchored": Run(Shape((2, 0, 1, 0, 1), 2, anchored=True, weighted=True, kernel=True)),
}


def rates_of(x, dt, varying: bool):
    """The library's rates and the oracle's; the values of a step change at k dt = 300 dt exactly, and inside a step."""
    a, b = x["rates"] / 8
    if not varying:
        return dyn.Rates(a, b), oracle_rates.constant(a), oracle_rates.constant(b)
    values, cuts = b * np.array([1.0, 0.1, 2.0]), np.array([300.0, 1200.5]) * dt
    rates = dyn.Rates(Cosine(a, 1500 * dt, 0.1 * a), Piecewise(values, cuts))
    return rates, oracle_rates.cosine(a, 1500 * dt, 0.1 * a), oracle_rates.piecewise(values, cuts)


SLOW = ("weighted-by-sample-constant", "groups-nesterov")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RUNS])
def test_against_a_plain_loop(name):
    shape, nesterov, varying = RUNS[name]
    members = 4
    x = cases.numbers(shape, members, 2, decay=True)
    x["decay"][:2] = 0.0
    x["dt"] = np.array([1.0, 0.25, 0.5, 1.0])  # powers of two: k dt and the cuts meet without rounding
    x["momentum"] = np.array([0.0, 0.9, 0.5, 0.3])

    @jax.jit
    @jax.vmap
    def exact(x):
        rates, *_ = rates_of(x, x["dt"], varying)
        run = {"dt": x["dt"], "momentum": x["momentum"], "nesterov": nesterov}
        return dyn.exact.descent(cases.problem(shape, x), cases.start(x), rates, STEPS, every=EVERY, **run)

    moved = exact(x)
    assert np.all(moved.status == dyn.status.OK)
    for i in range(members):
        one = cases.member(x, i)
        _, eta1, eta2 = rates_of(one, one["dt"], varying)
        options = one["dt"], one["momentum"], nesterov
        truth = oracles.loop(cases.plain(shape, one), cases.point(one), eta1, eta2, STEPS, EVERY, *options)
        error = oracles.worst(
            oracles.relative(part, true)
            for k, point in enumerate(truth)
            for part, true in zip(cases.at(moved.states, i, k), point, strict=True)
        )
        assert error <= 1e-11
