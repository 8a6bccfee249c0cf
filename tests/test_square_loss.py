"""The exact flow of the square loss from balanced starts: against SciPy, its limits, refusals and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import dynamics as dyn
from dynamics.initial import balanced
from dynamics.losses import SquaredError
from tests.helpers import UNSORTED, refused

TS = np.array([0.0, 3.0, 10.0, 40.0])


def problem(labels=UNSORTED, classes=3, **fields) -> dyn.LayerPeeled:
    return dyn.LayerPeeled(labels, num_classes=classes, loss=SquaredError(), **fields)


def gram(states) -> np.ndarray:
    rows = np.concatenate([states.prototypes, states.features], axis=-2).astype(float)
    return rows @ rows.swapaxes(-1, -2)


def integrated(which: dyn.LayerPeeled, state, ratio: float, ts) -> np.ndarray:
    """Prototypes over features by DOP853, from the gradient written out."""
    classes, dim = state.prototypes.shape
    targets = np.eye(classes)[which.labels]
    samples = len(targets)

    def velocity(_, flat):
        w, h = np.split(flat.reshape(-1, dim), [classes])
        residual = targets - h @ w.T
        residual -= residual.mean(axis=0) if which.bias == "slaved" else 0.0
        dw = residual.T @ h / samples - float(which.decay.prototypes) * w
        dh = residual @ w / samples - float(which.decay.features) * h
        return np.concatenate([dw, ratio * dh]).ravel()

    start = np.concatenate([state.prototypes, state.features]).astype(float).ravel()
    path = solve_ivp(velocity, (0, ts[-1]), start, method="DOP853", rtol=1e-12, atol=1e-14, t_eval=ts).y.T
    return path.reshape(len(ts), -1, dim)


@pytest.mark.parametrize(
    ("dim", "imbalance", "decay", "bias", "ratio"),
    [
        (5, -0.5, 0.0, False, 3.0),
        (2, 0.7, 0.0, "slaved", 0.4),
        (4, 0.0, 0.02, "slaved", 2.0),
    ],
)
def test_against_scipy(key, dim, imbalance, decay, bias, ratio):
    which = problem(decay=dyn.Decay(decay / ratio, decay), bias=bias)
    state = balanced(which, dim=dim, key=key, scale=0.3, imbalance=imbalance, ratio=ratio)
    rates = dyn.Rates.proportional(1.0, ratio)

    moved = jax.jit(lambda state: dyn.exact.flow(which, state, rates, TS))(state)
    rows = integrated(which, state, ratio, TS)
    assert int(moved.status) == 0 and moved.determined == "rotation"
    np.testing.assert_allclose(gram(moved.states), rows @ rows.swapaxes(1, 2), atol=1e-10)
    if imbalance == 0:
        turns = jax.jit(lambda state: dyn.exact.rotation(which, state, rates, TS))(state)
        representative = np.concatenate([moved.states.prototypes, moved.states.features], axis=1)
        np.testing.assert_allclose(representative @ np.asarray(turns), rows, atol=1e-10)
    if bias == "slaved":
        shares = np.bincount(UNSORTED) / UNSORTED.size
        np.testing.assert_allclose(moved.states.biases, np.tile(shares, (TS.size, 1)), atol=1e-14)


def test_two_classes_one_dimension_any_start():
    which = problem([0, 1, 1], 2)
    state = dyn.Peeled([[0.3], [-0.2], [0.1]], [[0.5], [-0.4]])
    ts = np.array([1.0, 7.0])
    moved = jax.jit(lambda state: dyn.exact.flow(which, state, dyn.Rates(0.5, 1.0), ts))(state)
    rows = integrated(which, state, 0.5, ts)
    np.testing.assert_allclose(gram(moved.states), rows @ rows.swapaxes(1, 2), atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_extreme_times(key, dtype):
    """Clock 1000 over the fastest rate, dim > classes: targets fitted, both sides sqrt(n), nothing left within classes."""
    which = dyn.LayerPeeled.balanced(3, 4, loss=SquaredError())
    state = balanced(which, dim=5, key=key, scale=0.02, dtype=dtype)
    ts = np.array([300.0, 6000.0])
    moved = jax.jit(lambda state: dyn.exact.flow(which, state, dyn.Rates.equal(1.0), ts))(state)
    assert moved.states.features.dtype == dtype and int(moved.status) == 0
    block = np.kron(np.eye(3), np.ones((4, 4))) / 2
    wanted = np.block([[2 * np.eye(3), np.kron(np.eye(3), np.ones((1, 4)))], [np.kron(np.eye(3), np.ones((4, 1))), block]])
    np.testing.assert_allclose(gram(moved.states), np.stack([wanted] * 2), atol=1e-12 if dtype == np.float64 else 3e-6)


def test_gradient_along_balanced_starts(key):
    """In the rate ratio and a parameter of the start, W~ and H~ held; central differences."""
    which = problem()
    base = balanced(which, dim=4, key=key, scale=0.3, imbalance=-0.3)

    def value(x):
        ratio, size = x
        state = dyn.Peeled(jnp.sqrt(ratio) * size * base.features, size * base.prototypes)
        moved = dyn.exact.flow(which, state, dyn.Rates.proportional(1.0, ratio), TS, observe={"loss": dyn.observables.loss})
        return jnp.sum(moved.observed["loss"])

    step = 1e-5 * np.eye(2)
    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(value)))(
        np.array([1.7, 1.0]) + np.stack([0 * step[0], *step, *-step])
    )
    np.testing.assert_allclose(gradients[0], (values[1:3] - values[3:]) / 2e-5, rtol=1e-7, atol=1e-8)


def test_removable_singularities_have_derivatives(key):
    """Equal singular values, delta = 0, no decay, t = 0, more dimensions than samples: everything degenerate at once."""
    which = dyn.LayerPeeled.balanced(2, 2, loss=SquaredError(), bias="slaved")

    def value(ratio, delta, decay):
        lead = dyn.LayerPeeled.balanced(2, 2, loss=SquaredError(), bias="slaved", decay=dyn.Decay(decay / ratio, decay))
        state = balanced(which, dim=1, key=key, imbalance=delta, ratio=ratio)
        moved = dyn.exact.flow(lead, state, dyn.Rates.proportional(1.0, ratio), np.array([0.0, 2.0]))
        return jnp.sum(moved.states.features**2) + jnp.sum(moved.states.prototypes**2)

    gradient = jax.jit(jax.grad(value, argnums=(0, 2)))(1.0, 0.0, 0.0)
    assert np.all(np.isfinite(gradient))


def test_an_unbalanced_member_leaves_its_neighbours_alone(key):
    which = problem()
    state = balanced(which, dim=3, key=key, scale=0.5)

    def one(off):
        moved = dyn.exact.flow(which, dyn.Peeled(state.features.at[0, 0].add(off), state.prototypes), dyn.Rates.equal(1.0), TS)
        return moved.states.features, moved.status

    run = jax.jit(jax.vmap(one))
    good, (moved, codes) = run(jnp.zeros(3))[0], run(jnp.array([0.0, 1e-3, jnp.nan]))
    assert codes.tolist() == [0, 6, 1]
    np.testing.assert_array_equal(moved[0], good[0])
    assert np.all(np.isnan(moved[1:]))


def test_refusals(key):
    state = balanced(problem(), dim=3, key=key, scale=0.5)
    equal = dyn.Rates.equal(1.0)

    def exact(which=None, start=state, rates=equal, ts=(0.0, 1.0)):
        return lambda: dyn.exact.flow(which or problem(), start, rates, ts)

    off = dyn.Peeled(1.1 * state.features, state.prototypes)
    size = np.sum(np.square(off.features)) + np.sum(np.square(off.prototypes))
    gap = np.asarray(off.prototypes.T @ off.prototypes - off.features.T @ off.features)
    by = np.linalg.norm(gap - np.trace(gap) / 3 * np.eye(3)) / size
    heavy = balanced(problem(), dim=3, key=key, imbalance=0.5)
    shifted = dyn.Peeled(state.features + 1.0, state.prototypes)
    for call, *words in (
        (exact(start=off), "unbalanced", f"{by:.1e}", "dynamics.flow", "initial.balanced"),
        (exact(problem(decay=dyn.Decay(0.1, 0.1)), heavy), "with decay", "0.5"),
        (exact(problem(decay=dyn.Decay(0.1, 0.2))), "rate times decay", "0.1", "0.2"),
        (exact(start=dyn.Peeled(state.features, state.prototypes, np.ones(3))), "biases that stay", "slaved"),
        (exact(problem(bias="slaved"), shifted), "mean of the features"),
        (exact(problem(bias="slaved", decay=dyn.Decay(biases=0.1))), "slaved biases must not decay", "0.1"),
        (exact(rates=dyn.Rates(0.0, 1.0)), "both layers must move"),
        (exact(ts=(0.0, 1e6)), "fastest growth rate"),
        (exact(problem(bias=True)), "bias='slaved'"),
        (exact(problem(sample_weights=np.ones(8))), "weighted"),
        (exact(problem(kernel=np.eye(8))), "kernel"),
        (exact(rates=dyn.Rates(1.0, dyn.schedules.Cosine(1.0, 5.0))), "no constant ratio"),
        (lambda: dyn.exact.descent(problem(), state, equal, 2), "dynamics.descent"),
        (lambda: dyn.exact.limit(problem(), state, equal), "exact.flow at a late time"),
        (lambda: dyn.exact.max_step(problem(), equal), "kernel_spectrum"),
        (lambda: dyn.exact.rotation(dyn.LayerPeeled.balanced(3, 2), state, equal, [1.0]), "Unhinged"),
    ):
        refused(call, *words)
        with pytest.raises(dyn.NoClosedForm):
            call()


@pytest.mark.parametrize(
    ("dim", "imbalance", "bias"), [(2, 0.7, False), (3, -0.7, "slaved"), (7, -0.2, "slaved"), (12, 0.0, False)]
)
def test_balanced_starts(key, dim, imbalance, bias):
    which = problem(bias=bias)
    state = balanced(which, dim=dim, key=key, scale=0.4, imbalance=imbalance, ratio=2.5)
    gap = state.prototypes.T @ state.prototypes - state.features.T @ state.features / 2.5
    np.testing.assert_allclose(gap, imbalance * np.eye(dim), atol=2e-15 * (1 + np.sum(np.square(state.features))))
    if bias == "slaved":
        np.testing.assert_allclose(np.mean(state.features, axis=0), 0.0, atol=1e-15)
    means = which.data.class_means(state.features)
    assert np.abs(state.features - which.data.spread(means)).max() > 0.01


def test_infeasible_balance(key):
    refused(lambda: balanced(problem(), dim=4, key=key, imbalance=0.1), "dim <= classes", "3", "4")
    refused(lambda: balanced(problem(), dim=9, key=key, imbalance=-0.1), "dim <= 8", "9")
    refused(lambda: balanced(problem(bias="slaved"), dim=8, key=key, imbalance=-0.1), "dim <= 7", "8")
    refused(lambda: balanced(problem(), dim=4, key=key, ratio=0.0), "ratio", "> 0")
    traced = jax.jit(lambda delta: balanced(problem(), dim=4, key=key, imbalance=delta).features)(0.1)
    assert np.any(np.isnan(traced))
