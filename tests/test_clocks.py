"""Flows along clocks: against an independent integration, closed forms, plain loops, and the mathematics of late times."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

import dynamics as dyn
from dynamics import clocks, status

RATES = dyn.Rates.equal(1.0)
EVERY = [clocks.Plain(), clocks.Loss(), clocks.ArcLength(), clocks.LogRadius(), clocks.LogLoss(), clocks.Polar()]


def separable(samples=10, dim=3, seed=0):
    """Points away from a plane through the origin, labelled by their side of it."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(dim)
    points = rng.standard_normal((20 * samples, dim))
    heights = points @ normal / np.linalg.norm(normal)
    kept = np.abs(heights) > 0.3
    return points[kept][:samples], np.sign(heights[kept][:samples])


def linear_net(widths, **options):
    return dyn.Network(dyn.nets.deep_linear(widths), *separable(), **options)


def max_margin(inputs, targets):
    """The direction of the largest margin and that margin, by a quadratic program."""
    rows = targets[:, None] * inputs
    least = minimize(
        lambda w: 0.5 * w @ w,
        10 * rows.mean(axis=0),
        jac=lambda w: w,
        constraints=[{"type": "ineq", "fun": lambda w: rows @ w - 1, "jac": lambda w: rows}],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    assert least.success
    return least.x / np.linalg.norm(least.x), 1 / np.linalg.norm(least.x)


def predictor(states):
    """The product of the layers, with the leading axes of the states."""
    product = np.asarray(states[-1])
    for matrix in reversed(states[:-1]):
        product = np.einsum("...i,...ij->...j", product, np.asarray(matrix))
    return product


def flat(states, entry):
    return np.concatenate([np.asarray(leaf[entry]).ravel() for leaf in states])


def scipy_flow(inputs, targets, state, ts):
    """The plain flow of a linear net of three layers under the sum of exponential losses, states flattened, (times, size)."""
    shapes = [np.shape(matrix) for matrix in state]
    cuts = np.cumsum([np.prod(shape) for shape in shapes])[:-1]

    def motion(_, y):
        a, b, c = (part.reshape(shape) for part, shape in zip(np.split(y, cuts), shapes, strict=True))
        pull = (targets * np.exp(-targets * (inputs @ (c @ b @ a)))) @ inputs
        return np.concatenate([np.outer(b.T @ c, pull).ravel(), np.outer(c, a @ pull).ravel(), b @ (a @ pull)])

    start = np.concatenate([np.ravel(matrix) for matrix in state])
    return solve_ivp(motion, (0, ts[-1]), start, "DOP853", ts, rtol=1e-12, atol=1e-13).y.T


@pytest.fixture(scope="module")
def separated():
    """A linear net of three layers, a start on the right side of all samples, and its plain flow by SciPy."""
    problem = linear_net((4, 4))
    start = dyn.initial.weights(problem, key=jax.random.key(1))
    inputs, targets = np.asarray(problem.inputs), np.asarray(problem.targets)
    later = scipy_flow(inputs, targets, start, [0, 30])[-1]
    state = tuple(part.reshape(np.shape(leaf)) for part, leaf in zip(np.split(later, [12, 28]), start, strict=True))
    assert not np.any(np.asarray(problem.margins(state)) <= 0)
    return problem, state, scipy_flow(inputs, targets, state, [0, 10, 1000])


QUICK = (clocks.Plain, clocks.LogLoss, clocks.Polar)


@pytest.mark.parametrize(
    "clock",
    [clock if isinstance(clock, QUICK) else pytest.param(clock, marks=pytest.mark.slow) for clock in EVERY],
    ids=lambda clock: type(clock).__name__,
)
def test_all_clocks_trace_the_curve_of_an_independent_solver(separated, clock):
    problem, state, (_, early, late) = separated
    until = np.log([10.0, 1000.0])
    stop = dyn.LogTime(until[1])
    moved = dyn.flow(problem, state, RATES, [0.0, 1e-3, 5e3], clock=clock, until=stop, rtol=1e-10)
    assert moved.ok and moved.ts[0] == 0 and moved.ts[1] == 1e-3
    assert moved.ts[2] == moved.stats["t_end"]
    assert moved.log_t is not None and moved.log_t[0] == -np.inf
    np.testing.assert_allclose(moved.log_t[2], until[1], rtol=1e-13)
    np.testing.assert_allclose(flat(moved.states, 2), late, rtol=0, atol=1e-8 * np.linalg.norm(late))
    if isinstance(clock, clocks.Plain):
        np.testing.assert_allclose(moved.ts[2], 1000, rtol=1e-8)
    if isinstance(clock, clocks.LogRadius):
        assert moved.ts[2] == pytest.approx(np.log(np.linalg.norm(late) / np.linalg.norm(flat(state, ...))), rel=1e-8)
    if isinstance(clock, clocks.LogLoss):
        fall = problem.log_loss(state) - problem.log_loss(jax.tree.map(lambda leaf: leaf[2], moved.states))
        assert moved.ts[2] == pytest.approx(float(fall), rel=1e-8)
        assert moved.stats["error_estimate"] < 1e-8


def test_an_unseparated_start_needs_no_switch():
    problem = linear_net((4, 4))
    state = dyn.initial.weights(problem, key=jax.random.key(1))
    assert dyn.observables.misclassified(problem, state) > 0
    expected = scipy_flow(np.asarray(problem.inputs), np.asarray(problem.targets), state, [0, 100])[-1]
    rates, stop = dyn.Rates.equal(4.0), dyn.LogTime(float(np.log(25.0)))
    weights = lambda problem, state: jnp.concatenate([jnp.ravel(leaf) for leaf in state])
    watched = {"weights": weights, "misclassified": dyn.observables.misclassified}  # whole numbers too
    moved = dyn.flow(problem, state, rates, [0.0, 50.0, 60.0], clock="auto", until=stop, rtol=1e-10, observe=watched)
    assert moved.ok
    np.testing.assert_array_equal(moved.observed["misclassified"], [dyn.observables.misclassified(problem, state), 0, np.nan])
    np.testing.assert_allclose(moved.log_t[1], np.log(25), rtol=1e-12)  # at rate 4, a quarter of the time
    weights = moved.observed["weights"]
    np.testing.assert_allclose(weights[1], expected, rtol=0, atol=1e-8 * np.linalg.norm(expected))
    assert np.isnan(moved.ts[2]) and np.isnan(moved.log_t[2]) and np.all(np.isnan(weights[2]))


def balanced_log_time(depth, gamma, samples, start, end):
    """The logarithm of the time from one common margin to another, by quadrature in many digits (derived in the theory)."""
    with mpmath.workdps(40):
        power = mpmath.mpf(2) - mpmath.mpf(2) / depth
        points = [0, 0.1, 1, 5, 20, 60, mpmath.mpf(end) - start]
        points = sorted({min(mpmath.mpf(p), mpmath.mpf(end) - start) for p in points})
        integral = mpmath.quad(lambda s: mpmath.exp(-s) * (end - s) ** (-power), points)
        return float(end + mpmath.log(integral) - mpmath.log(depth * samples) - 2 * mpmath.log(gamma) / depth)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_times_are_those_of_the_closed_form(depth):
    gamma, beside = 0.7, 0.9
    inputs = np.array([[gamma, beside], [gamma, -beside], [-gamma, beside], [-gamma, -beside]])
    problem = dyn.Network(dyn.nets.deep_linear((2,) * (depth - 1)), inputs, np.array([1, 1, -1, -1]))
    size = 0.9
    state = (*(size * np.diag([1.0, 0.0]) for _ in range(depth - 1)), np.array([size, 0.0]))
    falls = np.array([1.0, 10.0, 100.0, 900.0])
    moved = dyn.flow(problem, state, RATES, falls, clock=clocks.LogLoss(), rtol=1e-11)
    start = gamma * size**depth
    for fall, log_t in zip(falls, moved.log_t, strict=True):
        expected = balanced_log_time(depth, gamma, 4, start, start + fall)
        assert log_t == pytest.approx(expected, rel=1e-9, abs=1e-9)


def relu_loop(inputs, targets, inner, outer, end, step):
    """The polar clock of two layers of ReLU by a plain loop of the classical Runge-Kutta method, to the value `end`."""

    def motion(y):
        inner, outer, scaled_time = y
        entering = inputs @ inner.T
        margins = targets * (np.maximum(entering, 0) @ outer)
        losses = np.exp(-margins)
        weights = targets * losses / losses.sum()
        for_inner = outer[:, None] * ((weights[:, None] * (entering > 0)).T @ inputs)
        for_outer = np.maximum(entering, 0).T @ weights
        pull = np.sqrt((for_inner**2).sum() + (for_outer**2).sum())
        speed = np.sqrt((inner**2).sum() + (outer**2).sum()) / pull
        return np.array([speed * for_inner, speed * for_outer, speed * (1 - pull**2 * scaled_time)], dtype=object)

    y, at = np.array([inner, outer, 0.0], dtype=object), 0.0
    while at < end:
        dt = min(end - at, 0.01, step / ((y[0] ** 2).sum() + (y[1] ** 2).sum()))
        a = motion(y)
        b = motion(y + dt / 2 * a)
        c = motion(y + dt / 2 * b)
        y, at = y + dt / 6 * (a + 2 * b + 2 * c + motion(y + dt * c)), at + dt
    margins = targets * (np.maximum(inputs @ y[0].T, 0) @ y[1])
    return y[0], y[1], -np.log(np.exp(-margins).sum()) + np.log(y[2])


@pytest.fixture(scope="module")
def sliding():
    """Two layers of ReLU on generic data, whose pre-activations slide along zero."""
    rng = np.random.default_rng(3)
    inputs, targets = rng.standard_normal((8, 5)), np.repeat([1.0, -1.0], 4)
    problem = dyn.Network(dyn.nets.two_layer(12), inputs, targets)
    return problem, dyn.initial.weights(problem, key=jax.random.key(0))


def test_the_polar_clock_of_a_net_with_kinks_takes_the_steps_of_a_plain_loop(sliding):
    problem, (inner, outer) = sliding
    moved = dyn.flow(problem, (inner, outer), RATES, [0.0, 2.0], clock="auto")
    found = *(np.asarray(leaf[1]) for leaf in moved.states), moved.log_t[1]
    expected = relu_loop(
        np.asarray(problem.inputs), np.asarray(problem.targets), np.asarray(inner), np.asarray(outer), 2.0, 0.4
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.max(np.abs(b)))
    assert moved.ok and moved.stats["steps"] >= 200


@pytest.mark.slow
def test_smaller_steps_at_kinks_certify_the_margin(sliding):
    problem, state = sliding
    ends = []
    for step in (None, 0.1):
        run = jax.jit(
            lambda step=step: dyn.flow(problem, state, RATES, [9.0], clock=clocks.Polar(step), until=dyn.LogTime(60.0))
        )
        moved = run()
        assert moved.ok and moved.ts[0] < 9
        weights = jax.tree.map(lambda leaf: leaf[0], moved.states)
        ends.append(float(-problem.log_loss(weights) / dyn.state.norm(weights) ** 2))
        assert moved.log_t[0] == pytest.approx(60, rel=1e-12)
    assert ends[0] == pytest.approx(ends[1], rel=2e-3)
    assert ends[0] != ends[1]


def test_members_that_never_separate_are_listed():
    # units that do not see the third sample cannot learn it
    inputs, targets = np.array([[1.0, 0.0], [1.0, 0.5], [-1.0, 0.0]]), np.array([1.0, 1.0, 1.0])
    problem = dyn.Network(dyn.nets.two_layer(2, power=2), inputs, targets)
    blind = (jnp.array([[1.0, 0.2], [0.5, 0.1]]), jnp.array([1.0, 1.0]))
    seeing = (jnp.array([[1.0, 0.2], [-0.5, 0.1]]), jnp.array([1.0, 1.0]))
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), blind, seeing, blind)
    run = jax.jit(jax.vmap(lambda state: dyn.flow(problem, state, RATES, [0.0, 300.0], clock="auto", until=dyn.LogTime(200.0))))
    moved = run(states)
    assert [status.name(code) for code in moved.status] == ["outside_assumptions", "ok", "outside_assumptions"]
    assert np.all(moved.stats["steps"] < 2000)
    found = clocks.unseparated(problem, moved)
    assert found.members.tolist() == [0, 2] and found.counts.tolist() == [1, 1]
    assert [samples.tolist() for samples in found.samples] == [[2], [2]]
    np.testing.assert_allclose(moved.log_t[1, 1], 200)
    alone = clocks.unseparated(problem, jax.tree.map(lambda leaf: leaf[0], moved))
    assert alone.members.tolist() == [0]
    watched = dyn.flow(problem, seeing, RATES, [1.0], clock="auto", observe={"margins": dyn.Network.margins})
    with pytest.raises(ValueError, match="observe"):
        clocks.unseparated(problem, watched)


