"""Files are there whole or not at all, whatever fails on the way."""

import errno
import hashlib
import os
import subprocess
import sys
import threading

import pytest

from dynamics.whole_file import sha256_of, whole_file
from tests.helpers import ROOT


def left(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(call: int, number: int, real):
    """`real`, whose call number `call` raises."""
    seen = []

    def replacement(*arguments, **options):
        seen.append(arguments)
        if len(seen) == call:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    return replacement


def test_bytes_and_text_as_they_are(tmp_path):
    target = tmp_path / "été, 学习.txt"  # names of any language, with spaces
    with whole_file(target, "w") as file:
        file.write("é\n学\r\n")
        assert not target.exists() and left(tmp_path)[0].startswith(f".tmp-{os.getpid()}-")
    assert target.read_bytes() == "é\n学\r\n".encode()  # UTF-8 and \n on every platform
    with whole_file(target) as file:
        file.write(bytes(range(256)) * 5000)
    assert target.read_bytes() == bytes(range(256)) * 5000
    assert sha256_of(target) == hashlib.sha256(target.read_bytes()).hexdigest()
    assert left(tmp_path) == [target.name]


@pytest.mark.parametrize("raised", [ValueError("mine"), KeyboardInterrupt(), OSError("no number"), OSError(5, "of", "other")])
def test_an_error_in_the_block_leaves_the_old_file_and_passes_through(tmp_path, raised):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(type(raised)) as caught, whole_file(target) as file:
        file.write(b"half of what was mea")
        raise raised
    assert caught.value is raised
    assert target.read_bytes() == b"old" and left(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("function", "call", "after"), [("replace", 1, b"old"), ("fsync", 1, b"old"), ("fsync", 2, b"new")], ids=str
)
def test_a_failing_rename_or_sync(tmp_path, monkeypatch, function, call, after):
    """The second sync is the folder's: the file is new then, and the error says that it may not last."""
    target = tmp_path / "file"
    target.write_bytes(b"old")
    monkeypatch.setattr(os, function, failing(call, errno.EIO, getattr(os, function)))
    with pytest.raises(OSError, match="make room") as caught, whole_file(target, needed=3) as file:
        file.write(b"new")
    assert caught.value.errno == errno.EIO and caught.value.filename == str(target) and "about 3 bytes" in str(caught.value)
    assert target.read_bytes() == after and left(tmp_path) == ["file"]


def test_a_file_system_without_folder_syncs_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(2, errno.EINVAL, os.fsync))
    with whole_file(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (calls.append(os.readlink(f"/proc/self/fd/{number}")), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    with whole_file(tmp_path / "file") as file:
        file.write(b"new")
    assert [os.path.basename(call).split("-")[0] for call in calls] == [".tmp", "replace", tmp_path.name.split("-")[0]]


@pytest.mark.multiprocess
def test_a_disk_that_is_full(tmp_path):
    """A real write that fails: no file of this process may pass 10000 bytes."""
    code = """
import resource, sys
from pathlib import Path
sys.path.insert(0, "dynamics")
from whole_file import whole_file
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
for size in (5000, 20000):
    try:
        with whole_file(Path(sys.argv[1]), needed=size) as file:
            for _ in range(size // 1000):
                file.write(b"x" * 1000)
    except OSError as error:
        print(error.errno, error)
"""
    target = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{errno.EFBIG} ") and str(target) in done.stdout and "20000 bytes" in done.stdout
    assert target.read_bytes() == b"x" * 5000 and left(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for target, kind in ((tmp_path / "file" / "new", NotADirectoryError), (tmp_path / "absent" / "new", FileNotFoundError)):
        with pytest.raises(kind) as caught, whole_file(target):
            pass
        assert caught.value.filename == str(target) and "folder that can be written to" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="can be written to"), whole_file(tmp_path / "file"):
        pass


def test_a_link_in_the_way_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    (tmp_path / f".tmp-{os.getpid()}-{threading.get_native_id()}-file").symlink_to(precious)
    with whole_file(tmp_path / "file") as file:
        file.write(b"new")
    assert precious.read_bytes() == b"mine" and not (tmp_path / "file").is_symlink()
    assert left(tmp_path) == ["file", "precious"]


def test_threads_that_write_one_file_leave_one_of_theirs(tmp_path):
    texts = [bytes([65 + k]) * 50_000 for k in range(8)]

    def write(text):
        for _ in range(5):
            with whole_file(tmp_path / "file") as file:
                file.write(text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in texts and left(tmp_path) == ["file"]
