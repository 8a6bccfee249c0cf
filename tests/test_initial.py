"""Starts: statistics of the Gaussian one, geometry of the simplex, collapsed features, class sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import dynamics as dyn
from dynamics.initial import collapsed, gaussian, labels_of, long_tailed_sizes, simplex_etf
from tests.helpers import UNSORTED, draw


def test_gaussian_scales(key):
    problem = dyn.LayerPeeled.balanced(40, 5)
    state = gaussian(problem, dim=60, key=key, scale=(2.0, 0.1))
    for part, scale, shape in ((state.features, 2.0, (200, 60)), (state.prototypes, 0.1, (40, 60))):
        assert part.shape == shape
        assert scipy.stats.kstest(np.ravel(part), "norm", args=(0, scale)).pvalue > 1e-3
    assert np.all(np.asarray(state.biases) == 0.0) and state.biases.shape == (40,)
    correlation = np.corrcoef(np.ravel(state.features[:40]), np.ravel(state.prototypes))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(2400)


def test_gaussian_is_decided_by_its_key(key):
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3)
    one, again = (gaussian(problem, dim=2, key=key, scale=3.0) for _ in range(2))
    other = gaussian(problem, dim=2, key=jax.random.fold_in(key, 1), scale=3.0)
    unit = gaussian(problem, dim=2, key=key)
    assert jnp.array_equal(one.features, again.features) and not jnp.any(one.features == other.features)
    np.testing.assert_allclose(one.prototypes, 3.0 * unit.prototypes, rtol=1e-15)
    batch = jax.vmap(lambda scale: gaussian(problem, dim=2, key=key, scale=scale).features)(jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(batch[1], one.features, rtol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_gaussian_dtype(key, dtype):
    state = gaussian(dyn.LayerPeeled.balanced(2, 1), dim=1, key=key, dtype=dtype)
    assert state.features.dtype == state.prototypes.dtype == state.biases.dtype == dtype


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (2, 3), (3, 2), (5, 4), (5, 9), (100, 99)])
@pytest.mark.parametrize("turned", [False, True])
def test_simplex_etf(key, classes, dim, turned):
    frame = np.asarray(simplex_etf(classes, dim, key=key if turned else None, scale=1.7))
    assert frame.shape == (classes, dim)
    gram = frame @ frame.T / 1.7**2
    expected = np.eye(classes) * classes / (classes - 1) - 1 / (classes - 1)
    np.testing.assert_allclose(gram, expected, atol=1e-13)
    np.testing.assert_allclose(frame.sum(axis=0), 0.0, atol=1e-13)
    assert np.linalg.matrix_rank(frame) == classes - 1


def test_simplex_etf_turns_and_keeps_float32(key):
    fixed, turned = simplex_etf(4, 5), simplex_etf(4, 5, key=key)
    assert np.linalg.norm(fixed - turned) > 0.5
    narrow = simplex_etf(4, 5, key=key, dtype=jnp.float32)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(narrow, axis=1), 1.0, rtol=1e-6)


def test_collapsed():
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3)
    means = draw(3, 2)
    features = collapsed(problem, means)
    np.testing.assert_array_equal(features, means[UNSORTED])
    assert float(dyn.observables.nc1(problem, dyn.Peeled(features, means))) == 0.0


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [((3, 100, 100), [100, 10, 1]), ((4, 8, 8), [8, 4, 2, 1]), ((2, 7, 1), [7, 7]), ((3, 2, 1000), [2, 1, 1])],
)
def test_long_tailed_sizes(arguments, sizes):
    got = long_tailed_sizes(*arguments)
    np.testing.assert_array_equal(got, sizes)
    problem = dyn.LayerPeeled(labels_of(got), num_classes=len(sizes))
    np.testing.assert_array_equal(problem.data.sizes, sizes)
    np.testing.assert_array_equal(problem.labels, np.sort(problem.labels))