@pytest.mark.slow
def test_derivatives_are_those_of_differences():
    problem = linear_net((3,))
    state = dyn.initial.weights(problem, key=jax.random.key(2))

    def stop(scale):
        start = jax.tree.map(lambda leaf: scale * leaf, state)
        moved = dyn.flow(problem, start, RATES, [0.0, 40.0], clock="auto", until=dyn.LogTime(12.0), rtol=1e-10)
        weights = jax.tree.map(lambda leaf: leaf[1], moved.states)
        return jnp.sum(jnp.sin(problem.outputs(weights))) + moved.stats["t_end"]

    at, by = 1.1, 1e-4
    slope = jax.jit(jax.grad(stop))(at)
    values = jax.jit(jax.vmap(stop))(at + by * jnp.array([-1.0, 1.0]))
    assert slope == pytest.approx(float(values[1] - values[0]) / (2 * by), rel=1e-5)


def test_single_precision():
    problem = linear_net((4, 4))
    state = dyn.initial.weights(problem, key=jax.random.key(1))
    stop, ends = dyn.LogTime(50.0), []
    for dtype in (jnp.float32, jnp.float64):
        start = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), state)
        moved = dyn.flow(problem, start, RATES, [70.0], clock="auto", until=stop)
        assert moved.ok and moved.log_t.dtype == dtype and moved.ts.dtype == dtype
        ends.append((flat(moved.states, 0), float(moved.ts[0])))
    np.testing.assert_allclose(ends[0][0], ends[1][0], atol=1e-4 * np.max(np.abs(ends[1][0])))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-5)


