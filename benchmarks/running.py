"""Run workloads one after the other and keep each as soon as it is done."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import elsewhere, machine, record, report
from benchmarks.race import Contest, race
from benchmarks.table import Row, builder

LEAST = 5
"""Rounds of a race that counts."""


def run(rows: list[Row], out: Path, repeats: int, members: int | None, quick: bool) -> list[str]:
    """Measure, print and write; returns what missed its gate, in words."""
    kept = record.opened(out, machine.header())
    scaled = quick or members is not None or repeats < LEAST
    whole = [row.name for row in rows if row.name in kept["workloads"] and not kept["workloads"][row.name]["scaled"]]
    if scaled and whole:
        raise ValueError(f"{out} holds full measurements of {', '.join(whole)}: a scaled-down look needs another --out")
    for line in report.head(kept["header"]):
        print(line)
    missed = []
    for row in rows:
        begin = time.perf_counter()
        try:
            entry = measured(row, repeats, members, quick, scaled)
        except elsewhere.Unavailable as reason:
            entry = {"kind": "unavailable", "setting": row.setting, "reason": str(reason), "scaled": False}
        entry["seconds_in_all"] = time.perf_counter() - begin
        kept["workloads"][row.name] = entry
        record.write(out, kept)
        for line in report.lines(row.name, entry):
            print(line, flush=True)
        missed += [f"{row.name}: {name}" for name in entry.get("gate", {}).get("missed", ())]
    print(f"written to {out}")
    return missed


def measured(row: Row, repeats: int, members: int | None, quick: bool, scaled: bool) -> dict[str, Any]:
    """The entry of one workload."""
    made = builder(row)(quick, members)
    if isinstance(made, list):  # racers that were timed in processes of their own
        racers = _timed_elsewhere(made)
        meaning = "largest absolute error over checked members and times against DOP853 at 1e-12"
        verdict = record.raced(row, racers, 1.1 * racers[0]["error"], meaning, [], scaled)
        about = {"setting": row.setting, "settings": {}, "scaled": scaled, "target": row.target, "stretch": row.stretch}
        return about | verdict
    if isinstance(made, dict):
        return {"kind": "curves", "setting": row.setting, "settings": {}, "scaled": scaled, "data": made}
    return record.entry(row, made, race(made.racers, repeats) if isinstance(made, Contest) else [], scaled)


def _timed_elsewhere(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    racers, base = [], np.asarray(found[0]["seconds"])
    for one in found:
        seconds = np.asarray(one["seconds"])
        racers.append(
            {
                "status": "ran",
                "product": one["name"].startswith("dynamics"),
                "floor": False,
                "library": "",
                "threads": "",
                "tolerance": None,
                "extrapolated": 1.0,
                "note": "",
                "quartiles": np.quantile(seconds, [0.25, 0.5, 0.75]).tolist(),
                "compile_seconds": 0.0,
                "ratio": float(np.median(base / seconds)),
                "ratio_of_medians": float(np.median(base) / np.median(seconds)),
                **one,
            }
        )
    return racers
