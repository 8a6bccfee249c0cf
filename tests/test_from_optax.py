"""Optax schedules read as rates in continuous time, with the error that is stated for their integral."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate

from dynamics.schedules import FromOptax
from dynamics.state import cast


def anneal(t):
    return 0.05 + 0.45 * (1 + math.cos(math.pi * t / 700)) / 2 if t < 700 else 0.05


@pytest.mark.slow
def test_cosine():
    schedule = FromOptax(optax.cosine_decay_schedule(0.5, 700, alpha=0.1), 1000.0)
    ts = np.linspace(0.0, 1200.0, 25)
    rate, clock, slope = jax.jit(lambda t: (schedule(t), schedule.integral(t), jax.vmap(jax.grad(schedule.integral))(t)))(ts)
    expected = [anneal(t) for t in np.minimum(ts, 1000.0)]
    np.testing.assert_allclose(rate, expected, rtol=1e-14)
    np.testing.assert_allclose(slope, expected, rtol=1e-12)
    true = [scipy.integrate.quad(anneal, 0, t, points=[700.0], epsabs=1e-12, epsrel=1e-12)[0] for t in ts]
    assert np.max(np.abs(clock - np.array(true))) <= schedule.error_estimate < 1e-8 * true[-1]
    assert float(schedule.peak()) == pytest.approx(0.5, rel=1e-14)
    assert schedule.valid()
    narrow = cast(schedule, jnp.float32)
    answers = jax.eval_shape(lambda t: (narrow(t), narrow.integral(t)), jnp.float32(3.0))
    assert answers[0].dtype == answers[1].dtype == jnp.float32


@pytest.mark.slow
def test_steps_with_their_jumps_given():
    schedule = FromOptax(optax.piecewise_constant_schedule(0.5, {300: 0.1, 600: 0.1}), 1000.0, jumps=[300.0, 600.0])
    ts = np.array([0.0, 250.0, 300.0, 450.0, 600.0, 601.0, 1000.0, 1300.0])
    clock = 0.5 * np.minimum(ts, 300) + 0.05 * np.clip(ts - 300, 0, 300) + 0.005 * np.maximum(ts - 600, 0)
    np.testing.assert_allclose(jax.jit(lambda t: schedule.integral(t))(ts), clock, rtol=1e-13)
    np.testing.assert_array_equal(schedule.jumps(), [300.0, 600.0, 1000.0])
    assert schedule.error_estimate < 1e-11
    assert float(schedule.peak()) == 0.5


@pytest.mark.slow
def test_states_what_a_step_it_was_not_told_of_costs():
    ts = np.linspace(0.0, 10.0, 401)
    too_small = {}
    for boundary in np.random.default_rng(0).uniform(0.5, 9.5, 150):
        schedule = FromOptax(lambda t, b=boundary: jnp.where(t < b, 1.0, 0.2), 10.0, panels=16)
        clock = np.minimum(ts, boundary) + 0.2 * np.maximum(ts - boundary, 0.0)
        gap = float(np.max(np.abs(schedule.integral(jnp.asarray(ts)) - clock)))
        assert gap < 0.1  # a panel times the jump is 0.5
        if gap > schedule.error_estimate:
            too_small[float(boundary)] = gap / float(schedule.error_estimate)
    assert not too_small  # how many times too small the estimate is
