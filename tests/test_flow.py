"""The integrated flow: against the formula on a thousand starts, against an ODE solver, and how members end."""

import diffrax
import jax
import numpy as np
import pytest

import dynamics as dyn
from dynamics.schedules import Cosine, Piecewise, Polynomial
from tests import cases, oracle_rates, oracles
from tests.cases import Shape, balanced

BALANCED = Shape(balanced(3, 2), 2)
KERNELS = Shape((2, 0, 1, 0, 1), 2, weighted=True, kernel=True, feature_kernel=True)
TS = np.array([0.0, 1.0, 2.5, 6.0])


def errors(states, truth) -> np.ndarray:
    """Relative errors of batches of states, (members, times), over the norm of the whole state."""
    parts = list(zip(jax.tree.leaves(states), jax.tree.leaves(truth), strict=True))
    axes = [tuple(range(2, np.ndim(a))) for a, _ in parts]
    distance = sum(np.sum((np.asarray(a) - np.asarray(b)) ** 2, axis=axis) for (a, b), axis in zip(parts, axes, strict=True))
    size = sum(np.sum(np.asarray(b) ** 2, axis=axis) for (_, b), axis in zip(parts, axes, strict=True))
    return np.sqrt(distance / size)


@pytest.mark.slow
def test_a_thousand_members_against_the_formula():
    members = 1024
    x = cases.numbers(BALANCED, members, 20, decay=True)
    x["decay"][::2] = 0.0

    @jax.jit
    @jax.vmap
    def both(x):
        # a quarter of the members: not constant from 4 on, a kink that is also past a time to save
        schedule = Cosine(x["rates"][1], 4.0, 0.3 * x["rates"][1])
        rates = dyn.Rates.proportional(schedule, x["rates"][0])
        problem, start = cases.problem(BALANCED, x), cases.start(x)
        moved = dyn.flow(problem, start, rates, TS, rtol=1e-10, atol=1e-10)
        return moved, dyn.exact.flow(problem, start, rates, TS)

    moved, exact = both(x)
    assert np.all(moved.status == dyn.status.OK) and np.all(exact.status == dyn.status.OK)
    assert errors(moved.states, exact.states).max() <= 1e-7
    assert np.unique(moved.stats["steps"]).size > 5  # every member keeps its own steps
    # and the formula is right: some of them by an ODE solver
    for i in range(0, members, 300):
        one = cases.member(x, i)
        rate, ratio = one["rates"][1], one["rates"][0]
        eta1, eta2 = (oracle_rates.cosine(c * rate, 4.0, 0.3 * c * rate) for c in (ratio, 1.0))
        truth = oracles.dop853(cases.plain(BALANCED, one), cases.point(one), eta1, eta2, TS, [4.0])
        assert oracles.worst(oracles.relative(cases.at(moved.states, i, k), point) for k, point in enumerate(truth)) <= 1e-8


