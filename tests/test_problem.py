"""The layer-peeled problem against its definition: a plain loop over samples, differentiated by complex steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.losses import CrossEntropy, Linear, SquaredError, Unhinged
from dynamics.problems.layer_peeled import unit_rows
from tests.helpers import UNSORTED, draw, start

WEIGHTS = np.array([0.5, 1.5, 1.0, 2.0, 0.0, 1.0, 1.2, 0.8])
DECAY = (0.3, 0.07, 0.2)


class Setting(NamedTuple):
    labels: np.ndarray
    dim: int
    fields: dict


SETTINGS = {
    "balanced": Setting(np.repeat(np.arange(3), 2), 4, {}),
    "weights, decay, unsorted": Setting(UNSORTED, 3, {"sample_weights": WEIGHTS, "decay": dyn.Decay(*DECAY), "bias": True}),
    "normalised": Setting(UNSORTED, 3, {"normalize": True, "sample_weights": WEIGHTS, "decay": dyn.Decay(*DECAY)}),
    "two classes of one": Setting(np.array([1, 0]), 1, {"decay": dyn.Decay(*DECAY)}),
    "fewer dimensions than a simplex": Setting(np.arange(8) % 4, 2, {"anchored": True, "bias": True}),
}


def cross_entropy(z, y, _):
    return np.log(np.sum(np.exp(z - z[y])))


LOSSES: dict[str, tuple[Callable, Callable]] = {
    "balanced unhinged": (lambda c, n: Unhinged(), lambda z, y, i: -z[y] + (z.sum() - z[y]) / (len(z) - 1)),
    "unhinged": (lambda c, n: Unhinged(0.3), lambda z, y, i: -z[y] + 0.3 * (z.sum() - z[y])),
    "linear by label": (lambda c, n: Linear(draw(c, c)), lambda z, y, i: -draw(len(z), len(z))[y] @ z),
    "linear by sample": (lambda c, n: Linear(draw(n + 1, c)[:n]), None),  # its reference needs the number of samples
    "cross-entropy": (lambda c, n: CrossEntropy(), cross_entropy),
    "squared error": (lambda c, n: SquaredError(), lambda z, y, i: ((z - np.eye(len(z))[y]) ** 2).sum() / 2),
}
CASES = [(loss, name) for loss in LOSSES for name in SETTINGS if not (loss == "linear by sample" and "one" in name)]
EACH = pytest.mark.parametrize("case", CASES, ids=[" - ".join(case) for case in CASES])


def made(case) -> tuple[dyn.LayerPeeled, dyn.Peeled]:
    labels, dim, fields = SETTINGS[case[1]]
    classes = labels.max() + 1
    problem = dyn.LayerPeeled(labels, num_classes=classes, loss=LOSSES[case[0]][0](classes, labels.size), **fields)
    return problem, start(problem, dim)


def plain_objective(case, features, prototypes, biases):
    """The objective as the definition says it, one sample at a time; complex numbers pass through."""
    labels, _, fields = SETTINGS[case[1]]
    n, c = labels.size, labels.max() + 1
    value = LOSSES[case[0]][1] or (lambda z, y, i: -draw(n + 1, c)[i] @ z)
    total = 0.0
    for i, y in enumerate(labels):
        h = features[i] / np.sqrt(features[i] @ features[i]) if fields.get("normalize") else features[i]
        weight = fields["sample_weights"][i] if "sample_weights" in fields else 1.0
        total = total + weight * value(prototypes @ h + biases, y, i) / n
    for decay, part in zip(DECAY, (features, prototypes, biases), strict=True):
        total = total + (decay / 2 * np.sum(part**2) if "decay" in fields else 0.0)
    return total


def plain_gradient(case, state: dyn.Peeled) -> dyn.Peeled:
    """Its derivatives by complex steps: no cancellation, right to rounding."""
    parts = [np.asarray(part, complex) for part in (state.features, state.prototypes, state.biases)]
    slopes = [np.zeros(part.shape) for part in parts]
    for part, slope in zip(parts, slopes, strict=True):
        for place in np.ndindex(part.shape):
            part[place] += 1e-30j
            slope[place] = plain_objective(case, *parts).imag / 1e-30
            part[place] -= 1e-30j
    return dyn.Peeled(*slopes)


@pytest.fixture(scope="module")
def computed():
    """Objective, force and gradient of every case, by one compiled program."""
    made_up = {case: made(case) for case in CASES}
    return jax.jit(
        lambda cases: {
            case: (*jax.value_and_grad(problem.objective)(state), problem.force(state))
            for case, (problem, state) in cases.items()
        }
    )(made_up)


@EACH
def test_objective_gradient_and_force(case, computed):
    state = made(case)[1]
    objective, gradient, force = computed[case]
    expected = plain_objective(case, *(np.asarray(part) for part in (state.features, state.prototypes, state.biases)))
    assert float(objective) == pytest.approx(expected, rel=1e-13)
    slopes = plain_gradient(case, state)
    scale = max(np.linalg.norm(slopes.features), np.linalg.norm(slopes.prototypes))
    for name in ("features", "prototypes", "biases"):
        np.testing.assert_allclose(getattr(gradient, name), getattr(slopes, name), rtol=0, atol=1e-14 * scale)
        np.testing.assert_allclose(getattr(force, name), -getattr(slopes, name), rtol=0, atol=1e-14 * scale)


def test_the_balanced_loss_does_not_drift_at_all(computed):
    problem, _ = made(("balanced unhinged", "balanced"))
    force = computed[("balanced unhinged", "balanced")][2]
    assert np.all(np.asarray(force.biases) == 0.0)
    assert problem.label_coupling.coupling.drift == 0.0
    # nor does any multiple of it; unequal classes do drift
    assert np.any(np.asarray(computed[("balanced unhinged", "weights, decay, unsorted")][2].biases) != 0.0)


def kernels(n: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = draw(n, n), draw(dim, dim - 1)  # the second is singular
    return a @ a.T / n, b @ b.T


@pytest.mark.parametrize("which", ["kernel", "feature_kernel", "both"])
def test_kernels_multiply_the_data_part_only(which):
    across, along = kernels(8, 3)
    fields = {"kernel": across, "feature_kernel": along}
    if which != "both":
        fields = {which: fields[which]}
    case = ("unhinged", "weights, decay, unsorted")
    _, dim, common = SETTINGS[case[1]]
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=Unhinged(0.3), **common, **fields)
    state = start(problem, dim)
    force, slopes = problem.force(state), plain_gradient(case, state)
    data = -slopes.features + DECAY[0] * np.asarray(state.features)
    dense = np.kron(fields.get("kernel", np.eye(8)), fields.get("feature_kernel", np.eye(3)))
    expected = (dense @ data.ravel()).reshape(8, 3) - DECAY[0] * np.asarray(state.features)
    np.testing.assert_allclose(force.features, expected, atol=1e-13)
    np.testing.assert_allclose(force.prototypes, -slopes.prototypes, atol=1e-14)
    np.testing.assert_allclose(force.biases, -slopes.biases, atol=1e-14)


def test_pace():
    rates = dyn.Rates(dyn.schedules.Exponential(0.4, 0.3), dyn.schedules.Cosine(0.2, 5.0))
    eta1, eta2 = 0.4 * np.exp(-0.6), 0.1 * (1 + np.cos(0.4 * np.pi))
    for bias, anchored, rescaled in ((True, False, False), (False, False, True), (True, True, False), (False, True, True)):
        problem = dyn.LayerPeeled(UNSORTED, num_classes=3, bias=bias, anchored=anchored)
        state, motion = start(problem, 3), start(problem, 3, seed=1)
        paced = problem.pace(motion, state, dyn.Rates(rates.features, rates.weights, rescaled), 2.0)
        norms = np.linalg.norm(state.features, axis=1, keepdims=True) if rescaled else 1.0
        np.testing.assert_allclose(paced.features, eta1 * norms * motion.features, rtol=1e-14)
        np.testing.assert_allclose(paced.prototypes, 0.0 if anchored else eta2 * motion.prototypes, rtol=1e-14)
        np.testing.assert_allclose(paced.biases, eta2 * motion.biases if bias and not anchored else 0.0, rtol=1e-14)


def test_biases_count_in_the_logits_even_where_they_stay():
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3)
    state = start(problem, 3)
    expected = np.asarray(state.features) @ np.asarray(state.prototypes).T + np.asarray(state.biases)
    np.testing.assert_allclose(problem.logits(state), expected, rtol=1e-14)
    spherical = dyn.LayerPeeled(UNSORTED, num_classes=3, normalize=True)
    unit = np.asarray(state.features) / np.linalg.norm(state.features, axis=1, keepdims=True)
    expected = unit @ np.asarray(state.prototypes).T + np.asarray(state.biases)
    np.testing.assert_allclose(spherical.logits(state), expected, rtol=1e-13, atol=1e-15)
    assert np.all(np.isnan(unit_rows(jnp.zeros((1, 2)))))


def test_equal_problems_share_a_compiled_program():
    traces = []

    @jax.jit
    def objective(problem, state):
        traces.append(problem.loss)
        return problem.objective(state)

    def built(gamma, labels=UNSORTED, weights=WEIGHTS):
        return dyn.LayerPeeled(list(labels), num_classes=3, loss=Unhinged(jnp.asarray(gamma)), sample_weights=weights.copy())

    state = start(built(0.3), 3)
    first, second = objective(built(0.3), state), objective(built(0.4), state)
    assert len(traces) == 1 and first != second
    assert float(second) == pytest.approx(float(built(0.4).objective(state)), rel=1e-14)
    objective(built(0.3, labels=UNSORTED[::-1]), state)
    objective(built(0.3, weights=WEIGHTS[::-1]), state)
    assert len(traces) == 3
    one, other = built(0.3), built(0.3)
    assert one.data == other.data and hash(one.data.static) == hash(other.data.static)
    assert not one.labels.flags.writeable


def test_hyperparameters_are_leaves_that_batch_and_differentiate():
    def objective(gamma, decay):
        problem = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=Unhinged(gamma), decay=dyn.Decay(decay))
        return problem.objective(state)

    state = start(dyn.LayerPeeled(UNSORTED, num_classes=3), 3)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(objective, (0, 1))))(jnp.array([0.1, 0.5]), jnp.array([0.2, 0.0]))
    z = np.asarray(state.features) @ np.asarray(state.prototypes).T + np.asarray(state.biases)
    others = np.mean(z.sum(axis=1) - z[np.arange(8), UNSORTED])
    np.testing.assert_allclose(slopes[0], [others, others], rtol=1e-13)
    np.testing.assert_allclose(slopes[1], np.full(2, np.sum(np.square(state.features)) / 2), rtol=1e-13)
    assert float(values[1] - values[0]) == pytest.approx(0.4 * others - 0.1 * np.sum(np.square(state.features)), rel=1e-12)


def test_valid_sees_what_is_traced():
    def valid(gamma, decay, kernel):
        problem = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=Unhinged(gamma), decay=dyn.Decay(0.0, decay), kernel=kernel)
        return problem.valid()

    gamma, decay = jnp.array([0.3, jnp.nan, -0.1, 0.3, 0.3, 0.3]), jnp.array([0.1, 0.1, 0.1, jnp.nan, -0.1, 0.1])
    kernel = jnp.broadcast_to(jnp.eye(8), (6, 8, 8)).at[5, 0, 0].set(jnp.inf)
    np.testing.assert_array_equal(jax.jit(jax.vmap(valid))(gamma, decay, kernel), [True] + 5 * [False])


def test_arrays_may_come_in_lists():
    eye = [[1.0, 0.0], [0.0, 1.0]]
    fields = {"loss": Linear(eye), "sample_weights": [1.5, 0.5], "kernel": eye, "feature_kernel": eye}
    problem = dyn.LayerPeeled([0, 1], num_classes=2, **fields)
    assert problem.kernel.shape == problem.feature_kernel.shape == problem.loss.matrix.shape == (2, 2)
    np.testing.assert_array_equal(problem.data.weights, [1.5, 0.5])


def test_check_gives_arrays_of_one_floating_dtype():
    problem = dyn.LayerPeeled.balanced(2, 1)
    whole = problem.check(dyn.Peeled([[1, 2], [3, 4]], [[1, 0], [0, 1]]))
    assert whole.features.dtype == whole.biases.dtype == jnp.float64
    mixed = problem.check(dyn.Peeled(np.ones((2, 2), np.float32), np.ones((2, 2)), None))
    assert mixed.features.dtype == jnp.float64
    narrow = problem.check(dyn.Peeled(np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)))
    assert narrow.features.dtype == narrow.biases.dtype == jnp.float32
    assert jax.eval_shape(problem.force, narrow).features.dtype == jnp.float32
