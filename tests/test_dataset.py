"""Labelled results: what is written is what xarray opens, damage is found, and a failing write leaves nothing."""

import gc
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics import extras, status
from dynamics.ensemble import dataset, netcdf_file
from dynamics.ensemble.dataset import Variable, faults, problems_of, to_xarray, write
from tests.helpers import ROOT, draw, refused, start

xarray = pytest.importorskip("xarray")
pytest.importorskip("netCDF4")
pytest.importorskip("zarr")

FORMATS: dict[Any, str] = {"netcdf": "r.nc", "zarr": "r.zarr"}
LOSSES = np.array(["cross_entropy", "squäre", "", "学"])


def coordinates(members=4, times=3):
    yield Variable("member", ("member",), np.arange(members), {"long_name": "number of the member"})
    yield Variable("time", ("time",), np.linspace(0, 1, times), {"long_name": "time", "units": "1"})
    yield Variable("loss", ("member",), np.resize(LOSSES, members), {"long_name": "swept axis loss"})
    yield Variable("rates.decay", ("member",), draw(members))
    yield Variable("loss_cell", ("loss_cell",), np.array(["α", "b"]))


def series(members=4, times=3):
    values = draw(members, times)
    values[1, 1:] = np.nan
    return values


def variables(members=4, times=3):
    yield Variable("norm", ("member", "time"), lambda: series(members, times), {"units": "1"})
    yield Variable("single", ("time",), draw(times).astype(np.float32))
    yield Variable("half", ("time",), draw(times).astype(np.float16))
    yield Variable("steps", ("member",), np.arange(members, dtype=np.int32) - 1)
    yield Variable("large", ("member",), np.arange(members, dtype=np.uint64) + 2**63)
    yield Variable("swapped", ("member",), np.arange(members, dtype=">i2"))
    yield Variable("turned", ("time", "member"), np.asfortranarray(draw(times, members)))
    yield Variable("ok", ("member",), np.arange(members) % 2 == 0)
    flags = {"flag_values": np.arange(7, dtype=np.int8), "flag_meanings": " ".join(status.NAMES)}
    yield Variable("status", ("member",), np.zeros(members, np.int8), flags)
    yield Variable("number", (), np.array(np.pi))
    yield Variable("word", (), np.array("é"))
    yield Variable("norm_mean", ("loss_cell", "time"), draw(2, times))
    yield Variable("none", ("nothing", "time"), np.zeros((0, times)))


ABOUT = {
    "title": "Ünï 学",
    "config": "[rates]\ndecay = 0.1\n" * 5000,
    "seed": 3,
    "error": 0.125,
    "x64": True,
    "empty": "",
    "levels": [0.5, 1.0],
}


def opened(path: Path):
    with xarray.open_dataset(path) as found:
        return found.load()


def small(path: Path, format: Any = "netcdf") -> Path:
    return write(path, coordinates(200, 30), variables(200, 30), {"title": "é" * 40}, format=format)


def flipped(whole: bytes, position: int) -> bytes:
    spoiled = bytearray(whole)
    spoiled[position] ^= 1 << int(position) % 8
    return bytes(spoiled)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_what_xarray_opens(tmp_path, format):
    (tmp_path / "a folder é").mkdir()
    path = write(tmp_path / "a folder é" / f"of é {FORMATS[format]}", coordinates(), variables(), ABOUT, format)
    assert faults(path) == [] and list(path.parent.iterdir()) == [path]
    found = opened(path)
    assert found.sizes == {"member": 4, "time": 3, "loss_cell": 2, "nothing": 0}
    assert set(found.coords) == {"member", "time", "loss", "rates.decay", "loss_cell"}
    assert set(found.indexes) == {"member", "time", "loss_cell"}
    assert found.loss.values.tolist() == LOSSES.tolist() and found.word.item() == "é"
    np.testing.assert_array_equal(found.norm, series())  # NaN kept
    for name, dtype in (("norm", "f8"), ("single", "f4"), ("half", "f4"), ("steps", "i4"), ("large", "u8"), ("ok", "i1")):
        assert found[name].dtype == dtype, name
    np.testing.assert_array_equal(found.half, draw(3).astype(np.float16))
    np.testing.assert_array_equal(found.large.values - np.uint64(2**63), np.arange(4))
    np.testing.assert_array_equal(found.swapped, np.arange(4))
    np.testing.assert_array_equal(found.turned, draw(3, 4))
    assert found.ok.values.tolist() == [1, 0, 1, 0] and found.ok.attrs["flag_meanings"] == "false true"
    assert found.number.item() == np.pi and found.none.shape == (0, 3)
    assert found.time.attrs == {"long_name": "time", "units": "1"}
    assert np.asarray(found.status.attrs["flag_values"]).tolist() == list(range(7))
    for name, value in ABOUT.items():
        assert np.array_equal(found.attrs[name], value), name
    assert found.norm.sel(member=2, time=0.5).item() == series()[2, 1]
    xarray.testing.assert_identical(found, to_xarray(coordinates(), variables(), ABOUT))


