"""Workloads whose modules measure by themselves: COLD in processes of its own, SCALING, ENSEMBLE-GPU."""

import importlib
from typing import Any


class Unavailable(Exception):
    """A workload cannot run here; the message says why."""


def cold(quick: bool = False, members: int | None = None) -> list[dict[str, Any]]:
    """Racers with their seconds, the base first."""
    return _module("cold").cold(2 if quick else 5)["racers"]


def scaling(quick: bool = False, members: int | None = None) -> dict[str, Any]:
    """Curves with fitted exponents."""
    return _module("scaling").scaling(quick)


def ensemble_gpu(quick: bool = False, members: int | None = None) -> dict[str, Any]:
    """What an accelerator did."""
    found = _module("ensemble_gpu").ensemble_gpu()
    if isinstance(found, str):
        raise Unavailable(found)
    return found


def _module(name: str):
    try:
        return importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"benchmarks.{name}":
            raise
        raise Unavailable(f"benchmarks/{name}.py is not there") from None
