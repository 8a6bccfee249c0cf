"""The class-mean reduction moves exactly as the full problem, followed sample by sample in a plain loop; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.losses import CrossEntropy, Linear, Unhinged
from dynamics.reduce import class_means, collapsed, span, spanned
from tests.helpers import UNSORTED, draw, refused, relative, start

BALANCED_UNSORTED = np.array([2, 0, 1, 1, 2, 0])
CASES = {
    "unhinged": (np.repeat(np.arange(3), 2), 4, {"loss": Unhinged(0.2)}),
    "balanced gamma, unsorted": (BALANCED_UNSORTED, 2, {"decay": dyn.Decay(0.3, 0.1)}),
    "any coupling": (BALANCED_UNSORTED, 3, {"loss": Linear(draw(3, 3)), "decay": dyn.Decay(0.3, 0.1, 0.7)}),
    "feature kernel": (BALANCED_UNSORTED, 3, {"feature_kernel": np.diag([0.5, 2.0, 0.0])}),
    "anchored": (BALANCED_UNSORTED, 3, {"anchored": True, "decay": dyn.Decay(0.3)}),
    "two classes of one": (np.array([1, 0]), 1, {"loss": Unhinged(0.7)}),
}
STEPS, RATE1, RATE2 = 12, 0.3, 0.2


def plain_loop(labels, state: dyn.Peeled, fields: dict) -> dyn.Peeled:
    """Gradient descent of the full problem, one sample at a time."""
    h, w = np.array(state.features), np.array(state.prototypes)
    n, classes = len(labels), w.shape[0]
    decay = fields.get("decay", dyn.Decay())
    loss = fields.get("loss", Unhinged())
    if isinstance(loss, Linear):
        rows = np.asarray(loss.matrix)[labels]
    else:
        gamma = 1 / (classes - 1) if loss.gamma is None else loss.gamma
        rows = np.array([[1.0 if j == y else -gamma for j in range(classes)] for y in labels])
    kernel = fields.get("feature_kernel", np.eye(w.shape[1]))
    for _ in range(STEPS):
        pull_h = np.array([rows[i] @ w / n for i in range(n)]) @ kernel - decay.features * h
        pull_w = sum(np.outer(rows[i], h[i]) / n for i in range(n)) - decay.prototypes * w
        h, w = h + RATE1 * pull_h, w + (0.0 if fields.get("anchored") else RATE2) * pull_w
    return dyn.Peeled(h, w, state.biases)


@pytest.mark.parametrize("case", CASES)
def test_reduced_motion_is_the_full_motion(case):
    labels, dim, fields = CASES[case]
    problem = dyn.LayerPeeled(labels, num_classes=labels.max() + 1, **fields)
    state = start(problem, dim)
    reduced = class_means(problem, state)
    assert reduced.problem.num_samples == problem.num_classes
    assert relative(reduced.lift(reduced.state), state) < 1e-15
    np.testing.assert_allclose(problem.data.class_means(reduced.deviations), 0.0, atol=1e-15)
    moved = dyn.descent(reduced.problem, reduced.state, dyn.Rates(RATE1, RATE2), STEPS, every=STEPS)
    last = dyn.Peeled(moved.states.features[-1], moved.states.prototypes[-1], moved.states.biases[-1])
    kept = (1 - RATE1 * problem.decay.features) ** STEPS
    assert relative(reduced.lift(last, kept), plain_loop(labels, state, fields)) < 1e-14


def test_the_balanced_gamma_stays_exact():
    problem = dyn.LayerPeeled(BALANCED_UNSORTED, num_classes=3)
    reduced = class_means(problem, start(problem, 2))
    assert float(reduced.problem.label_coupling.coupling.drift) == 0.0


def test_float32_stays_float32():
    problem = dyn.LayerPeeled(BALANCED_UNSORTED, num_classes=3)
    reduced = class_means(problem, start(problem, 2, dtype=np.float32))
    assert reduced.state.features.dtype == reduced.lift(reduced.state).features.dtype == jnp.float32
    moved = jax.eval_shape(lambda: dyn.descent(reduced.problem, reduced.state, dyn.Rates(RATE1, RATE2), 2))
    assert moved.states.features.dtype == jnp.float32


@pytest.mark.parametrize(
    ("labels", "fields", "words"),
    [
        (BALANCED_UNSORTED, {"loss": CrossEntropy()}, ("loss", "linear")),
        (BALANCED_UNSORTED, {"loss": Linear(draw(6, 3))}, ("loss", "one coupling a label")),
        (BALANCED_UNSORTED, {"normalize": True}, ("loss", "linear")),
        (UNSORTED, {}, ("balanced", "[2 4 2]")),
        (BALANCED_UNSORTED, {"sample_weights": np.ones(6)}, ("unweighted",)),
        (BALANCED_UNSORTED, {"bias": True}, ("bias must be False",)),
        (BALANCED_UNSORTED, {"kernel": np.eye(6)}, ("kernel must be None",)),
    ],
)
def test_refusals(labels, fields, words):
    problem = dyn.LayerPeeled(labels, num_classes=3, **fields)
    refused(lambda: class_means(problem, start(problem, 2)), *words)


@pytest.mark.parametrize(
    ("dim", "fields", "words"),
    [
        (9, {}, ("features must have dim > samples + classes = 9", "got 9")),
        (10, {"feature_kernel": np.eye(10)}, ("feature_kernel must be None",)),
        (10, {"adjusted": 0.1, "normalize": True, "anchored": True}, ("adjusted must be None",)),
    ],
)
def test_refusals_of_the_span(dim, fields, words):
    problem = dyn.LayerPeeled(BALANCED_UNSORTED, num_classes=3, **fields)
    refused(lambda: span(problem, start(problem, dim)), *words)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ("features must be equal within classes", "sample 3", "class 1")),
        ({"loss": Linear(draw(6, 3))}, ("loss", "not one a sample")),
        ({"kernel": np.eye(6)}, ("kernel must be None",)),
        ({"adjusted": 0.1, "normalize": True, "anchored": True}, ("adjusted must be None",)),
        ({"sample_weights": [0.5, 1.0, 1.0, 1.0, 1.5, 1.0]}, ("sample_weights must be equal within classes", "class 2")),
    ],
)
def test_refusals_of_collapsed_features(fields, words):
    problem = dyn.LayerPeeled(BALANCED_UNSORTED, num_classes=3, **fields)
    refused(lambda: collapsed(problem, start(problem, 2)), *words)


def test_refusals_of_both():
    problem = dyn.LayerPeeled(BALANCED_UNSORTED, num_classes=3)
    state = start(problem, 6)
    refused(lambda: spanned(class_means(problem, state)), "dim > samples + classes = 6", "got 6")
    for reduction in (class_means, collapsed, span):
        refused(lambda reduction=reduction: reduction("problem", state), "problem must be a dynamics.LayerPeeled", "str")


def test_a_traced_start_that_is_not_collapsed_is_bad_input():
    problem = dyn.LayerPeeled(BALANCED_UNSORTED, num_classes=3, loss=CrossEntropy())
    apart = start(problem, 2)
    equal = dyn.Peeled(apart.features[:3][BALANCED_UNSORTED], apart.prototypes, apart.biases)

    @jax.jit
    @jax.vmap
    def status(state):
        reduced = collapsed(problem, state)
        return dyn.descent(reduced.problem, reduced.state, dyn.Rates(RATE1, RATE2), 1).status

    found = status(jax.tree.map(lambda *leaves: jnp.stack(leaves), apart, equal))
    assert list(found) == [dyn.status.BAD_INPUT, dyn.status.OK]
