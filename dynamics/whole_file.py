"""Files that are there whole or not at all."""

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(path: Path, mode: str = "wb", needed: int = 0) -> Iterator[IO[Any]]:
    """A file to write, which takes the place of `path` when the block ends well and leaves no trace when it does not.

    It is `.tmp-<pid>-<thread>-<name>` beside `path` until then, and on the disk (fsync of file and folder) after. `mode`: "wb",
    or "w" for UTF-8 text. `needed`: about how many bytes are written, for the message of a full disk.

    **Raises:** `OSError`, of the kind of its cause, naming `path`.
    """
    partial = path.with_name(f".tmp-{os.getpid()}-{threading.get_native_id()}-{path.name}")
    try:
        partial.unlink(missing_ok=True)  # of a dead process that had our number
        # "x": never through a link that lies there; \n on every platform, so that the bytes are the same
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
        file: IO[Any] = open(partial, mode.replace("w", "x"), encoding=encoding, newline=newline)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):  # what is still buffered does not fit either; the first error is the one to tell
                file.close()
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(partial), partial):
            raise  # of another file
        raise explained(error, path, needed) from error


def explained(error: OSError, path: Path, needed: int = 0) -> OSError:
    """The same error for the eyes of a user: of the same kind, naming the file, the bytes needed and the remedy."""
    size = f" (about {needed} bytes are needed)" if needed else ""
    text = f"{error.strerror}: this cannot be written{size}; make room or give a folder that can be written to, then go on"
    return OSError(error.errno, text, str(path))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read as a stream."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make a renaming last through a loss of power, where folders can be synced."""
    if os.name == "nt":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without it
            raise
    finally:
        os.close(number)
