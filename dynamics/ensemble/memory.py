"""How much memory a program needs, before it runs, and how much there is."""

import math
import os
import re

import jax

UNITS = {
    "": 1,
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
}


def size(name: str, x: int | float | str) -> int:
    """Bytes, from a number of them or a text such as "2GiB"."""
    if isinstance(x, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", x)
        if match is None or match[2] not in UNITS:
            raise ValueError(f"{name} must be bytes or a text such as '2GiB' (units {', '.join(list(UNITS)[1:])}), got {x!r}")
        count = float(match[1]) * UNITS[match[2]]
    else:
        count = x
    if isinstance(count, bool) or not (math.isfinite(count) and count >= 1):
        raise ValueError(f"{name} must be at least one byte, got {x!r}")
    return int(count)


def shown(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TiB"


def needed(compiled: "jax.stages.Compiled", copies: int) -> int:
    """Bytes that `copies` of a program take at a time: its arguments, temporaries and results, and the results on the host."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    results = analysis.output_size_in_bytes
    return copies * (analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + 2 * results)


def must_be_tried(device) -> bool:
    """Whether only running a program shows that it fits: an accelerator's allocator has the last word."""
    return device.platform != "cpu"


def available(device) -> int:
    """Bytes free on the device, or in this computer's memory for a CPU."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