def test_what_a_clock_refuses():
    problem = linear_net((4, 4))
    state = dyn.initial.weights(problem, key=jax.random.key(1))
    wrong = int(dyn.observables.misclassified(problem, state))

    def refused(match, problem=problem, rates=RATES, ts=(0.0, 1.0), **options):
        with pytest.raises(ValueError, match=match):
            dyn.flow(problem, state, rates, np.asarray(ts), **({"clock": "auto"} | options))

    refused(f"before separation: at the start {wrong} of 10 samples", clock=clocks.LogRadius())
    refused("one of dynamics.clocks", clock="loss")
    refused("one of dynamics.clocks", clock=clocks.Loss)
    refused("until must be", until=10.0)
    refused("until needs a clock", clock=None, until=dyn.LogTime(10.0))
    refused("until must be at most 1.04e.12 in float64.*rounding", until=dyn.LogTime(2e12))
    refused("LogLoss clock must be at most", ts=[0.0, 1e13])
    refused("go beyond 100000 with clock=LogLoss", clock=clocks.Loss(), until=dyn.LogTime(1e6))
    refused("one constant rate", rates=dyn.Rates.equal(dyn.schedules.Cosine(0.1, horizon=10.0)))
    refused("one constant rate", rates=dyn.Rates(1.0, 1.0))
    refused("rate must be > 0", rates=dyn.Rates.equal(0.0))
    refused("without decay", problem=linear_net((4, 4), decay=0.1))
    refused("of no use", clock=clocks.Polar(0.4), rtol=1e-6)
    refused("method must be", method="forward")
    with pytest.raises(ValueError, match="step must be > 0"):
        clocks.Polar(-1.0)
    with pytest.raises(ValueError, match="logarithm of a time"):
        dyn.LogTime("late")  # pyright: ignore[reportArgumentType]
    peeled = dyn.LayerPeeled.balanced(num_classes=3, per_class=2, loss=dyn.losses.CrossEntropy())
    with pytest.raises(ValueError, match="for a dynamics.Network"):
        dyn.flow(peeled, dyn.initial.gaussian(peeled, dim=2, key=jax.random.key(0)), RATES, [1.0], clock="auto")


