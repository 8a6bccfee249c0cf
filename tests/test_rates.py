"""The pair of schedules: how it was built decides whether its ratio is constant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.schedules import Constant, Cosine, Piecewise, Scaled, Warmup
from tests.helpers import refused

COSINE = Cosine(0.4, 7.0, 0.1)
TS = jnp.linspace(0.0, 9.0, 7)
RATIOS = {
    "equal": (dyn.Rates.equal(COSINE), 1.0),
    "equal numbers": (dyn.Rates.equal(0.3), 1.0),
    "proportional": (dyn.Rates.proportional(COSINE, 2.5), 2.5),
    "proportional, ratio 0": (dyn.Rates.proportional(COSINE, 0.0), 0.0),
    "two constants": (dyn.Rates(0.3, 0.6), 0.5),
    "a constant and a number": (dyn.Rates(Constant(0.3), 0.1), 3.0),
}


@pytest.mark.parametrize(("rates", "ratio"), RATIOS.values(), ids=RATIOS)
def test_ratio(rates, ratio):
    assert rates.constant_ratio
    assert float(rates.ratio()) == pytest.approx(ratio, rel=1e-15)
    np.testing.assert_allclose(rates.features(TS), ratio * rates.weights(TS), rtol=1e-14)
    np.testing.assert_allclose(rates.features.integral(TS), ratio * rates.weights.integral(TS), rtol=1e-14)
    assert rates.valid()


@pytest.mark.parametrize("features", [0.3, COSINE, Scaled(COSINE, 2.0)])
def test_a_free_pair_has_no_known_ratio(features):
    rates = dyn.Rates(features, COSINE)
    assert not rates.constant_ratio
    refused(rates.ratio, "no constant ratio", "Rates.equal", "Rates.proportional")


def test_jumps_of_both_are_sorted():
    rates = dyn.Rates(Piecewise(np.ones(3), np.array([2.0, 8.0])), Warmup(5.0, COSINE))
    np.testing.assert_allclose(rates.jumps(), [2.0, 5.0, 8.0, 12.0], rtol=1e-15)
    assert dyn.Rates.equal(COSINE).jumps().shape == (1,)
    assert dyn.Rates.equal(0.1).jumps().shape == (0,)


def test_how_they_were_built_survives_jit_and_vmap():
    def one(value, ratio):
        rates = dyn.Rates.proportional(Cosine(value, 7.0), ratio)
        return jax.jit(lambda r: (r, r.ratio(), r.valid()))(rates)

    rates, ratio, valid = jax.vmap(one)(jnp.array([0.3, -0.3, 0.3]), jnp.array([2.0, 2.0, jnp.nan]))
    assert rates.built == "proportional"
    np.testing.assert_array_equal(ratio, [2.0, 2.0, np.nan])
    np.testing.assert_array_equal(valid, [True, False, False])


def test_ratio_is_differentiable():
    slope = jax.grad(lambda ratio: dyn.Rates.proportional(COSINE, ratio).ratio() ** 2)(1.5)
    assert float(slope) == pytest.approx(3.0, rel=1e-15)


def test_refusals():
    for bad, shown in ((-0.1, "-0.1"), (np.nan, "nan"), (np.inf, "inf")):
        refused(lambda bad=bad: dyn.Rates.equal(bad), "value", shown)
        refused(lambda bad=bad: dyn.Rates.proportional(0.1, bad), "factor", shown)
        refused(lambda bad=bad: dyn.Rates(0.1, bad), "value", shown)
    refused(lambda: dyn.Rates(0.1, 0.1, rescaled=1), "rescaled must be True or False", "1")
    refused(lambda: dyn.Rates(0.1, np.ones(2)), "a rate must be a number or a schedule", "array([1., 1.])")
    refused(lambda: dyn.Rates.equal(lambda t: 0.1), "FromOptax", "function")
