"""Finished chunks of a run: in a folder, each whole or not at all, or in memory."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.ensemble import chunk_file, lock
from dynamics.ensemble.chunk_file import Chunk
from dynamics.ensemble.lock import Locked as Locked
from dynamics.ensemble.manifest import NAME, Manifest, chunk_name, is_inside, plain
from dynamics.ensemble.manifest import CorruptFile as CorruptFile
from dynamics.whole_file import explained, sha256_of, whole_file

OURS = {"file", "sha256", "bytes"}


class ForeignRun(ValueError):
    """The folder holds another run than the one that is asked for."""


class Store:
    """A run folder: `manifest.json`, `chunks/chunk-<number>.npz`, and what else is added to it.

    Whoever writes holds the lock. A process that is killed at any moment leaves a folder that opens, whose entries are sound:
    a chunk counts when the manifest lists it, and the manifest is replaced after the chunk is on the disk.

    - `identity`: what makes two runs the same, as JSON gives it back; `about`: anything else to know.
    - `entries`: facts of each finished chunk by number: `file`, `sha256`, `bytes`, and what `write` was given.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self._manifest = folder, manifest
        self._checked: set[int] = set()
        self._held = False

    @classmethod
    def create(cls, folder: str | Path, identity: dict, about: dict) -> "Store":
        """A new run in a folder, made where there is none.

        **Raises:** `FileExistsError` where the folder holds a run.
        """
        folder = Path(folder)
        manifest = Manifest(folder, identity, about)
        try:
            (folder / "chunks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, folder) from error
        with lock.held(folder / ".lock", take=True):
            if (folder / NAME).exists():
                raise FileExistsError(
                    errno.EEXIST, "the folder holds a run already: resume it, or choose another folder", str(folder)
                )
            manifest.commit()
        return cls(folder, manifest)

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """The run in a folder.

        **Raises:** `CorruptFile` where its manifest is not as written, `FileNotFoundError` where there is none.
        """
        folder = Path(folder)
        return cls(folder, Manifest.load(folder))

    @property
    def identity(self) -> dict:
        return self._manifest.identity

    @property
    def about(self) -> dict:
        return self._manifest.about

    @property
    def entries(self) -> dict[int, dict]:
        return self._manifest.chunks

    @property
    def files(self) -> dict[str, dict]:
        """Size and SHA-256 of each added file, by name."""
        return self._manifest.files

    @property
    def history(self) -> list[dict]:
        return self._manifest.history

    def require(self, identity: dict) -> None:
        """Refuse to go on with another run.

        **Raises:** `ForeignRun`, naming each key that differs, with both values.
        """
        differences = list(_differences(self.identity, plain("identity", identity)))
        if differences:
            raise ForeignRun(
                f"{self.folder} holds another run: {'; '.join(differences)}. Use the same definition, or another folder"
            )

    @contextmanager
    def lock(self, take: bool = False) -> Iterator[None]:
        """Be the only writer for the block. `take`: also where a process of this host that is gone left its lock.

        **Raises:** `Locked`, naming host, process and time of the holder.
        """
        with lock.held(self.folder / ".lock", take):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def clean(self) -> None:
        """Remove what killed writers left (`.tmp-*`), under the lock."""
        with nullcontext() if self._held else self.lock():
            for at, folders, files in os.walk(self.folder, followlinks=False):
                for name in [name for name in (*folders, *files) if name.startswith(".tmp-")]:
                    path = Path(at, name)
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)  # the link itself, never what it leads to
                folders[:] = [name for name in folders if not name.startswith(".tmp-")]

    def write(self, number: int, arrays: Mapping[str, np.ndarray], facts: dict) -> None:
        """Write a chunk, then list it in the manifest with `facts`; each whole or not at all.

        **Raises:** `ValueError` for arrays that are not numbers and facts that are not JSON; `OSError` where the disk does not
        take it: the chunks before stay as they are.
        """
        if number < 0:
            raise ValueError(f"number of a chunk must be >= 0, got {number}")
        if OURS & set(facts):
            raise ValueError(f"facts of chunk {number} must not be named {sorted(OURS)}, got {sorted(facts)}")
        facts = plain(f"facts of chunk {number}", facts)
        ready = chunk_file.plain_arrays(arrays)
        path = self.folder / chunk_name(number)
        if number in self.entries:
            self._manifest.commit(drop=[number])  # else a kill between the two files leaves an entry that is not sound
        self._checked.discard(number)
        path.parent.mkdir(exist_ok=True)  # somebody may have cleared it away
        with whole_file(path, needed=sum(array.nbytes for array in ready.values())) as file:
            digest = chunk_file.write(file, ready)
            size = file.tell()
        self._manifest.commit(put={number: {"file": chunk_name(number), "sha256": digest, "bytes": size, **facts}})

    def read(self, number: int) -> Mapping[str, np.ndarray]:
        """The arrays of a chunk by name, each loaded when it is asked for.

        **Raises:** `CorruptFile` where the file is not what was written; `KeyError` for a chunk that is not finished.
        """
        entry = self.entries[number]
        path = self.folder / entry["file"]
        if number not in self._checked:
            fault = _fault(path, entry)
            if fault:
                raise CorruptFile(f"{path}: {fault}; resume, which computes the chunk again")
        chunk = Chunk(path)
        self._checked.add(number)
        return chunk

    def sound(self) -> dict[int, str]:
        """Read every chunk again; those that are not what was written leave the manifest. Their numbers and what is wrong."""
        bad = dict(self._bad_chunks())
        if bad:
            self._manifest.commit(drop=bad)
        self._checked = set(self.entries)
        return bad

    def add_file(self, name: str) -> None:
        """List a file of the folder (`result.nc`, `figures/loss.png`) by size and checksum; again when it has changed."""
        if not is_inside(self.folder, name) or name == NAME:
            raise ValueError(f"name must be a file inside {self.folder}, relative to it, parts joined by '/'; got {name!r}")
        path = self.folder / name
        self._manifest.commit(files={name: {"sha256": sha256_of(path), "bytes": path.stat().st_size}})

    def file(self, name: str) -> Path:
        """The path of an added file, read and found as it was listed.

        **Raises:** `CorruptFile` where it is not, `KeyError` for a file that was not added.
        """
        path, fault = self.folder / name, _fault(self.folder / name, self.files[name])
        if fault:
            raise CorruptFile(f"{path}: {fault}; put back a copy, or run again in a new folder")
        return path

    def note(self, **event: Any) -> None:
        """Append an event to the history: started, resumed, on which devices."""
        self._manifest.commit(event=event)

    def check(self) -> list[str]:
        """What is not as written: the manifest, every chunk, every added file; and what does not belong among the chunks."""
        found = []
        try:
            Manifest.load(self.folder)
        except (CorruptFile, OSError) as error:
            found.append(str(error))
        found += [f"{self.folder / chunk_name(number)}: {fault}" for number, fault in self._bad_chunks()]
        for name, entry in self.files.items():
            fault = _fault(self.folder / name, entry)
            if fault:
                found.append(f"{self.folder / name}: {fault}; write it again, or put back a copy")
        known = {Path(entry["file"]).name for entry in self.entries.values()}
        for path in sorted((self.folder / "chunks").glob("*")):
            if path.name not in known:
                found.append(f"{path}: not listed in {NAME}: left by a killed writer, or foreign; it is never read")
        return found

    def _bad_chunks(self) -> Iterator[tuple[int, str]]:
        for number, entry in self.entries.items():
            path = self.folder / entry["file"]
            fault = _fault(path, entry)
            if fault is None:
                try:
                    Chunk(path).verify()
                except CorruptFile as error:
                    fault = str(error)
            if fault:
                yield number, fault


