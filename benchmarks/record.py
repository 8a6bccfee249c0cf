"""The result file: a header and one entry a workload."""

import json
import math
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.race import Contest, Counts, Curves, Skipped
from benchmarks.table import ROWS, Row
from dynamics.whole_file import whole_file

VERSION = 1


class BadRecord(ValueError):
    """A result file that cannot be used; the message says why and what to do."""


def read(path: Path) -> dict[str, Any]:
    """A result file.

    **Raises:** `BadRecord`.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRecord(f"{path}: {error.strerror}; `python -m benchmarks run --out {path}` writes it") from None
    except ValueError as error:
        raise BadRecord(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("version") != VERSION or not {"header", "workloads"} <= found.keys():
        raise BadRecord(f"{path} is no result of version {VERSION} of `python -m benchmarks`")
    return found


def opened(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    """The result that new entries go into: the file where there is one that was measured under the same header, else a new one.

    **Raises:** `BadRecord` where the header differs.
    """
    if not path.exists():
        return {"version": VERSION, "header": header, "workloads": {}}
    record = read(path)
    apart = machine.differences(record["header"], header)
    if apart:
        raise BadRecord(f"{path} was measured otherwise ({'; '.join(apart)}); give another --out, or remove it")
    record["header"]["date"] = header["date"]
    return record


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the file, whole or not at all, workloads in the order of the table."""
    order = {row.name: number for number, row in enumerate(ROWS)}
    entries = sorted(record["workloads"].items(), key=lambda item: order.get(item[0], len(order)))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, "w") as file:
        json.dump(_plain(record | {"workloads": dict(entries)}), file, indent=1, allow_nan=False)
        file.write("\n")


def entry(row: Row, made: Contest | Counts | Curves, racers: list[dict[str, Any]], scaled: bool) -> dict[str, Any]:
    """What is kept of a workload, with what is to be said of gate, target and stretch."""
    said: dict[str, Any] = {
        "setting": row.setting,
        "settings": made.settings,
        "scaled": scaled,
        "target": row.target,
        "stretch": row.stretch,
    }
    if isinstance(made, Curves):
        return said | {"kind": "curves", "data": made.data}
    if isinstance(made, Counts):
        base = next(iter(made.values))
        racers = [
            {"name": name, "status": "ran", "product": name.startswith("dynamics"), "value": value}
            for name, value in made.values.items()
        ]
        products = {name: value for name, value in made.values.items() if name.startswith("dynamics")}
        best = min(products, key=lambda name: products[name])
        reached = _reached(products[best], row, scaled, lambda value, bound: value <= bound)
        return said | {
            "kind": "counts",
            "base": base,
            "racers": racers,
            "best": best,
            "value": products[best],
            "reached": reached,
        }
    return said | raced(row, racers, made.limit, made.error_is, made.skipped, scaled)


def raced(row: Row, racers: list[dict[str, Any]], limit: float, error_is: str, skipped: list[Skipped], scaled: bool) -> dict:
    """The verdicts on a race: who passed the gate (none that broke), the best product, whom it beat, what it reached."""
    products = [racer for racer in racers if racer["product"]]
    passed = [racer for racer in products if racer["status"] == "ran" and racer["error"] <= limit]
    missed = [racer["name"] for racer in products if racer not in passed]
    best = max(passed, key=lambda racer: racer["ratio"], default=None)
    ratio = best["ratio"] if best else None
    times = {racer["name"]: racer["quartiles"][1] for racer in racers if racer["status"] == "ran"}
    return {
        "kind": "race",
        "base": racers[0]["name"],
        "gate": {"means": row.gate, "error_is": error_is, "limit": limit, "missed": missed},
        "racers": [*racers, *({"name": one.name, "status": "skipped", "reason": one.reason} for one in skipped)],
        "best": best["name"] if best else None,
        "ratio": ratio,
        "beaten": {name: times[name] / times[best["name"]] if best and name in times else None for name in row.beat},
        "reached": _reached(ratio, row, scaled, lambda value, bound: value >= bound),
    }


def _reached(value, row: Row, scaled: bool, enough) -> dict[str, bool] | None:
    """Whether target and stretch are reached; None where nothing is asked for, or the look was scaled down."""
    if scaled or row.target is None:
        return None
    return {
        name: value is not None and bool(enough(value, bound))
        for name, bound in (("target", row.target), ("stretch", row.stretch))
        if bound is not None
    }


def _plain(x):
    """Only what JSON holds: numbers that are not finite become texts."""
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    if hasattr(x, "tolist"):
        return _plain(x.tolist())
    if isinstance(x, float) and not math.isfinite(x):
        return str(x)
    return x
