"""Global minima by formula against BFGS from random starts, conditions of optimality, bounds, refusals, derivatives."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import dynamics as dyn
from dynamics import status
from dynamics.exact import NoClosedForm
from tests import oracles
from tests.cases import balanced
from tests.helpers import UNSORTED, refused

LOSSES = {"squared_error": dyn.losses.SquaredError(), "cross_entropy": dyn.losses.CrossEntropy()}


class Case(NamedTuple):
    labels: Any
    loss: str
    dim: int
    bias: Any = False
    decayed: bool = True  # the biases


CASES = {
    "squared": Case(balanced(3, 2), "squared_error", 4),
    "squared-two-classes": Case(balanced(2, 3), "squared_error", 2),
    "squared-imbalanced": Case((2, 0, 0, 1, 0, 1, 0), "squared_error", 3),
    "squared-bias": Case(balanced(3, 2), "squared_error", 3, True),
    "squared-bias-slaved": Case((1, 0, 1, 0), "squared_error", 3, "slaved"),
    "squared-bias-imbalanced": Case(tuple(UNSORTED.tolist()), "squared_error", 2, True, False),
    "entropy": Case(balanced(3, 2), "cross_entropy", 2),
    "entropy-two-classes-bias": Case((1, 0, 0, 1), "cross_entropy", 3, True),
    "entropy-one-sample-each": Case((3, 0, 1, 2), "cross_entropy", 3, True),
}


def decays_of(case: Case) -> np.ndarray:
    """Three below the threshold of the largest class, one above, with unequal parts, (4, 3)."""
    threshold = np.sqrt(np.bincount(case.labels).max()) / len(case.labels)
    pressure, tilt = threshold * np.array([0.2, 0.45, 0.7, 1.2]), np.array([3.0, 0.4, 1.0, 2.0])
    of_biases = np.array([0.05, 0.5, 4.0, 0.3]) * case.decayed
    return np.stack([pressure * tilt, pressure / tilt, of_biases], axis=1)


def problem_of(case: Case, decay) -> dyn.LayerPeeled:
    labels = np.array(case.labels)
    loss = LOSSES[case.loss]
    return dyn.LayerPeeled(labels, num_classes=labels.max() + 1, loss=loss, bias=case.bias, decay=dyn.Decay(*decay))


@functools.cache
def minima(name: str):
    case = CASES[name]
    return jax.jit(jax.vmap(lambda decay: dyn.exact.minimiser(problem_of(case, decay), dim=case.dim)))(decays_of(case))


def plain_of(case: Case, decay) -> oracles.Plain:
    return oracles.Plain(np.array(case.labels), case.loss, decay=decay, bias=bool(case.bias))


def descended(plain: oracles.Plain, dim: int, starts: int = 2) -> tuple[float, oracles.Point]:
    """The lowest of BFGS descents from random starts."""
    classes, rng = plain.labels.max() + 1, np.random.default_rng(11)
    found = []
    for _ in range(starts):
        zeros = np.zeros(classes)
        x = oracles.Point(rng.normal(size=(plain.labels.size, dim)), rng.normal(size=(classes, dim)), zeros)

        def value_and_gradient(flat, x=x):
            return plain.objective(x.like(flat)), -plain.force(x.like(flat)).flat()

        end = minimize(value_and_gradient, x.flat(), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})
        found.append((end.fun, x.like(end.x)))
    return min(found, key=lambda one: one[0])


@pytest.mark.parametrize("name", CASES)
def test_no_descent_goes_lower_and_all_end_there(name):
    case, best = CASES[name], minima(name)
    assert np.all(best.status == status.OK) and np.all(best.unique)
    for k, decay in enumerate(decays_of(case)):
        value, end = descended(plain_of(case, decay), case.dim)
        assert abs(value - best.value[k]) <= 1e-14
        pairs = (
            (best.feature_gram[k], end.features @ end.features.T),
            (best.prototype_gram[k], end.prototypes @ end.prototypes.T),
            (best.logits[k], end.features @ end.prototypes.T + end.biases),
            (best.bias[k], end.biases),
        )
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
        norms = [np.linalg.norm(end.features), np.linalg.norm(end.prototypes)]
        np.testing.assert_allclose([best.feature_norm[k], best.prototype_norm[k]], norms, atol=3e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_state_attains_the_value_and_is_at_rest(name):
    case, best = CASES[name], minima(name)
    for k, decay in enumerate(decays_of(case)):
        state = oracles.Point(
            *(np.asarray(part)[k] for part in (best.state.features, best.state.prototypes, best.state.biases))
        )
        assert state.features.shape == (len(case.labels), case.dim)
        plain = plain_of(case, decay)
        assert abs(plain.objective(state) - best.value[k]) <= 1e-15
        assert np.abs(plain.force(state).flat()).max() <= 1e-15


def test_singular_values_of_an_imbalanced_example():
    labels = np.repeat([0, 1, 2], [9, 4, 1])
    problem = dyn.LayerPeeled(labels, num_classes=3, loss=LOSSES["squared_error"], decay=dyn.Decay(0.1, 0.1))
    best = dyn.exact.minimiser(problem, dim=2)  # the third class is lost: two dimensions are enough
    np.testing.assert_allclose(np.linalg.svd(best.logits, compute_uv=False), [1.6, 0.6, 0.0], atol=1e-14)
    assert np.all(best.state.features[-1] == 0) and np.all(best.state.prototypes[2] == 0)


@pytest.mark.parametrize("classes", [2, 4])
def test_cross_entropy_with_bounded_norms(classes):
    problem = dyn.LayerPeeled.balanced(classes, 2, loss=LOSSES["cross_entropy"], bias=classes == 4)
    best = dyn.exact.minimiser(problem, dim=classes, norms=(0.8, 1.7))
    plain = oracles.Plain(problem.labels, "cross_entropy")
    at_bounds = [np.linalg.norm(best.state.prototypes, axis=1) / 0.8, np.linalg.norm(best.state.features, axis=1) / 1.7]
    np.testing.assert_allclose(np.concatenate(at_bounds), 1, atol=1e-14)

    bounds = np.repeat([1.7, 0.8], [2 * classes, classes])[:, None]

    def scaled(flat):
        rows = flat.reshape(-1, classes)
        rows = bounds * rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return oracles.Point(rows[: 2 * classes], rows[2 * classes :], np.zeros(classes))

    def value_and_gradient(flat):
        x, lengths = scaled(flat), np.linalg.norm(flat.reshape(-1, classes), axis=1, keepdims=True)
        rows, slope = (np.concatenate([point.features, point.prototypes]) / bounds for point in (x, plain.force(x)))
        slope = -(bounds**2) * slope / lengths
        return plain.objective(x), (slope - rows * np.sum(rows * slope, axis=1, keepdims=True)).ravel()

    start = np.random.default_rng(3).normal(size=3 * classes**2)
    end = minimize(value_and_gradient, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    assert abs(end.fun - best.value) <= 1e-12
    np.testing.assert_allclose(scaled(end.x).features @ scaled(end.x).prototypes.T, best.logits, atol=1e-5)
    assert best.unique and np.all(best.bias == 0)


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (3, 2), (4, 1), (4, 4), (5, 2)])
def test_unhinged_with_bounded_norms(classes, dim):
    top = 2 / (classes - 2) if classes > 2 else np.inf
    gammas = np.array([0.0, 1 / (classes - 1), 0.4 * min(top, 3), *([] if classes == 2 else [top, 1.6 * top])])
    labels = np.repeat(np.arange(classes), 3)

    @jax.jit
    @jax.vmap
    def best_of(gamma):
        problem = dyn.LayerPeeled(labels, num_classes=classes, loss=dyn.losses.Unhinged(gamma))
        return dyn.exact.minimiser(problem, dim=dim, norms=(0.5, 2.0))

    best, rng = best_of(gammas), np.random.default_rng(classes)
    np.testing.assert_allclose(best.value, np.where(gammas > top, 1 - (classes - 1) * gammas, -1 - gammas), rtol=1e-14)
    assert best.unique.tolist() == [g > top or (0 < g < top and classes <= 3) for g in gammas]
    features, prototypes = np.asarray(best.state.features), np.asarray(best.state.prototypes)
    for rows, norm in ((prototypes, 0.5), (features, 2.0)):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=2), norm, rtol=1e-14)
    own = np.eye(classes)[labels]
    for k, gamma in enumerate(gammas):
        plain = oracles.Plain(labels, rows=(1 + gamma) * own - gamma)
        zeros = np.zeros(classes)
        np.testing.assert_allclose(plain.objective(oracles.Point(features[k], prototypes[k], zeros)), best.value[k], rtol=1e-13)
        for _ in range(10):
            rows = rng.normal(size=(4 * classes, dim))
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            assert plain.objective(oracles.Point(2.0 * rows[classes:], 0.5 * rows[:classes], zeros)) >= best.value[k] - 1e-12


def test_unhinged_with_decay():
    loss, labels = dyn.losses.Unhinged(0.3), np.array([0, 0, 1, 2, 2, 2])

    def best(decay, **fields):
        problem = dyn.LayerPeeled(labels, num_classes=3, loss=loss, decay=decay, **fields)
        return problem, dyn.exact.minimiser(problem, dim=2)

    dense = np.where(np.eye(3)[labels] > 0, 1.0, -0.3) / 6
    left, sigma, right = np.linalg.svd(dense)
    problem, at = best(dyn.Decay(2 * sigma[0], sigma[0] / 2))
    assert at.value == 0 and not at.unique
    mode = dyn.Peeled(np.outer(left[:, 0], [0.5, 0]), np.outer(right[0], [1.0, 0]))  # the continuum: along the top mode
    assert abs(problem.objective(mode)) <= 1e-15
    _, above = best(dyn.Decay(2 * sigma[0], 0.51 * sigma[0]))
    assert above.value == 0 and above.unique and above.feature_norm == 0
    _, below = best(dyn.Decay(2 * sigma[0], 0.49 * sigma[0]))
    assert below.value == -np.inf and not below.unique and below.status == status.OK and np.isnan(below.feature_norm)
    drift = dense.sum(axis=0)
    _, biased = best(dyn.Decay(1.0, 1.0, 0.2), bias=True)
    np.testing.assert_allclose(biased.bias, drift / 0.2, rtol=1e-14)
    np.testing.assert_allclose(biased.value, -np.sum(drift**2) / 0.4, rtol=1e-14)
    assert best(dyn.Decay(1.0, 1.0), bias=True)[1].value == -np.inf


def test_traced_conditions_become_a_status_of_their_member():
    case = CASES["squared-bias"]

    @jax.jit
    @jax.vmap
    def best(decay):
        return dyn.exact.minimiser(problem_of(case, decay), dim=2)

    decays = np.array([[0.02, 0.05, 0.1], [0.0, 0.05, 0.1], [np.nan, 0.05, 0.1], [-0.1, 0.05, 0.1], [0.02, 0.05, 50.0]])
    found = best(decays)  # the last one keeps the mean of all classes: three modes in two dimensions
    assert found.status.tolist() == [
        status.OK,
        *[status.OUTSIDE_ASSUMPTIONS],
        *[status.BAD_INPUT] * 2,
        status.OUTSIDE_ASSUMPTIONS,
    ]
    assert np.all(np.isnan(found.value[1:])) and np.all(np.isnan(found.state.features[1:])) and not np.any(found.unique[1:])
    alone = best(np.tile(decays[:1], (5, 1)))
    np.testing.assert_array_equal(alone.state.features[0], found.state.features[0])


@pytest.mark.parametrize("name", ["squared-bias", "entropy"])
def test_derivatives(name):
    case = CASES[name]

    def value(decay):
        return dyn.exact.minimiser(problem_of(case, decay), dim=case.dim).value

    gradient = jax.jit(jax.vmap(jax.grad(value)))(decays_of(case))
    best = minima(name)
    envelope = np.stack([best.feature_norm**2, best.prototype_norm**2, np.sum(best.bias**2, axis=1)], axis=1) / 2
    np.testing.assert_allclose(gradient, envelope, atol=1e-13)


def test_gradients_are_finite_at_thresholds():
    case = CASES["squared-bias"]
    per_class, samples = 2, 6
    pressure = np.sqrt(per_class) / samples
    edges = np.array([[pressure, pressure, 0.5], [pressure / 2, pressure / 2, 1.0], [pressure / 2, pressure / 2, 0.0]])

    def everything(decay):
        best = dyn.exact.minimiser(problem_of(case, decay), dim=3)
        return best.value + best.feature_norm + best.prototype_norm + jnp.sum(best.logits**2) + jnp.sum(best.state.features)

    assert np.all(np.isfinite(jax.jit(jax.vmap(jax.grad(everything)))(edges)))


@pytest.mark.parametrize("name", ["squared-bias", "entropy", "squared-bias-imbalanced"])
def test_single_precision(name):
    case, exact = CASES[name], minima(name)
    decays = decays_of(case).astype(np.float32)
    found = jax.jit(jax.vmap(lambda decay: dyn.exact.minimiser(problem_of(case, decay), dim=case.dim)))(decays)
    assert found.value.dtype == found.state.features.dtype == jnp.float32
    for ours, theirs in ((found.value, exact.value), (found.logits, exact.logits), (found.feature_gram, exact.feature_gram)):
        np.testing.assert_allclose(ours, theirs, atol=3e-6)


def test_refusals_name_the_reason():
    squared, entropy = LOSSES["squared_error"], LOSSES["cross_entropy"]
    both = dyn.Decay(0.02, 0.03)

    def best(labels=balanced(3, 2), dim=3, norms=None, classes=3, **fields):
        problem = dyn.LayerPeeled(np.array(labels), num_classes=classes, **fields)
        return lambda: dyn.exact.minimiser(problem, dim=dim, norms=norms)

    refused(best(loss=entropy, decay=dyn.Decay(0.1, 0.0)), "decay", "> 0", "never attained")
    refused(best(loss=squared), "decay", "> 0", "none of them singled out")
    refused(best(loss=squared, decay=both, dim=2), "dim must be >= 3", "got 2")
    refused(best(loss=entropy, decay=both, dim=1), "dim must be >= 2", "got 1")
    refused(best(loss=entropy, decay=both, labels=(0, 1, 2, 2)), "classes differ in size", "cross-entropy with decay")
    refused(best(loss=entropy, decay=both, sample_weights=[2, 1, 1, 1, 0.5, 0.5]), "different weights")
    refused(best(loss=squared, decay=both, normalize=True), "normalised")
    refused(best(loss=squared, decay=both, anchored=True), "anchored")
    refused(best(loss=squared, decay=both, kernel=np.eye(6)), "kernel")
    refused(best(loss=squared, norms=(1.0, 1.0)), "norms are given")
    refused(best(loss=squared, decay=dyn.Decay(0.1, 0.1, 0.1), labels=(0, 1, 2, 2), bias=True), "decay of biases must be 0")
    refused(best(loss=entropy, decay=both, norms=(1.0, 1.0)), "every decay must be 0")
    refused(best(norms=(1.0, 1.0), dim=1), "dim must be >= 2 for 3 prototypes", "got 1")
    refused(best(loss=entropy, norms=(1.0, -1.0)), "feature_norm", ">= 0")
    refused(best(loss=entropy, norms=1.0), "norms", "pair")
    refused(best(loss=entropy, decay=both, dim=0), "dim", ">= 1")
    with pytest.raises(NoClosedForm):
        best(loss=entropy, decay=both, labels=(0, 1, 2, 2))()
