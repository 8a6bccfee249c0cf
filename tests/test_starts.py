"""Slaved biases, adjusted prototypes, and starts that cannot leave or have no direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics import status
from dynamics.losses import CrossEntropy, SquaredError, Unhinged
from tests.helpers import UNSORTED, refused, start

descent = jax.jit(dyn.descent, static_argnames=("steps", "every"))
flow = jax.jit(dyn.flow)
WEIGHTS = np.array([1.4, 0.6, 1.0, 0.8, 1.2, 1.0, 0.5, 1.5])
RATES = dyn.Rates.equal(0.3)


def slaved(**fields) -> dyn.LayerPeeled:
    fields = {"decay": dyn.Decay(0.1, 0.2, 0.3), "sample_weights": WEIGHTS} | fields
    return dyn.LayerPeeled(UNSORTED, num_classes=3, loss=SquaredError(), bias="slaved", **fields)


def best_biases(state) -> np.ndarray:
    """The minimiser of the objective in the biases, by the normal equations."""
    residual = np.eye(3)[UNSORTED] - np.asarray(state.features) @ np.asarray(state.prototypes).T
    return (WEIGHTS[:, None] * residual).mean(axis=0) / 1.3


@pytest.mark.slow
def test_slaved_biases_are_the_best_ones():
    problem, state = slaved(), start(slaved(), 4)
    complete = problem.complete(state)
    np.testing.assert_allclose(complete.biases, best_biases(state), rtol=1e-13)
    trained = dyn.LayerPeeled(
        UNSORTED, num_classes=3, loss=SquaredError(), bias=True, decay=dyn.Decay(0.1, 0.2, 0.3), sample_weights=WEIGHTS
    )
    np.testing.assert_allclose(trained.force(complete).biases, 0.0, atol=1e-15)
    assert float(problem.objective(state)) == float(trained.objective(complete)) < float(trained.objective(state))
    # the derivative of the best objective is that at the best biases
    slope = jax.grad(problem.objective)(state)
    np.testing.assert_allclose(problem.force(state).features, -slope.features, atol=1e-15)
    np.testing.assert_allclose(problem.force(state).prototypes, -slope.prototypes, atol=1e-15)


@pytest.mark.slow
def test_slaved_biases_are_shown_along_the_motion():
    problem, state = slaved(), start(slaved(), 4)
    moved = descent(problem, state, RATES, steps=4, dt=0.5)
    h, w = np.array(state.features), np.array(state.prototypes)
    for k in range(5):
        np.testing.assert_allclose(moved.states.biases[k], best_biases(dyn.Peeled(h, w)), rtol=1e-12)
        slope = WEIGHTS[:, None] * (h @ w.T + best_biases(dyn.Peeled(h, w)) - np.eye(3)[UNSORTED]) / 8
        h, w = h - 0.15 * (slope @ w + 0.1 * h), w - 0.15 * (slope.T @ h + 0.2 * w)
    flowed = flow(problem, state, RATES, jnp.array([0.0, 1.0]))
    for k in range(2):
        at = jax.tree.map(lambda leaf, k=k: leaf[k], flowed.states)
        np.testing.assert_allclose(at.biases, best_biases(at), rtol=1e-12)


def test_an_instantly_trained_bias_is_a_slaved_one():
    """Many steps of the biases alone between two of everything else."""
    problem = slaved(decay=dyn.Decay())
    state = start(problem, 4)
    ends = flow(problem, state, RATES, jnp.array([2.0])).states
    quick = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=SquaredError(), sample_weights=WEIGHTS)
    h, w = state.features, state.prototypes

    @jax.jit
    def euler(h, w):
        def step(_, x):
            b = jnp.mean(WEIGHTS[:, None] * (jnp.eye(3)[UNSORTED] - x[0] @ x[1].T), axis=0)
            f = quick.force(dyn.Peeled(*x, b))
            return x[0] + 1e-4 * f.features, x[1] + 1e-4 * f.prototypes

        return jax.lax.fori_loop(0, 6000, step, (h, w))

    h, w = euler(h, w)
    np.testing.assert_allclose(h, ends.features[0], atol=1e-4)
    np.testing.assert_allclose(w, ends.prototypes[0], atol=1e-4)


def test_slaved_refusals():
    def built(**fields):
        return lambda: dyn.LayerPeeled(UNSORTED, num_classes=3, bias="slaved", **fields)

    refused(built(loss=CrossEntropy()), "slaved", "SquaredError", "CrossEntropy")
    refused(built(), "slaved", "Unhinged")
    refused(built(loss=SquaredError(), anchored=True), "slaved", "anchored")


def spherical(**fields) -> dyn.LayerPeeled:
    return dyn.LayerPeeled(UNSORTED, num_classes=3, loss=Unhinged(0.3), normalize=True, anchored=True, **fields)


def anti_aligned(sample: int) -> dyn.Peeled:
    """A start one of whose features faces away from what pulls it."""
    state = start(spherical(), 4)
    pull = spherical().label_coupling.pull_features(state.prototypes)
    return dyn.Peeled(state.features.at[sample].set(-2.7 * pull[sample]), state.prototypes)


def test_an_anti_aligned_start_is_a_fixed_point_in_the_status():
    problem, state = spherical(), start(spherical(), 4)
    assert status.name(descent(problem, state, RATES, steps=3).status) == "ok"
    stuck = anti_aligned(5)
    for moved in (descent(problem, stuck, RATES, steps=3), flow(problem, stuck, RATES, jnp.array([1.0]))):
        assert status.name(moved.status) == "fixed_point"
        assert np.all(np.isfinite(moved.states.features))
        np.testing.assert_allclose(moved.states.features[-1, 5], stuck.features[5], atol=1e-14)
        assert np.abs(moved.states.features[-1, 4] - stuck.features[4]).max() > 1e-3
    narrow = jax.tree.map(lambda leaf: leaf.astype(np.float32), stuck)
    assert status.name(descent(problem, narrow, RATES, steps=3).status) == "fixed_point"


def test_the_adjusted_prototype_pulls_as_a_prototype_at_the_border_would():
    """Against the definition: the gradient under w + delta with delta held fixed."""
    epsilon = 0.1
    for cosine in (-0.99, -0.91, -0.89, 0.3):
        v, tangent = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 2)))[0].T
        h = 1.7 * (cosine * v + np.sqrt(1 - cosine**2) * tangent)
        unit = h / np.linalg.norm(h)
        target = v
        if cosine < -1 + epsilon:
            root = np.sqrt(1 - (1 - epsilon) ** 2)
            delta = -(1 + cosine * root / ((1 - epsilon) * np.sqrt(1 - cosine**2))) * (v - unit * (unit @ v))
            target = v + delta
            assert abs(unit @ target / np.linalg.norm(target) + 0.9) < 1e-14
        expected = (target - unit * (unit @ target)) / np.linalg.norm(h)
        prototypes = np.stack([2 * v, -2 * v])  # two classes, gamma = 1: each sample is pulled by its prototype less the other
        problem = dyn.LayerPeeled([0, 1], num_classes=2, loss=Unhinged(1.0), normalize=True, anchored=True, adjusted=epsilon)
        force = problem.force(dyn.Peeled(np.stack([h, v]), prototypes)).features[0]
        np.testing.assert_allclose(force, 2 * expected, atol=1e-14)


@pytest.mark.slow
def test_an_adjusted_start_leaves_even_from_the_pole():
    problem, stuck = spherical(adjusted=0.1), anti_aligned(5)
    pull = np.asarray(problem.label_coupling.pull_features(stuck.prototypes)[5])
    force = np.asarray(problem.force(stuck).features[5])
    size = np.linalg.norm(pull) * np.sqrt(0.19) / 0.9 / np.linalg.norm(stuck.features[5])
    assert abs(force @ pull) < 1e-12 and np.isclose(np.linalg.norm(force), size, rtol=1e-12)
    moved = descent(problem, stuck, RATES, steps=400, every=400)
    assert status.name(moved.status) == "ok"
    end = np.asarray(moved.states.features[-1, 5])
    assert end @ pull / np.linalg.norm(end) / np.linalg.norm(pull) > -0.99
    slopes = jax.grad(lambda h: jnp.sum(problem.force(dyn.Peeled(h, stuck.prototypes)).features ** 2))(stuck.features)
    assert np.all(np.isfinite(slopes))


def test_adjusted_refusals():
    refused(lambda: dyn.LayerPeeled(UNSORTED, num_classes=3, adjusted=0.1), "adjusted", "normalize=True")
    refused(lambda: spherical(adjusted=1.5), "adjusted", "(0, 1)", "1.5")
    refused(lambda: spherical(adjusted=0.1, feature_kernel=np.eye(4)), "adjusted", "kernel")
    refused(lambda: dyn.descent(spherical(adjusted=0.1), start(spherical(), 1), RATES, 1), "adjusted", "dim >= 2")
    state = start(spherical(), 4)
    moved = jax.jit(jax.vmap(lambda e: dyn.descent(spherical(adjusted=e), state, RATES, 1)))(jnp.array([0.1, 2.0]))
    assert moved.status.tolist() == [0, 1]
