"""What a result was measured on."""

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "diffrax", "equinox", "optax", "torch", "torchdiffeq", "torchode")
SAME = ("device", "devices", "cpu", "cores", "python", "versions", "precision", "threads")
"""What two results must share to stand in one file."""


def header() -> dict[str, Any]:
    """Device, versions, precision, threads and date."""
    import jax

    import dynamics

    return {
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.local_devices()),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {"dynamics": _version(dynamics.__name__), **{name: _version(name) for name in PACKAGES}},
        "precision": "float64 unless a workload says otherwise",
        "threads": {"NPROC": os.environ.get("NPROC"), "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def differences(a: dict[str, Any], b: dict[str, Any], keys=SAME) -> list[str]:
    """What differs between two headers, in words."""
    return [f"{key}: {a.get(key)!r} and {b.get(key)!r}" for key in keys if a.get(key) != b.get(key)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
