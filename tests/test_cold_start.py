"""The first result of a process: what an import brings, what is traced and compiled once, and what the disk keeps of it."""

import json
import os
import re
import subprocess
import sys
import warnings

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, PartitionSpec

import dynamics as dyn
from dynamics import compiled
from dynamics.cli.main import main
from dynamics.compile_cache import enable_compile_cache, usual_folder
from dynamics.compiled import ahead_of_time, load_program
from tests.helpers import ROOT, draw
from tests.helpers import compiled as cheaply_compiled

HEAVY = {"matplotlib", "xarray", "netCDF4", "zarr", "pydantic", "scipy", "optax", "pandas", "torch"}
REQUEST, HIT = "/jax/compilation_cache/compile_requests_use_cache", "/jax/compilation_cache/cache_hits"
SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
PROBLEM = dyn.LayerPeeled.balanced(2, 2, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(0.1, 0.2))
LINEAR = dyn.LayerPeeled.balanced(2, 2, decay=dyn.Decay(0.1, 0.2))
TIMES = np.array([0.5, 1.0])


def moves(verb: str):
    """(start, rate) to a trajectory of one member."""
    calls = {
        "flow": lambda start, rate: dyn.flow(PROBLEM, start, dyn.Rates.equal(rate), TIMES, rtol=1e-4, atol=1e-4),
        "descent": lambda start, rate: dyn.descent(PROBLEM, start, dyn.Rates.equal(rate), 4, every=2),
        "exact.flow": lambda start, rate: dyn.exact.flow(LINEAR, start, dyn.Rates.equal(rate), TIMES),
    }
    return calls[verb]


def batch(members: int, seed: int = 0):
    """Starts and rates of several members."""
    starts = dyn.Peeled(draw(members, 4, 2, seed=seed), draw(members, 2, 2, seed=seed), np.zeros((members, 2)))
    return starts, np.linspace(0.1, 0.2, members) * (1 + seed)


def counted(function):
    """The function, and a list that is one longer for every time it is traced."""
    traces = []

    def one(*args):
        traces.append(len(traces))
        return function(*args)

    return one, traces


@pytest.fixture
def own_settings(monkeypatch):
    """JAX's compile cache as it was, after the test; what the environment says of it is not there during the test."""
    for name in list(os.environ):
        if name.startswith(("DYNAMICS_CACHE", "XDG_CACHE_HOME")):
            monkeypatch.delenv(name)
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def requests():
    """How often programs were asked for, and found in the cache, since the test began."""
    events = {REQUEST: 0, HIT: 0}

    def listen(event, **_):
        if event in events:
            events[event] += 1

    jax.monitoring.register_event_listener(listen)
    yield events
    jax.monitoring.unregister_event_listener(listen)


# ---- a new process ----

FIRST_RESULT = """
import sys
import dynamics as dyn
loaded = sorted({name.partition(".")[0] for name in sys.modules})
import hashlib, json
import jax, jax.monitoring
import numpy as np
from dynamics.compile_cache import enable_compile_cache
from dynamics.compiled import ahead_of_time, load_program
jax.config.update("jax_enable_x64", True)
folder = enable_compile_cache()
from tests.test_cold_start import HIT, REQUEST, batch, moves
asked = []
jax.monitoring.register_event_listener(lambda event, **_: asked.append(event))
def digest(moved):
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(moved))).hexdigest()
arguments, verb, (what, path) = batch(3), "exact.flow", sys.argv[1:]
found = digest(jax.jit(jax.vmap(moves(verb)))(*arguments))
requests, hits = asked.count(REQUEST), asked.count(HIT)
saved = None
if what == "write":
    ahead_of_time(jax.vmap(moves(verb)), *arguments).save(path)
elif what == "read":
    saved = digest(load_program(path)(*arguments))
    assert asked.count(REQUEST) == requests, "a saved program was compiled"
print(json.dumps(dict(loaded=loaded, folder=str(folder), found=found, saved=saved, requests=requests, hits=hits)))
"""


