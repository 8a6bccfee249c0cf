"""Compiled programs kept on the disk, so that the next process finds them there."""

import functools
import hashlib
import os
import platform
import tempfile
import warnings
from pathlib import Path

import jax
import jaxlib.version
from jax.experimental.compilation_cache import compilation_cache

VARIABLE = "DYNAMICS_CACHE"
"""The environment variable with the folder of compiled programs; "off" keeps none."""

OFF = ("off", "0", "no", "false")


def enable_compile_cache(folder: str | os.PathLike | None = None) -> Path | None:
    """Keep every compiled program of this process in a folder, and take from it what an earlier process compiled.

    A second process then only traces its programs. Nothing is compiled or kept anew for other numbers in the same shapes. The
    folder is trusted: who can write there can run code here. Processes may share it; a damaged file in it costs a warning and
    a compilation. The default folder is one for each kind of processor, since programs for one may not run on another.

    **Arguments:**

    - `folder`: made where there is none. None is, in this order: the folder in the environment variable `DYNAMICS_CACHE`
      (nothing is kept where that is "off"); the one that JAX is set to already, which then stays as it is with all its
      settings; `dynamics/` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`).

    **Returns:** the folder in use; None with a warning where it cannot be written, and None where caching is turned off.
    """
    named = os.environ.get(VARIABLE, "")
    present: str | None = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    enabled: bool = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None and (named.lower() in OFF or not enabled):
        return None
    if folder is None and not named and present:
        return Path(present)
    try:
        place = usual_folder() if folder is None and not named else Path(folder or named).expanduser()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = place.resolve()
        with tempfile.TemporaryFile(dir=place):  # whether files can be made there
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        warnings.warn(
            f"compiled programs are not kept: {folder or named or 'the cache folder'}: {getattr(error, 'strerror', error)}; "
            f"give another folder, or {VARIABLE}=off",
            stacklevel=2,
        )
        return None
    if present is not None and Path(present) != place:
        compilation_cache.reset_cache()  # JAX looks at the folder's name once
    for name, value in (
        ("jax_compilation_cache_dir", str(place)),
        ("jax_enable_compilation_cache", True),
        ("jax_persistent_cache_min_compile_time_secs", 0.0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        jax.config.update(name, value)
    return place


def usual_folder() -> Path:
    """The folder of this processor and this JAX in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    parent = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return parent / "dynamics" / f"jax-{jax.__version__}-{processor()}"


@functools.cache
def processor() -> str:
    """Eight hexadecimal digits that tell kinds of processors apart: XLA compiles for the instructions that one has."""
    facts = [jaxlib.version.__version__, platform.system(), platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
        facts += [line for line in lines if line.split("\t")[0].strip() in ("flags", "Features", "model name", "CPU part")]
    except OSError:
        pass
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]