class MemoryStore:
    """The same for a run that leaves nothing on disk. `entries`: the facts that `write` was given, by number."""

    def __init__(self):
        self.entries: dict[int, dict] = {}
        self._arrays: dict[int, dict[str, np.ndarray]] = {}

    def write(self, number: int, arrays: Mapping[str, np.ndarray], facts: dict) -> None:
        """Keep a chunk."""
        self._arrays[number] = {name: np.asarray(array) for name, array in arrays.items()}
        self.entries[number] = dict(facts)

    def read(self, number: int) -> Mapping[str, np.ndarray]:
        """The arrays of a chunk by name."""
        return self._arrays[number]


def _fault(path: Path, entry: dict) -> str | None:
    """Why a file is not the one that was listed."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return "not a regular file"
        if found.st_size != entry["bytes"]:
            return f"has {found.st_size} bytes, expected {entry['bytes']}"
        digest = sha256_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if digest == entry["sha256"] else f"has sha256 {digest}, expected {entry['sha256']}"


def _differences(here: Any, asked: Any, name: str = "") -> Iterator[str]:
    """Each key at which two JSON values differ, dotted, with both values."""
    if isinstance(here, dict) and isinstance(asked, dict):
        for key in sorted(here.keys() | asked.keys()):
            yield from _differences(here.get(key, "nothing"), asked.get(key, "nothing"), f"{name}.{key}" if name else key)
    elif here != asked or type(here) is not type(asked):
        yield f"{name} is {here!r} there, {asked!r} here"
