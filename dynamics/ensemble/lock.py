"""One writer a run folder: a lock file that says who holds it."""

import errno
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from dynamics.whole_file import explained, whole_file


class Locked(OSError):
    """Another process writes here. `host`, `pid`, `since`: of the holder; None where its lock cannot be read."""

    def __init__(self, path: Path, holder: dict | None):
        holder = holder or {"host": None, "pid": None, "since": None}
        self.host, self.pid, self.since = holder["host"], holder["pid"], holder["since"]
        if self.pid is None:
            text = "the lock does not say who holds it; if no process writes to this folder, delete it"
        else:
            text = f"the folder is held by process {self.pid} on host {self.host} since {self.since}; "
            if is_gone(holder):
                text += "that process is gone: take its lock over (take=True, on the command line --take-lock)"
            elif self.host == platform.node():
                text += "it is alive: wait for it or end it"
            else:
                text += "whether it lives cannot be seen from this host: if it does not, delete the lock"
        super().__init__(errno.EBUSY, text, str(path))


@contextmanager
def held(path: Path, take: bool = False) -> Iterator[None]:
    """Hold the lock file `path` for the block. `take`: also where a process of this host that is gone left one.

    **Raises:** `Locked`, naming the holder; `OSError` where the lock cannot be written.
    """
    mine = json.dumps(
        {
            "host": platform.node(),
            "pid": os.getpid(),
            "start": _start(os.getpid()),
            "since": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
    )
    while not _placed(path, mine):
        try:
            text, holder = _read(path)
        except FileNotFoundError:
            continue  # released in between
        if not (take and holder and is_gone(holder)):
            raise Locked(path, holder)
        if _taken(path, text, mine):
            break
    try:
        yield
    finally:
        try:
            still_ours = path.read_text(encoding="utf-8") == mine
        except FileNotFoundError:
            still_ours = False
        if still_ours:
            path.unlink(missing_ok=True)


def holder(path: Path) -> str | None:
    """Who holds the lock, for people; None where nobody does."""
    try:
        _, found = _read(path)
    except FileNotFoundError:
        return None
    if found is None:
        return "by someone it does not name"
    gone = ", which is gone" if is_gone(found) else ""
    return f"by process {found['pid']} on {found['host']}{gone}, since {found['since']}"


def is_gone(holder: dict) -> bool:
    """Whether the holder ran on this host and is no more; its number may be another process's by now."""
    if holder["host"] != platform.node() or os.name == "nt":  # there, signal 0 would end a living process
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # alive, another user's
    now = _start(holder["pid"])
    return now is not None and holder["start"] is not None and now != holder["start"]


def _start(pid: int) -> str | None:
    """When a process started, in ticks of this boot, "ended" when only its exit code is left; None where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may hold anything
    return "ended" if fields[0] in "ZX" else f"{boot} {fields[19]}"


def _placed(path: Path, mine: str) -> bool:
    """Write the lock unless there is one."""
    try:
        number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        raise explained(error, path) from error
    try:
        os.write(number, mine.encode())
        os.fsync(number)  # else a loss of power leaves an empty lock, which nobody can judge
    except BaseException as error:
        path.unlink(missing_ok=True)
        raise explained(error, path, len(mine)) if isinstance(error, OSError) else error from error
    finally:
        os.close(number)
    return True


def _read(path: Path) -> tuple[str, dict | None]:
    """The text of a lock and what it says; None where it says nothing, after a second in which it may be being written."""
    end = time.monotonic() + 1
    while True:
        text = path.read_text(encoding="utf-8", errors="replace")
        with suppress(ValueError):
            holder = json.loads(text)
            known = isinstance(holder, dict) and {"host", "pid", "start", "since"} <= set(holder)
            return text, holder if known and type(holder["pid"]) is int and holder["pid"] > 0 else None
        if time.monotonic() > end:
            return text, None
        time.sleep(0.02)


def _taken(path: Path, stale: str, mine: str) -> bool:
    """Replace the stale lock by ours; of several that try, one does."""
    import fcntl  # not on every platform, nor is this function reached there

    try:
        with path.open("r+b") as file:  # for writing: NFS locks nothing else
            fcntl.flock(file, fcntl.LOCK_EX)
            # who waited for a faster one holds the old file now, not what lies at the path
            same = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            if not same or file.read().decode("utf-8", "replace") != stale:
                return False
            with whole_file(path, "w") as ours:
                ours.write(mine)
    except FileNotFoundError:
        return False
    return True
