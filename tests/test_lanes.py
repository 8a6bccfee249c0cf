"""Flows of many members in lanes: the transform, the step, and the motion against judges and against the general way."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import dynamics as dyn
from dynamics.simulate.flow import steps_in_lanes
from dynamics.simulate.lane_step import Stepper, fits
from dynamics.simulate.lanes_last import WRITTEN_OUT, lanes_last, row_sum
from dynamics.status import BAD_INPUT, MAX_STEPS, NORM_CAP, OK
from tests.helpers import refused

LOSSES = {
    "cross-entropy": dyn.losses.CrossEntropy(),
    "squared error": dyn.losses.SquaredError(),
    "unhinged": dyn.losses.Unhinged(0.3),
}
EIGHT = {
    name: getattr(dyn.observables, name)
    for name in "objective loss accuracy nc1 nc3 margin feature_norm prototype_norm".split()
}


def starts(problem, dim, members, scale=0.5, seed=0, dtype=None) -> dyn.Peeled:
    keys = jax.random.split(jax.random.key(seed), members)
    scales = jnp.broadcast_to(jnp.asarray(scale), (members,))
    return jax.vmap(lambda key, s: dyn.initial.gaussian(problem, dim=dim, key=key, scale=s, dtype=dtype))(keys, scales)


def dop853(problem, start, rates, ts, *, tolerance=1e-12):
    """The states of one member at `ts` by SciPy, from the gradient of the objective."""
    flat, back = jax.flatten_util.ravel_pytree(start)
    objective = jax.jit(jax.grad(lambda x: problem.objective(back(x))))
    pace = jax.jit(lambda g, x, t: jax.flatten_util.ravel_pytree(problem.pace(back(-g), back(x), rates, t))[0])

    def slope(t, x):
        return np.asarray(pace(objective(x), x, t))

    solution = solve_ivp(slope, (0.0, ts[-1]), np.asarray(flat), method="DOP853", rtol=tolerance, atol=tolerance, t_eval=ts)
    return solution.y.T


def flat(states, member) -> np.ndarray:
    return np.concatenate([np.asarray(leaf[member]).reshape(leaf.shape[1], -1) for leaf in jax.tree.leaves(states)], axis=1)


def equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


# ------------------------------------------------------------------------------------------- members in the last axis


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "fields",
    [
        {"bias": True},
        {"kernel": True},
        {"sample_weights": True},
        pytest.param({"normalize": True}, marks=pytest.mark.slow),
        pytest.param({"anchored": True}, marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def test_the_force_is_that_of_each_member(loss, fields):
    fields = dict(fields)
    rng = np.random.default_rng(0)
    if "kernel" in fields:
        root = rng.normal(size=(5, 5))
        fields["kernel"] = root @ root.T
        fields["feature_kernel"] = np.diag([1.0, 2.0, 3.0])
    if "sample_weights" in fields:
        fields["sample_weights"] = np.array([0.5, 1.5, 1.0, 0.7, 1.3])
    problem = dyn.LayerPeeled([0, 1, 0, 2, 1], num_classes=3, loss=LOSSES[loss], decay=dyn.Decay(0.1, 0.2, 0.3), **fields)
    many = starts(problem, 3, 8)
    decays = jnp.linspace(0.0, 0.7, 8)

    def force(state, decay):
        return eqx.tree_at(lambda p: p.decay.features, problem, decay).force(state)

    plain = jax.vmap(force)(many, decays)
    last = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), many)
    flags = (jax.tree.map(lambda _: True, last), True)
    lanes = jax.jit(lambda *args: lanes_last(force, args, flags, 8))(last, decays)
    for a, b in zip(jax.tree.leaves(lanes), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(jnp.moveaxis(a, -1, 0), b, rtol=1e-13, atol=1e-15)


def test_any_function_is_evaluated_for_each_member():
    """Long and short sums, batched products, constants, calls, loops, gathers and what has no rule of its own."""

    def function(x, y, shared):
        long = jnp.concatenate([x] * (WRITTEN_OUT // 4 + 1))
        loop = jax.lax.fori_loop(0, 3, lambda i, z: jnp.sin(z) + x[:, 0], y)
        return {
            "product": jnp.einsum("ij,kj->ik", x, shared),
            "batched": jnp.einsum("bij,bjk->bki", x[None] * y[:2, None, None], jnp.stack([x.T, 2 * x.T])),
            "long": long @ long.T @ long[:, :2],
            "inner": x[0] @ x[1],
            "spectrum": jnp.linalg.svd(x, compute_uv=False),
            "sorted": jnp.sort(x, axis=1),
            "taken": x[jnp.array([2, 0])],
            "picked": jnp.where(x > 0, x, y[:, None]),
            "loop": loop,
            "twice": jax.jit(jnp.tanh)(x).sum() + jax.jit(jnp.tanh)(x).max() + jnp.cumsum(y)[-1],
            "nothing": jnp.arange(3.0),
            "flag": jnp.any(x > 1),
        }

    rng = np.random.default_rng(1)
    x, y, shared = rng.normal(size=(8, 4, 3)), rng.normal(size=(8, 4)), rng.normal(size=(5, 3))
    plain = jax.vmap(function, (0, 0, None))(x, y, shared)
    arguments = (np.moveaxis(x, 0, -1), np.moveaxis(y, 0, -1), shared)
    lanes = jax.jit(lambda *args: lanes_last(function, args, (True, True, False), 8))(*arguments)
    for name, value in plain.items():
        np.testing.assert_allclose(jnp.moveaxis(lanes[name], -1, 0), value, rtol=1e-12, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("rows", [1, 2, 20, 97, 320])
def test_row_sums(rows):
    values = np.random.default_rng(rows).normal(size=(rows, 8))
    plain = jax.jit(functools.partial(row_sum, lambda x: x))(values)
    np.testing.assert_allclose(plain, values.sum(axis=0), rtol=1e-13, atol=1e-13)
    of_two = jax.jit(functools.partial(row_sum, lambda x, y: jnp.square(x) - y))(values, 2 * values)
    np.testing.assert_allclose(of_two, (np.square(values) - 2 * values).sum(axis=0), rtol=1e-13, atol=1e-13)


def test_reductions_of_expressions():
    """Rows long enough for stages, over one axis and over several, of what is computed on the way: with arrays, rows, columns
    and numbers, with lanes and without, used once and used again."""

    def function(x, y, shared):
        centred = x - jnp.mean(x, axis=0)
        column = jnp.sum(jnp.abs(x), axis=1, keepdims=True)
        return {
            "gap": jnp.sum(jnp.square(x / jnp.linalg.norm(x) - shared * y)),
            "over rows": jnp.sum(jnp.square(x - shared) * column, axis=0),
            "of rows": jnp.max(jnp.where(x > shared[:, :1], x, 2.0 * shared[0]), axis=0),
            "of columns": jnp.sum(x * jnp.sum(x, axis=0) + column / (1 + y), axis=(0, 1)),
            "twice": jnp.sum(jnp.square(centred)) - jnp.min(centred) * y,
            "by numbers": jnp.sum(jnp.clip(3.0 * x + y, -1.0, 1.0).astype(jnp.float32)),
            "of a row": jnp.sum(jnp.broadcast_to(x[0], x.shape) * y) + jnp.sum(jnp.broadcast_to(x[:, :1], x.shape)),
            "of equal rows": jnp.sum(jnp.broadcast_to(x[0], x.shape) * y, axis=0),
            "of parts": jnp.sum(jnp.square(x.reshape(6, 8, 5)[1:] - y), axis=(0, 1)),
            "of powers": jnp.sum(jnp.exp(x) * x),
        }

    rng = np.random.default_rng(2)
    x, y, shared = rng.normal(size=(8, 48, 5)), rng.normal(size=8) ** 2, rng.normal(size=(48, 5))
    plain = jax.vmap(function, (0, 0, None))(x, y, shared)
    arguments = (np.moveaxis(x, 0, -1), y, shared)
    lanes = jax.jit(lambda *args: lanes_last(function, args, (True, True, False), 8))(*arguments)
    for name, value in plain.items():
        limit = 1e-5 if name == "by numbers" else 1e-12
        np.testing.assert_allclose(jnp.moveaxis(lanes[name], -1, 0), value, rtol=limit, atol=limit, err_msg=name)


# ------------------------------------------------------------------------------------------------------------ one step


@pytest.mark.parametrize(
    ("solver", "order", "counts"),
    [
        (diffrax.Tsit5(), 5, [60, 80, 100, 120, 150, 180, 210, 240]),
        (diffrax.Dopri5(), 5, [12, 16, 20, 26, 34, 45, 56, 68]),
        (diffrax.Dopri8(), 8, [5, 6, 7, 8, 9, 10, 12, 14]),
    ],
)
def test_the_order_of_steps_and_of_what_is_between(solver, order, counts):
    """A pendulum to t = 3 against DOP853, a number of steps of its own in each lane."""
    truth = solve_ivp(
        lambda t, y: [y[1], -np.sin(y[0])], (0, 3), [1.2, 0.5], "DOP853", dense_output=True, rtol=1e-13, atol=1e-13
    )
    lanes, counts = 8, np.array(counts)
    pendulum = lambda t, y: jnp.stack([y[1], -jnp.sin(y[0])])
    loose = Stepper(solver, pendulum, jnp.asarray(3.0), jnp.zeros((0, 1)), 1e9, 1e9, jnp.full(lanes, 1e9))
    lengths = jnp.asarray(3.0 / counts)
    moving, worst = loose.at_rest(jnp.tile(jnp.array([[1.2], [0.5]]), lanes), lanes, 1.0), np.zeros(lanes)
    attempt, within = jax.jit(loose.attempt), jax.jit(loose.within)
    for _ in range(counts.max()):
        active = moving.t < 3.0
        moving, step = attempt(moving._replace(h=lengths), active)
        moving = moving.arrived(step, step.kept)
        np.testing.assert_array_equal(step.kept, active)
        middle = step.t + 0.37 * step.h
        error = np.abs(np.asarray(within(step, middle)) - truth.sol(np.asarray(middle))).max(axis=0)
        worst = np.maximum(worst, np.where(active, error, 0.0))
    np.testing.assert_array_equal(moving.t, 3.0)
    np.testing.assert_array_equal(moving.steps, counts)
    error = np.abs(np.asarray(moving.y) - truth.y[:, -1:]).max(axis=0)
    assert abs(np.polyfit(np.log(lengths), np.log(error), 1)[0] - order) <= 0.4
    assert np.polyfit(np.log(lengths), np.log(worst), 1)[0] >= 4 - 0.3  # all three interpolate to order four at least


def test_solvers_that_fit():
    for solver in (diffrax.Tsit5(), diffrax.Dopri5(), diffrax.Dopri8()):
        assert fits(solver)
    for solver in (diffrax.Kvaerno5(), diffrax.Euler(), diffrax.Heun()):
        assert not fits(solver)
    refused(lambda: flow_of(LOSSES["unhinged"], "forward", solver=diffrax.Heun()), "method", "Tsit5", "Heun")
    refused(lambda: flow_of(LOSSES["unhinged"], "fast"), "method", "fast", "auto")
    refused(lambda: flow_of(LOSSES["unhinged"], reduce="of"), "reduce", "of", "off")


def flow_of(loss, method="auto", **options):
    problem = dyn.LayerPeeled.balanced(3, 2, loss=loss)
    return dyn.flow(
        problem, jax.tree.map(lambda x: x[0], starts(problem, 2, 1)), dyn.Rates.equal(1.0), [1.0], method=method, **options
    )


# ---------------------------------------------------------------------------------------------------------- the motion


@settings(max_examples=2)
@given(
    labels=st.sampled_from([(0, 1), (0, 0, 1), (0, 1, 2, 2), (0, 1, 2, 3, 4, 0, 1)]),
    dim=st.sampled_from([1, 2, 5, 16]),
    loss=st.sampled_from(sorted(LOSSES)),
    scale=st.sampled_from([0.01, 0.3, 3.0]),
    bias=st.booleans(),
)
def test_fast_and_general_way_are_equally_right(labels, dim, loss, scale, bias):
    """Errors of both against DOP853, unequal rates and decay: the fast way's is at most three times the other's."""
    problem = dyn.LayerPeeled(
        list(labels), num_classes=max(labels) + 1, loss=LOSSES[loss], decay=dyn.Decay(0.02, 0.05, 0.01), bias=bias
    )
    many = starts(problem, dim, 3, scale)
    rates, ts, tolerance = dyn.Rates(0.7, 1.9), np.array([0.0, 0.4, 3.0, 9.0]), 1e-8
    error = {}
    for method in ("auto", "general"):
        moved = jax.jit(
            jax.vmap(
                lambda start, method=method: dyn.flow(problem, start, rates, ts, rtol=tolerance, atol=tolerance, method=method)
            )
        )(many)
        assert np.all(moved.status == OK)
        truth = [dop853(problem, jax.tree.map(lambda x, i=i: x[i], many), rates, ts) for i in range(3)]
        size = max(1.0, max(np.abs(t).max() for t in truth))
        error[method] = max(np.abs(flat(moved.states, i) - truth[i]).max() for i in range(3)) / size
    assert error["auto"] <= max(3 * error["general"], 10 * tolerance)


def paths(**options):
    """Cross-entropy flows with everything of their own: start, rates, decay; a compiled function of them."""
    problem = dyn.LayerPeeled.balanced(3, 2, loss=dyn.losses.CrossEntropy(), bias=True)
    options = {"max_steps": 400, "norm_cap": 1e3, "rtol": 1e-7, "atol": 1e-7} | options

    @jax.jit
    @jax.vmap
    def moved(start, rate, decay):
        mine = eqx.tree_at(lambda p: p.decay, problem, dyn.Decay(decay, decay / 2))
        return dyn.flow(mine, start, dyn.Rates(rate, 2 * rate), np.array([0.0, 0.3, 2.0, 7.0]), **options)

    members = 21
    rates, decays = np.geomspace(0.1, 3.0, members), np.linspace(0.0, 0.1, members)
    return moved, (starts(problem, 2, members), rates, decays)


@pytest.mark.parametrize("observe", [None, EIGHT], ids=["states", "observables"])
def test_no_bit_depends_on_the_neighbours(observe):
    moved, (start, rates, decays) = paths(observe=observe)
    alone = moved(start, rates, decays)
    assert np.all(alone.status == OK)

    order = np.random.default_rng(0).permutation(21)
    shuffled = moved(*jax.tree.map(lambda leaf: leaf[order], (start, rates, decays)))
    equal(shuffled, jax.tree.map(lambda leaf: leaf[order], alone))

    sick = rates.copy()
    sick[2], sick[9] = np.nan, 1e7  # not a number; stiff
    start = eqx.tree_at(lambda s: s.features, start, start.features.at[4].set(jnp.nan).at[12].mul(1e9))
    others = np.setdiff1d(np.arange(21), [2, 4, 9, 12])
    mixed = moved(start, sick, decays)
    equal(*(jax.tree.map(lambda leaf: leaf[others], run) for run in (mixed, alone)))
    assert [int(mixed.status[i]) for i in (2, 4, 9, 12)] == [BAD_INPUT, BAD_INPUT, MAX_STEPS, NORM_CAP]
    values = jax.tree.leaves(mixed.states if observe is None else mixed.observed)
    assert all(np.all(np.isnan(leaf[np.array([2, 4])])) for leaf in values)
    assert all(np.all(np.isnan(leaf[np.array([9, 12]), -1])) for leaf in values)


def test_members_end_as_they_do_the_general_way():
    ends = {}
    for method in ("auto", "general"):
        moved, (start, rates, decays) = paths(method=method, norm_cap=6.0, max_steps=60)
        start = jax.tree.map(lambda leaf: leaf * np.geomspace(0.1, 30, 21).reshape(-1, *(1,) * (leaf.ndim - 1)), start)
        rates = rates.copy()
        rates[-1] = 1e80
        ends[method] = moved(start, rates, decays)
    fast, slow = ends["auto"], ends["general"]
    np.testing.assert_array_equal(fast.status, slow.status)
    assert {OK, NORM_CAP} <= set(np.asarray(fast.status).tolist())
    for a, b in zip(jax.tree.leaves(fast.states), jax.tree.leaves(slow.states), strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_rates_that_jump_each_at_a_time_of_its_own():
    problem = dyn.LayerPeeled.balanced(2, 2, loss=dyn.losses.SquaredError(), decay=dyn.Decay(0.1, 0.1))
    many, cuts, ts = starts(problem, 3, 9), np.linspace(0.5, 2.5, 9), np.array([1.0, 3.0])

    def moved(start, cut):
        rates = dyn.Rates.equal(dyn.schedules.Piecewise(jnp.array([1.0, 0.2]), jnp.stack([cut])))
        return dyn.flow(problem, start, rates, ts, rtol=1e-9, atol=1e-9, solver=diffrax.Tsit5())

    found = jax.jit(jax.vmap(moved))(many, cuts)
    assert np.all(found.status == OK)
    for i in (0, 4, 8):
        start = jax.tree.map(lambda x, i=i: x[i], many)
        # a clock that runs at the rate: what is left is the flow at rate one
        clock = np.minimum(ts, cuts[i]) + 0.2 * np.maximum(ts - cuts[i], 0)
        truth = dop853(problem, start, dyn.Rates.equal(1.0), clock)
        np.testing.assert_allclose(flat(found.states, i), truth, atol=3e-8)


@pytest.mark.slow
def test_single_precision_keeps_its_clock():
    """Steps far shorter than the resolution of the time in float32 still add up."""
    problem = dyn.LayerPeeled.balanced(2, 1, loss=dyn.losses.SquaredError(), decay=dyn.Decay(0.05, 0.05))
    ts = np.array([1e3, 2e5])
    low, high = (starts(problem, 2, 8, seed=3, dtype=dtype) for dtype in (jnp.float32, jnp.float64))
    high = jax.tree.map(lambda x: x.astype(jnp.float64), low)

    def moved(schedule):
        return jax.jit(jax.vmap(lambda s: dyn.flow(problem, s, dyn.Rates.equal(schedule), ts, max_steps=10**6)))

    # a rate that falls as 1/t keeps the motion alive to the end
    slow = dyn.schedules.Polynomial(1.0, 1.0)
    single, double = moved(slow)(low), moved(slow)(high)
    assert single.states.features.dtype == jnp.float32
    assert np.all(single.status == OK) and np.all(double.status == OK)
    for a, b in zip(jax.tree.leaves(single.states), jax.tree.leaves(double.states), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


# ------------------------------------------------------------------------------------------------------ transformations


@pytest.mark.slow
def test_derivatives_forward_and_reverse():
    problem = dyn.LayerPeeled.balanced(2, 1, loss=dyn.losses.SquaredError(), decay=dyn.Decay(0.05, 0.05))
    many, ts = starts(problem, 2, 3), np.array([0.5, 2.0])

    def size(start, rate, method):
        moved = dyn.flow(problem, start, dyn.Rates.equal(rate), ts, rtol=1e-9, atol=1e-9, solver=diffrax.Tsit5(), method=method)
        return jnp.sum(moved.states.features[-1] ** 2)

    reverse = jax.jit(jax.vmap(jax.grad(lambda s, r: size(s, r, "auto"), 1), (0, None)))(many, 1.0)
    forward = jax.jit(jax.vmap(jax.jacfwd(lambda s, r: size(s, r, "forward"), 1), (0, None)))(many, 1.0)
    np.testing.assert_allclose(forward, reverse, rtol=1e-6)


@pytest.mark.slow
def test_batches_of_batches_derivatives_and_forward_mode():
    problem = dyn.LayerPeeled.balanced(3, 1, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(0.05, 0.05))
    many, ts = starts(problem, 2, 4), np.array([0.5, 2.0])

    def size(start, rate, method="auto"):
        moved = dyn.flow(problem, start, dyn.Rates.equal(rate), ts, rtol=1e-9, atol=1e-9, solver=diffrax.Tsit5(), method=method)
        return jnp.sum(moved.states.features[-1] ** 2)

    rates = jnp.array([0.5, 1.0, 2.0])
    nested = jax.jit(jax.vmap(jax.vmap(size, (None, 0)), (0, None)))(many, rates)
    lone = jax.jit(size)
    for i in range(4):
        for j in range(3):
            alone = lone(jax.tree.map(lambda x, i=i: x[i], many), rates[j])
            np.testing.assert_allclose(nested[i, j], alone, rtol=1e-9)  # other lanes: other rounding, so other steps

    def difference(start, rate, h=1e-5):
        return (size(start, rate + h, "general") - size(start, rate - h, "general")) / (2 * h)

    first = jax.tree.map(lambda x: x[0], many)
    truth = jax.jit(difference)(first, 1.0)
    reverse = jax.jit(jax.vmap(jax.grad(size, 1), (0, None)))(many, 1.0)
    outside = jax.jit(jax.grad(lambda r: jnp.sum(jax.vmap(size, (0, None))(many, r))))(1.0)
    forward = jax.jit(jax.vmap(lambda s: jax.jacfwd(lambda r: size(s, r, "forward"))(1.0)))(many)
    np.testing.assert_allclose(reverse[0], truth, rtol=1e-6)
    np.testing.assert_allclose(np.sum(reverse), outside, rtol=1e-9)
    np.testing.assert_allclose(forward, reverse, rtol=1e-6)


# -------------------------------------------------------------------------------------------------------------- counters


def test_few_lanes_wait():
    """Starts over three decades of scale, 1024 members: 7.6 times the steps needed where all wait for the slowest."""
    problem = dyn.LayerPeeled.balanced(4, 5, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(5e-3, 5e-3))
    scales = 10 ** np.random.default_rng(1).uniform(-2, 1, 1024)
    many, ts = starts(problem, 16, 1024, scales), np.linspace(2.0, 100.0, 50)
    options = {"rtol": 1e-6, "atol": 1e-6, "solver": diffrax.Tsit5()}
    steps, held = jax.jit(lambda many: steps_in_lanes(problem, many, dyn.Rates.equal(1.0), ts, **options))(many)
    assert np.all(held >= steps)
    ratio = held.sum() / steps.sum()
    assert ratio <= 1.2, ratio
    assert 1024 * steps.max() / steps.sum() > 5  # what waiting for the slowest costs


def test_a_flow_is_traced_once_and_calls_nothing_on_the_host():
    problem = dyn.LayerPeeled.balanced(3, 2, loss=dyn.losses.CrossEntropy())
    traced = []

    def watched(problem, state):
        traced.append(1)
        return dyn.observables.objective(problem, state)

    run = jax.jit(jax.vmap(lambda s, r: dyn.flow(problem, s, dyn.Rates.equal(r), [1.0], observe={"watched": watched})))
    run(starts(problem, 2, 8), np.full(8, 1.0))
    before = len(traced)
    for seed in (1, 2):
        run(starts(problem, 2, 8, seed=seed), np.full(8, 0.5 * seed))
    assert before and len(traced) == before
    text = str(jax.make_jaxpr(jax.vmap(lambda s: dyn.flow(problem, s, dyn.Rates.equal(1.0), [1.0])))(starts(problem, 2, 8)))
    assert "callback" not in text


def closing():
    """A flow whose observable closes over a number of the member, five starts and their numbers."""
    problem = dyn.LayerPeeled.balanced(3, 2, loss=dyn.losses.CrossEntropy())
    starts = jax.vmap(lambda key: dyn.initial.gaussian(problem, dim=4, key=key))(jax.random.split(jax.random.key(0), 5))

    def one(start, scale, **options):
        observe = {"loss": dyn.observables.loss, "scaled": lambda problem, state: scale * dyn.observables.loss(problem, state)}
        return dyn.flow(problem, start, dyn.Rates.equal(1.0), jnp.asarray([1.0, 3.0]), observe=observe, **options).observed

    return one, starts, jnp.arange(1.0, 6.0)


def test_an_observable_may_close_over_the_numbers_of_a_member():
    one, starts, scales = closing()
    found = jax.jit(jax.vmap(one))(starts, scales)
    np.testing.assert_allclose(found["scaled"], scales[:, None] * found["loss"], rtol=1e-14)


@pytest.mark.slow
def test_the_numbers_that_an_observable_closes_over_have_derivatives():
    one, starts, _ = closing()
    first = jax.tree.map(lambda leaf: leaf[0], starts)
    slope = jax.grad(lambda scale: one(first, scale)["scaled"][1])(2.0)
    np.testing.assert_allclose(slope, one(first, 1.0, method="general")["loss"][1], rtol=1e-7)
