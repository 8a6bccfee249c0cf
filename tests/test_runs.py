"""Runs of the command as its users have them: killed, interrupted, shared by processes, damaged; nothing is lost."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from dynamics.cli import main as command
from dynamics.ensemble import Store
from tests.helpers import ROOT

SWEEP = """
name = "small"
seed = 3
[problem]
num_classes = 3
per_class = 2
[start]
kind = "gaussian"
dim = 2
[rates]
equal = 1.0
[motion]
verb = "flow"
times = [0.5, 1.0, 2.0]
rtol = 1e-5
atol = 1e-5
[[sweep]]
axis = "rates.equal"
name = "rate"
values = [0.5, 2.0]
[[sweep]]
axis = "start.seed"
count = {starts}
[keep]
observables = ["objective"]
states = [1]
[run]
chunk = 8
lanes = 8
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for sweep files."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.toml").write_text(SWEEP.format(starts=200), encoding="utf-8")
    return folder


def begun(place, *words, **options):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        **options.pop("env", {}),
    }
    code = "from dynamics.cli.main import entry; entry()"
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=place, env=environment, **piped, **options)


def ended(process, *codes):
    out, err = process.communicate(timeout=300)
    assert process.returncode in codes, f"exit {process.returncode}\n{out}\n{err}"
    return out + err


@pytest.fixture(scope="module")
def unbroken(place):
    ended(begun(place, "run", "small.toml", "--out", "unbroken", "--devices", "1"), 0)
    return place / "unbroken"


def copy(folder, name):
    target = folder.with_name(name)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    return target


