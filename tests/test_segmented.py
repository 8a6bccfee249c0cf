"""The flow a few steps at a time, and few members side by side: the steps of the flow in one go, whoever the neighbours are."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import dynamics as dyn
from dynamics.ensemble.lanes import run_in_lanes
from dynamics.schedules import Cosine, Piecewise, Polynomial
from dynamics.segmented import Segmented
from dynamics.simulate.segmented_flow import segmented_flow
from tests import cases, oracle_rates, oracles
from tests.cases import Shape, balanced
from tests.helpers import compiled, draw, refused, relative

JUMPY = Shape((0, 1, 2, 3, 1), 2, weighted=True, kernel=True)
"""Four classes in a plane: fewer dimensions than classes - 1."""
TS = np.array([0.0, 1.0, 2.5, 6.0])
CAP, STEPS = 1e5, 200


def jumpy(x):
    """Unequal rates that jump at 1.0 and 3.3 and have a kink at 5.0."""
    rates = dyn.Rates(Piecewise(x["rates"][0] * np.array([1.0, 0.1, 2.0]), x["cuts"]), Polynomial(x["rates"][1], 5.0))
    return cases.problem(JUMPY, x), cases.start(x), rates


def members(count: int, seed: int = 30) -> cases.Numbers:
    x = cases.numbers(JUMPY, count, seed, decay=True)
    x["rates"] = np.random.default_rng(seed).uniform(0.3, 0.9, (count, 2))
    x["cuts"] = np.tile([1.0, 3.3], (count, 1))
    return x


def spoiled(x: cases.Numbers) -> cases.Numbers:
    """Six bad members after a good one."""
    x = {name: values.copy() for name, values in x.items()}
    x["features"][1, 0, 0] = np.nan
    x["rates"][2] = [80.0, 50.0]  # grows past the cap
    x["decay"][3] = 1e6  # stiff
    x["rates"][4, 0] = np.inf
    x["cuts"][5] = [3.3, 1.0]
    x["features"][6] = 1e308  # finite, its norm is not
    return x


def lanes_of(motion: Segmented, lanes: int):
    return compiled(lambda rows, count: run_in_lanes(motion, rows, None, count, lanes))


def same(a, b) -> bool:
    """Whether all leaves are equal to the bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def agree(mine, flow, tolerance: float) -> None:
    """The same statuses and steps, and values within rounding."""
    np.testing.assert_array_equal(mine.status, flow.status)
    np.testing.assert_array_equal(mine.stats["steps"], flow.stats["steps"])
    np.testing.assert_allclose(mine.stats["t_end"], flow.stats["t_end"], rtol=tolerance)
    np.testing.assert_array_equal(mine.ts, flow.ts)
    for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(flow), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
    for one, other in zip(jax.tree.leaves(mine.states), jax.tree.leaves(flow.states), strict=True):
        size = np.max(np.abs(other), axis=-1, keepdims=True)
        np.testing.assert_allclose(one / size, other / size, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def good_and_bad():
    """Seven good members, and the same with six spoiled, three side by side; and both by the flow in one go."""
    x = members(7)
    run = lanes_of(segmented_flow(jumpy, TS, max_steps=STEPS, norm_cap=CAP, segment=5), 3)
    flow = compiled(jax.vmap(lambda x: dyn.flow(*jumpy(x), TS, max_steps=STEPS, norm_cap=CAP, method="general")))
    return [(run(given, 7), flow(given)) for given in (x, spoiled(x))], run


@pytest.mark.slow
def test_the_steps_of_the_flow_through_jumps(good_and_bad):
    ((mine, work), flow), _ = good_and_bad[0]
    assert np.all(mine.status == dyn.status.OK)
    agree(mine, flow, 1e-12)
    assert np.unique(mine.stats["steps"]).size > 3
    assert int(np.sum(mine.stats["steps"])) <= int(work) <= 3 * int(np.max(mine.stats["steps"])) * 7


def test_how_members_end(good_and_bad):
    (_, _), ((mixed, _), flow) = good_and_bad[0]
    names = [dyn.status.name(code) for code in mixed.status]
    assert names == ["ok", "bad_input", "norm_cap", "max_steps", "bad_input", "bad_input", "norm_cap"]
    agree(mixed, flow, 1e-9)
    assert np.asarray(mixed.stats["steps"])[[1, 3, 4, 5, 6]].tolist() == [0, STEPS, 0, 0, 0]


def test_a_member_does_not_feel_its_neighbours(good_and_bad):
    ((good, _), _), ((mixed, _), _) = good_and_bad[0]
    run = good_and_bad[1]
    x = members(7)
    assert same(*(jax.tree.map(lambda leaf: leaf[0], moved) for moved in (good, mixed)))  # NaN, stiff and runaway mates
    order = np.array([4, 2, 6, 0, 5, 1, 3])
    shuffled, _ = run({name: values[order] for name, values in x.items()}, 7)
    assert same(shuffled, jax.tree.map(lambda leaf: leaf[order], good))
    for count in (1, 2, 5):  # alone, in fewer lanes than there are, in the last rows never started
        padded = {name: np.where(np.arange(7).reshape(-1, *(1,) * (v.ndim - 1)) < count, v, np.nan) for name, v in x.items()}
        few, work = run(padded, count)
        assert same(*(jax.tree.map(lambda leaf, n=count: leaf[:n], moved) for moved in (few, good)))
        assert int(work) >= int(np.sum(good.stats["steps"][:count]))


def test_nothing_depends_on_the_segment(good_and_bad):
    run = lanes_of(segmented_flow(jumpy, TS, max_steps=STEPS, norm_cap=CAP, segment=1), 3)
    assert same(run(spoiled(members(7)), 7)[0], good_and_bad[0][1][0][0])


@pytest.mark.slow
def test_cross_entropy_against_an_ode_solver():
    shape = Shape(balanced(3, 3), 5)
    x, labels = cases.numbers(shape, 7, 31, decay=True), np.array(shape.labels)

    def build(x):
        problem = dyn.LayerPeeled(
            labels, num_classes=3, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(*x["decay"]), bias=True
        )
        return problem, cases.start(x), dyn.Rates(Cosine(1.2, 5.0), 0.7)

    watch = {name: lambda problem, state, name=name: getattr(state, name) for name in oracles.Point._fields}
    watch["margin above"] = lambda problem, state: jnp.sum(problem.logits(state) > 1.0)
    run = jax.jit(lambda rows: run_in_lanes(segmented_flow(build, TS, observe=watch), rows, None, 7, 3))  # at full speed
    moved, _ = run(x)
    turned, _ = run({name: values[::-1] for name, values in x.items()})
    assert same(turned, jax.tree.map(lambda leaf: leaf[::-1], moved))
    assert moved.states is None and np.all(moved.status == dyn.status.OK)
    for i in range(0, 7, 3):
        one = cases.member(x, i)
        plain = oracles.Plain(labels, "cross_entropy", decay=one["decay"], bias=True)
        truth = oracles.dop853(plain, cases.point(one), oracle_rates.cosine(1.2, 5.0), oracle_rates.constant(0.7), TS, [5.0])
        for k, point in enumerate(truth):
            for name in oracles.Point._fields:
                assert relative(moved.observed[name][i, k], getattr(point, name)) <= 1e-7
            logits = point.features @ point.prototypes.T + point.biases
            assert moved.observed["margin above"][i, k] == np.sum(logits > 1.0)


def test_single_precision_one_time_and_equal_rates():
    shape, ts, solver = Shape(balanced(2, 2), 2), np.array([6.0]), diffrax.Bosh3()
    x = cases.numbers(shape, 5, 32, decay=True)

    def build(x):
        start = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), cases.start(x))
        return cases.problem(shape, x), start, dyn.Rates.equal(x["rates"][1])

    mine, _ = lanes_of(segmented_flow(build, ts, solver=solver), 8)(x, 5)
    assert {leaf.dtype for leaf in jax.tree.leaves(mine.states)} == {np.dtype("float32")}
    assert np.all(mine.status == dyn.status.OK)
    for i in range(5):
        one = cases.member(x, i)
        (truth,) = oracles.dense_flow(cases.plain(shape, one), cases.point(one), [2 * (6.0 * one["rates"][1],)])
        assert oracles.relative(cases.at(mine.states, i, 0), truth) <= 1e-4


