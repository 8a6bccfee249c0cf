"""Sweeps of networks from files: members are the runs that their numbers say, a killed run goes on, wrong input is named."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.cli import config, data, nouns, sweep
from dynamics.cli.config import ConfigError
from dynamics.cli.main import main
from tests.helpers import compiled

pytest.importorskip("pydantic")

FILE = """
name = "nets"
seed = 3
problem = { net = { kind = "deep_linear", widths = [3] }, data = { kind = "separable", samples = 6, dim = 2, gap = 0.5 } }
start = { kind = "weights", scale = 0.8 }
rates = { equal = 2.0 }
motion = { clock = "auto", until_log_t = 50.0, times = [1.0, 20.0, 60.0], rtol = 1e-6 }
keep = { observables = ["smoothed_margin", "log_t"], trajectories = true, states = [1] }
sweep = [
    { axis = "problem.data.seed", name = "points", values = [5, 7] },
    { axis = "start.scale", name = "scale", values = [0.8, 1.1] },
    { axis = "start.seed", count = 2 },
]
"""


def points(seed, *, samples=6, dim=2, gap=0.5):
    """The separable data set written out in plain NumPy, from the same draws."""
    for_points, for_plane = jax.random.split(jax.random.key(seed))
    inputs = np.array(jax.random.normal(for_points, (samples, dim)))
    normal = np.array(jax.random.normal(for_plane, (dim,)))
    normal /= np.linalg.norm(normal)
    targets = np.array([1.0, -1.0] * samples)[:samples]
    for x, target in zip(inputs, targets, strict=True):
        height = x @ normal
        x += (target * (abs(height) + gap) - height) * normal
    return inputs, targets


def by_hand(seed, scale, stream):
    problem = dyn.Network(dyn.nets.deep_linear((3,)), *points(seed), dyn.losses.Exponential())
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), stream), 0)
    start = dyn.initial.weights(problem, key=key, scale=scale)
    options = {"clock": "auto", "until": dyn.LogTime(50.0), "rtol": 1e-6}
    return problem, compiled(lambda: dyn.flow(problem, start, dyn.Rates.equal(2.0), [1.0, 20.0, 60.0], **options))()


@pytest.mark.slow
def test_a_run_of_networks_from_the_command_line(tmp_path, monkeypatch):
    """Its members against runs by hand; without a chunk and resumed, the same bytes; drawn."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.toml").write_text(FILE)
    chunked = ["--set", "run.chunk=4", "--set", "run.lanes=4", "--quiet", "--no-cache"]
    assert main(["run", "nets.toml", "--out", "whole", *chunked]) == 0
    with xarray.open_dataset(tmp_path / "whole" / "result.nc") as read:
        found = read.load()
    assert found.sizes["member"] == 8 and found.time.attrs["long_name"] == "value of the clock"
    problem, moved = by_hand(5, 0.8, 1)
    reached = int(np.sum(np.isfinite(moved.ts))) - 1
    assert moved.ts[reached] == moved.stats["t_end"] < 60  # it stopped between two values of the clock
    last = jax.tree.map(lambda leaf: leaf[reached], moved.states)
    one = found.isel(member=1)
    assert (int(one.points), float(one.scale), int(one.seed)) == (5, 0.8, 1)
    np.testing.assert_allclose(one.smoothed_margin_final, dyn.observables.smoothed_margin(problem, last), rtol=1e-9)
    np.testing.assert_allclose(one.log_t_final, 50.0, rtol=1e-9)
    np.testing.assert_allclose(one.t_end, moved.stats["t_end"], rtol=1e-9)
    np.testing.assert_allclose(one.log_t[:reached], moved.log_t[:reached], rtol=1e-9, atol=1e-9)
    assert np.isnan(one.log_t[reached]) and int(found.log_t_count[reached]) == 0
    for number, leaf in enumerate(moved.states):
        np.testing.assert_allclose(found[f"weights_{number}"][0], leaf, rtol=1e-8, atol=1e-10)

    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "chunks" / "chunk-000001.npz").unlink()
    assert main(["resume", "cut", "--quiet", "--no-cache"]) == 0
    for chunk in (tmp_path / "whole" / "chunks").iterdir():
        assert chunk.read_bytes() == (tmp_path / "cut" / "chunks" / chunk.name).read_bytes()
    assert main(["status", "cut"]) == 0 and main(["check", "cut", "--sample", "0"]) == 0
    assert main(["plot", "whole", "--observable", "smoothed_margin"]) == 0
    assert (tmp_path / "whole" / "figures" / "smoothed_margin.png").exists()