def test_jumps_kernels_and_how_members_end():
    x = cases.numbers(KERNELS, 7, 21, decay=True)
    x["rates"][:] = [0.8, 0.5]
    x["cuts"] = np.tile([1.0, 3.3], (7, 1))

    def rates_of(x):
        return dyn.Rates(Piecewise(x["rates"][0] * np.array([1.0, 0.1, 2.0]), x["cuts"]), Polynomial(x["rates"][1], 5.0))

    @jax.jit
    @jax.vmap
    def run(x):
        options = {"max_steps": 200, "norm_cap": 1e5}
        return dyn.flow(cases.problem(KERNELS, x), cases.start(x), rates_of(x), TS, **options)

    good = run(x)
    assert np.all(good.status == dyn.status.OK)
    for i in range(7):
        one = cases.member(x, i)
        eta1 = oracle_rates.piecewise(0.8 * np.array([1.0, 0.1, 2.0]), one["cuts"])
        eta2 = oracle_rates.polynomial(0.5, 5.0, 1.0)
        truth = oracles.dop853(cases.plain(KERNELS, one), cases.point(one), eta1, eta2, TS, [1.0, 3.3, 5.0])
        error = oracles.worst(oracles.relative(cases.at(good.states, i, k), point) for k, point in enumerate(truth))
        assert error <= 1e-7

    bad = {name: values.copy() for name, values in x.items()}
    bad["features"][1, 0, 0] = np.nan
    bad["rates"][2] = [80.0, 50.0]  # grows past the cap
    bad["decay"][3] = 1e6  # stiff
    bad["rates"][4, 0] = np.inf
    bad["cuts"][5] = [3.3, 1.0]
    bad["features"][6] = 1e308  # finite, its norm is not
    mixed = run(bad)
    names = [dyn.status.name(code) for code in mixed.status]
    assert names == ["ok", "bad_input", "norm_cap", "max_steps", "bad_input", "bad_input", "norm_cap"]
    for a, b in zip(jax.tree.leaves(good.states), jax.tree.leaves(mixed.states), strict=True):
        assert np.array_equal(a[0], b[0])
    stopped = np.asarray(mixed.stats["t_end"])
    assert 0 < stopped[2] < 6 and 0 < stopped[3] < 6
    blank = np.isnan(np.asarray(mixed.states.biases)).all(axis=-1)
    assert np.array_equal(blank[1:], np.where(np.asarray(mixed.status[1:, None]) == 1, True, stopped[1:, None] < TS))


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_losses_without_closed_form_against_an_ode_solver(loss):
    x = cases.member(cases.numbers(BALANCED, 1, 22, decay=True), 0)
    spherical = loss == "squared_error"
    labels, decay = np.array([0, 2, 1, 0, 1, 2]), x["decay"]
    weights = np.array([0.5, 1.5, 1.0, 0.7, 1.3, 1.0])
    problem = dyn.LayerPeeled(
        labels,
        num_classes=3,
        loss=dyn.losses.SquaredError() if spherical else dyn.losses.CrossEntropy(),
        decay=dyn.Decay(*decay),
        bias=True,
        normalize=spherical,
        sample_weights=weights,
    )
    plain = oracles.Plain(labels, loss, weights=weights, decay=decay, bias=True, normalize=spherical, rescaled=spherical)
    rates = dyn.Rates(Cosine(1.2, 5.0), 0.7, rescaled=spherical)
    watch = {name: lambda problem, state, name=name: getattr(state, name) for name in oracles.Point._fields}
    watch["objective"] = lambda problem, state: problem.objective(state)
    moved = jax.jit(lambda start: dyn.flow(problem, start, rates, TS, observe=watch))(cases.start(x))
    assert int(moved.status) == dyn.status.OK and moved.states is None
    truth = oracles.dop853(plain, cases.point(x), oracle_rates.cosine(1.2, 5.0), oracle_rates.constant(0.7), TS, [5.0])
    states = dyn.Peeled(*(moved.observed[name] for name in oracles.Point._fields))
    error = oracles.worst(oracles.relative(cases.at(states, k), point) for k, point in enumerate(truth))
    assert error <= 1e-7
    np.testing.assert_allclose(moved.observed["objective"], [plain.objective(point) for point in truth], rtol=1e-7)


def test_single_precision_another_solver_and_a_run_of_no_length():
    x = cases.member(cases.numbers(BALANCED, 1, 23, decay=True), 0)
    x["rates"] = np.array([0.8, 0.5])
    start = jax.tree.map(lambda part: part.astype(np.float32), cases.start(x))
    solver = diffrax.Bosh3()

    @jax.jit
    def run(ts):
        problem = cases.problem(BALANCED, x)
        return dyn.flow(problem, start, dyn.Rates(0.8, 0.5), ts, solver=solver)

    moved, still = run(np.array([6.0])), run(np.array([0.0]))
    assert {leaf.dtype for leaf in jax.tree.leaves(moved.states)} == {np.dtype("float32")}
    (truth,) = oracles.dense_flow(cases.plain(BALANCED, x), cases.point(x), [(4.8, 3.0)])
    assert oracles.relative(cases.at(moved.states, 0), truth) <= 1e-4
    assert int(still.status) == dyn.status.OK and int(still.stats["steps"]) == 0
    assert all(np.array_equal(a[0], b) for a, b in zip(jax.tree.leaves(still.states), jax.tree.leaves(start), strict=True))
