"""Stochastic descent: minibatches against plain loops, their mean and second moment against every possible draw."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.losses import CrossEntropy, SquaredError, Unhinged
from dynamics.simulate.minibatch import minibatches
from tests.helpers import UNSORTED, draw, refused, start

LABELS = np.array([0, 1, 1, 2, 0])
WEIGHTS = np.array([1.2, 0.8, 1.0, 0.5, 1.5])
DECAY = (0.1, 0.2, 0.05)
ROOTS = draw(5, 5)
KERNEL = ROOTS @ ROOTS.T / 5
RATES = dyn.Rates(dyn.schedules.Cosine(0.5, 5.0), dyn.schedules.Constant(0.7))
DT, STEPS = 0.8, 3


def problem(**fields) -> dyn.LayerPeeled:
    fields = {"loss": Unhinged(0.3), "decay": dyn.Decay(*DECAY), "bias": True, "sample_weights": WEIGHTS} | fields
    return dyn.LayerPeeled(LABELS, num_classes=3, **fields)


@functools.partial(jax.jit, static_argnames=("steps", "batch_size", "every"))
def exact(problem, state, steps=STEPS, *, batch_size, every=1) -> dyn.Trajectory:
    return dyn.exact.descent(problem, state, RATES, steps, every=every, dt=DT, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("steps", "batch_size", "shuffle"))
def simulated(problem, state, steps, key=None, *, batch_size=None, shuffle="step") -> dyn.Trajectory:
    return dyn.descent(problem, state, RATES, steps, dt=DT, batch_size=batch_size, key=key, shuffle=shuffle)


def every_draw(state, batch_size: int, *, kernel=None, anchored=False):
    """The mean state, biases apart, and the mean of Z Z^T over every sequence of batches, by NumPy loops."""
    rows = np.full((3, 3), -0.3) + 1.3 * np.eye(3)
    coupling = WEIGHTS[:, None] * rows[LABELS] / 5
    across = np.eye(5) if kernel is None else kernel
    batches = list(itertools.combinations(range(5), batch_size))
    total, square, biases = 0.0, 0.0, 0.0
    for sequence in itertools.product(batches, repeat=STEPS):
        h, w, b = (np.array(part) for part in (state.features, state.prototypes, state.biases))
        for k, batch in enumerate(sequence):
            included = np.isin(np.arange(5), batch) * 5 / batch_size
            now = included[:, None] * coupling
            e1 = DT * 0.25 * (1 + np.cos(np.pi * k * DT / 5))
            e2 = 0.0 if anchored else DT * 0.7
            b = b + e2 * (now.sum(axis=0) - DECAY[2] * b)
            h, w = h + e1 * (across @ now @ w - DECAY[0] * h), w + e2 * (now.T @ h - DECAY[1] * w)
        z = np.concatenate([h, w])
        total, square, biases = total + z, square + z @ z.T, biases + b
    return (x / len(batches) ** STEPS for x in (total, square, biases))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("fields", [{}, {"kernel": KERNEL}, {"anchored": True}], ids=["free", "kernel", "anchored"])
def test_mean_and_second_moment_are_those_of_every_draw(batch_size, fields):
    begin = start(problem(), 4)
    moved = exact(problem(**fields), begin, batch_size=batch_size)
    mean, square, biases = every_draw(begin, batch_size, **fields)
    found = np.concatenate([moved.states.features[-1], moved.states.prototypes[-1]])
    assert moved.determined == "mean" and moved.second_moment.shape == (STEPS + 1, 8, 8)
    np.testing.assert_allclose(found, mean, atol=2e-14)
    np.testing.assert_allclose(moved.second_moment[-1], square, atol=1e-13)
    np.testing.assert_allclose(moved.states.biases[-1], biases, atol=1e-14)


@pytest.mark.slow
def test_moments_at_every_second_iterate_and_in_float32():
    begin = start(problem(), 4)
    whole = exact(problem(), begin, 6, batch_size=2)
    some = exact(problem(), begin, 6, every=2, batch_size=2)
    np.testing.assert_allclose(some.second_moment, whole.second_moment[::2], rtol=1e-13)
    narrow = exact(problem(), start(problem(), 4, dtype=np.float32), 6, batch_size=2)
    assert narrow.second_moment.dtype == jnp.float32
    scale = np.abs(whole.second_moment).max()
    np.testing.assert_allclose(narrow.second_moment, whole.second_moment, atol=2e-6 * scale)


def test_each_run_follows_its_own_minibatches(key):
    """Iterates against a plain loop over the very samples that were drawn, for a loss that is not linear."""
    fields = {"loss": SquaredError(), "sample_weights": WEIGHTS}
    begin = start(problem(**fields), 4)
    for shuffle, size in (("step", 2), ("epoch", 1)):
        moved = simulated(problem(**fields), begin, 7, key, batch_size=size, shuffle=shuffle)
        counted = minibatches(5, size, key, shuffle, float)
        h, w, b = (np.array(part) for part in (begin.features, begin.prototypes, begin.biases))
        for k in range(7):
            seen = np.asarray(counted(k))
            assert np.sum(seen > 0) == size and set(seen) <= {0.0, 5 / size}
            slope = (seen * WEIGHTS)[:, None] * (h @ w.T + b - np.eye(3)[LABELS]) / 5
            e1, e2 = DT * 0.25 * (1 + np.cos(np.pi * min(k * DT / 5, 1))), DT * 0.7
            b_force, w_force = -slope.sum(axis=0) - DECAY[2] * b, -slope.T @ h - DECAY[1] * w
            h, w, b = h + e1 * (-slope @ w - DECAY[0] * h), w + e2 * w_force, b + e2 * b_force
        np.testing.assert_allclose(moved.states.features[-1], h, atol=1e-13)
        np.testing.assert_allclose(moved.states.prototypes[-1], w, atol=1e-13)
        np.testing.assert_allclose(moved.states.biases[-1], b, atol=1e-13)


def test_batches_are_uniform_and_epochs_use_every_sample_once(key):
    counted = jax.jit(jax.vmap(minibatches(6, 2, key, "step", float)))(np.arange(6000))
    pairs = np.asarray(counted > 0, float)
    assert np.all(pairs.sum(axis=1) == 2)
    together = pairs.T @ pairs / 6000
    # 15 pairs, each with probability 1/15; five standard errors
    assert np.abs(together[np.triu_indices(6, 1)] - 1 / 15).max() < 5 * np.sqrt(1 / 15 / 6000)
    epochs = jax.vmap(minibatches(6, 2, key, "epoch", float))(np.arange(30)).reshape(10, 3, 6)
    np.testing.assert_array_equal(epochs.sum(axis=1), np.full((10, 6), 3.0))
    assert len({tuple(epoch.ravel().tolist()) for epoch in np.asarray(epochs)}) > 1


def test_a_batch_of_all_samples_is_descent(key):
    begin = start(problem(), 4)
    moved, full = simulated(problem(), begin, 5, key, batch_size=5), simulated(problem(), begin, 5)
    assert float(dyn.compare(moved, full).worst) < 1e-14


def test_refusals(key):
    spherical = dyn.LayerPeeled(LABELS, num_classes=3, normalize=True, anchored=True)
    begin = start(problem(), 4)

    def moved(**more):
        return lambda: dyn.descent(problem(), begin, RATES, 4, **more)

    refused(moved(batch_size=6, key=key), "batch_size", "5", "6")
    refused(moved(batch_size=0, key=key), "batch_size", ">= 1", "0")
    refused(moved(batch_size=2.0, key=key), "batch_size", "integer", "2.0")
    refused(moved(batch_size=2), "key", "batch_size")
    refused(moved(key=key), "key", "batch_size")
    refused(moved(batch_size=2, key=key, shuffle="epoch"), "divide", "2 of 5")
    refused(moved(batch_size=2, key=key, shuffle="always"), "shuffle", "'always'")

    def by_formula(which=None, **more):
        return lambda: dyn.exact.descent(which or problem(), begin, RATES, 4, **{"batch_size": 2, **more})

    refused(by_formula(batch_size=6), "batch_size", "5", "6")
    refused(by_formula(shuffle="never"), "shuffle", "'never'")
    refused(by_formula(scaled=True), "scaled")
    refused(by_formula(observe={"loss": dyn.observables.loss}), "observe")
    for call, words in (
        (by_formula(shuffle="epoch"), "eta^2"),
        (by_formula(momentum=0.5), "momentum"),
        (by_formula(problem(feature_kernel=np.eye(4))), "feature kernel"),
        (by_formula(spherical), "linear"),
        (by_formula(problem(loss=CrossEntropy())), "CrossEntropy"),
    ):
        refused(call, words)
        with pytest.raises(dyn.NoClosedForm):
            call()


def test_a_bad_member_has_no_moments():
    scale = jnp.array([1.0, jnp.nan])
    begin = start(problem(), 4)

    def one(factor):
        return exact(problem(), dyn.Peeled(factor * begin.features, begin.prototypes), 2, batch_size=2)

    moved = jax.vmap(one)(scale)
    assert moved.status.tolist() == [0, 1]
    np.testing.assert_array_equal(np.isfinite(moved.second_moment).all(axis=(1, 2, 3)), [True, False])


def test_unsorted_labels():
    unsorted = dyn.LayerPeeled(UNSORTED, num_classes=3)
    moved = exact(unsorted, start(unsorted, 2), 2, batch_size=8)
    z = np.concatenate([moved.states.features, moved.states.prototypes], axis=1)
    np.testing.assert_allclose(moved.second_moment, z @ z.swapaxes(1, 2), rtol=1e-12, atol=1e-14)
