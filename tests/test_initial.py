"""Starts: statistics of the Gaussian one, geometry of the simplex, collapsed features, class sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import dynamics as dyn
from dynamics.initial import collapsed, gaussian, simplex_etf
from tests.helpers import UNSORTED, draw


def test_gaussian_scales(key):
    problem = dyn.LayerPeeled.balanced(40, 5)
    state = jax.jit(lambda key: gaussian(problem, dim=60, key=key, scale=(2.0, 0.1)))(key)
    for part, scale, shape in ((state.features, 2.0, (200, 60)), (state.prototypes, 0.1, (40, 60))):
        assert part.shape == shape
        assert scipy.stats.kstest(np.ravel(part), "norm", args=(0, scale)).pvalue > 1e-3
    assert np.all(np.asarray(state.biases) == 0.0) and state.biases.shape == (40,)
    correlation = np.corrcoef(np.ravel(state.features[:40]), np.ravel(state.prototypes))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(2400)


def test_gaussian_is_decided_by_its_key(key):
    draws = jax.jit(lambda key, scale: gaussian(dyn.LayerPeeled(UNSORTED, num_classes=3), dim=2, key=key, scale=scale))
    one, again, other = draws(key, 3.0), draws(key, 3.0), draws(jax.random.fold_in(key, 1), 3.0)
    unit = draws(key, 1.0)
    assert jnp.array_equal(one.features, again.features) and not jnp.any(one.features == other.features)
    np.testing.assert_allclose(one.prototypes, 3.0 * unit.prototypes, rtol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_float32_stays_float32(key, dtype):
    state = jax.eval_shape(lambda: gaussian(dyn.LayerPeeled.balanced(2, 1), dim=1, key=key, scale=2.0, dtype=dtype))
    assert state.features.dtype == state.prototypes.dtype == state.biases.dtype == dtype
    assert jax.eval_shape(lambda: simplex_etf(4, 5, key=key, scale=2.0, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("classes", "dim", "turned"),
    [(2, 1, False), (2, 3, False), (3, 2, True), (5, 4, False), (5, 9, True), (100, 99, False)],
)
def test_simplex_etf(key, classes, dim, turned):
    frame = np.asarray(simplex_etf(classes, dim, key=key if turned else None, scale=1.7))
    assert frame.shape == (classes, dim)
    gram = frame @ frame.T / 1.7**2
    expected = np.eye(classes) * classes / (classes - 1) - 1 / (classes - 1)
    np.testing.assert_allclose(gram, expected, atol=1e-13)
    np.testing.assert_allclose(frame.sum(axis=0), 0.0, atol=1e-13)
    assert np.linalg.matrix_rank(frame) == classes - 1


def test_a_key_turns_the_simplex(key):
    assert np.linalg.norm(simplex_etf(3, 2) - simplex_etf(3, 2, key=key)) > 0.5


def test_collapsed():
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3)
    means = draw(3, 2)
    features = collapsed(problem, means)
    np.testing.assert_array_equal(features, means[UNSORTED])
