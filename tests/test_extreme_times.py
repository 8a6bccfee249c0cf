"""Directions and log-norms at clocks far past the range of floating-point numbers, against 60-digit arithmetic."""

import jax
import numpy as np
import pytest

import dynamics as dyn
from tests import cases, oracles
from tests.cases import Shape, balanced

SHAPES = {
    "balanced": Shape(balanced(3, 2), 2, bias=False),
    "groups": Shape((1, 0, 2, 0, 3, 1), 2, bias=False),  # sizes 2, 2, 1, 1
    "groups-of-one-on-top": Shape((0, 3, 0, 1, 2, 3, 3, 1), 1, bias=False),  # sizes 2, 2, 1, 3
}
TS = (3.0, 200.0, 1e9, 1e12)


def instances(shape: Shape) -> cases.Numbers:
    """Six members without and six with decay: gamma over its range, at its ties and near one, equal and unequal rates."""
    batches = [cases.numbers(shape, 6, 3, decay=decay) for decay in (False, True)]
    x = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    top = 2 / (shape.classes - 2)
    x["gamma"] = np.tile([0.0, 1e-9, 1 / (shape.classes - 1), 0.8 * top, top, 1.5 * top], 2)
    x["rates"][::2] = 1.0
    x["rates"][x["rates"] == 0] = 0.3
    return x


def worst_errors(shape: Shape, dtype) -> tuple[float, float]:
    """The worst error of a direction and the worst relative error of a log-norm."""
    x = jax.tree.map(lambda v: v.astype(dtype), instances(shape))
    ts = np.array(TS, dtype)

    @jax.jit
    @jax.vmap
    def exact(x):
        rates = dyn.Rates(x["rates"][0], x["rates"][1])
        return dyn.exact.flow(cases.problem(shape, x), cases.start(x), rates, ts, scaled=True)

    moved = exact(x)
    assert np.all(moved.status == dyn.status.OK) and moved.states.features.dtype == dtype
    of_direction, of_log = [], []
    for i in range(len(x["gamma"])):
        one = cases.member(x, i)
        truth = oracles.extreme_flow(cases.plain(shape, one), cases.point(one), *one["rates"], ts)
        for k, (direction, log_norm) in enumerate(truth):
            of_direction.append(np.linalg.norm(cases.at(moved.states, i, k).flat() - direction.flat()))
            of_log.append(abs(float(moved.log_scale[i, k]) - log_norm) / abs(log_norm))
    return oracles.worst(of_direction), oracles.worst(of_log)


@pytest.mark.parametrize("name", SHAPES)
def test_double_precision(name):
    of_direction, of_log = worst_errors(SHAPES[name], np.float64)
    assert of_direction <= 1e-14
    assert of_log <= 1e-12


@pytest.mark.parametrize("name", ["balanced", "groups"])
def test_single_precision(name):
    of_direction, of_log = worst_errors(SHAPES[name], np.float32)
    assert of_direction <= 1e-6
    assert of_log <= 1e-5


def test_descent_past_the_range_of_numbers():
    shape, steps, every = SHAPES["groups"], 4000, 2000
    x = cases.numbers(shape, 3, 5, decay=True)
    x["momentum"], x["rates"] = np.array([0.0, 0.5, 0.9]), np.array([[2.0, 3.0], [3.0, 1.0], [1.0, 1.0]])
    x["decay"][2] = 0.0

    @jax.jit
    @jax.vmap
    def exact(x):
        rates, run = dyn.Rates(x["rates"][0], x["rates"][1]), {"every": every, "momentum": x["momentum"], "scaled": True}
        return dyn.exact.descent(cases.problem(shape, x), cases.start(x), rates, steps, **run)

    moved = exact(x)
    assert np.all(moved.status == dyn.status.OK)
    for i in range(3):
        one = cases.member(x, i)
        plain, point = cases.plain(shape, one), cases.point(one)
        velocity, log_norm = point.flat() * 0, 0.0
        of_features, of_weights = (part[:-1, :-1] for part in oracles.generators(plain, point))
        force, pace = of_features + of_weights, np.where(np.any(of_features, axis=1), *one["rates"])
        state = point.flat() * np.any(force, axis=1)  # without the biases, which rest
        for k in range(1, steps + 1):
            velocity = one["momentum"] * velocity + force @ state
            state = state + pace * velocity
            size = np.linalg.norm(state)
            state, velocity, log_norm = state / size, velocity / size, log_norm + np.log(size)
            if k % every == 0:
                found = cases.at(moved.states, i, k // every)._replace(biases=0 * point.biases)
                assert np.linalg.norm(found.flat() - state) <= 1e-12
                assert abs(moved.log_scale[i, k // every] / log_norm - 1) <= 1e-12
        assert log_norm > 1.1 * np.log(np.finfo(float).max)
