"""Run folders: what is listed is what was written, whatever fails, is killed, flipped or forged."""

import errno
import hashlib
import io
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dynamics.ensemble import chunk_file, lock, manifest
from dynamics.ensemble.store import CorruptFile, ForeignRun, Locked, MemoryStore, Store
from tests.helpers import ROOT, refused

IDENTITY = {"config": "0123abcd", "chunk": 4, "design": {"axes": ["gamma", "start"]}}
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ARRAYS = {
    "values.observed['loss']": np.linspace(0, 1, 12).reshape(4, 3),
    "index": np.array([3, 1, 0, 2]),
    "status": np.zeros(4, np.int8),
    "reduced/loss/quantiles/counts": np.arange(20, dtype=np.uint32) % 3,
    "t_end": np.array([1.0, np.nan, -0.0, np.inf]),
    "scalar": np.float32(0.1),
    "empty": np.zeros((0, 3), bool),
}

# the modules alone: without JAX a process starts in a tenth of the time
ALONE = """
import os, sys, time, types, signal
import numpy as np
for name in ("dynamics", "dynamics.ensemble"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [name.replace(".", "/")]
from dynamics.ensemble.store import Locked, Store
"""


def process(code: str, *arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", ALONE + code, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=ROOT, **{**pipes, **options})


def fresh(tmp_path, chunks: int = 2) -> Store:
    store = Store.create(tmp_path / "run", IDENTITY, {"title": "été"})
    for number in range(chunks):
        store.write(number, {**ARRAYS, "index": ARRAYS["index"] + 4 * number}, {"members": 4, "seconds": 0.5})
    return store


def same(chunk, arrays) -> None:
    assert set(chunk) == set(arrays) and len(chunk) == len(arrays)
    for name, expected in arrays.items():
        assert chunk[name].dtype == expected.dtype
        np.testing.assert_array_equal(chunk[name], expected, strict=True)


def listed(folder) -> dict:
    """The manifest, verified without the code under test."""
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    document = json.loads(text)
    rest = {key: value for key, value in document.items() if key != "sha256"}
    bare = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.sha256(bare).hexdigest() == document["sha256"]
    return document


def forge(folder, change) -> None:
    """Change the manifest and give it the checksum that belongs to it."""
    document = listed(folder)
    change(document)
    del document["sha256"]
    bare = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    document["sha256"] = hashlib.sha256(bare).hexdigest()
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def forge_chunk(folder, data: bytes) -> None:
    """Put another file in the place of chunk 0, with the checksum that belongs to it."""
    (folder / "chunks" / "chunk-000000.npz").write_bytes(data)
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forge(folder, lambda document: document["chunks"]["0"].update(facts))


def archive(members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as file:
        warnings.simplefilter("ignore")  # of duplicate names
        for name, data in members.items():
            file.writestr(name.replace("twice", "index"), data)
    return buffer.getvalue()


def npy(array=None, *, shape=None, dtype="<f8", data=b"", version=(1, 0), **options) -> bytes:
    buffer = io.BytesIO()
    if array is not None:
        np.lib.format.write_array(buffer, array, version, **options)
    else:
        np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


# what is written


def test_chunks_come_back_bit_for_bit(tmp_path):
    store = fresh(tmp_path)
    store.note(event="started", devices=["cpu", "cpu"])
    (store.folder / "figures").mkdir()
    (store.folder / "figures" / "loss.png").write_bytes(b"picture")
    store.add_file("figures/loss.png")
    for found in (store, Store.open(str(store.folder))):
        same(found.read(0), ARRAYS)
        assert found.read(0)["t_end"].tobytes() == ARRAYS["t_end"].tobytes()
        assert found.read(1)["index"].tolist() == [7, 5, 4, 6]
        assert found.identity == IDENTITY and found.about == {"title": "été"}
        assert {**found.entries[1], "sha256": 0, "bytes": 0} == {
            "file": "chunks/chunk-000001.npz", "sha256": 0, "bytes": 0, "members": 4, "seconds": 0.5
        }  # fmt: skip
        assert found.history == [{"event": "started", "devices": ["cpu", "cpu"]}]
        assert found.file("figures/loss.png").read_bytes() == b"picture"
        assert found.check() == [] and found.sound() == {}
        with pytest.raises(KeyError):
            found.read(2)
        with pytest.raises(KeyError):
            found.read(0)["absent"]
    document = listed(store.folder)
    assert list(document["chunks"]) == ["0", "1"] and document["format"] == 1
    for entry in (*document["chunks"].values(), {"file": "figures/loss.png", **document["files"]["figures/loss.png"]}):
        data = (store.folder / entry["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    with np.load(store.folder / "chunks/chunk-000000.npz", allow_pickle=False) as plain:  # as any npz
        same(plain, ARRAYS)


def test_equal_arrays_give_equal_bytes(tmp_path):
    one, other = Store.create(tmp_path / "one", {}, {}), Store.create(tmp_path / "other", {}, {})
    one.write(0, ARRAYS, {})
    turned = {name: np.asfortranarray(array) if np.ndim(array) else array for name, array in reversed(ARRAYS.items())}
    other.write(0, turned, {})
    paths = [store.folder / "chunks/chunk-000000.npz" for store in (one, other)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with zipfile.ZipFile(paths[0]) as file:
        assert {member.date_time for member in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        packed = {member.filename: member.compress_type for member in file.infolist()}
    assert packed["reduced/loss/quantiles/counts.npy"] == zipfile.ZIP_DEFLATED and packed["t_end.npy"] == zipfile.ZIP_STORED


def test_many_chunks_are_listed_in_one_order(tmp_path):
    """Keys of JSON objects are sorted as texts: 10 before 2."""
    store = Store.create(tmp_path / "run", {}, {})
    for number in (10, 2, 0, 33):
        store.write(number, {"index": np.arange(number)}, {})
    assert list(listed(store.folder)["chunks"]) == ["0", "10", "2", "33"]
    assert sorted(Store.open(store.folder).entries) == [0, 2, 10, 33]


def test_a_store_in_memory_means_the_same():
    store = MemoryStore()
    store.write(3, ARRAYS, {"members": 4})
    assert store.entries == {3: {"members": 4}}
    same(store.read(3), ARRAYS)
    with pytest.raises(KeyError):
        store.read(0)


def test_a_run_folder_is_not_begun_twice(tmp_path):
    store = fresh(tmp_path)
    before = (store.folder / "manifest.json").read_bytes()
    with pytest.raises(FileExistsError, match="resume it, or choose another"):
        Store.create(store.folder, {}, {})
    assert (store.folder / "manifest.json").read_bytes() == before
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        Store.open(tmp_path)

    won, lost = [], []

    def begin(number):
        try:
            won.append(Store.create(tmp_path / "race", {"number": number}, {}))
        except (FileExistsError, Locked) as error:
            lost.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 5 and Store.open(tmp_path / "race").identity == won[0].identity


def test_another_run_is_refused_by_every_key_that_differs(tmp_path):
    store = fresh(tmp_path)
    store.require({**IDENTITY, "design": {"axes": ("gamma", "start")}})  # as JSON gives it back
    with pytest.raises(ForeignRun) as caught:
        store.require({"config": "ffff", "design": {"axes": ["gamma"]}, "chunk": 4, "seed": 1})
    text = str(caught.value)
    for words in (
        "config is '0123abcd' there, 'ffff' here",
        "design.axes is ['gamma', 'start'] there",
        "seed is",
        str(store.folder),
    ):
        assert words in text
    assert "chunk" not in text
    with pytest.raises(ForeignRun, match="chunk is 1 there, True here"):
        Store.create(tmp_path / "other", {"chunk": 1}, {}).require({"chunk": True})


def test_what_cannot_be_written(tmp_path):
    store = fresh(tmp_path, 1)
    before = listed(store.folder)
    records = np.zeros(2, [("x", "f8")])
    for array in (np.array([{}]), np.array(["text"]), records, np.array([b"bytes"]), np.array(["2020"], "datetime64[Y]")):
        refused(lambda array=array: store.write(1, {"a": array}, {}), "'a'", "numbers or booleans", str(array.dtype))
    for name in ("", "../a", "/a", "a//b", "a\\b", "a\0b", "."):
        refused(lambda name=name: store.write(1, {name: np.ones(1)}, {}), "plain name")
    refused(lambda: store.write(1, ARRAYS, {"seconds": np.nan}), "facts of chunk 1", "finite numbers")
    refused(lambda: store.write(1, ARRAYS, {"status": np.arange(2)}), "facts of chunk 1", "lists")
    refused(lambda: store.write(1, ARRAYS, {"bytes": 1}), "bytes", "facts of chunk 1")
    refused(lambda: store.write(-1, ARRAYS, {}), ">= 0", "-1")
    refused(lambda: store.note(at=object()), "event")
    refused(lambda: Store.create(tmp_path / "new", {"seed": float("inf")}, {}), "identity", "inf")
    (tmp_path / "secret").write_text("x", encoding="utf-8")
    (store.folder / "link").symlink_to(tmp_path / "secret")
    for name in ("../secret", str(tmp_path / "secret"), "", ".", "manifest.json", "a\\b", "a\0", "link"):
        refused(lambda name=name: store.add_file(name), "inside", str(store.folder))
    with pytest.raises(FileNotFoundError):
        store.add_file("absent")
    assert listed(store.folder) == before and not (tmp_path / "new").exists()


def test_arrays_above_the_cap(tmp_path, monkeypatch):
    store = fresh(tmp_path, 1)
    monkeypatch.setattr(chunk_file, "LARGEST", 90)
    refused(lambda: store.write(1, ARRAYS, {}), "values.observed['loss']", "at most 90 bytes, got 96", "smaller chunks")
    refused(lambda: store.read(0)["values.observed['loss']"], "at most 90 bytes, got 96")
    assert store.read(0)["t_end"].size == 4


# what fails


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "again"])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failing_sync_or_rename_at_any_call_loses_no_chunk(tmp_path, monkeypatch, function, replacing):
    """Disk full, quota, a dying disk: the entries are those of before, sound, and the same write succeeds later."""
    target, real = 1 if replacing else 2, getattr(os, function)
    for call in range(1, 10):
        store, seen = fresh(tmp_path / str(call)), []

        def failing(*arguments, call=call, seen=seen):
            seen.append(arguments)
            if len(seen) == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        monkeypatch.setattr(os, function, failing)
        try:
            store.write(target, {"index": np.arange(call)}, {})
        except OSError as error:
            assert error.errno == errno.ENOSPC and "bytes" in str(error) and str(store.folder) in str(error)
        else:
            break
        finally:
            monkeypatch.setattr(os, function, real)
        assert not list(tmp_path.rglob(".tmp-*"))
        assert set(store.entries) >= {0, 1} - {target} and store.sound() == {}
        again = Store.open(store.folder)
        assert set(again.entries) >= {0, 1} - {target} and again.sound() == {}
        same(again.read(0), ARRAYS)
        store.write(target, {"index": np.arange(call)}, {})
        assert store.read(target)["index"].size == call and Store.open(store.folder).check() == []
    assert call == (2 if function == "replace" else 4) * (1.5 if replacing else 1) + 1  # every call has failed once


FULL = """
import resource
folder, limit = sys.argv[1], int(sys.argv[2])
store = Store.open(folder)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
store.write(1, {"x": np.random.default_rng(1).normal(size=100)}, {})
try:
    store.write(2, {"x": np.random.default_rng(2).normal(size=100_000)}, {})
except OSError as error:
    print(error.errno, error)
assert sorted(store.entries) == [0, 1] and store.sound() == {}
assert not [name for _, _, names in os.walk(folder) for name in names if name.startswith(".tmp-")]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
else:
    os.remove(folder + "/ballast")
store.write(2, {"x": np.random.default_rng(2).normal(size=20_000)}, {})
again = Store.open(folder)
print(sorted(again.entries), again.check())
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("how", ["limit", "tmpfs"])
def test_a_full_disk_is_named_and_the_run_goes_on_after_room_is_made(tmp_path, how):
    if how == "limit":  # no file of that process may be larger
        store = fresh(tmp_path, 1)
        command, number = ["", sys.executable, "-c", ALONE + FULL, str(store.folder), "50000"][1:], errno.EFBIG
    else:  # a disk of 400 kB with 200 kB of something else, in a name space of its own
        if (
            not shutil.which("unshare")
            or subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode
        ):
            pytest.skip("no file system can be mounted here")
        script = 'mount -t tmpfs -o size=400k none "$1" && cp -r "$2" "$1/run" && head -c 200000 /dev/zero > "$1/run/ballast"'
        store, disk = fresh(tmp_path, 1), tmp_path / "disk"
        disk.mkdir()
        run = f'{script} && exec "$3" -c "$4" "$1/run" 0'
        command = ["unshare", "-rm", "sh", "-c", run, "sh", str(disk), str(store.folder), sys.executable, ALONE + FULL]
        number = errno.ENOSPC
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith(f"{number} ") and "chunk-000002.npz" in first and "800000 bytes" in first and "make room" in first
    assert last == "[0, 1, 2] []"


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(OSError, match="can be written to") as caught:
            Store.create(folder, {}, {})
        assert caught.value.filename == str(folder)
    store = fresh(tmp_path)
    shutil.rmtree(store.folder)
    with pytest.raises(OSError, match="can be written to"), store.lock():
        pass


# what is killed

WRITER = """
store = Store.open(sys.argv[1])
with store.lock(take=True):
    store.clean()
    assert store.sound() == {}
    start = 1 + max((entry["turn"] for entry in store.entries.values()), default=0)
    for turn in range(start, start + 100_000):
        arrays = {"x": np.random.default_rng(turn).normal(size=3000), "index": np.arange(turn % 50)}
        store.write(turn % 7, arrays, {"turn": turn})
        print(turn, flush=True)
"""


@pytest.mark.multiprocess
def test_killed_at_random_moments_every_entry_is_sound(tmp_path):
    """Seven chunks written again and again, killed 20 times: what is listed is what was written, and goes on."""
    store = Store.create(tmp_path / "run", IDENTITY, {})
    moments, last = random.Random(4), -1
    for _ in range(20):
        writer = process(WRITER, store.folder)
        assert writer.stdout
        said = [int(writer.stdout.readline()) for _ in range(moments.randint(1, 5))]
        time.sleep(moments.uniform(0, 0.008))  # a few writes long
        writer.kill()
        writer.communicate()
        entries = listed(store.folder)["chunks"]
        for number, entry in entries.items():
            data = (store.folder / entry["file"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry["sha256"]
            turn = entry["turn"]
            assert turn % 7 == int(number)
            with np.load(io.BytesIO(data)) as arrays:
                np.testing.assert_array_equal(arrays["x"], np.random.default_rng(turn).normal(size=3000))
                np.testing.assert_array_equal(arrays["index"], np.arange(turn % 50))
        newest = max((entry["turn"] for entry in entries.values()), default=0)
        assert len(entries) >= min(newest, 7) - 1 and newest >= said[-1] > last  # at most one chunk is lost
        last = newest
    again = Store.open(store.folder)
    with again.lock(take=True):
        again.clean()
        assert not list(store.folder.rglob(".tmp-*"))
        for number in range(7):
            again.write(number, {"x": np.ones(1)}, {"turn": 0})
    assert again.check() == [] and not (store.folder / ".lock").exists()


KILLED_AT = """
store, call, seen = Store.open(sys.argv[1]), int(sys.argv[2]), []
def deadly(real):
    def replacement(*arguments):
        seen.append(arguments)
        if len(seen) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return replacement
os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
store.write(int(sys.argv[3]), {"index": np.arange(100)}, {})
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [1, 2], ids=["again", "new"])
def test_killed_before_each_sync_and_rename(tmp_path, number):
    """Before the manifest's rename the chunk does not count; after it, it does; chunks beside it never change."""
    store = fresh(tmp_path)
    folders = [shutil.copytree(store.folder, tmp_path / str(call)) for call in range(1, 11)]
    writers = [process(KILLED_AT, folder, call, number) for call, folder in enumerate(folders, 1)]
    ends = [(writer.communicate(), writer.returncode)[1] for writer in writers]
    calls = 6 if number == 2 else 9  # a chunk that was listed is first taken off the list
    assert ends == [-9] * calls + [0] * (10 - calls)
    sizes = []
    for folder in folders:
        again = Store.open(folder)
        assert again.sound() == {}
        same(again.read(0), ARRAYS)
        sizes.append(again.read(number)["index"].size if number in again.entries else None)
        again.clean()
        again.write(number, {"index": np.arange(100)}, {})  # over whatever lies there
        assert again.check() == [] and not list(folder.rglob(".tmp-*"))
    old = [4, 4] if number == 1 else []
    assert sizes == old + [None] * (calls - 1 - len(old)) + [100] * (11 - calls)


def test_leftovers_are_cleaned_and_links_are_not_followed(tmp_path):
    store = fresh(tmp_path, 1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".tmp-1-precious").write_text("mine", encoding="utf-8")
    (store.folder / "chunks" / ".tmp-99-1-chunk-000001.npz").write_bytes(b"half")
    (store.folder / ".tmp-98-1-result.zarr" / "x").mkdir(parents=True)
    (store.folder / ".tmp-97-1-link").symlink_to(outside)
    (store.folder / "figures").symlink_to(outside)
    assert "left by a killed writer" in " ".join(store.check())
    with Store.open(store.folder).lock(), pytest.raises(Locked):
        store.clean()
    assert (store.folder / "chunks" / ".tmp-99-1-chunk-000001.npz").exists()
    store.clean()
    assert not list(store.folder.rglob(".tmp-*")) and store.check() == [] and store.entries
    assert (outside / ".tmp-1-precious").exists()


# who writes

HOLDER = """
store = Store.open(sys.argv[1])
sys.stdin.readline()
try:
    with store.lock(take=sys.argv[2] == "take"):
        print("held", flush=True)
        sys.stdin.readline()
except Locked as error:
    print("locked", error.pid, flush=True)
"""


@pytest.mark.multiprocess
@LINUX
def test_a_second_writer_is_refused_with_the_holders_name(tmp_path):
    store = fresh(tmp_path, 0)
    holder = process(HOLDER, store.folder, "take")
    assert holder.stdin and holder.stdout
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "held\n"
    for take in (False, True):  # a living one is never robbed
        with pytest.raises(Locked, match=f"process {holder.pid} on host .*it is alive: wait") as caught, store.lock(take=take):
            pass
        error = caught.value
        assert (error.pid, error.host, error.errno) == (holder.pid, platform.node(), errno.EBUSY)
        assert error.since and error.since in str(error) and error.filename == str(store.folder / ".lock")
    holder.kill()
    while "Z" not in Path(f"/proc/{holder.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]:
        time.sleep(0.01)
    with pytest.raises(Locked, match="is gone: take its lock over"), store.lock():  # its exit code not yet asked for
        pass
    holder.communicate()
    with pytest.raises(Locked, match="is gone: take its lock over.*--take-lock"), store.lock():
        pass
    with store.lock(take=True), pytest.raises(Locked, match=f"process {os.getpid()} "), store.lock(take=True):
        pass
    assert not (store.folder / ".lock").exists()


@pytest.mark.multiprocess
def test_of_many_takers_one_wins(tmp_path):
    store = fresh(tmp_path, 0)
    dead = process("")
    dead.communicate()
    for _ in range(2):
        stale = {"host": platform.node(), "pid": dead.pid, "start": None, "since": "yesterday"}
        (store.folder / ".lock").write_text(json.dumps(stale), encoding="utf-8")
        takers = [process(HOLDER, store.folder, "take") for _ in range(5)]
        for taker in takers:
            assert taker.stdin
            taker.stdin.write("\n")
            taker.stdin.flush()
        said = [taker.stdout.readline().split() for taker in takers if taker.stdout]
        winners = [taker.pid for taker, words in zip(takers, said, strict=True) if words == ["held"]]
        assert len(winners) == 1 and sorted(map(len, said)) == [1, 2, 2, 2, 2]
        assert {words[1] for words in said if len(words) == 2} == {str(winners[0])}
        for taker in takers:
            taker.communicate("\n")
        assert not (store.folder / ".lock").exists() and not list(store.folder.glob(".tmp-*"))


@pytest.mark.multiprocess
def test_whose_lock_may_be_taken(tmp_path):
    path, dead = tmp_path / ".lock", process("")
    dead.communicate()
    mine = {"host": platform.node(), "pid": os.getpid(), "start": None, "since": "then"}

    def taken(text: str) -> str:
        path.write_text(text, encoding="utf-8")
        try:
            with lock.held(path, take=True):
                assert json.loads(path.read_text(encoding="utf-8"))["pid"] == os.getpid()
        except Locked as error:
            assert path.read_text(encoding="utf-8") == text  # untouched
            return str(error)
        assert not path.exists()
        return "taken"

    assert taken(json.dumps({**mine, "start": "another boot 12345"})) == "taken"  # our number was somebody else's
    assert "alive" in taken(json.dumps(mine))
    assert taken(json.dumps({**mine, "pid": dead.pid})) == "taken"
    assert "cannot be seen from this host" in taken(json.dumps({**mine, "host": "elsewhere", "pid": dead.pid}))
    for text in ("{", json.dumps({**mine, "pid": -1}), json.dumps({**mine, "pid": "1"}), "[1]", "3"):
        assert "does not say who holds it" in taken(text)


def test_a_lock_that_is_being_written_is_waited_for(tmp_path):
    path = tmp_path / ".lock"
    path.touch()
    text = json.dumps({"host": "elsewhere", "pid": 7, "start": None, "since": "now"})
    writer = threading.Timer(0.15, lambda: path.write_text(text, encoding="utf-8"))
    writer.start()
    with pytest.raises(Locked, match="process 7 on host elsewhere since now"), lock.held(path):
        pass
    writer.join()


def test_a_lock_is_released_on_errors_and_only_when_it_is_ours(tmp_path):
    store = fresh(tmp_path, 0)
    with pytest.raises(KeyboardInterrupt), store.lock():
        raise KeyboardInterrupt
    assert not (store.folder / ".lock").exists()
    with store.lock():
        (store.folder / ".lock").write_text("another's", encoding="utf-8")
    assert (store.folder / ".lock").read_text(encoding="utf-8") == "another's"
    (store.folder / ".lock").unlink()
    with store.lock():
        (store.folder / ".lock").unlink()


# what is damaged


def test_every_flipped_bit_is_found(tmp_path):
    """Every bit of the manifest, of a chunk and of an added file."""
    store = Store.create(tmp_path / "run", {"chunk": 4, "step": 1e-05}, {})
    store.write(0, {"index": np.arange(3), "x": np.ones(2)}, {"members": 3})
    (store.folder / "order.npy").write_bytes(npy(np.arange(4)))
    store.add_file("order.npy")
    for name in ("manifest.json", "chunks/chunk-000000.npz", "order.npy"):
        path = store.folder / name
        data = path.read_bytes()
        flipped = bytearray(data)
        with path.open("r+b", buffering=0) as file:
            for bit in range(8 * len(data)):
                place = bit // 8
                flipped[place] ^= 1 << bit % 8
                file.seek(place)
                file.write(flipped[place : place + 1])
                if name == "manifest.json":
                    with pytest.raises(CorruptFile) as caught:
                        Store.open(store.folder)
                    assert str(path) in str(caught.value) and "copy" in str(caught.value)
                else:
                    assert [line for line in store.check() if line.startswith(f"{path}: ")], bit
                flipped[place] ^= 1 << bit % 8
                file.seek(place)
                file.write(flipped[place : place + 1])
        assert path.read_bytes() == data and store.check() == []


def damage(path, how: str) -> str:
    """Returns what the message must say."""
    data = path.read_bytes()
    if how == "flipped":
        place = len(data) // 2
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        return "sha256"
    if how == "truncated":
        path.write_bytes(data[:-5])
        return f"has {len(data) - 5} bytes, expected {len(data)}"
    if how == "empty":
        path.write_bytes(b"")
        return f"has 0 bytes, expected {len(data)}"
    path.unlink()
    if how == "foreign":
        path.write_bytes(path.with_name("chunk-000002.npz").read_bytes())
        return "expected"
    if how == "folder":
        path.mkdir()
        return "not a regular file"
    if how == "pipe":
        os.mkfifo(path)
        return "not a regular file"
    return "is missing"


@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "missing", "foreign", "folder", "pipe"])
def test_bad_chunks_are_named_dropped_and_written_again(tmp_path, how):
    store = fresh(tmp_path, 3)
    path = store.folder / "chunks" / "chunk-000001.npz"
    words = damage(path, how)
    again = Store.open(store.folder)
    with pytest.raises(CorruptFile) as caught:
        again.read(1)
    assert words in str(caught.value) and str(path) in str(caught.value) and "resume" in str(caught.value)
    assert [line for line in again.check() if str(path) in line and words in line]
    bad = again.sound()
    assert list(bad) == [1] and words in bad[1]
    assert sorted(again.entries) == [0, 2] == sorted(Store.open(store.folder).entries)
    same(again.read(0), ARRAYS)
    if how != "folder":
        again.write(1, ARRAYS, {})
        same(again.read(1), ARRAYS)
        assert again.check() == []


def test_what_is_not_listed_and_what_was_added_is_checked(tmp_path):
    store = fresh(tmp_path)
    (store.folder / "config.toml").write_text("a = 1\r\n", encoding="utf-8")
    store.add_file("config.toml")
    (store.folder / "chunks" / "chunk-000009.npz").write_bytes(b"?")
    assert len(store.check()) == 1 and "chunk-000009.npz: not listed in manifest.json" in store.check()[0]
    (store.folder / "config.toml").write_text("a = 2\r\n", encoding="utf-8")
    assert "config.toml: has sha256" in store.check()[0]
    with pytest.raises(CorruptFile, match="config.toml: has sha256"):
        store.file("config.toml")
    store.add_file("config.toml")  # meant so
    (store.folder / "config.toml").unlink()
    assert "config.toml: is missing" in store.check()[0]
    (store.folder / "manifest.json").unlink()
    assert "manifest.json" in store.check()[0]
    shutil.rmtree(store.folder / "chunks")
    assert len(store.check()) == 4 and sorted(store.entries) == [0, 1]


# what is forged: the checksums agree, and were made by somebody who means harm

HEADER = npy(shape=(4,))
FORGED = {
    "a pickle": ({"index.npy": npy(np.array([{"x": 1}], object), allow_pickle=True)}, "dtype object"),
    "texts": ({"index.npy": npy(np.array(["a"]))}, "dtype <U1"),
    "records": ({"index.npy": npy(np.zeros(2, [("x", "f8")]))}, "dtype"),
    "a void": ({"index.npy": npy(shape=(4,), dtype="|V8", data=bytes(32))}, "dtype"),
    "far too much": ({"index.npy": npy(shape=(1 << 40,), data=bytes(64))}, "at most 4294967296 bytes"),
    "too much": ({"index.npy": npy(shape=(1 << 28,), data=bytes(64))}, "2147483648 bytes, but 64 bytes are there"),
    "too little": ({"index.npy": npy(shape=(4,), data=bytes(64))}, "32 bytes, but 64 bytes are there"),
    "a negative size": ({"index.npy": npy(shape=(-1, -8), data=bytes(64))}, "shape (-1, -8)"),
    "an overflow": ({"index.npy": npy(shape=(1 << 62, 1 << 62), data=b"")}, "at most"),
    "a long header": ({"index.npy": npy(np.ones(2), version=(2, 0))}, "npy format 1.0"),
    "no header": ({"index.npy": b"what?"}, "chunk-000000.npz"),
    "nonsense in a header": ({"index.npy": HEADER.replace(b"descr", b"(((((")}, "chunk-000000.npz"),
    "code in a header": ({"index.npy": HEADER.replace(b"False", b"1or()")}, "chunk-000000.npz"),
    "a text file": ({"index.npy": npy(np.ones(2)), "notes.txt": b"x"}, ".npy members"),
    "a name twice": ({"index.npy": npy(np.ones(2)), "twice.npy": npy(np.ones(2))}, "different names"),
    "a way out": ({"../index.npy": npy(np.ones(2))}, "plain name"),
    "from the root": ({"/etc/index.npy": npy(np.ones(2))}, "plain name"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_chunks_are_refused_before_anything_is_allocated(tmp_path, kind):
    store = fresh(tmp_path)
    members, words = FORGED[kind]
    forge_chunk(store.folder, archive(members))
    forged = Store.open(store.folder)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFile) as caught:
            dict(forged.read(0))
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
    assert words in str(caught.value) and "chunk-000000.npz" in str(caught.value) and "resume" in str(caught.value)
    assert [line for line in forged.check() if words in line] and list(forged.sound()) == [0] and list(forged.entries) == [1]


def test_a_member_that_swells(tmp_path):
    """A declared size that no compression reaches; another way of packing; a password."""
    store = fresh(tmp_path)
    honest = archive({"index.npy": npy(np.arange(100))}, zipfile.ZIP_DEFLATED)
    size = len(npy(np.arange(100))).to_bytes(4, "little")
    swollen = honest.replace(size, (1 << 30).to_bytes(4, "little"))
    locked = bytearray(honest)
    locked[honest.rindex(b"PK\x01\x02") + 8] |= 1
    packed = archive({"index.npy": npy(np.arange(100))}, zipfile.ZIP_LZMA)
    for data, words in ((swollen, "declares 1073741824 bytes"), (bytes(locked), "without a password"), (packed, "deflated")):
        forge_chunk(store.folder, data)
        with pytest.raises(CorruptFile, match=words):
            Store.open(store.folder).read(0)["index"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document["chunks"]["0"].update(file="../../secret"), "'../../secret'"),
        (lambda document: document["chunks"].update({"01": document["chunks"]["0"]}), "'01'"),
        (lambda document: document["chunks"].update({"x": document["chunks"]["0"]}), "form of a manifest"),
        (lambda document: document["chunks"]["0"].update(bytes="many"), "whole number"),
        (lambda document: document["chunks"].update({"0": 3}), "form of a manifest"),
        (lambda document: document["files"].update({"../secret": {"sha256": "", "bytes": 1}}), "'../secret'"),
        (lambda document: document["files"].update({"/etc/passwd": {"sha256": "", "bytes": 1}}), "'/etc/passwd'"),
        (lambda document: document.update(format=2), "format 2, this version reads 1"),
        (lambda document: document.update(extra=1), "'extra'"),
        (lambda document: document.update(history={}), "history"),
        (lambda document: document.update(identity=3), "identity"),
    ],
)
def test_forged_manifests_are_refused(tmp_path, change, words):
    store = fresh(tmp_path)
    forge(store.folder, change)
    with pytest.raises(CorruptFile) as caught:
        Store.open(store.folder)
    assert words in str(caught.value) and str(store.folder / "manifest.json") in str(caught.value)


def test_a_manifest_that_is_no_manifest(tmp_path):
    store = fresh(tmp_path)
    path = store.folder / "manifest.json"
    whole = path.read_bytes()
    for data in (b"", b"{}", whole[:-1], whole[1:], whole + b"\n", whole[: len(whole) // 2], b"\xff" * 200, b"[" * 5000):
        path.write_bytes(data)
        with pytest.raises(CorruptFile, match="do not agree"):
            Store.open(store.folder)
    bare = b'{"deep":' + b"[" * 100_000
    path.write_bytes(bare[:-1] + manifest._seal(bare))
    with pytest.raises(CorruptFile):
        Store.open(store.folder)