@pytest.mark.slow
def test_traced_starts_end_with_a_status():
    problem = linear_net((4, 4))
    state = dyn.initial.weights(problem, key=jax.random.key(1))
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, 0 * leaf, jnp.nan * leaf]), state)
    run = jax.jit(jax.vmap(lambda state: dyn.flow(problem, state, RATES, [0.0, 1.0], clock=clocks.LogRadius())))
    moved = run(starts)
    assert [status.name(code) for code in moved.status] == ["outside_assumptions", "fixed_point", "bad_input"]
    assert np.all(moved.stats["steps"] == 0)
    decayed = jax.jit(lambda decay: dyn.flow(linear_net((4, 4), decay=decay), state, RATES, [1.0], clock=clocks.Loss()).status)
    assert decayed(0.1) == status.BAD_INPUT


def check_far(widths, far, members=1, rtol=None):
    """Members run to a far time have the margin, direction and norm that theory says; returns them."""
    problem, depth = linear_net(widths), len(widths) + 1
    inputs, targets = np.asarray(problem.inputs), np.asarray(problem.targets)
    states = jax.vmap(lambda key: dyn.initial.weights(problem, key=key))(jax.random.split(jax.random.key(1), members))
    ts = [0.0, 1e4, 1e6, min(1.1 * far, 1e12)]
    how = {"clock": "auto", "until": dyn.LogTime(far), "rtol": rtol}
    # one after another: side by side all members wait for the longest search for a root in every stage
    moved = jax.jit(lambda states: jax.lax.map(lambda state: dyn.flow(problem, state, RATES, ts, **how), states))(states)
    assert np.all(moved.status == status.OK)
    direction, gamma = max_margin(inputs, targets)
    product = predictor(moved.states)[:, 1:]
    norms = np.sqrt(sum((np.asarray(leaf[:, 1:]) ** 2).reshape(members, 3, -1).sum(-1) for leaf in moved.states))
    ratios = np.min(targets * (product @ inputs.T), axis=-1) / norms**depth / (gamma * depth ** (-depth / 2))
    off = np.linalg.norm(product / np.linalg.norm(product, axis=-1, keepdims=True) - direction, axis=-1)
    constants = off * np.asarray(moved.log_t[:, 1:])
    assert np.all(0.5 * off[:, -1] ** 2 < 1e-15)
    apart = np.abs(constants / np.median(constants) - 1)
    assert np.all(apart[:, 1:] < 0.03)
    # what a start leaves at 1e4 is of the next order: at 1e6 a hundredth of it
    left = apart[:, 0] >= 0.03
    np.testing.assert_allclose(apart[left, 0], 100 * apart[left, 1], rtol=0.1)
    return moved, ratios[:, -1]