def call(capsys, *words):
    capsys.readouterr()
    code = command.main([str(word) for word in words])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def same_files(folder, other):
    """Everything that is data is equal to the byte; the manifest and the log tell when and where."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file())
    for name in set(names) - {"manifest.json", "log.txt"}:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    chunks = [json.loads((one / "manifest.json").read_text("utf-8"))["chunks"] for one in (folder, other)]
    assert [{n: c["sha256"] for n, c in one.items()} for one in chunks][0] == {n: c["sha256"] for n, c in chunks[1].items()}


def killed_until_done(place, file, name, kills, draw):
    """Start, kill and resume at random moments, in the start-up, among the chunks and while the result is written."""
    done, words = 0, ("run", file, "--out", name, "--devices", "1", "--quiet")
    while done < kills:
        process = begun(place, *words)
        chunks, before, begin = place / name / "chunks", 0, time.monotonic()
        before = len(list(chunks.glob("*.npz"))) if chunks.exists() else 0
        while done % 4 and process.poll() is None and time.monotonic() - begin < 60:  # three of four among the chunks
            if chunks.exists() and len(list(chunks.glob("*.npz"))) > before:
                break
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.15 if done % 4 else 4.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            done += 1
        if (place / name / "manifest.json").exists():
            store = Store.open(place / name)
            assert not store.sound()  # whatever is listed is whole
            if process.returncode == 0:
                break
            words = ("resume", name, "--take-lock", "--devices", "1", "--quiet")
        else:
            words = (*words, "--overwrite") if (place / name).exists() and "--overwrite" not in words else words
    return done, ended(begun(place, "resume", name, "--take-lock", "--devices", "1"), 0)


@pytest.mark.multiprocess
def test_killed_five_times(place, unbroken):
    done, _ = killed_until_done(place, "small.toml", "killed", 5, random.Random(1))
    assert done >= 3
    same_files(place / "killed", unbroken)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_fifty_times(place):
    (place / "long.toml").write_text(SWEEP.format(starts=16_000), encoding="utf-8")
    ended(begun(place, "run", "long.toml", "--out", "whole", "--devices", "1"), 0)
    done, _ = killed_until_done(place, "long.toml", "torn", 50, random.Random(2))
    assert done == 50
    same_files(place / "torn", place / "whole")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_interrupted(place, unbroken):
    for number, name in ((signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")):
        process = begun(place, "run", "small.toml", "--out", name, "--devices", "1", "--quiet")
        while not list((place / name).glob("chunks/*.npz")) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        text = ended(process, 130, 0)
        if process.returncode == 130:
            assert f"dynamics resume {place / name}" in text
            assert not (place / name / ".lock").exists()
        ended(begun(place, "resume", name, "--devices", "1"), 0)  # the lock was given back
        same_files(place / name, unbroken)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_of_two_devices(place, unbroken):
    shared = ("run", "small.toml", "--out", "shared", "--devices", "2", "--process-count", "2", "--process-index")
    first, second = (begun(place, *shared, str(index)) for index in range(2))
    texts = [ended(first, 0), ended(second, 0)]
    assert all("join all with: dynamics merge" in text for text in texts)
    ended(begun(place, "merge", "shared"), 0)
    same_files_but_parts = copy(place / "shared", "joined")
    for part in same_files_but_parts.glob("part-*"):
        shutil.rmtree(part)
    same_files(same_files_but_parts, unbroken)  # the result too: no device count is in it


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_process_that_died_is_named_and_made_up_for(place, unbroken):
    slurm = {"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_MIN": "7", "SLURM_ARRAY_TASK_COUNT": "2"}
    ended(begun(place, "run", "small.toml", "--out", "half", "--devices", "1", env=slurm), 0)
    assert "parts not started: 0 of 2" in ended(begun(place, "status", "half"), 3)
    assert "chunks are missing" in ended(begun(place, "merge", "half"), 3)
    slurm["SLURM_ARRAY_TASK_ID"] = "7"
    ended(begun(place, "run", "small.toml", "--out", "half", "--devices", "1", env=slurm), 0)
    part = place / "half" / "part-0-of-2"
    (part / "chunks" / "chunk-000004.npz").unlink()
    assert "chunk 4" in ended(begun(place, "merge", "half"), 3)
    ended(begun(place, "resume", "half", "--devices", "1"), 0)
    assert (place / "half" / "result.nc").read_bytes() == (unbroken / "result.nc").read_bytes()


def test_status_names_the_missing_chunks(unbroken, capsys):
    folder = copy(unbroken, "gappy")
    (folder / "chunks" / "chunk-000004.npz").unlink()
    Store.open(folder).sound()
    code, text = call(capsys, "status", folder)
    assert code == 3 and "missing: 4" in text and "dynamics resume" in text


@pytest.mark.slow
@pytest.mark.multiprocess
def test_joined_through_jax_distributed(place, unbroken):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = ("run", "small.toml", "--out", "pods", "--devices", "1", "--distributed", address, "--process-count", "2")
    processes = [begun(place, *words, "--process-index", str(index)) for index in range(2)]
    for process in processes:
        ended(process, 0)
    ended(begun(place, "merge", "pods"), 0)
    assert (place / "pods" / "result.nc").read_bytes() == (unbroken / "result.nc").read_bytes()


@pytest.mark.multiprocess
def test_two_writers(place, unbroken):
    folder = copy(unbroken, "held")
    with Store.open(folder).lock():
        text = ended(begun(place, "resume", "held"), 3)
        assert str(os.getpid()) in text and "since" in text
        assert str(os.getpid()) in ended(begun(place, "resume", "held", "--take-lock"), 3)  # its holder lives


@pytest.mark.slow
def test_check_finds_every_flipped_bit(unbroken, capsys):
    folder = copy(unbroken, "flipped")
    (folder / "figures").mkdir()
    (folder / "figures" / "a.png").write_bytes(bytes(1000))
    Store.open(folder).add_file("figures/a.png")
    assert call(capsys, "check", folder, "--sample", 0)[0] == 0
    draw = np.random.default_rng(0)
    kinds = ["config.toml", "order.npy", "manifest.json", "figures/a.png", "chunks/chunk-000007.npz"]
    for name in kinds:
        data = (folder / name).read_bytes()
        for _ in range(20):
            spoiled = bytearray(data)
            spoiled[draw.integers(len(data))] ^= 1 << int(draw.integers(8))
            (folder / name).write_bytes(spoiled)
            assert call(capsys, "check", folder, "--sample", 0)[0] in (2, 3), name
        (folder / name).write_bytes(data)
    data = (folder / "result.nc").read_bytes()
    for _ in range(20):
        spoiled = bytearray(data)
        spoiled[draw.integers(len(data))] ^= 1 << int(draw.integers(8))
        (folder / "result.nc").write_bytes(spoiled)
        assert any("result.nc" in fault for fault in Store.open(folder).check())


@pytest.mark.slow
def test_check_recomputes_members(unbroken, capsys):
    code, text = call(capsys, "check", unbroken, "--sample", 2, "--seed", 1)
    assert code == 0 and "equal to the bit" in text and "16 members" in text
    folder = copy(unbroken, "wrong")
    store = Store.open(folder)
    arrays = dict(store.read(5))
    arrays["values['objective_final']"] = arrays["values['objective_final']"] * (1 + 1e-9)
    facts = {key: value for key, value in store.entries[5].items() if key not in ("file", "sha256", "bytes")}
    store.write(5, arrays, facts)  # sound by its hash, but not what the sweep gives
    code, text = call(capsys, "check", folder, "--sample", 50)
    assert code == 3 and "worst difference 1e-09" in text


@pytest.mark.slow
def test_foreign_truncated_and_missing_chunks_are_computed_again(unbroken, capsys):
    folder = copy(unbroken, "mended")
    chunks = folder / "chunks"
    shutil.copy(chunks / "chunk-000001.npz", chunks / "chunk-000002.npz")
    (chunks / "chunk-000003.npz").write_bytes((chunks / "chunk-000003.npz").read_bytes()[:100])
    (chunks / "chunk-000004.npz").unlink()
    (chunks / ".tmp-1-chunk-000009.npz").write_bytes(b"left by a killed writer")
    (folder / "result.nc").unlink()
    code, text = call(capsys, "resume", folder)
    assert code == 0 and all(f"chunk {number}:" in text for number in (2, 3, 4))
    for name in ("result.nc", *(f"chunks/{path.name}" for path in (unbroken / "chunks").iterdir())):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes()
    assert not list(chunks.glob(".tmp-*"))


def test_another_configuration_is_not_resumed(unbroken, capsys):
    folder = copy(unbroken, "foreign")
    config = folder / "config.toml"
    config.write_text(config.read_text("utf-8").replace("seed = 3", "seed = 4"), encoding="utf-8")
    code, text = call(capsys, "resume", folder)
    assert code == 2 and "config" in text and "another run" in text


@pytest.mark.slow
def test_resumed_under_other_versions_says_so(unbroken, capsys, monkeypatch):
    from dynamics.cli import running

    folder = copy(unbroken, "elsewhere")
    (folder / "chunks" / "chunk-000004.npz").unlink()
    here = running.environment()
    monkeypatch.setattr(running, "environment", lambda: {**here, "device": "another device"})
    code, text = call(capsys, "resume", folder)
    assert code == 0 and "another device now" in text and "not to the bit" in text
    assert Store.open(folder).history[-2]["environment"]["device"] == "another device"


@pytest.mark.slow
def test_a_full_disk_stops_and_is_resumed(place, unbroken, capsys, monkeypatch):
    written = []
    real = Store.write

    def full(self, number, arrays, facts):
        if len(written) == 5:
            raise OSError(28, "No space left on device", str(self.folder / "chunks"))
        written.append(number)
        real(self, number, arrays, facts)

    monkeypatch.setattr(Store, "write", full)
    code, text = call(capsys, "run", place / "small.toml", "--out", place / "full", "--devices", "1", "--quiet")
    assert code == 3 and "No space left" in text and "dynamics resume" in text
    monkeypatch.setattr(Store, "write", real)
    assert len(Store.open(place / "full").entries) == 5
    assert call(capsys, "resume", place / "full")[0] == 0
    assert (place / "full" / "result.nc").read_bytes() == (unbroken / "result.nc").read_bytes()


@pytest.mark.slow
def test_failed_members_are_written_and_counted(place, capsys):
    words = ("run", place / "small.toml", "--set", "motion.norm_cap=4.0", "--set", "sweep.1.count=20", "--quiet")
    code, text = call(capsys, *words, "--out", place / "capped")
    assert code == 1 and "norm_cap" in text and "the first to fail: member" in text
    code, text = call(capsys, "status", place / "capped")
    assert code == 1 and "norm_cap" in text
    import xarray

    with xarray.open_dataset(place / "capped" / "result.nc") as data:
        failed = data.status.values != 0
        assert failed.any() and np.all(data.t_end.values[failed] <= 2.0) and np.any(data.t_end.values[failed] < 2.0)
        assert data.status.attrs["flag_meanings"].split()[3] == "norm_cap"


@pytest.mark.slow
@pytest.mark.filterwarnings("always")
def test_steps_above_the_stability_bound_are_warned_of_once(tmp_path, capsys):
    text = SWEEP.format(starts=2).replace("[start]", "decay = { features = 0.5, prototypes = 0.5 }\n[start]")
    text = text.replace("times = [0.5, 1.0, 2.0]\nrtol = 1e-5\natol = 1e-5", "steps = 8\ndt = 1.0").replace(
        '"flow"', '"descent"'
    )
    (tmp_path / "d.toml").write_text(text, encoding="utf-8")
    for rates, above in (("[0.5, 2.0]", False), ("[0.5, 4.5]", True)):  # the bound lies between
        words = ("run", tmp_path / "d.toml", "--set", f"sweep.0.values={rates}", "--out", tmp_path / rates[6:9], "--quiet")
        code, shown = call(capsys, *words)
        assert code == 0 and shown.count("warning") == above
        assert ("2 of 4 members looked at take steps above" in shown) == above


def test_the_result_is_labelled(unbroken):
    import xarray

    with xarray.open_dataset(unbroken / "result.nc") as data:
        assert dict(data.sizes)["member"] == 400 and data.sizes["time"] == 3
        np.testing.assert_array_equal(data.rate.values, np.repeat([0.5, 2.0], 200))
        np.testing.assert_array_equal(data.seed.values, np.tile(np.arange(200), 2))
        assert data.objective_quantile.dims == ("quantile", "time") and data.objective_mean.dims == ("time",)
        final = data.objective_final.values
        np.testing.assert_allclose(data.objective_mean.values[-1], final.mean(), rtol=1e-12)
        np.testing.assert_allclose(data.objective_variance.values[-1], final.var(), rtol=1e-10)
        assert data.features.dims == ("whole", "time", "sample", "dim") and data.whole.values.tolist() == [1]
        for name in ("config", "seed", "precision", "versions", "device", "platform", "chunk", "config_sha256"):
            assert name in data.attrs
        assert data.time.attrs["units"] and data.status.attrs["flag_meanings"]


@pytest.mark.slow
def test_new_writes_a_file_that_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "new", "first")[0] == 0
    code, text = call(capsys, "run", "first.toml", "--dry-run")
    assert code == 0 and "memory" in text and not (tmp_path / "runs").exists()
    code, text = call(capsys, "run", "first.toml", "--set", "sweep.2.count=3", "--quiet")
    assert code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("first-") and len(folder.name.rsplit("-", 1)[1]) == 8
    code, text = call(capsys, "plot", folder, "--observable", "nc1")
    assert code == 0 and (folder / "figures" / "nc1.png").stat().st_size > 10_000
    assert call(capsys, "check", folder)[0] == 0


def test_wrong_words(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text(SWEEP.format(starts=3), encoding="utf-8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").write_text("mine")
    os.symlink("/etc", tmp_path / "link")
    for words, code, parts in (
        (("runn", "a.toml"), 2, ("did you mean 'run'",)),
        (("run",), 2, ("sweep",)),
        (("run", "b.toml"), 3, ("b.toml",)),
        (("run", "a.toml", "--set", "start.dmi=3"), 2, ("start.dmi", "did you mean 'dim'")),
        (("run", "a.toml", "--out", "taken"), 2, ("taken", "--overwrite")),
        (("run", "a.toml", "--out", "link/here"), 2, ("/etc",)),
        (("run", "a.toml", "--out", "/proc/here"), 2, ("/proc",)),
        (("run", "a.toml", "--process-index", "1"), 2, ("together",)),
        (("run", "a.toml", "--process-index", "2", "--process-count", "2", "--out", "x"), 2, ("below",)),
        (("run", "a.toml", "--process-index", "0", "--process-count", "2"), 2, ("--out",)),
        (("run", "a.toml", "--devices", "0"), 2, (">= 1",)),
        (("status", "nowhere"), 3, ("nowhere",)),
        (("resume", "taken"), 3, ("taken",)),
        (("merge", "taken"), 3, ("taken",)),
        (("plot", "nowhere"), 3, ("nowhere",)),
        (("new", "../evil"), 2, ("name",)),
        (("new", "-x"), 2, ()),
        (("new", "a"), 2, ("a.toml", "exists")),
    ):
        found, text = call(capsys, *words)
        assert found == code and all(part in text for part in parts), (words, found, text)
        assert text.count("\n") == 1 and "Traceback" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.toml", "link", "taken"]  # nothing was made


@pytest.mark.slow
def test_overwrite_moves_the_old_run_aside(unbroken, capsys):
    folder = copy(unbroken, "again")
    words = ("run", folder / "config.toml", "--out", folder, "--set", "sweep.1.count=4", "--quiet")
    text = (folder / "config.toml").read_text("utf-8")
    (folder.parent / "again.toml").write_text(text, encoding="utf-8")
    code, _ = call(capsys, "run", folder.parent / "again.toml", *words[2:], "--overwrite")
    assert code == 0
    (aside,) = folder.parent.glob("again.old-*")
    same_files(aside, unbroken)


def test_two_runs_of_one_second(tmp_path, monkeypatch):
    from dynamics.cli import folder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder, "stamp", lambda: "20260101T000000Z")
    made = [folder.create(None, "x", "0123456789").name for _ in range(3)]
    assert made == ["x-20260101T000000Z-01234567", "x-20260101T000000Z-01234567-2", "x-20260101T000000Z-01234567-3"]


def test_help_has_an_example(capsys):
    for name in command.COMMANDS:
        code, text = call(capsys, name, "--help")
        assert code == 0 and "example: dynamics" in text
    assert call(capsys)[0] == 2


@pytest.mark.slow
def test_names_and_texts_of_any_language(tmp_path, capsys):
    place = tmp_path / "čas a prostor"
    place.mkdir()
    text = SWEEP.format(starts=2).replace('name = "small"', 'name = "small"\ntitle = "梯度流 ∇L"').replace("\n", "\r\n")
    (place / "é.toml").write_bytes(text.encode())
    assert call(capsys, "run", place / "é.toml", "--out", place / "výsledek", "--quiet")[0] == 0
    import xarray

    with xarray.open_dataset(place / "výsledek" / "result.nc") as data:
        assert data.attrs["title"] == "梯度流 ∇L"