@pytest.mark.slow
def test_an_implicit_solver_takes_few_steps_where_it_is_stiff():
    shape = Shape(balanced(2, 1), 1)
    x = cases.numbers(shape, 2, 33, decay=True)
    x["decay"][1] = 1e3  # 2400 steps of an explicit solver

    def build(x):
        return cases.problem(shape, x), cases.start(x), dyn.Rates(1.0, 0.5)

    options = {"solver": diffrax.Kvaerno3(), "rtol": 1e-4, "atol": 1e-6}
    moved, _ = lanes_of(segmented_flow(build, TS, **options), 8)(x, 2)
    assert np.all(moved.status == dyn.status.OK) and np.all(moved.stats["steps"] < 100)
    for i in range(2):
        one = cases.member(x, i)
        truth = oracles.dense_flow(cases.plain(shape, one), cases.point(one), [(t, 0.5 * t) for t in TS])
        for k, point in enumerate(truth):
            assert np.max(np.abs(cases.at(moved.states, i, k).flat() - point.flat())) <= 1e-3


@pytest.mark.slow
def test_a_run_of_no_length_returns_the_start():
    x = members(2)
    x["features"][1, 0, 0] = np.inf
    still, work = lanes_of(segmented_flow(jumpy, [0.0]), 8)(x, 2)
    assert still.status.tolist() == [dyn.status.OK, dyn.status.BAD_INPUT] and int(work) == 0
    start = cases.start(cases.member(x, 0))
    assert all(np.array_equal(a[0, 0], b) for a, b in zip(jax.tree.leaves(still.states), jax.tree.leaves(start), strict=True))
    assert np.isnan(still.states.features[1]).all()