@pytest.mark.slow
def test_members_that_cannot_use_the_clock_say_so():
    changed = ["sweep=[{axis='start.seed', count=8}]", "motion.clock={kind='LogRadius'}", "start.scale=0.1"]
    found = sweep.build(config.loads(FILE, changed))
    keys = jax.vmap(lambda number: jax.random.fold_in(found.key, number))(jnp.arange(8))
    moved = compiled(jax.vmap(found.one))({"seed": jnp.arange(8)}, keys)
    names = {dyn.status.name(code) for code in moved.status}
    assert "outside_assumptions" in names and names <= {"outside_assumptions", "ok"}


@pytest.mark.slow
def test_other_nets_data_and_verbs_from_tables():
    descent = "motion={verb='descent', steps=3, dt=0.01}"
    cases = {
        ("problem.net={kind='deep', widths=[4, 3], slope=0.1}", "problem.data.kind='gaussian'"): dyn.nets.deep(
            (4, 3), slope=0.1
        ),
        ("problem.net={kind='two_layer', width=4, power=2}", "problem.loss.kind='Logistic'"): dyn.nets.two_layer(4, power=2),
    }
    for (net, other), wanted in cases.items():
        gap = ["problem.data={kind='gaussian', samples=6, dim=2}"] if "gaussian" in other else [other]
        loaded = config.loads(FILE, [net, *gap, descent, "keep={}", "sweep=[{axis='problem.decay', values=[0.0, 0.1]}]"])
        assert config.loads(config.dumps(loaded)) == loaded
        found = sweep.build(loaded)
        moved = compiled(found.one)({"problem.decay": jnp.asarray(0.1)}, jax.random.key(0))
        assert moved.ok and np.all(np.isfinite(moved.observed["objective"]))
        assert nouns.built(nouns.NETS, "problem.net", config.tables(loaded)["problem"]["net"]) == wanted
    classes = ["problem.net.outputs=3", "problem.loss.kind=CrossEntropy", "sweep=[]", "keep={}"]
    clusters = "problem.data={kind='clusters', samples=6, dim=4, classes=3, spread=0.0}"
    assert sweep.build(config.loads(FILE, [*classes, clusters])).design.size == 1
    inputs, labels = data.clusters(6, 4, 3, spread=0.0)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    np.testing.assert_array_equal(inputs[:3], inputs[3:])


WRONG = {
    "problem.net.kind='two_layr'": ("problem.net.kind", "'two_layer'"),
    "problem.nett={}": ("problem.nett", "'net'"),
    "problem.net.widths=[4.0]": ("problem.net.widths", "whole numbers"),
    "problem.net.widths=[0]": ("problem.net.widths", ">= 1"),
    "problem.data.kind='separble'": ("problem.data.kind", "'separable'"),
    "problem.data.gapp=1.0": ("problem.data.gapp", "'gap'"),
    "problem.data={kind='given', inputs=[[1.0, 0.0], [0.0, 1.0]], targets=[0, 1]}": ("problem.data.targets", "+1 or -1"),
    "problem.data={kind='clusters', samples=6, dim=2, classes=3}": ("problem.data", "+1 or -1"),
    "problem.loss.kind='Unhinged'": ("problem.loss.kind", "Exponential"),
    "problem.decay=0.1": ("motion.clock", "decay"),
    "start={kind='gaussian', dim=3}": ("start.kind", "weights"),
    "rates={features=1.0, weights=1.0}": ("rates", "one rate"),
    "motion.clock={kind='Polr'}": ("motion.clock.kind", "'Polar'"),
    "motion.clock='log'": ("motion.clock", "'auto'"),
    "motion.until_log_t=1e13": ("motion.until_log_t", "1.04e+12"),
    "motion.by='formula'": ("motion.by", "clock"),
    "motion={until_log_t=3.0, times=[1.0]}": ("motion.until_log_t", "clock"),
    "motion={times=[1.0]}": ("keep.observables.1", "log_t"),
    "keep.observables=['nc1']": ("keep.observables.0", "smoothed_margin"),
    "sweep.1={axis='problem.net.witdhs', values=[[2]]}": ("sweep.1.axis", "'widths'"),
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_input_is_refused_with_its_path(override):
    path, words = WRONG[override]
    changed = [override] if "sweep" in override else [override, "sweep=[{axis='start.seed', count=2}]"]
    with pytest.raises(ConfigError) as caught:
        sweep.build(config.loads(FILE, changed))
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and words in text, text


def test_a_clock_is_for_networks():
    peeled = ["problem={num_classes=2, per_class=2}", "start={kind='gaussian', dim=3}", "keep={}", "sweep=[]"]
    with pytest.raises(ConfigError, match="^motion.clock: is for networks"):
        config.loads(FILE, peeled)
