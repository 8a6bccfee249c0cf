"""Label smoothing and label noise of linear losses: values, structure, motion, what is refused and what becomes a status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.losses import CrossEntropy, Linear, SquaredError, SymmetricCoupling, Unhinged, label_noise, label_smoothing
from tests import oracles
from tests.helpers import UNSORTED, draw, refused, relative, start

CLASSES = 3
LOGITS = 2 * draw(CLASSES)
MATRIX = draw(CLASSES, CLASSES)
LOSSES = {
    "unhinged": Unhinged(0.3),
    "balanced unhinged": Unhinged(),
    "symmetric": Linear(SymmetricCoupling(1.4, 0.3, 0.5)),
    "by label": Linear(MATRIX),
}
OF = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
TRANSFORM = pytest.mark.parametrize("transform", [label_smoothing, label_noise])


def chances(transform, share: float, classes: int) -> np.ndarray:
    """Of each label to be given, one row a true label."""
    other = share / (classes if transform is label_smoothing else classes - 1)
    own = 1 - share + other if transform is label_smoothing else 1 - share
    return np.where(np.eye(classes, dtype=bool), own, other)


@OF
@TRANSFORM
@pytest.mark.parametrize("share", [0.0, 0.1, 2 / 3, 1.0])
def test_value_is_the_mean_over_labels(loss, transform, share):
    of_label = np.array([loss(LOGITS, label) for label in range(CLASSES)])
    mixed = transform(loss, share, CLASSES)
    found = [mixed(LOGITS, label) for label in range(CLASSES)]
    np.testing.assert_allclose(found, chances(transform, share, CLASSES) @ of_label, rtol=0, atol=1e-14)


@TRANSFORM
@pytest.mark.parametrize("name", ["unhinged", "balanced unhinged", "symmetric"])
def test_a_symmetric_coupling_stays_one_and_keeps_its_drift(transform, name):
    before = LOSSES[name].coupling(CLASSES)
    after = transform(LOSSES[name], 0.2, CLASSES).coupling(CLASSES)
    assert isinstance(after, SymmetricCoupling)
    assert after.drift == before.drift
    assert after.diagonal == pytest.approx(before.diagonal * (0.8 if transform is label_smoothing else 0.7), rel=1e-15)
    assert after.diagonal - CLASSES * after.common == pytest.approx(float(after.drift), abs=1e-15)


def test_the_share_may_be_traced_batched_and_differentiated():
    def value(share, transform):
        return transform(Unhinged(0.3), share, CLASSES)(LOGITS, 1)

    of_label = np.array([Unhinged(0.3)(LOGITS, label) for label in range(CLASSES)])
    slope = of_label.mean() - of_label[1]
    shares = np.linspace(0, 1, 4)
    for transform, factor in ((label_smoothing, 1.0), (label_noise, 1.5)):
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(value), (0, None)), static_argnums=1)(shares, transform)
        np.testing.assert_allclose(values, of_label[1] + shares * factor * slope, rtol=1e-13)
        np.testing.assert_allclose(slopes, np.full(4, factor * slope), rtol=1e-13)


def test_float32_stays_float32():
    for loss in LOSSES.values():
        loss = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), loss)
        value = jax.jit(lambda x, loss=loss: label_noise(loss, x, CLASSES)(LOGITS.astype(np.float32), 1))(jnp.float32(0.2))
        assert value.dtype == jnp.float32
        assert abs(value - label_noise(loss, 0.2, CLASSES)(LOGITS, 1)) < 1e-6


def flow(share, begin, loss, labels=UNSORTED, classes=CLASSES):
    problem = dyn.LayerPeeled(
        labels, num_classes=classes, loss=label_noise(loss, share, classes), decay=dyn.Decay(0.05, 0.1, 0.2), bias=True
    )
    return dyn.exact.flow(problem, begin, dyn.Rates(0.7, 0.4), np.array([0.0, 1.5, 7.0]))


@pytest.mark.parametrize(
    ("labels", "classes", "loss"),
    [
        (UNSORTED, 3, Unhinged(0.3)),  # by groups of equal size
        (np.array([0, 1, 1, 0]), 2, Unhinged()),  # balanced, two classes
        (np.array([0, 1, 0]), 2, Linear(MATRIX[:2, :2])),  # by SVD
    ],
    ids=["groups", "two classes", "any coupling"],
)
def test_motion_under_noise(labels, classes, loss):
    """Against the exponential of every entry, up to rates at which the zero-sum modes change sign or only decay."""
    problem = dyn.LayerPeeled(labels, num_classes=classes, loss=loss)
    begin, shares = start(problem, 2), np.array([0.0, 0.35, (classes - 1) / classes, 1.0])
    moved = jax.jit(jax.vmap(lambda share: flow(share, begin, loss, labels, classes)))(shares)
    point = oracles.Point(*map(np.asarray, jax.tree.leaves(begin)))
    rows = np.array([[-loss(np.eye(classes)[j], label) for j in range(classes)] for label in range(classes)])
    for k, share in enumerate(shares):
        noisy = (chances(label_noise, share, classes) @ rows)[labels]
        plain = oracles.Plain(labels, rows=noisy, decay=(0.05, 0.1, 0.2), bias=True)
        expected = oracles.dense_flow(plain, point, [(0.7 * t, 0.4 * t) for t in (0.0, 1.5, 7.0)])
        for i, truth in enumerate(expected):
            assert relative(jax.tree.map(lambda x, k=k, i=i: x[k, i], moved.states), truth) < 1e-13


def test_gradients_in_the_noise_are_finite_and_right():
    """Also where the zero-sum coupling vanishes."""
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3)
    begin, weights = start(problem, 2), draw(2, 3, 2, seed=4)

    def last(share):
        return jnp.sum(flow(share, begin, Unhinged(0.3)).states.prototypes[1:] * weights)

    shares, h = np.array([0.1, 2 / 3, 0.9]), 1e-3
    run = jax.jit(jax.vmap(jax.value_and_grad(last)))
    stencil = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
    values, slopes = run(np.concatenate([shares, *(shares + k * h for k, _ in stencil)]))
    values, expected = np.asarray(values).reshape(5, 3), 0.0
    for (_, weight), row in zip(stencil, values[1:], strict=True):
        expected = expected + weight * row / h
    np.testing.assert_allclose(slopes[:3], expected, rtol=1e-9)


@TRANSFORM
def test_traced_out_of_range_is_the_status_of_its_member_alone(transform):
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3)
    begin = start(problem, 2)

    def one(share):
        noisy = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=transform(Unhinged(), share, 3))
        return dyn.exact.flow(noisy, begin, dyn.Rates.equal(0.5), np.array([2.0]))

    run = jax.jit(jax.vmap(one))
    good, mixed = run(np.full(4, 0.3)), run(np.array([0.3, -0.1, 1.1, np.nan]))
    np.testing.assert_array_equal(mixed.status, [dyn.status.OK] + 3 * [dyn.status.BAD_INPUT])
    np.testing.assert_array_equal(mixed.states.features[0], good.states.features[0])
    assert np.isnan(mixed.states.features[1:]).all()


@TRANSFORM
def test_refusals(transform):
    name, share = transform.__name__, "epsilon" if transform is label_smoothing else "rate"
    for loss in (CrossEntropy(), SquaredError()):
        refused(lambda loss=loss: transform(loss, 0.1, 3), name, "linear in the logits", type(loss).__name__)
    refused(lambda: transform(Linear(draw(8, 3)), 0.1, 3), name, "(3, 3)", "(8, 3)")
    refused(lambda: transform(Linear(MATRIX), 0.1, 4), name, "(4, 4)", "(3, 3)")
    refused(lambda: transform("unhinged", 0.1, 3), name, "unhinged")
    for bad in (-0.1, 1.01, np.nan, np.inf):
        refused(lambda bad=bad: transform(Unhinged(), bad, 3), f"{share} of {name}", str(bad))
    refused(lambda: transform(Unhinged(), np.array([0.1, 0.2]), 3), f"{share} of {name}", "scalar", "vmap")
    for bad in (1, 2.0, True):
        refused(lambda bad=bad: transform(Unhinged(), 0.1, bad), "num_classes")
