"""The engine: the same numbers whatever the chunks, lanes, devices, processes and neighbours, and memory known before."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.ensemble import Axis, Design, Ensemble, Histogram, Moments, OutOfMemory, Quantiles, run
from dynamics.ensemble import memory as bytes_of
from dynamics.ensemble.identity import opened
from dynamics.ensemble.program import must_take_turns
from tests.helpers import draw, refused

TIMES = np.linspace(0.5, 6.0, 4)
KEY = jax.random.key(5)
PROBLEM = dyn.LayerPeeled.balanced(3, 2, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(1e-2, 1e-2))
WATCHED = {"objective": dyn.observables.objective, "norm": dyn.observables.feature_norm}
SWEEP = Design(Axis("rate", [0.3, 1.0, 40.0]), Axis("seed", range(5)))


def build(member, key):
    start = dyn.initial.gaussian(PROBLEM, dim=3, key=key)
    spoiled = jnp.where((member["seed"] == 3) & (member["rate"] == 1.0), jnp.nan, start.features)
    return PROBLEM, dyn.Peeled(spoiled, start.prototypes), dyn.Rates.equal(member["rate"])


def stiffness(member, key):
    return member["rate"]


FLOW = dyn.segmented_flow(build, TIMES, observe=WATCHED, rtol=1e-6, atol=1e-6, segment=4)


def flow(member, key):
    return dyn.flow(*build(member, key), TIMES, observe=WATCHED, rtol=1e-6, atol=1e-6, method="general")


def moved(**options):
    usual = {"key": KEY, "cost": stiffness, "progress": False, "lanes": 8, "devices": jax.devices()[:1]}
    return run(FLOW, SWEEP, **{**usual, **options})


@pytest.fixture(scope="module")
def reference():
    return moved(chunk=8)


def same(one, other, rtol=1e-12):
    np.testing.assert_array_equal(one.status, other.status)
    np.testing.assert_array_equal(one.index, other.index)
    for name, values in one.values.observed.items():
        np.testing.assert_allclose(values, other.values.observed[name], rtol=rtol, atol=0)


def test_members_of_a_plain_loop(reference):
    alone = jax.jit(flow)
    for number, (rate, seed) in enumerate(itertools.product([0.3, 1.0, 40.0], range(5))):
        single = alone({"rate": rate, "seed": seed}, jax.random.fold_in(KEY, number))
        assert reference.status[number] == single.status and reference.stats["steps"][number] == single.stats["steps"]
        for name in WATCHED:
            np.testing.assert_allclose(reference.values.observed[name][number], single.observed[name], rtol=1e-12)
    assert reference.status[8] == dyn.status.BAD_INPUT and np.sum(~reference.ok) == 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"chunk": 15, "lanes": 16}, marks=pytest.mark.slow),
        pytest.param({"chunk": 8, "cost": None}, marks=pytest.mark.slow),
        {"chunk": 4, "devices": None},
        pytest.param({"chunk": 8, "shard": True, "devices": None}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_same_numbers_however_they_are_run(reference, options):
    same(moved(**options), reference)


def test_bitwise_with_other_neighbours(reference):
    shuffled = moved(chunk=8, cost=lambda member, key: jnp.sin(7.0 * member["seed"] + member["rate"]))
    chosen = [0, 4, 7, 9, 12]  # without the failed one, in other chunks and lanes
    few = moved(chunk=8, cost=None, only=[8, *chosen, 1, 2])
    for name in WATCHED:
        np.testing.assert_array_equal(shuffled.values.observed[name], reference.values.observed[name])
        picked = reference.values.observed[name][few.index]
        np.testing.assert_array_equal(few.values.observed[name], picked)
    assert sorted(few.index) == sorted([8, *chosen, 1, 2])


def test_processes_share_the_chunks(reference):
    halves = [moved(chunk=4, process=(index, 2)) for index in range(2)]
    index = np.concatenate([half.index for half in halves])
    assert sorted(index) == list(range(15)) and min(half.index.size for half in halves) > 0
    for name in WATCHED:
        both = np.concatenate([half.values.observed[name] for half in halves])[np.argsort(index)]
        np.testing.assert_allclose(both, reference.values.observed[name], rtol=1e-12)


@pytest.mark.slow
def test_gone_on_with_on_fewer_devices(reference, tmp_path):
    moved(chunk=8, devices=None, store=tmp_path)
    (tmp_path / "chunks" / "chunk-000001.npz").unlink()
    same(moved(chunk=8, store=tmp_path), reference)


@pytest.mark.parametrize("shard", [False, True])
def test_no_collective_is_compiled(shard):
    ensemble = Ensemble(FLOW, SWEEP, key=KEY, lanes=8, chunk=8, shard=shard, devices=jax.devices()[: 1 + shard])
    ensemble.settle()
    (compiled,) = ensemble._compiled.values()
    text = compiled.as_text()
    assert "while" in text
    assert not re.search(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", text)


@pytest.mark.parametrize("shard", [False, True])
def test_a_function_is_traced_once_for_its_shapes_and_once_for_all_devices(shard):
    traces = []

    def one(member):
        traces.append(member)
        return {"square": member**2}

    found = run(one, np.arange(40.0), chunk=16, lanes=8, shard=shard, progress=False, devices=jax.devices()[:2])
    np.testing.assert_array_equal(found.values["square"], np.arange(40.0) ** 2)
    assert len(traces) == 2


def test_programs_that_could_wait_for_each_other_take_turns(monkeypatch):
    def big(member):
        return jnp.sum(jnp.sin(member * jnp.arange(200_000.0)))

    monkeypatch.setenv("NPROC", "2")
    ensemble = Ensemble(big, np.arange(64.0), chunk=32, lanes=32)
    ensemble.settle()
    (compiled,) = ensemble._compiled.values()
    assert must_take_turns(compiled, 2) and ensemble._turn is ensemble._one_at_a_time
    refused(lambda: Ensemble(big, np.arange(64.0), chunk=64, lanes=32, shard=True).settle(), "NPROC=4", "shard")
    monkeypatch.setenv("NPROC", "3")
    assert not must_take_turns(compiled, 2)
    small = Ensemble(jnp.sin, np.arange(64.0), chunk=32, lanes=32)
    small.settle()
    assert not must_take_turns(*small._compiled.values(), 64)


def test_useful_steps_are_counted(reference):
    assert 0.3 < reference.report.useful <= 1
    for plain in (jnp.sin, jnp.cos):  # how they move is their own affair
        assert np.isnan(run(plain, np.arange(4.0), progress=False).report.useful)


@pytest.mark.slow
def test_statistics_need_no_member(reference):
    reductions = [Moments(), Quantiles((0.25, 0.5), digits=10), Histogram((0.0, 1.0, 2.0, 4.0))]
    for by, chunk in (((), 8), (("rate",), 15)):
        result = moved(chunk=chunk, reduce={"norm": reductions}, by=by, keep=None)
        assert result.values is None and result.status.shape == (15,)
        values = reference.values.observed["norm"].reshape(3 if by else 1, -1, 4)
        mean = result.reduced["norm_mean"]
        assert mean.dims == tuple(f"{name}_cell" for name in by)
        np.testing.assert_allclose(mean.values.reshape(-1, 4), np.nanmean(values, axis=1), rtol=1e-12)
        count = np.sum(np.isfinite(values), axis=1)
        np.testing.assert_array_equal(result.reduced["norm_count"].values.reshape(-1, 4), count)
        for cell, time in itertools.product(range(values.shape[0]), range(4)):
            finite = np.sort(values[cell, :, time][np.isfinite(values[cell, :, time])])
            exact = [finite[int(np.ceil(level * finite.size)) - 1] for level in (0.25, 0.5)]
            found = result.reduced["norm_quantile"].values.reshape(-1, 2, 4)[cell, :, time]
            np.testing.assert_allclose(found, exact, rtol=2.0**-11)


@pytest.mark.slow
def test_statistics_to_the_bit_for_the_same_chunks(tmp_path):
    options = {"chunk": 4, "reduce": [Moments(), Quantiles()], "keep": None}
    one, other, stored = moved(**options), moved(**options, devices=None), moved(**options, store=tmp_path)
    for name, found in one.reduced.items():
        np.testing.assert_array_equal(found.values, other.reduced[name].values)
        np.testing.assert_array_equal(found.values, stored.reduced[name].values)


def test_the_result_has_names_on_its_axes(reference, tmp_path):
    import xarray

    reductions = [Moments(), Quantiles((0.25, 0.5)), Histogram((0.0, 1.0, 2.0))]
    result = moved(chunk=8, reduce={"norm": reductions}, by=("rate",))
    assert result.summary() == "1 of 15 failed; first: member 8, bad_input at 0"
    data = result.to_xarray()
    assert data.norm.dims == ("member", "time") and data.norm_quantile.dims == ("rate_cell", "quantile", "time")
    assert data.norm_histogram.dims == ("rate_cell", "norm_bin", "time")
    np.testing.assert_array_equal(data.rate, np.repeat([0.3, 1.0, 40.0], 5))
    np.testing.assert_array_equal(data.rate_cell, [0.3, 1.0, 40.0])
    by_hand = data.norm.where(data.status == 0).groupby("rate").mean().values
    np.testing.assert_allclose(data.norm_mean.values, by_hand, rtol=1e-12)
    for name in ("result.nc", "result.zarr"):
        opened_again = xarray.open_dataset(result.write(tmp_path / name))
        xarray.testing.assert_equal(opened_again.load(), data)
        opened_again.close()
    plain = run(lambda member: {"x": jnp.stack([member, -member])}, np.arange(3.0), progress=False).to_xarray()
    assert plain["x"].dims == ("member", "x_0") and plain.status.dims == ("member",)
    assert run(jnp.sin, np.arange(3.0), keep=None, progress=False).to_xarray().sizes == {"member": 3}


def test_a_design_crosses_and_zips():
    def one(member):
        assert isinstance(member["size"], int)
        return jnp.stack([member["gamma"], member["peak"], member["horizon"][1], jnp.sum(jnp.ones(member["size"]))])

    design = Design(
        Axis("gamma", [0.1, 0.5]),
        (Axis("peak", [1.0, 2.0, 3.0]), Axis("horizon", draw(3, 2)), Axis("size", (4, 7, 4), static=True)),
        Axis("start", range(2)),
    )
    assert design.size == 12 and design.names == ("gamma", "peak", "horizon", "size", "start")
    result = run(one, design, chunk=3, lanes=3, progress=False)
    expected = [
        [gamma, [1.0, 2.0, 3.0][place], draw(3, 2)[place, 1], (4, 7, 4)[place]]
        for gamma, place, _ in itertools.product([0.1, 0.5], range(3), range(2))
    ]
    np.testing.assert_array_equal(result.values, expected)
    coordinates = design.coordinates()
    np.testing.assert_array_equal(coordinates["gamma"], np.repeat([0.1, 0.5], 6))
    np.testing.assert_array_equal(coordinates["size"], np.tile(np.repeat([4, 7, 4], 2), 2))
    np.testing.assert_array_equal(coordinates["start"], np.tile([0, 1], 6))
    np.testing.assert_array_equal(coordinates["horizon"], np.tile(np.repeat([0, 1, 2], 2), 2))  # no number: its position
    cells = [start * 2 + gamma for gamma in (0, 1) for _ in range(3) for start in (0, 1)]
    np.testing.assert_array_equal(design.cells(("start", "gamma"), np.arange(12)), cells)


def test_a_schedule_family_is_one_axis():
    peaks = np.array([0.1, 0.2])
    family = jax.vmap(lambda peak: dyn.schedules.Cosine(peak, 4.0))(peaks)
    result = run(lambda member: member["eta"].integral(4.0), Design(Axis("eta", family)), progress=False)
    np.testing.assert_allclose(result.values, peaks * 2, rtol=1e-14)


def test_a_key_is_folded_from_the_number_alone():
    design = Design(Axis("size", (2, 3), static=True), Axis("seed", range(3)))
    result = run(lambda member, key: jax.random.uniform(key), design, key=KEY, chunk=2, lanes=2, progress=False)
    alone = [jax.random.uniform(jax.random.fold_in(KEY, number)) for number in range(6)]
    np.testing.assert_array_equal(result.values, alone)


def test_memory_is_forecast_and_capped():
    def heavy(member):
        return jnp.sum(jnp.sort(jnp.sin(member * jnp.arange(10_000.0))))

    members = np.arange(512.0)
    with pytest.raises(OutOfMemory, match=r"chunk=\d+"):
        run(heavy, members, chunk=512, lanes=512, memory="1MiB", progress=False)
    ensemble = Ensemble(heavy, members, memory="4MiB", lanes=8)
    ensemble.settle()
    assert 8 <= ensemble.chunk <= 512 and ensemble.forecast <= 4 * 2**20
    forecast = [Ensemble(heavy, members, chunk=chunk, lanes=chunk) for chunk in (64, 256)]
    for one in forecast:
        one.settle()
    assert 2 < forecast[1].forecast / forecast[0].forecast < 6
    for text, count in (("2GiB", 2**31), ("1.5kB", 1500), (17, 17), ("100", 100)):
        assert bytes_of.size("memory", text) == count
    for text in ("2GB/s", "-1GiB", "GiB", 0, True, float("nan")):
        refused(lambda text=text: bytes_of.size("memory", text), "memory")


def test_exhausted_resources_name_the_chunk_that_may_fit(monkeypatch, tmp_path):
    ensemble = Ensemble(jnp.sin, np.arange(64.0), chunk=16, lanes=16, devices=jax.devices()[:1])
    calls = []

    def exhausted(*_):
        calls.append(1)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")

    with opened(ensemble, tmp_path) as store:
        first = ensemble.mine()[0]
        store.write(first.number, *ensemble.piece(first, ensemble.slots()[0]))
        monkeypatch.setattr(ensemble, "compiled", lambda *_: exhausted)
        with pytest.raises(OutOfMemory, match="chunk=8|chunk=16"):
            ensemble.execute(store, progress=False)
    assert calls and len(run(jnp.sin, np.arange(64.0), chunk=16, lanes=16, store=tmp_path, progress=False).values) == 64


def test_a_chunk_that_an_accelerator_refuses_is_halved_until_it_fits(monkeypatch):
    tried, real = [], Ensemble.piece

    def piece(self, chunk, slot):
        tried.append(self.chunk)
        if self.chunk > 20:
            raise OutOfMemory("RESOURCE_EXHAUSTED")
        return real(self, chunk, slot)

    monkeypatch.setattr(bytes_of, "must_be_tried", lambda device: True)
    monkeypatch.setattr(Ensemble, "piece", piece)
    members = np.arange(1024.0)
    result = run(jnp.sin, members, lanes=8, devices=jax.devices()[:1], progress=False)
    np.testing.assert_allclose(result.values, np.sin(members), rtol=1e-14)
    assert tried[:3] == [64, 32, 16] and result.report.chunk == 16
    with pytest.raises(OutOfMemory):
        run(jnp.sin, members, chunk=32, lanes=8, devices=jax.devices()[:1], progress=False)


def test_an_error_of_the_function_shows_before_anything_runs(tmp_path):
    def broken(member):
        raise TypeError("my own mistake")

    with pytest.raises(TypeError, match="my own mistake"):
        run(broken, np.arange(3.0), store=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_refusals():
    for options, words in (
        ({"lanes": 0}, ("lanes", ">= 1")),
        ({"process": (2, 2)}, ("process index", "below")),
        ({"only": [15]}, ("only", "0..14")),
        ({"only": [1, 1]}, ("only", "different")),
        ({"by": ("rat",)}, ("by", "did you mean 'rate'")),
        ({"by": ("rate",), "members": {"x": np.ones(3)}}, ("by", "Design")),
        ({"reduce": {"norms": [Moments()]}}, ("reduce", "did you mean 'norm'")),
        ({"reduce": ["mean"]}, ("reduce", "Moments")),
        ({"reduce": [Moments(), Moments()]}, ("reduce", "once")),
    ):
        members = options.pop("members", SWEEP)
        refused(lambda m=members, o=options: run(FLOW, m, key=KEY, progress=False, **o), *words)
    for axes, words in (
        ((Axis("a", [1.0, 2.0]), Axis("a", [1.0])), ("different names",)),
        (((Axis("a", [1.0, 2.0]), Axis("b", [1.0])),), ("one length", "a: 2", "b: 1")),
        ((), ("at least one axis",)),
    ):
        refused(lambda a=axes: Design(*a), *words)
    refused(lambda: Axis("", [1.0]), "name")
    refused(lambda: Axis("a", []), "a")
    refused(lambda: Axis("a", ([1], [2]), static=True), "hashable")
    different = Design(Axis("size", (2, 3), static=True))
    refused(lambda: run(lambda member: jnp.zeros(member["size"]), different), "same shapes", "(2,)", "(3,)")
