"""Checks that runs carry along: on numbers made by hand, on runs that keep them, and on runs that do not."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics import observables as obs
from dynamics.losses import CrossEntropy, Logistic
from dynamics.observables import Monitor
from dynamics.verify import report, watch
from tests.helpers import UNSORTED, compiled, draw, refused, start

TS = np.array([0.0, 1.0, 2.0, 3.0])
TSIT5 = diffrax.Tsit5()
LARGE = Monitor("size", lambda problem, state: problem.log_loss(state), jnp.abs, 2.0)


def trajectory(values, codes=0, t_end=3.0, name="size") -> dyn.Trajectory:
    values = np.asarray(values, float)
    codes = np.asarray(codes, np.int32)
    ts = np.broadcast_to(TS, values.shape[: codes.ndim + 1])
    stats = {"steps": codes, "t_end": np.broadcast_to(np.asarray(t_end, float), codes.shape)}
    return dyn.Trajectory(ts, None, {name: values}, codes, stats)


def test_a_report_names_the_first_violation_of_every_member():
    rows = [[0, -1, 2, 1], [0, -3, 5, 1], [np.nan, 0, 0, 0], [1, 1, np.nan, np.nan], [1, 3, np.nan, np.nan], [np.nan] * 4]
    # how they ended: well; well; well, but one value is none; stopped at 1.5 twice; never begun
    moved = trajectory(rows, [0, 0, 0, 4, 4, 1], [3.0, 3.0, 3.0, 1.5, 1.5, 0.0])
    found = report(moved, [LARGE])["size"]
    np.testing.assert_array_equal(found.held, [True, False, False, True, False, False])
    np.testing.assert_array_equal(found.worst, [2, 5, np.inf, 1, 3, np.inf])
    np.testing.assert_array_equal(found.violated, [0, 2, 1, 0, 1, 1])
    np.testing.assert_array_equal(found.first_time, [np.nan, 1, 0, np.nan, 1, 0])
    np.testing.assert_array_equal(found.first_value, [np.nan, 3, np.nan, np.nan, 3, np.nan])
    np.testing.assert_array_equal(found.residuals, np.abs(rows))
    assert "size: held by 2 of 6" in str(found) and "first violation of member 1: 3.000e+00 at t = 1" in str(found)

    for row, text in zip(rows[:2], ("held by 1 of 1, worst 2.000e+00 (tolerance 2)", "held by 0 of 1"), strict=True):
        one = report(trajectory(row), [LARGE])["size"]
        assert one.held.shape == () and text in str(one)
    grid = report(trajectory(np.reshape(rows[:4], (2, 2, 4)), np.zeros((2, 2)), 3.0), [LARGE])["size"]
    np.testing.assert_array_equal(grid.held, [[True, False], [False, False]])
    # with clocks the entries after the stop are NaN and the run is well; nothing before the first save is nothing held
    assert bool(report(trajectory(rows[3], 0, 1.0), [LARGE])["size"].held)
    nothing = report(trajectory([np.nan] * 4, 4, -1.0), [LARGE])["size"]
    assert not bool(nothing.held) and "nothing to judge" in str(nothing)
    compiled_report = compiled(lambda moved: report(moved, [LARGE])["size"].held)(moved)
    np.testing.assert_array_equal(compiled_report, found.held)


def test_judges_on_numbers_made_by_hand():
    falls = obs.MARGIN_MONOTONE.judge(np.array([-0.5, -0.7, 0.2, 0.3, 0.25, 0.4, np.nan]))
    np.testing.assert_allclose(falls, [0, 0, 0, 0, 0.05, 0, np.nan], atol=1e-15)
    values = np.array([[1.0, 2.0, 4.0], [1.5, 2.0, 8.0], [1.0, 1.0, 10.0], [np.nan] * 3])
    np.testing.assert_allclose(obs.ALIGN_BALANCE.judge(values), [0, 0.05, 0.1, np.nan], rtol=1e-15)
    np.testing.assert_allclose(obs.MARGIN_IDENTITY.judge(np.array([[2.0, 2.5], [3.0, 3.0], [0.0, 0.0]])), [0.2, 0, 0])
    np.testing.assert_allclose(obs.MARGIN_RADIAL.judge(np.array([[2.0, 1.0, 4.0]])), [0.25])
    defect = obs.euler_bound((0.0, 1.0), 2).judge
    np.testing.assert_allclose(defect(np.array([[1.0, 2.0], [3.0, 2.0]])), [0, 0.5])


def test_what_monitors_are_asked_for():
    two = [LARGE, LARGE._replace(tolerance=1.0)]
    refused(lambda: watch(two), "monitors", "different names", "size, size")
    refused(lambda: report(trajectory([0, 0, 0, 0], name="other"), [LARGE]), "moved", "size", "watch", "other")
    whole = LARGE._replace(judge=jnp.max)
    refused(lambda: report(trajectory([0.0, 1, 2, 3]), [whole]), "judge of size", "(times,)")
    refused(lambda: obs.euler_bound((0.0,), 2), "bound", "positive")
    refused(lambda: obs.modified_margin_monotone((0.0, 0.0, 1.0), 2), "bound", "below the degree")


def data(samples=8, width=4, seed=0):
    """Separable by a linear predictor with room to spare."""
    inputs = draw(samples, width, seed=seed)
    targets = np.where(inputs @ draw(width, seed=seed) > 0, 1.0, -1.0)
    return inputs + 0.5 * targets[:, None] * draw(width, seed=seed), targets


MONITORS = [obs.MARGIN_IDENTITY, obs.MARGIN_RADIAL, obs.ALIGN_BALANCE, obs.MARGIN_MONOTONE]
RUNS = {
    "squares, logistic": (dyn.nets.two_layer(6, power=2), Logistic()),
    "three classes": (dyn.nets.deep_linear((5,), outputs=3), CrossEntropy()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_flows_of_smooth_homogeneous_nets_keep_every_identity(name):
    """Four members in one call; beside the monitors the margins, whose growth along the run is judged by differences."""
    net, loss = RUNS[name]
    inputs, targets = data()
    if loss.multiclass:
        teacher = draw(4, 3, seed=1)
        targets = np.argmax(inputs @ teacher, axis=1)
        inputs = inputs + teacher.T[targets]
    problem = dyn.Network(net, inputs, targets, loss)
    ts = jnp.linspace(0.0, 4.0, 101)
    extra = {"smoothed": obs.smoothed_margin, "norm": obs.weight_norm, "kappa": obs.gap_factor, "beta": obs.gradient_alignment}

    @jax.jit
    @jax.vmap
    def moved(key):
        state = dyn.initial.weights(problem, key=key, scale=1.2)
        observe = watch(MONITORS) | extra
        # the balance is kept to the error of the steps
        return dyn.flow(problem, state, dyn.Rates.equal(1.0), ts, observe=observe, rtol=1e-9, method="general", solver=TSIT5)

    run = moved(jax.random.split(jax.random.key(1), 4))
    assert np.all(np.asarray(run.status) == 0)
    for each, found in report(run, MONITORS).items():
        assert np.all(np.asarray(found.held)), str(found)
        assert each != "margin.identity" or float(np.median(found.residuals)) < 1e-11
    seen = {key: np.asarray(value) for key, value in run.observed.items() if key in extra}
    late = np.all(seen["smoothed"][:, -20:] > 0, axis=1)
    assert late.sum() >= 2
    # the formula against the run: differences of logs at neighbouring saves, by the mean of the slopes at both
    logs = np.diff(np.log(seen["smoothed"][late, -20:]), axis=1), np.diff(np.log(seen["norm"][late, -20:]), axis=1)
    slopes = problem.degree * (seen["kappa"] / seen["beta"] ** 2 - 1)[late, -20:]
    np.testing.assert_allclose(logs[0] / logs[1], (slopes[:, 1:] + slopes[:, :-1]) / 2, rtol=2e-3)


@pytest.mark.slow
def test_relu_flows_keep_the_balance_of_every_unit():
    """Leaky and deep: whatever the kinks do, incoming and outgoing weights grow alike; weight decay breaks it."""
    inputs, targets = data(width=3)
    ts = jnp.linspace(0.0, 0.4, 5)
    balance = [obs.ALIGN_BALANCE]
    for net in (dyn.nets.two_layer(6), dyn.nets.deep((4, 3), slope=0.3, at_zero=0.3)):

        @jax.jit
        @jax.vmap
        def moved(decay, net=net):
            problem = dyn.Network(net, inputs, targets, decay=decay)
            state = dyn.initial.weights(problem, key=jax.random.key(2))
            return dyn.flow(problem, state, dyn.Rates.equal(0.5), ts, observe=watch(balance), max_steps=3000)

        run = moved(jnp.array([0.0, 0.1]))
        assert np.all(np.asarray(run.status) == 0)
        found = report(run, balance)["align.balance"]
        np.testing.assert_array_equal(found.held, [True, False])
        assert float(found.first_time[1]) == pytest.approx(0.1) and float(found.first_value[1]) > 1e-3


@pytest.mark.slow
def test_large_steps_are_caught():
    """Descent is no flow: with large steps the smoothed margin falls and the balance drifts, and the report says when first."""
    inputs, targets = data()
    problem = dyn.Network(dyn.nets.deep_linear((4,)), inputs, targets)
    state = dyn.initial.weights(problem, key=jax.random.key(0), scale=0.7)
    run = dyn.descent(problem, state, dyn.Rates.equal(0.02), 40, observe=watch(MONITORS[2:]))
    assert bool(run.ok)
    found = report(run, MONITORS[2:])
    values = np.asarray(run.observed["margin.smoothed_monotone"])
    fallen = [k for k in range(1, 41) if values[k - 1] > 0 and values[k] < values[k - 1] - 1e-10]
    monotone, balance = found["margin.smoothed_monotone"], found["align.balance"]
    assert bool(monotone.held) == (not fallen)
    if fallen:
        assert float(monotone.first_time) == fallen[0] and int(monotone.violated) == len(fallen)
    assert not bool(balance.held) and float(balance.first_time) == 1.0 and int(balance.violated) > 30


@pytest.mark.slow
def test_nearly_homogeneous_nets_keep_theirs():
    """The modified margin of softplus and skip nets; a bound that is too small is not kept."""
    inputs, targets = data(6)
    ts = jnp.linspace(0.0, 3.0, 31)
    for net in (dyn.nets.softplus(8), dyn.nets.Skip(8, dyn.problems.activations.Softplus())):
        problem = dyn.Network(net, inputs, targets)
        bound = net.defect(float(problem.radius))
        kept = [obs.modified_margin_monotone(bound, 2), obs.euler_bound(bound, 2)]
        small = obs.euler_bound(tuple(c / 100 for c in bound), 2)._replace(name="too small")
        plain = Monitor("plain", obs.modified_margin((), 2), lambda values: jnp.zeros_like(values), 0.0)
        monitors = [*kept, small, plain]

        @jax.jit
        @jax.vmap
        def moved(key, problem=problem, monitors=monitors):
            state = dyn.initial.weights(problem, key=key, scale=4.0)
            return dyn.flow(problem, state, dyn.Rates.equal(1.0), ts, observe=watch(monitors), method="general")

        run = moved(jax.random.split(jax.random.key(3), 4))
        found = report(run, monitors)
        for monitor in kept:
            assert np.all(np.asarray(found[monitor.name].held)), str(found[monitor.name])
        assert not np.any(np.asarray(found["too small"].held))
        # less than the plain one by the offset, at every time
        assert np.all(np.asarray(run.observed["nearhom.offset"]) < np.asarray(run.observed["plain"]))


@pytest.mark.slow
def test_single_precision_carries_monitors():
    inputs, targets = (part.astype(np.float32) for part in data())
    problem = dyn.Network(dyn.nets.deep_linear((3,)), inputs, targets)
    loose = {"margin.identity": 1e-3, "margin.radial": 1e-5, "align.balance": 1e-4, "margin.smoothed_monotone": 1e-6}
    monitors = [monitor._replace(tolerance=loose[monitor.name]) for monitor in MONITORS]
    state = dyn.initial.weights(problem, key=jax.random.key(4), scale=1.2)
    run = dyn.flow(problem, state, dyn.Rates.equal(1.0), jnp.linspace(0.0, 3.0, 13), observe=watch(monitors))
    assert all(value.dtype == jnp.float32 for value in run.observed.values())
    for found in report(run, monitors).values():
        assert bool(found.held), str(found)


def test_a_monitor_of_any_problem_is_one_row():
    """The balance of the layer-peeled model, which knows nothing of networks."""
    peeled = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=CrossEntropy())
    conserved = Monitor("conserved", obs.balance(), lambda x: jnp.max(jnp.abs(x - x[0]), axis=(1, 2)), 1e-6)
    run = dyn.flow(peeled, start(peeled, 2), dyn.Rates.equal(1.0), [0.0, 1.0, 2.0], observe=watch([conserved]), rtol=1e-10)
    assert bool(report(run, [conserved])["conserved"].held)
