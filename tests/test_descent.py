"""Descent against plain loops, optax by hand, and the flow it tends to."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import dynamics as dyn
from dynamics.schedules import Cosine, Piecewise
from dynamics.verify import measured_order
from tests import cases, oracle_rates, oracles
from tests.cases import Shape, balanced

KERNELS = Shape((2, 0, 1, 0, 1), 2, weighted=True, kernel=True, feature_kernel=True)
CURVED = Shape(balanced(3, 2), 2)


def curved(x, loss="cross_entropy", **fields):
    """A problem without closed form: the library's and the oracle's."""
    losses = {"cross_entropy": dyn.losses.CrossEntropy(), "squared_error": dyn.losses.SquaredError()}
    labels, decay = np.asarray(CURVED.labels), x["decay"]
    problem = dyn.LayerPeeled(
        labels, num_classes=CURVED.classes, loss=losses[loss], decay=dyn.Decay(*decay), bias=True, **fields
    )
    return problem, oracles.Plain(labels, loss, decay=decay, bias=True, **fields)


def trail(states, i=None) -> list[oracles.Point]:
    """All states, of member i where there are members."""
    picked = states if i is None else jax.tree.map(lambda part: part[i], states)
    return [cases.at(picked, k) for k in range(len(picked.biases))]


def worst(states: list[oracles.Point], truth: list[oracles.Point]) -> float:
    """The largest relative error of a part at any time."""
    assert len(states) == len(truth)
    pairs = [pair for x, y in zip(states, truth, strict=True) for pair in zip(x, y, strict=True)]
    return oracles.worst(oracles.relative(a, b) for a, b in pairs)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_kernels_and_varying_rates_against_a_loop(nesterov):
    x = cases.numbers(KERNELS, 4, 9, decay=True)
    x["dt"], x["momentum"] = np.array([1.0, 0.5, 0.25, 1.0]), np.array([0.9, 0.5, 0.3, 0.7])
    values, cuts = np.array([0.3, 0.1, 0.5]), np.array([25.0, 60.5])

    @jax.jit
    @jax.vmap
    def moved(x):
        rates = dyn.Rates(Cosine(0.4, 90.0, 0.1), Piecewise(values, cuts))
        run = {"every": 25, "dt": x["dt"], "momentum": x["momentum"], "nesterov": nesterov}
        return dyn.descent(cases.problem(KERNELS, x), cases.start(x), rates, 100, **run)

    moved = moved(x)
    assert np.all(moved.status == dyn.status.OK) and np.all(moved.stats["steps"] == 100)
    assert np.array_equal(moved.ts[0], [0, 25, 50, 75, 100])
    for i in range(4):
        one = cases.member(x, i)
        eta1, eta2 = oracle_rates.cosine(0.4, 90.0, 0.1), oracle_rates.piecewise(values, cuts)
        options = one["dt"], one["momentum"], nesterov
        truth = oracles.loop(cases.plain(KERNELS, one), cases.point(one), eta1, eta2, 100, 25, *options)
        assert worst(trail(moved.states, i), truth) <= 1e-13


def optax_by_hand(optimizer, plain, start: oracles.Point, eta1: float, eta2, steps: int, every: int):
    """An optimiser of unit rate stepped by hand, its update times the rates of each part."""
    x, states = start, [start]
    update, memory = jax.jit(optimizer.update), optimizer.init(start)
    for k in range(steps):
        gradient = oracles.Point(*(-part for part in plain.force(x)))
        change, memory = update(gradient, memory, x)
        change = plain.pace(oracles.Point(*map(np.asarray, change)), x, eta1, eta2(k, k))
        x = oracles.Point(*(a + b for a, b in zip(x, change, strict=True)))
        if (k + 1) % every == 0:
            states.append(x)
    return states


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd-nesterov"])
def test_optax_optimisers(name):
    optimizer = {
        "adam": optax.adam(1.0, b1=0.8, b2=0.95),
        "adamw": optax.adamw(1.0, weight_decay=0.1),
        "sgd-nesterov": optax.sgd(1.0, momentum=0.7, nesterov=True),
    }[name]
    x = cases.member(cases.numbers(CURVED, 1, 10, decay=True), 0)
    problem, plain = curved(x)
    rates = dyn.Rates(0.05, Cosine(0.1, 50.0))
    moved = jax.jit(lambda start: dyn.descent(problem, start, rates, 60, every=20, optimizer=optimizer))(cases.start(x))
    truth = optax_by_hand(optimizer, plain, cases.point(x), 0.05, oracle_rates.cosine(0.1, 50.0), 60, 20)
    assert worst(trail(moved.states), truth) <= 1e-12
    if name == "sgd-nesterov":
        run = {"every": 20, "momentum": 0.7, "nesterov": True}
        own = jax.jit(lambda start: dyn.descent(problem, start, rates, 60, **run))(cases.start(x))
        assert worst(trail(own.states), truth) <= 1e-13


@pytest.mark.parametrize(("loss", "rescaled"), [("cross_entropy", True), ("squared_error", False)])
def test_normalised_features_against_a_loop(loss, rescaled):
    x = cases.member(cases.numbers(CURVED, 1, 11, decay=True), 0)
    x["decay"][0] = 0.0  # features that decay towards zero turn ever faster: such a run is chaotic
    problem, plain = curved(x, loss, normalize=True)
    rates = dyn.Rates(0.4, 0.2, rescaled=rescaled)
    run = jax.jit(lambda start: dyn.descent(problem, start, rates, 200, every=50, momentum=0.5))
    moved = run(cases.start(x))
    plain = dataclasses.replace(plain, rescaled=rescaled)
    eta1, eta2 = oracle_rates.constant(0.4), oracle_rates.constant(0.2)
    truth = oracles.loop(plain, cases.point(x), eta1, eta2, 200, 50, momentum=0.5)
    assert worst(trail(moved.states), truth) <= 1e-12


def test_first_order_towards_the_flow():
    x = cases.member(cases.numbers(CURVED, 1, 12, decay=True), 0)
    problem, plain = curved(x)
    horizon, counts = 6.0, np.array([128, 256, 512, 1024])
    eta1, eta2 = oracle_rates.cosine(0.9, horizon), oracle_rates.exponential(0.6, 0.2)
    rates = dyn.Rates(Cosine(0.9, horizon), dyn.schedules.Exponential(0.6, 0.2))
    # one program: every step size runs the longest count and is read at its own
    run = jax.jit(jax.vmap(lambda dt: dyn.descent(problem, cases.start(x), rates, 1024, every=128, dt=dt).states))
    states = run(horizon / counts)
    (flow,) = oracles.dop853(plain, cases.point(x), eta1, eta2, [horizon])
    errors = [oracles.relative(cases.at(states, i, count // 128), flow) for i, count in enumerate(counts)]
    orders = np.diff(np.log(errors)) / -np.log(2)
    assert np.all(np.abs(orders - 1) <= 0.05)
    assert abs(measured_order(horizon / counts, errors) - 1) <= 0.05


def test_observables_are_those_of_the_snapshots():
    x = cases.member(cases.numbers(CURVED, 1, 13, decay=True), 0)
    problem, plain = curved(x)
    watch = {"objective": lambda problem, state: problem.objective(state), "biases": lambda problem, state: state.biases}
    run = jax.jit(lambda start: dyn.descent(problem, start, dyn.Rates.equal(0.3), 30, every=10, observe=watch))
    moved = run(cases.start(x))
    truth = oracles.loop(plain, cases.point(x), oracle_rates.constant(0.3), oracle_rates.constant(0.3), 30, 10)
    assert moved.states is None and set(moved.observed) == set(watch)
    np.testing.assert_allclose(moved.observed["objective"], [plain.objective(p) for p in truth], rtol=1e-13)
    np.testing.assert_allclose(moved.observed["biases"], [p.biases for p in truth], rtol=1e-13)


def test_single_precision_stays_and_a_run_of_no_steps_returns_the_start():
    x = cases.member(cases.numbers(CURVED, 1, 14, decay=True), 0)
    problem, plain = curved(x)
    start = jax.tree.map(lambda part: part.astype(np.float32), cases.start(x))
    rates = dyn.Rates.equal(Cosine(0.3, 40.0))
    run = jax.jit(lambda start: dyn.descent(problem, start, rates, 40, every=20, dt=0.5, momentum=0.5))
    moved = run(start)
    eta = oracle_rates.cosine(0.3, 40.0)
    truth = oracles.loop(plain, cases.point(x), eta, eta, 40, 20, 0.5, 0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(moved.states)} == {np.dtype("float32")}
    assert worst(trail(moved.states), truth) <= 1e-5
    still = jax.jit(lambda start: dyn.descent(problem, start, rates, 0))(start)
    assert np.array_equal(still.ts, [0]) and int(still.stats["steps"]) == 0 and int(still.status) == dyn.status.OK
    assert all(np.array_equal(a[0], b) for a, b in zip(jax.tree.leaves(still.states), jax.tree.leaves(start), strict=True))


def test_members_end_by_themselves():
    x = cases.numbers(CURVED, 6, 15, decay=False)
    x["gamma"][:] = 0.4
    x["rates"][:] = 0.05
    x["momentum"] = np.full(6, 0.5)

    @jax.jit
    @jax.vmap
    def run(x):
        rates = dyn.Rates(x["rates"][0], x["rates"][1])
        options = {"every": 50, "momentum": x["momentum"], "norm_cap": 1e6}
        return dyn.descent(cases.problem(CURVED, x), cases.start(x), rates, 100, **options)

    good = run(x)
    bad = {name: values.copy() for name, values in x.items()}
    bad["features"][1, 0, 0] = np.nan
    bad["rates"][2] = 50.0
    bad["rates"][3] = 1e200
    bad["rates"][4] = -0.1
    bad["momentum"][5] = 1.0
    mixed = run(bad)
    names = [dyn.status.name(code) for code in mixed.status]
    assert names == ["ok", "bad_input", "norm_cap", "norm_cap", "bad_input", "bad_input"], names
    assert np.all(np.isnan(np.asarray(mixed.states.features[1:, -1])))
    assert mixed.stats["steps"][2] < 100
    for a, b in zip(jax.tree.leaves(good.states), jax.tree.leaves(mixed.states), strict=True):
        assert np.array_equal(a[0], b[0])
