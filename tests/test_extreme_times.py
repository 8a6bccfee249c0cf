"""Directions and log-norms at clocks far past the range of floating-point numbers, against 60-digit arithmetic."""

import jax
import numpy as np
import pytest

import dynamics as dyn
from tests import cases, oracles
from tests.cases import Shape, balanced

SHAPES = {
    "balanced": Shape(balanced(3, 2), 2, bias=False),
    "balanced-wide": Shape(balanced(4, 1), 1, bias=False),
    "two-groups": Shape((1, 0, 2, 0, 3, 1), 2, bias=False),  # sizes 2, 2, 1, 1
    "three-groups": Shape((0, 3, 0, 1, 2, 3, 3, 1), 2, bias=False),  # sizes 2, 2, 1, 3
}
TS = (3.0, 200.0, 1e9, 1e12)


def instances(shape: Shape) -> cases.Numbers:
    """Eight members without and eight with decay: gamma over its range and at its ties, equal and unequal rates."""
    batches = [cases.numbers(shape, 8, 3, decay=decay) for decay in (False, True)]
    x = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    top = 2 / (shape.classes - 2)
    x["gamma"] = np.tile([0.0, 1 / (shape.classes - 1), 0.2 * top, 0.9 * top, top, 1.5 * top, 0.5 * top, 0.7 * top], 2)
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
    for i in range(16):
        one = cases.member(x, i)
        truth = oracles.extreme_flow(cases.plain(shape, one), cases.point(one), *one["rates"], ts)
        for k, (direction, log_norm) in enumerate(truth):
            of_direction.append(np.linalg.norm(cases.at(moved.states, i, k).flat() - direction.flat()))
            of_log.append(abs(float(moved.log_scale[i, k]) - log_norm) / abs(log_norm))
            print(i,k, of_direction[-1], of_log[-1], log_norm)
    return max(of_direction), max(of_log)


@pytest.mark.parametrize("name", SHAPES)
def test_double_precision(name):
    of_direction, of_log = worst_errors(SHAPES[name], np.float64)
    print(name, of_direction, of_log)
    assert of_direction <= 1e-14
    assert of_log <= 1e-12


@pytest.mark.parametrize("name", ["balanced", "two-groups"])
def test_single_precision(name):
    of_direction, of_log = worst_errors(SHAPES[name], np.float32)
    print(name, of_direction, of_log)
    assert of_direction <= 1e-6
    assert of_log <= 1e-5