def test_every_array_of_a_file_is_compressed_and_checksummed(tmp_path):
    netCDF4 = extras.need("netCDF4", "io")
    with netCDF4.Dataset(small(tmp_path / "r.nc")) as found:
        bare = {name for name, one in found.variables.items() if not (one.filters()["fletcher32"] and one.filters()["zlib"])}
        filled = {name for name, one in found.variables.items() if "_FillValue" in one.ncattrs()}
        kinds = {name: one.dtype.kind for name, one in found.variables.items()}
    assert bare == {"number"}  # HDF5 has none for a single number: the SHA-256 among the attributes covers it
    assert filled == {name for name, kind in kinds.items() if kind == "f"}


def test_nothing_to_write(tmp_path):
    for format in FORMATS:
        path = write(tmp_path / FORMATS[format], [], [], {}, format)
        assert faults(path) == [] and not opened(path).variables
    refused(lambda: write(tmp_path / "x", [], [], {}, "npz"), "format", "netcdf", "zarr", "npz")  # pyright: ignore


@pytest.mark.parametrize("format", FORMATS)
def test_one_variable_in_memory_at_a_time(tmp_path, format):
    alive: list[weakref.ref] = []

    def made():
        patience = time.monotonic() + (20 if format == "zarr" else 0)  # its threads let go a moment later
        while any(one() is not None for one in alive):
            assert time.monotonic() < patience
            time.sleep(0.01)
        array = np.random.default_rng(0).integers(0, 2**62, 2**18)  # 2 MiB
        alive.append(weakref.ref(array))
        return array

    def given():
        for number in range(12):
            yield Variable(f"called_{number}", ("x",), made)
            yield Variable(f"given_{number}", ("x",), made())

    gc.disable()
    tracemalloc.start()
    try:
        path = write(tmp_path / "r", [], given(), {}, format)
        assert not faults(path)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**21  # of 48 MiB; a chunk of zarr is copied thrice
    finally:
        tracemalloc.stop()
        gc.enable()
    assert len(alive) == 24


