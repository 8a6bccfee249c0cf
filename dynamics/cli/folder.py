"""Where a run lives: its name, its place, and what must not be written over."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path

NAME = re.compile(r"(?![.-])[A-Za-z0-9._-]{1,80}")
SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr")


class Taken(ValueError):
    """There is something already where a run was to be written."""


def stamp() -> str:
    """Now, in UTC, fit for a file name."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def resolved(folder: Path) -> Path:
    """The folder that a path leads to; refuses one of the system's."""
    if "\0" in str(folder):
        raise ValueError(f"the run folder's name must not hold a NUL, got {str(folder)!r}")
    real = Path(os.path.realpath(folder))
    if real == Path("/") or any(real == Path(place) or Path(place) in real.parents for place in SYSTEM):
        raise ValueError(f"a run is not written below the system's folders; {folder} leads to {real}")
    return real


def create(out: Path | None, name: str, digest: str, *, overwrite: bool = False, part: tuple[int, int] = (0, 1)) -> Path:
    """Make the folder of a run, which must be new.

    `out` is the folder itself; None is `runs/<name>-<UTC time>-<8 digits of the configuration's hash>`, with a number
    behind it where two runs start in the same second. Part i of n of a run over several processes is a folder inside.

    **Raises:** `Taken` where `out` holds something and `overwrite` is False; with it the old folder is moved aside.
    """
    if out is None:
        place = resolved(Path("runs"))
        place.mkdir(parents=True, exist_ok=True)
        base = f"{name}-{stamp()}-{digest[:8]}"
        for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
            try:
                (place / (base + suffix)).mkdir()
                return place / (base + suffix)
            except FileExistsError:
                continue
        raise Taken(f"{place} holds a thousand runs of this second")
    folder = resolved(out)
    if part[1] > 1:
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder / f"part-{part[0]}-of-{part[1]}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise Taken(
                f"{folder} exists already; continue it with `dynamics resume {folder}`, or give --overwrite to move it aside"
            )
        aside = folder.with_name(f"{folder.name}.old-{stamp()}")
        for number in range(2, 1000):
            if not aside.exists():
                break
            aside = folder.with_name(f"{folder.name}.old-{stamp()}-{number}")
        os.rename(folder, aside)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def parts(folder: Path) -> list[Path]:
    """The folders of the parts of a run over several processes, in their order; empty where it is one whole."""
    found = [
        (int(match[1]), path) for path in folder.glob("part-*") if (match := re.fullmatch(r"part-(\d+)-of-\d+", path.name))
    ]
    return [path for _, path in sorted(found)]
