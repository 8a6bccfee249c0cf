"""The contract of every loss: value, gradient, coupling; cross-entropy right far past where the plain form freezes."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from dynamics.losses import CrossEntropy, Linear, Loss, SquaredError, SymmetricCoupling, Unhinged
from tests.helpers import draw, refused

CLASSES, SAMPLES = 3, 7
LABELS = np.array([2, 0, 1, 1, 2, 0, 1])
LOGITS = 2 * draw(SAMPLES, CLASSES)


class Row(NamedTuple):
    """A loss as it is built from one array of numbers, and its value in NumPy; `by_sample`: its label is a row of its own."""

    build: Callable[[jax.Array], Loss]
    numbers: np.ndarray
    value: Callable[[np.ndarray, int, np.ndarray], float]
    linear: bool
    by_sample: bool = False


def unhinged(z, y, gamma):
    return -z[y] + gamma * sum(z[j] for j in range(len(z)) if j != y)


TABLE = {
    "unhinged": Row(Unhinged, np.array(0.3), unhinged, True),
    "unhinged, gamma 0": Row(Unhinged, np.array(0.0), unhinged, True),
    "balanced unhinged": Row(lambda _: Unhinged(), np.array(0.5), unhinged, True),
    "linear by label": Row(Linear, draw(CLASSES, CLASSES), lambda z, y, a: -a[y] @ z, True),
    "linear by sample": Row(Linear, draw(SAMPLES, CLASSES), lambda z, y, a: -a[y] @ z, True, by_sample=True),
    "linear, symmetric": Row(
        lambda x: Linear(SymmetricCoupling(x[0], x[1], x[0] - CLASSES * x[1])),
        np.array([1.4, 0.3]),
        lambda z, y, x: -x[0] * z[y] + x[1] * z.sum(),
        True,
    ),
    "cross-entropy": Row(lambda _: CrossEntropy(), np.array(0.0), lambda z, y, _: math.log(sum(np.exp(z - z[y]))), False),
    "squared error": Row(
        lambda _: SquaredError(), np.array(0.0), lambda z, y, _: ((z - np.eye(CLASSES)[y]) ** 2).sum() / 2, False
    ),
}
ROWS = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)


def rows_of(row: Row) -> np.ndarray:
    """What a loss is told of each sample: its label, or its own number."""
    return np.arange(SAMPLES) if row.by_sample else LABELS


@ROWS
def test_value_and_gradient(row):
    def losses(logits, numbers):
        return jax.vmap(row.build(numbers))(logits, rows_of(row))

    values, (by_logits, by_numbers) = jax.jit(
        lambda z, x: (losses(z, x), jax.grad(lambda *both: jnp.sum(losses(*both)), (0, 1))(z, x))
    )(LOGITS, row.numbers)

    def total(logits, numbers):
        return np.array([row.value(z, y, numbers) for z, y in zip(logits, rows_of(row), strict=True)])

    np.testing.assert_allclose(values, total(LOGITS, row.numbers), rtol=1e-14)
    h = 1e-6
    for auto, x, slope in (
        (by_logits, LOGITS, lambda step: total(LOGITS + step, row.numbers) - total(LOGITS - step, row.numbers)),
        (by_numbers, row.numbers, lambda step: total(LOGITS, row.numbers + step) - total(LOGITS, row.numbers - step)),
    ):
        if auto is by_numbers and not jnp.any(auto):
            continue  # no numbers of its own
        steps = h * np.eye(x.size).reshape(-1, *x.shape)
        central = np.array([slope(step).sum() for step in steps]).reshape(x.shape) / (2 * h)
        np.testing.assert_allclose(auto, central, rtol=1e-8, atol=1e-8)


@ROWS
def test_coupling_is_the_loss(row):
    coupling = row.build(jnp.asarray(row.numbers)).coupling(CLASSES)
    if not row.linear:
        assert coupling is None
        return
    if isinstance(coupling, SymmetricCoupling):
        matrix = coupling.diagonal * np.eye(CLASSES) - coupling.common
        np.testing.assert_allclose(matrix @ np.ones(CLASSES), coupling.drift * np.ones(CLASSES), atol=1e-15)
        coupling = matrix
    expected = [row.value(z, y, row.numbers) for z, y in zip(LOGITS, rows_of(row), strict=True)]
    np.testing.assert_allclose(-np.sum(np.asarray(coupling)[rows_of(row)] * LOGITS, axis=1), expected, rtol=1e-14)


@ROWS
def test_float32_stays_float32_and_valid_sees_bad_numbers(row):
    loss = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), row.build(jnp.asarray(row.numbers)))
    value = jax.jit(jax.vmap(loss))(LOGITS.astype(np.float32), rows_of(row))
    assert value.dtype == jnp.float32
    assert loss.valid()
    leaves, tree = jax.tree.flatten(loss)
    for i, leaf in enumerate(leaves):
        for bad in (np.nan, np.inf):
            assert not jax.tree.unflatten(tree, [*leaves[:i], leaf.at[(0,) * leaf.ndim].set(bad), *leaves[i + 1 :]]).valid()


def test_balanced_gamma_is_exact():
    for classes in (2, 3, 7, 100):
        coupling = Unhinged().coupling(classes)
        assert float(coupling.drift) == 0.0
        assert float(coupling.common) == 1 / (classes - 1)
    assert abs(float(Unhinged(1 / 6).coupling(7).drift)) < 1e-15


def test_gamma_may_be_traced_and_batched():
    valid = jax.vmap(lambda gamma: Unhinged(gamma).valid())(jnp.array([0.0, 0.5, -0.1, jnp.nan, jnp.inf]))
    np.testing.assert_array_equal(valid, [True, True, False, False, False])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_far_from_the_boundary(dtype):
    """Loss and every gradient, relative to 60 digits, for right and wrong decisions by the given margins."""
    margins = (30.0, 80.0) if dtype == np.float32 else (40.0, 100.0, 500.0)
    z = np.array([[m * sign, 0.75, -0.5] for m in (0.0, *margins) for sign in (1, -1)], dtype)
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(CrossEntropy()), (0, None)))(z, 0)
    assert value.dtype == gradient.dtype == dtype
    with mpmath.workdps(300):
        for row, loss, slopes in zip(z, value, gradient, strict=True):
            powers = [mpmath.exp(mpmath.mpf(float(x)) - mpmath.mpf(float(row[0]))) for x in row]
            others = powers[1] + powers[2]
            expected = [mpmath.log1p(others), -others / (1 + others), *(p / (1 + others) for p in powers[1:])]
            got = [float(loss), *map(float, slopes)]
            for a, b in zip(got, expected, strict=True):
                assert abs(mpmath.mpf(a) / b - 1) < 4 * np.finfo(dtype).eps * max(1.0, abs(float(row[0])))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("samples", "classes"), [(1, 2), (7, 1), (20, 4), (600, 4), (40, 100)])
def test_mean_cross_entropy(samples, classes, dtype):
    """Of many samples, right and wrong by margins up to hundreds: value and every slope relative to 60 digits."""
    rng = np.random.default_rng(samples)
    labels = rng.integers(classes, size=samples)
    sizes = 10.0 ** rng.uniform(-3, 1.5 if dtype == np.float32 else 2.2, size=(samples, 1))
    z = (sizes * rng.normal(size=(samples, classes))).astype(dtype)
    z[::2] = np.where(np.arange(classes) == labels[::2, None], np.abs(z[::2]), -np.abs(z[::2]))
    value, gradient = jax.jit(jax.value_and_grad(CrossEntropy().mean))(z, labels)
    assert value.dtype == gradient.dtype == dtype
    with mpmath.workdps(60):
        total, slopes = mpmath.mpf(0), np.zeros((samples, classes))
        for n, (row, label) in enumerate(zip(z, labels, strict=True)):
            powers = [mpmath.exp(mpmath.mpf(float(x)) - mpmath.mpf(float(row[label]))) for x in row]
            others = sum((p for j, p in enumerate(powers) if j != label), mpmath.mpf(0))
            total += mpmath.log1p(others)
            slopes[n] = [float((-others if j == label else p) / (1 + others) / samples) for j, p in enumerate(powers)]
        expected = float(total / samples)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(float(value), expected, rtol=4 * eps * max(1.0, np.abs(z).max()), atol=0)
    seen = np.abs(slopes) > 100 * float(np.finfo(dtype).tiny)  # what is smaller is flushed to zero
    apart = np.abs(np.asarray(gradient, float) / np.where(seen, slopes, 1.0) - 1)[seen]
    assert apart.size == 0 or apart.max() <= 20 * eps * max(1.0, np.abs(z).max())


def test_mean_cross_entropy_of_enormous_losses():
    """All samples wrong by more than a product of their odds could hold."""
    z = np.full((500, 3), 400.0)
    z[:, 0] = -300.0
    for loss in (CrossEntropy().mean, jax.vmap(CrossEntropy())):
        np.testing.assert_allclose(jax.jit(loss)(z, np.zeros(500, int)), 700 + np.log(2), rtol=1e-15)


def test_refusals():
    for bad, shown in ((-0.1, "-0.1"), (np.nan, "nan"), (np.inf, "inf")):
        refused(lambda bad=bad: Unhinged(bad), "gamma of Unhinged", shown)
    refused(lambda: Linear(np.ones(3)), "coupling of Linear", "(classes, classes)", "(3,)")
    refused(lambda: Linear(np.array([[1.0, np.nan]])), "coupling of Linear", "finite", "nan")