@pytest.mark.parametrize(
    "wrong, words",
    [
        (Variable("norm", ("member",), np.zeros(4)), ("'norm'", "twice")),
        (Variable("x", ("member",), np.zeros(5)), ("'x'", "5", "'member'", "4")),
        (Variable("x", ("member",), np.zeros((4, 3))), ("'x'", "('member',)", "(4, 3)")),
        (Variable("x", ("a", "a"), np.zeros((2, 2))), ("'x'", "('a', 'a')")),
        (Variable("nothing", ("time",), np.zeros(3)), ("'nothing'", "dimension", "('time',)")),
        (Variable("x", ("norm",), np.zeros(3)), ("'norm'", "dimension of 'x'")),
        (Variable("a b", ("time",), np.zeros(3)), ("'a b'", "spaces")),
        (Variable("x", ("a/b",), np.zeros(3)), ("'x'", "'a/b'")),
        (Variable("x", ("time",), np.zeros(3, complex)), ("'x'", "complex128", "imaginary")),
        (Variable("x", ("time",), np.array([1, "a", None], object)), ("'x'", "object")),
        (Variable("x", ("time",), np.zeros(3, "M8[s]")), ("'x'", "datetime64")),
        (Variable("x", ("time",), np.zeros(3), {"note": None}), ("'x'", "'note'", "None")),
        (Variable("x", ("time",), np.zeros(3), {"scale_factor": 2.0}), ("'x'", "'scale_factor'")),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_leaves_nothing(tmp_path, wrong, words):
    for format in FORMATS:
        refused(lambda format=format: write(tmp_path / "r", coordinates(), [*variables(), wrong], {}, format), *words)
    refused(lambda: to_xarray(coordinates(), [*variables(), wrong], {}), *words)
    assert list(tmp_path.iterdir()) == []


def test_the_error_of_a_variable_is_its_own_and_keeps_the_old_file(tmp_path):
    def fails():
        raise RuntimeError("out of memory on the device")

    for format in FORMATS:
        path = write(tmp_path / FORMATS[format], coordinates(), variables(), ABOUT, format)
        with pytest.raises(RuntimeError, match="out of memory on the device"):
            write(path, coordinates(), [Variable("x", ("member",), fails)], {}, format)
        assert faults(path) == [] and opened(path).title == ABOUT["title"]
        write(path, coordinates(), [], {}, format)  # replaced
        assert faults(path) == [] and not opened(path).data_vars
    assert len(list(tmp_path.iterdir())) == 2


WRITES = """
import sys
from pathlib import Path
from tests.test_dataset import small
for format in ("netcdf", "zarr"):
    small(Path(sys.argv[1]) / format, format)
"""


@pytest.mark.slow
def test_the_same_bytes_in_another_process_at_another_time(tmp_path):
    for folder, seed in (("a", "1"), ("b", "2")):
        (tmp_path / folder).mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed}  # starting takes over a second: the clock of HDF5 moves on
        subprocess.run([sys.executable, "-c", WRITES, tmp_path / folder], cwd=ROOT, env=environment, check=True)
    files = {one.relative_to(tmp_path / "a") for one in (tmp_path / "a").rglob("*") if one.is_file()}
    assert files == {one.relative_to(tmp_path / "b") for one in (tmp_path / "b").rglob("*") if one.is_file()}
    times = [(tmp_path / folder / "netcdf").stat().st_mtime for folder in "ab"]
    assert times[1] - times[0] > 1
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_flipped_bit_in_the_data_is_found_by_name(tmp_path):
    path = write(tmp_path / "r.nc", coordinates(), [Variable("noise", ("x", "y"), draw(300, 500))], {})
    whole = path.read_bytes()
    assert len(whole) < 1.05 * 300 * 500 * 8  # random numbers do not compress: nearly all of the file are data
    for position in np.random.default_rng(0).integers(len(whole) // 10, len(whole) * 9 // 10, 60):
        path.write_bytes(flipped(whole, position))
        (problem,) = faults(path)
        assert str(path) in problem and "variable 'noise' cannot be read" in problem
    path.write_bytes(whole)
    assert faults(path) == problems_of(path) == []


def test_a_flipped_bit_anywhere_is_found_or_harmless(tmp_path):
    path = small(tmp_path / "r.nc")
    whole, truth = path.read_bytes(), opened(path)
    for position in np.random.default_rng(0).integers(0, len(whole), 100):
        path.write_bytes(flipped(whole, position))
        assert faults(path) or opened(path).identical(truth), position


def test_what_has_no_checksum_of_its_own_is_covered_by_the_sha256(tmp_path):
    path = small(tmp_path / "r.nc")
    whole = path.read_bytes()
    for part, name in ((struct.pack("<d", np.pi), "'number'"), ("é".encode() * 40, "attributes of the whole")):
        assert whole.count(part) == 1
        path.write_bytes(flipped(whole, whole.index(part)))
        (problem,) = faults(path)
        assert name in problem and "not as written" in problem


def test_a_reading_process_that_crashes_is_reported(tmp_path, monkeypatch):
    path = small(tmp_path / "r.nc")
    with monkeypatch.context() as patch:  # HDF5 does it for some damage, which differs between versions
        patch.setattr(dataset, "CHILD", "import os; os.abort()")
        (problem,) = problems_of(path)
    assert str(path) in problem and "ended with code" in problem
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (problem,) = problems_of(path)
    assert "cannot be opened" in problem
    path.unlink()
    assert problems_of(path) == [f"{path}: is missing"]
    with extras.need("netCDF4", "io").Dataset(path, "w"):
        pass
    assert faults(path) == [f"{path}: attribute checksums is missing or damaged"]


def test_zarr_damage_is_found_and_named(tmp_path):
    path = small(tmp_path / "r.zarr", "zarr")
    chunks = [one for one in sorted(path.rglob("*")) if one.is_file() and one.name != "zarr.json"]
    assert {one.relative_to(path).parts[0] for one in chunks} == {*opened(path).variables} - {"none"}
    for chunk in chunks:
        name, whole = repr(chunk.relative_to(path).parts[0]), chunk.read_bytes()
        chunk.write_bytes(flipped(whole, len(whole) // 2))
        (problem,) = faults(path)
        assert f"variable {name} cannot be read" in problem
        chunk.unlink()
        (problem,) = problems_of(path)
        assert name in problem and "1 of 1 chunks are missing" in problem
        chunk.write_bytes(whole)
    assert faults(path) == []
    text = (path / "zarr.json").read_text(encoding="utf-8")
    (path / "zarr.json").write_text(text.replace("long_name", "song_name", 1), encoding="utf-8")
    assert faults(path)
    (path / "zarr.json").write_text(text[:-5], encoding="utf-8")
    assert "cannot be opened" in faults(path)[0]


FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from dynamics.ensemble.dataset import Variable, faults, write
folder = Path(sys.argv[1])
numbers = np.random.default_rng(0).random(2**18)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for format in ("netcdf", "zarr"):
    given = [], [Variable(f"x{i}", ("x",), numbers) for i in range(3)], {}
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        write(folder / format, *given, format=format)
    except OSError as error:
        print(type(error).__name__, error)
    print(sorted(folder.iterdir()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(faults(write(folder / format, *given, format=format)))
    __import__("shutil").rmtree(folder), folder.mkdir()
"""


@pytest.mark.skipif(os.name == "nt", reason="limits are POSIX")
def test_a_full_disk_is_an_error_of_this_file_and_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FULL, tmp_path], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    for (error, left, sound), format in ((lines[:3], "netcdf"), (lines[3:], "zarr")):
        assert error.startswith("OSError") and "File too large" in error and str(tmp_path / format) in error
        assert any(f"{count * 2**21} bytes" in error for count in (1, 2, 3))
        assert left == sound == "[]"


def test_a_shape_too_large_for_its_file_is_never_allocated(tmp_path):
    with extras.need("netCDF4", "io").Dataset(tmp_path / "r.nc", "w") as made:
        made.createDimension("x", 2**40)
        made.createVariable("huge", "f8", ("x",), chunksizes=(2**20,))
    (problem, *_) = [one for one in netcdf_file.read(tmp_path / "r.nc") if isinstance(one, str)]
    assert "'huge'" in problem and "(1099511627776,) in a file of" in problem


# What needs them says so; the rest does without

BLOCKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"xarray", "netCDF4", "zarr", "pydantic", "pandas", "tqdm"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import jax, numpy as np, dynamics as dyn
import dynamics.ensemble.dataset as dataset
problem = dyn.LayerPeeled.balanced(2, 1)
state = dyn.Peeled(np.eye(2), np.eye(2), np.zeros(2))
def one(member):
    return dyn.flow(problem, state, dyn.Rates.equal(member), ts=np.array([0.0, 0.5]), observe={"loss": dyn.observables.loss})
result = dyn.ensemble.run(one, np.array([0.1, 0.2], np.float32), progress=False)
print(result.ok.all())
for call in (result.values.to_xarray, lambda: dataset.write("r.nc", [], [], {}), lambda: dataset.problems_of("r.nc")):
    try:
        call()
    except ImportError as error:
        print(error)
"""


def test_without_the_extras_everything_else_works(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    ran, *errors = done.stdout.splitlines()
    assert ran == "True" and list(tmp_path.iterdir()) == []
    assert [error.split()[0] for error in errors] == ["xarray", "netCDF4", "netCDF4"]
    assert all("pip install 'dynamics[io]'" in error for error in errors)


def test_a_missing_extra_is_named(monkeypatch):
    assert extras.need("json", "io").dumps(1) == "1"
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(ImportError, match=r"pydantic cannot be imported.*pip install 'dynamics\[cli\]'"):
        extras.need("pydantic", "cli")


# Trajectories

PROBLEM = dyn.LayerPeeled.balanced(3, 2)
STATE = start(PROBLEM, 4)
TS = jnp.array([0.0, 0.5, 2.0])


def test_one_trajectory_with_its_states():
    moved = dyn.exact.flow(PROBLEM, STATE, dyn.Rates.equal(0.4), TS)
    found = moved.to_xarray()
    assert found.sizes == {"time": 3, "features_0": 6, "features_1": 4, "prototypes_0": 3, "prototypes_1": 4, "biases_0": 3}
    assert found.features.dims == ("time", "features_0", "features_1") and found.biases.dims == ("time", "biases_0")
    np.testing.assert_array_equal(found.features.sel(time=2.0), moved.states.features[2])
    np.testing.assert_array_equal(found.time, TS)
    assert found.status.dims == () and found.status.item() == status.OK and found.t_end.item() == 2.0
    assert found.steps.dtype.kind == "i" and found.attrs == {"determined": moved.determined}
    meanings = dict(zip(found.status.attrs["flag_values"].tolist(), found.status.attrs["flag_meanings"].split(), strict=True))
    assert meanings == {code: status.name(code) for code in range(7)}


def test_a_batch_of_trajectories_with_observables(tmp_path):
    def one(ts, scale):
        observed = {"loss": scale * ts, "gram": scale * jnp.outer(ts, jnp.arange(4.0)).reshape(3, 2, 2)}
        return dyn.Trajectory(
            ts, None, observed, jnp.where(scale > 1, 3, 0), {"steps": jnp.int32(5), "t_end": ts[-1]}, log_scale=ts
        )

    scales = jnp.array([0.5, 1.0, 1.5])
    batch = jax.vmap(one, in_axes=(None, 0))(TS, scales)
    found = batch.to_xarray()
    assert found.loss.dims == ("member", "time") and found.gram.dims == ("member", "time", "gram_0", "gram_1")
    assert set(found.coords) == {"member", "time"} and found.log_scale.dims == ("member", "time")
    np.testing.assert_array_equal(found.loss.sel(member=1), TS)
    np.testing.assert_array_equal(found.gram.sel(member=2, time=2.0), 3.0 * np.arange(4.0).reshape(2, 2))
    assert found.status.values.tolist() == [0, 0, 3] and found.t_end.dims == found.steps.dims == ("member",)
    found.to_netcdf(tmp_path / "r.nc", engine="netcdf4")
    xarray.testing.assert_identical(opened(tmp_path / "r.nc"), found)

    apart = jax.vmap(one)(jnp.outer(scales, TS), scales).to_xarray()
    assert set(apart.coords) == {"member", "ts"} and apart.ts.dims == ("member", "time")
    np.testing.assert_array_equal(apart.ts.sel(member=0), TS / 2)


def test_a_bare_state_and_what_cannot_be_labelled():
    def ended(states, observed, codes):
        codes = jnp.asarray(codes)
        return dyn.Trajectory(TS, states, observed, codes, {"t_end": jnp.zeros(codes.shape)})

    bare = ended(jnp.ones((3, 2)), {}, 0).to_xarray()
    assert bare.states.dims == ("time", "states_0")
    refused(ended(None, {}, [[0], [0]]).to_xarray, "status", "(2, 1)")
    for name in ("status", "t_end", "time"):
        refused(ended(None, {name: TS}, 0).to_xarray, repr(name), "two things")