def test_a_deep_linear_net_to_log_t_of_1e9():
    moved, ratios = check_far((4, 4), 1e9)
    assert np.all(ratios > 0.99999) and np.all(ratios < 1 + 1e-9)
    np.testing.assert_allclose(moved.log_t[:, -1], 1e9, rtol=1e-11)
    assert np.all(moved.stats["error_estimate"] < 1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("widths", "members", "rtol"), [((4,), 1, None), ((4, 4), 256, 1e-7)])
def test_far_margins(widths, members, rtol):
    _, ratios = check_far(widths, 1e9, members, rtol)
    assert np.all(ratios > 0.99999)


@pytest.mark.slow
@pytest.mark.parametrize(("widths", "far"), [((3, 3, 3), 1e9), ((4, 4), 1e12)])
def test_far_directions(widths, far):
    check_far(widths, far)


@pytest.mark.slow
@pytest.mark.parametrize("net", [dyn.nets.linear(), *map(dyn.nets.deep_linear, [(4,), (4, 4), (3, 3, 3)]), "relu squared"])
def test_smoothed_margins_of_256_starts_grow_up_to_log_t_of_1000(net):
    inputs, targets = separable()
    if net == "relu squared":
        net = dyn.nets.two_layer(32, power=2)
    problem = dyn.Network(net, inputs, targets)
    states = jax.vmap(lambda key: dyn.initial.weights(problem, key=key))(jax.random.split(jax.random.key(1), 256))

    def smoothed(problem, state):
        return jnp.stack([-problem.log_loss(state), dyn.state.norm(state)])

    def one(state):
        stop = dyn.LogTime(1000.0)
        return dyn.flow(problem, state, RATES, np.linspace(0, 1200, 401), clock="auto", until=stop, observe={"": smoothed})

    moved = jax.jit(jax.vmap(one))(states)
    separated = np.asarray(moved.status) == status.OK
    assert separated.mean() > 0.9
    log_inverse, norms = np.moveaxis(np.asarray(moved.observed[""])[separated], -1, 0)
    margins, started = log_inverse / norms**net.degree, (log_inverse > 0)[:, :-1] & np.isfinite(log_inverse)[:, 1:]
    assert np.min(np.diff(margins, axis=1)[started]) > -1e-10
    np.testing.assert_allclose(np.nanmax(np.asarray(moved.log_t)[separated], axis=1), 1000, rtol=1e-12)
