"""The list of what a run folder holds, with the checksum of every file and its own."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dynamics.whole_file import whole_file

NAME = "manifest.json"
FORMAT = 1
KEYS = {"format", "identity", "about", "chunks", "files", "history", "sha256"}
REMEDY = f"put back a copy of {NAME}, or run again in a new folder"


class CorruptFile(ValueError):
    """A file of a run is not what was written, or holds what is never written."""


def canonical(name: str, value: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one value.

    **Raises:** `ValueError` naming `name` where the value is not JSON: NaN and infinities are not, nor are arrays.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must be made of texts, finite numbers, booleans, None, lists and dicts by text, got {value!r} ({error})"
        ) from error


def plain(name: str, value: Any) -> Any:
    """The value as it comes back from a file: tuples are lists, keys are texts."""
    return json.loads(canonical(name, value))


def chunk_name(number: int) -> str:
    """The file of a chunk, relative to the folder."""
    return f"chunks/chunk-{number:06d}.npz"


def is_inside(folder: Path, name: str) -> bool:
    """Whether a file name stays below the folder, links followed."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or any(c in name for c in "\\\0:") or pure == PurePosixPath("."):
        return False
    return (folder / name).resolve().is_relative_to(folder.resolve())


class Manifest:
    """What `manifest.json` says. `commit` changes the file first: where that fails, nothing has changed here either.

    - `identity`, `about`: as given. `chunks`: facts by number. `files`: size and SHA-256 by name. `history`: events.
    """

    def __init__(self, folder: Path, identity: dict, about: dict):
        self.folder = folder
        self.identity: dict = plain("identity", identity)
        self.about: dict = plain("about", about)
        self.chunks: dict[int, dict] = {}
        self.files: dict[str, dict] = {}
        self.history: list[dict] = []
        # of each chunk: to encode thousands anew for each one that is written takes longer than the disk
        self._texts: dict[int, str] = {}

    @staticmethod
    def load(folder: Path) -> "Manifest":
        """Read and verify.

        **Raises:** `CorruptFile` where a bit is not as written; `FileNotFoundError` where there is none.
        """
        path = folder / NAME
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            text = f"no {NAME} here: not the folder of a run; give the folder that was made when it started"
            raise FileNotFoundError(error.errno, text, str(path)) from error
        body = data[: -len(_seal(b""))]
        if data != body + _seal(body + b"}"):
            raise CorruptFile(f"{path}: its text and its own sha256 do not agree ({len(data)} bytes); {REMEDY}")
        try:
            document = json.loads(data)
            wrong = _fault(folder, document)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            wrong = f"is not of the form of a manifest ({error!r})"
        if wrong:
            raise CorruptFile(f"{path}: {wrong}; {REMEDY}")
        loaded = Manifest(folder, document["identity"], document["about"])
        loaded.chunks = {int(number): entry for number, entry in document["chunks"].items()}
        loaded.files, loaded.history = document["files"], document["history"]
        loaded._texts = {number: canonical("chunk", entry) for number, entry in loaded.chunks.items()}
        return loaded

    def commit(
        self,
        put: Mapping[int, dict] | None = None,
        drop: Iterable[int] = (),
        files: Mapping[str, dict] | None = None,
        event: dict | None = None,
    ) -> None:
        """Add or replace chunks, drop chunks, add files, append an event; all of it or nothing."""
        new = {number: canonical(f"facts of chunk {number}", entry) for number, entry in (put or {}).items()}
        dropped = set(drop)
        texts = {number: text for number, text in (self._texts | new).items() if number not in dropped}
        all_files = self.files | dict(files or {})
        history = self.history if event is None else [*self.history, plain("event", event)]
        # the keys of JSON objects are texts, and sorted as such
        chunks = ",".join(f'"{number}":{text}' for number, text in sorted((str(n), text) for n, text in texts.items()))
        body = (
            f'{{"about":{canonical("about", self.about)},"chunks":{{{chunks}}},"files":{canonical("files", all_files)},'
            f'"format":{FORMAT},"history":{canonical("history", history)},"identity":{canonical("identity", self.identity)}'
        ).encode()
        data = body + _seal(body + b"}")
        with whole_file(self.folder / NAME, needed=len(data)) as file:
            file.write(data)
        kept = {number: entry for number, entry in self.chunks.items() if number in texts}
        self.chunks = kept | {number: json.loads(text) for number, text in new.items() if number in texts}
        self.files, self.history, self._texts = all_files, history, texts


def _seal(rest: bytes) -> bytes:
    """The end of the file: "sha256" sorts last, so it closes the canonical text of everything else."""
    return f',"sha256":"{hashlib.sha256(rest).hexdigest()}"}}\n'.encode()


def _fault(folder: Path, document: dict) -> str | None:
    """What a manifest whose checksum is right must still not hold."""
    if document["format"] != FORMAT:
        return f"has format {document['format']!r}, this version reads {FORMAT}"
    if set(document) != KEYS:
        return f"has the keys {sorted(document)}, expected {sorted(KEYS)}"
    for number, entry in document["chunks"].items():
        if str(int(number)) != number or int(number) < 0 or entry["file"] != chunk_name(int(number)):
            return f"chunk {number!r} must be the file {chunk_name(int(number))!r}, got {entry['file']!r}"
    for name in document["files"]:
        if not is_inside(folder, name):
            return f"file name {name!r} must stay inside the folder"
    for entry in (*document["chunks"].values(), *document["files"].values()):
        if not (isinstance(entry["sha256"], str) and type(entry["bytes"]) is int):
            return f"an entry must have a text sha256 and a whole number bytes, got {entry!r}"
    if not (isinstance(document["history"], list) and all(isinstance(document[key], dict) for key in ("identity", "about"))):
        return "identity and about must be objects and history a list"
    return None