def begun(folder, *words):
    hidden = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment |= {"DYNAMICS_CACHE": str(folder), "JAX_PLATFORMS": "cpu"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    return subprocess.Popen([sys.executable, "-W", "error", "-c", FIRST_RESULT, *words], cwd=ROOT, env=environment, **piped)


def ended(process) -> dict:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_later_process_compiles_nothing_and_two_may_fill_the_cache_at_once(tmp_path):
    folder = tmp_path / "cache"
    program = str(tmp_path / "flow.program")
    first = [ended(process) for process in [begun(folder, "write", program), begun(folder, "run", program)]]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    later = ended(begun(folder, "read", program))
    assert first[0]["found"] == first[1]["found"] == later["found"] == later["saved"]
    assert first[0]["requests"] > 0 and later["requests"] == later["hits"] > 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert not HEAVY & set(later["loaded"]) and later["folder"] == str(folder)


# ---- the folder ----


def test_the_folder_is_the_argument_then_the_variable_then_that_of_jax_then_the_users(tmp_path, monkeypatch, own_settings):
    given, named, present, home = (tmp_path / name for name in ("given", "named", "present", "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    jax.config.update("jax_compilation_cache_dir", None)
    assert enable_compile_cache() == usual_folder() and usual_folder().parent == home / "dynamics"
    assert usual_folder().stat().st_mode & 0o077 == 0
    assert jax.config.jax_compilation_cache_dir == str(usual_folder())
    jax.config.update("jax_compilation_cache_dir", str(present))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    assert enable_compile_cache() == present
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 7.0  # whoever set the folder has set the rest
    monkeypatch.setenv("DYNAMICS_CACHE", str(named))
    assert enable_compile_cache() == named
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.0
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1
    assert enable_compile_cache(given) == given == enable_compile_cache(str(given))
    monkeypatch.setenv("DYNAMICS_CACHE", "off")
    assert enable_compile_cache() is None
    assert jax.config.jax_compilation_cache_dir == str(given)


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, own_settings):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    before = jax.config.jax_compilation_cache_dir
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.warns(UserWarning, match=f"{re.escape(str(folder))}.*DYNAMICS_CACHE=off"):
            assert enable_compile_cache(folder) is None
    monkeypatch.setenv("DYNAMICS_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="compiled programs are not kept"):
        assert enable_compile_cache() is None
    assert jax.config.jax_compilation_cache_dir == before


def test_a_damaged_entry_costs_a_warning_and_a_compilation(tmp_path, own_settings, requests):
    def again():
        return jax.jit(lambda x: jnp.cos(x) @ x)(np.eye(3))

    enable_compile_cache(tmp_path)
    whole = again()
    assert requests[HIT] == 0
    np.testing.assert_array_equal(again(), whole)
    assert requests[HIT] == requests[REQUEST] / 2 > 0
    entries = list(tmp_path.glob("jit__lambda*-cache"))
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        np.testing.assert_array_equal(again(), whole)
    assert entries


# ---- programs ----


@pytest.mark.parametrize("verb", ["flow", "descent", "exact.flow"])
def test_new_numbers_are_neither_traced_nor_compiled_anew(verb, requests):
    one, traces = counted(moves(verb))
    program = cheaply_compiled(jax.vmap(one))
    first = jax.block_until_ready(program(*batch(3)))
    traced, asked = len(traces), requests[REQUEST]
    second = jax.block_until_ready(program(*batch(3, seed=1)))
    assert traced == len(traces) == 1
    assert requests[REQUEST] == asked
    assert not np.array_equal(first.states.features, second.states.features)


def test_chunks_are_neither_traced_nor_compiled_one_by_one(requests):
    counts = []
    for members in (16, 48, 80):  # the first also compiles what every run has in common
        one, traces = counted(moves("exact.flow"))
        asked = requests[REQUEST]
        dyn.ensemble.run(
            lambda member, one=one: one(*member),
            batch(members),
            chunk=16,
            lanes=8,
            progress=False,
            devices=jax.local_devices()[:1],
        )
        counts.append((len(traces), requests[REQUEST] - asked))
    assert counts[1] == counts[2]


@pytest.mark.parametrize("verb", ["flow", "descent", "exact.flow"])
def test_devices_never_wait_for_each_other_nor_for_python(verb):
    mesh = jax.make_mesh((2,), ("m",), axis_types=(AxisType.Auto,))
    over = PartitionSpec("m")

    def text(function, *arguments):
        sharded = jax.shard_map(function, mesh=mesh, in_specs=over, out_specs=over, check_vma=False)
        lowered = jax.jit(sharded).lower(*arguments)
        assert "callback" not in lowered.as_text()
        return lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()

    words = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    assert re.search(words, text(lambda x: x + jax.lax.psum(x, "m"), np.zeros(2)))
    assert not re.search(words, text(jax.vmap(moves(verb)), *batch(4)))


def test_a_program_is_the_function_for_its_shapes_only(tmp_path):
    arguments = batch(3)
    function = jax.vmap(moves("exact.flow"))
    program = ahead_of_time(function, *arguments)
    assert set(program.seconds) == {"trace", "lower", "compile"}
    loaded = load_program(program.save(tmp_path / "flow.program"))
    wanted = jax.jit(function)(*batch(3, seed=1))
    for one in (program, loaded, ahead_of_time(jax.jit(function), *jax.eval_shape(lambda *a: a, *arguments))):
        found = one(*batch(3, seed=1))
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
        with pytest.raises(ValueError, match="arguments must be as those"):
            one(*batch(4))
        with pytest.raises(ValueError, match="arguments must be as those"):
            one(arguments[0])
    with pytest.raises(ValueError, match="function must be"):
        ahead_of_time(3.0, arguments)


def test_a_program_from_the_cache_can_be_saved(tmp_path, own_settings):
    enable_compile_cache(tmp_path / "cache")
    arguments = batch(3)
    wanted, asked = [], []
    for number in range(2):
        program = ahead_of_time(jax.vmap(moves("exact.flow")), *arguments)
        loaded = load_program(program.save(tmp_path / str(number)))
        wanted.append(program(*arguments))
        asked.append(loaded(*arguments))
    jax.tree.map(np.testing.assert_array_equal, wanted, asked)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache")
    with pytest.raises(ValueError, match="loaded from a file"):
        loaded.save(tmp_path / "again")


def test_a_program_that_fits_not_here_is_refused(tmp_path, monkeypatch):
    path = ahead_of_time(lambda x: 2 * x, np.ones(2)).save(tmp_path / "twice")
    data = path.read_bytes()
    for damaged in (data[:-7], data[:-1] + bytes([data[-1] ^ 1]), data.replace(b'"sha256"', b'"sha255"')):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged: compile"):
            load_program(path)
    path.write_bytes(b"no program")
    with pytest.raises(ValueError, match="holds no program"):
        load_program(path)
    path.write_bytes(data)
    here = compiled._here()
    monkeypatch.setattr(compiled, "_here", lambda: {**here, "jax": "0.0.1"})
    with pytest.raises(ValueError, match=f"made for jax {jax.__version__}, here is 0.0.1: compile"):
        load_program(path)
    with pytest.raises(ValueError, match="call back into Python"):
        ahead_of_time(lambda x: jax.pure_callback(lambda y: y, x, x), np.ones(2)).save(tmp_path / "callback")
    with pytest.raises(OSError, match="none"):
        load_program(tmp_path / "none")


# ---- the command ----

SWEEP = """
name = "cold"
[problem]
num_classes = 2
per_class = 2
[start]
kind = "gaussian"
dim = 2
[rates]
equal = 0.1
[motion]
verb = "flow"
by = "formula"
times = [0.0, 1.0]
[[sweep]]
axis = "start.seed"
count = 16
[keep]
observables = ["objective"]
states = [1]
[run]
chunk = 8
lanes = 8
"""


@pytest.mark.slow
def test_compile_leaves_nothing_for_the_run_to_compile(tmp_path, monkeypatch, own_settings, requests, capsys):
    pytest.importorskip("pydantic")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cold.toml").write_text(SWEEP, encoding="utf-8")
    folder = tmp_path / "cache"
    monkeypatch.setenv("DYNAMICS_CACHE", str(folder))
    assert main(["compile", "cold.toml"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"programs   \d+ \(2 of the motion\), 0 of them in {re.escape(str(folder))} before", out)
    files = {path.name for path in folder.iterdir()}
    asked, found = requests[REQUEST], requests[HIT]
    assert main(["run", "cold.toml", "--quiet", "--out", "run"]) == 0
    assert requests[REQUEST] - asked == requests[HIT] - found > 2
    assert {path.name for path in folder.iterdir()} == files


def test_the_command_keeps_programs_unless_told_otherwise(tmp_path, monkeypatch, own_settings, capsys):
    pytest.importorskip("pydantic")
    from dynamics.cli import commands

    monkeypatch.setattr(commands, "run", lambda options: print(jax.config.jax_compilation_cache_dir) or 0)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for words, named, kept, said in (
        ((), tmp_path / "kept", tmp_path / "kept", ""),
        (("--no-cache",), tmp_path / "kept", None, ""),
        ((), "off", None, ""),
        ((), tmp_path / "file", None, "dynamics: warning: compiled programs are not kept"),
    ):
        monkeypatch.setenv("DYNAMICS_CACHE", str(named))
        jax.config.update("jax_compilation_cache_dir", None)
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # as outside of tests
            assert main(["run", "some.toml", *words]) == 0
        out, err = capsys.readouterr()
        assert out.strip() == str(kept) and err.startswith(said) and bool(err) == bool(said)
    monkeypatch.setenv("DYNAMICS_CACHE", "off")
    assert main(["compile", "some.toml"]) == 2
    assert "unset DYNAMICS_CACHE" in capsys.readouterr().err