def test_a_heavy_tail_is_not_waited_for():
    """One in twenty needs 300 times the steps: side by side four lane-steps in a hundred would be useful."""

    def build(rate):
        labels = np.repeat(np.arange(2), 2)
        problem = dyn.LayerPeeled(labels, num_classes=2, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(0.1, 0.1))
        start = dyn.Peeled(draw(4, 2), draw(2, 2))
        return problem, start, dyn.Rates.equal(rate)

    rates = np.where(np.arange(160) < 8, 3e3, 1.0) * np.linspace(1.0, 1.3, 160)
    run = lanes_of(segmented_flow(build, [1.0], rtol=1e-5, atol=1e-5, segment=4, observe={}), 16)
    moved, work = run(rates, 160)
    steps = np.asarray(moved.stats["steps"])
    assert np.all(moved.status == dyn.status.OK)
    assert steps.sum() / (160 * steps.max()) < 0.1 and steps.sum() / int(work) > 0.5
    text = run.lower(rates, 160).compile().as_text()
    assert "callback" not in text  # such a program would never enter the compile cache


def countdown(length: int = 3) -> Segmented:
    """A motion of `n` steps, `length` an advance, that ends as its number squared."""

    def advance(carry):
        done = jnp.minimum(carry["left"], length)
        return {**carry, "left": carry["left"] - done, "steps": carry["steps"] + done}

    return Segmented(
        begin=lambda n, *key: {
            "n": n,
            "left": n,
            "steps": 0 * n,
            "drawn": jnp.stack([jax.random.normal(k) for k in key] or [0.0]),
        },
        advance=advance,
        done=lambda carry: carry["left"] == 0,
        steps=lambda carry: carry["steps"],
        end=lambda carry: {"square": carry["n"] ** 2, "steps": carry["steps"], "drawn": carry["drawn"]},
    )


@pytest.mark.parametrize(
    "lengths, work",
    [
        ([6] * 20, 3 * 6 * 8),
        ([30] + [3] * 14, 30 * 8),  # the others pass while the first goes on
        ([3] * 14 + [30], (3 + 30) * 8),
        ([0] * 20 + [1], 8),
        ([5], 5 * 8),
    ],
)
def test_every_row_runs_once_in_its_turn(lengths, work):
    lengths, size = np.array(lengths), len(lengths)
    rows = np.concatenate([lengths, np.full(5, 10**9)])  # never started: it would not end
    keys = jax.vmap(jax.random.key)(np.arange(size + 5))
    values, done = jax.jit(lambda *given: run_in_lanes(countdown(), *given, 8))(rows, keys, size)
    assert int(done) == work
    np.testing.assert_array_equal(values["square"][:size], lengths**2)
    np.testing.assert_array_equal(values["steps"][:size], lengths)
    np.testing.assert_array_equal(values["drawn"][:size, 0], [jax.random.normal(jax.random.key(i)) for i in range(size)])


def test_sharded_over_devices_with_an_idle_one():
    mesh = jax.make_mesh((2,), ("members",), axis_types=(AxisType.Auto,))
    over = PartitionSpec("members")

    def part(rows, counts):
        values, work = run_in_lanes(countdown(), rows, None, counts[0], 100)
        return values, work[None]

    run = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=over, out_specs=over, check_vma=False))
    rows = np.arange(20)
    for counts in ([10, 4], [3, 0], [0, 0]):
        values, work = run(rows, np.array(counts))
        ran = np.concatenate([np.arange(10) < counts[0], np.arange(10) < counts[1]])
        np.testing.assert_array_equal(values["steps"][ran], rows[ran])
        slowest = [max(rows[k * 10 : k * 10 + n], default=0) for k, n in enumerate(counts)]
        assert work.tolist() == [16 * n for n in slowest]  # ten rows in two times eight lanes


def test_refusals():
    for segment in (0, -1, 1.5, True):
        refused(lambda segment=segment: segmented_flow(jumpy, TS, segment=segment), "segment")
    for steps in (0, 2.5):
        refused(lambda steps=steps: segmented_flow(jumpy, TS, max_steps=steps), "max_steps")
    refused(lambda: segmented_flow(jumpy, TS, observe={"x": 1}), "observe")
    for ts in ([1.0, 1.0], [-1.0, 1.0], [], [[1.0]], [0.0, np.nan]):
        refused(lambda ts=ts: segmented_flow(jumpy, ts), "ts")
    for name in ("rtol", "atol"):
        with pytest.raises(ValueError, match=name):
            segmented_flow(jumpy, TS, **{name: -1e-3}).begin(cases.member(members(1), 0))
    with pytest.raises(ValueError, match="solver"):
        segmented_flow(jumpy, TS, solver="Tsit5").begin(cases.member(members(1), 0))  # pyright: ignore[reportArgumentType]
