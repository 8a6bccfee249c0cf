"""A race: the product and its peers on one workload, in turns, at a measured error."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from dynamics.ensemble import Dealt


class Racer(NamedTuple):
    """A way to do the workload.

    - `run`: takes nothing and returns its result; `error`: measures that result against a reference.
    - `library`: what does the work, with its version; `threads`: what it may use.
    - `tolerance`: of the solver, where it has one.
    - `times`: the seconds of `run` are multiplied by this, where it does only a part of the work; `note` then says so.
    - `floor`: whether it is no competitor but a bound that nobody can beat.
    - `begun`: seconds and error of its first run, where that was before the race.
    """

    name: str
    run: Callable[[], Any]
    error: Callable[[Any], float]
    library: str
    threads: str = "1 device"
    tolerance: float | None = None
    times: float = 1.0
    note: str = ""
    floor: bool = False
    begun: tuple[float, float] | None = None

    @property
    def product(self) -> bool:
        """Whether this is the library itself."""
        return self.name.startswith("dynamics")


class Skipped(NamedTuple):
    """A peer that cannot race here, and why."""

    name: str
    reason: str


class Contest(NamedTuple):
    """What a workload sets up: racers, the base first; the error that the product may have; and what was really set up."""

    racers: list[Racer]
    limit: float
    error_is: str
    settings: dict[str, Any]
    skipped: list[Skipped] = []


class Counts(NamedTuple):
    """Numbers that come out the same on every machine, the base first; the smaller the better."""

    values: dict[str, float]
    settings: dict[str, Any]


class Curves(NamedTuple):
    """Measurements that have no base."""

    data: dict[str, Any]
    settings: dict[str, Any]


SHORTEST = 1e-2
"""Seconds of a turn: what is quicker runs several times in it, and the mean counts. One call by itself, after others have had
the caches and the threads have slept, tells how fast they wake."""


def race(racers: list[Racer], repeats: int) -> list[dict[str, Any]]:
    """Run all racers in turns, `repeats` times each; the first run of each, with its compilation, is timed apart."""
    said, started = [], []
    for racer in racers:
        try:
            started.append(begun(racer))
        except Exception as error:  # one that breaks must not take the others' results along
            if racer is racers[0]:
                raise
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
            said.append({"name": racer.name, "status": "failed", "product": racer.product, "reason": reason})
    racers = started
    calls = [_calls(racer) for racer in racers]
    laps: list[list[float]] = [[] for _ in racers]
    for number in range(repeats):
        for place in np.roll(np.arange(len(racers)), -number):  # nobody always runs behind the same one
            laps[place].append(_seconds(racers[place], calls[place]))
    base = racers[0].times * np.asarray(laps[0])
    return [*(_said(racer, lap, base) for racer, lap in zip(racers, laps, strict=True)), *said]


def _calls(racer: Racer) -> int:
    """How many calls make a turn."""
    quickest = _seconds(racer, 1)
    for _ in range(20):
        if quickest > SHORTEST:
            break
        quickest = min(quickest, _seconds(racer, 1))
    return max(1, round(SHORTEST / quickest))


def _seconds(racer: Racer, calls: int) -> float:
    """The mean of calls one after the other."""
    begin = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(racer.run())
    return (time.perf_counter() - begin) / calls


def begun(racer: Racer) -> Racer:
    """The racer after its first run, with its compilation, and measured."""
    if racer.begun is not None:
        return racer
    begin = time.perf_counter()
    found = jax.block_until_ready(racer.run())
    first = time.perf_counter() - begin
    return racer._replace(begun=(first, float(racer.error(found))))


def devices(many: Dealt) -> str:
    """What members that were dealt may use."""
    return f"{len(many.index)} device" + ("s" if len(many.index) > 1 else "")


def error_of(racer: Racer) -> float:
    """The error of a racer that has begun."""
    assert racer.begun is not None
    return racer.begun[1]


def _said(racer: Racer, lap: list[float], base: np.ndarray) -> dict[str, Any]:
    assert racer.begun is not None
    first, error = racer.begun
    seconds = racer.times * np.asarray(lap)
    return {
        "name": racer.name,
        "status": "ran",
        "product": racer.product,
        "floor": racer.floor,
        "library": racer.library,
        "threads": racer.threads,
        "tolerance": racer.tolerance,
        "note": racer.note,
        "extrapolated": racer.times,
        "seconds": seconds.tolist(),
        "quartiles": np.quantile(seconds, [0.25, 0.5, 0.75]).tolist(),
        "compile_seconds": max(0.0, first - min(lap)),
        "error": error,
        "ratio": float(np.median(base / seconds)),
        "ratio_of_medians": float(np.median(base) / np.median(seconds)),
    }


def loosest(
    at: Callable[[float], Racer], ladder: tuple[float, ...], limit: float, trial: Callable[[float], float] | None = None
) -> Racer:
    """The racer at the loosest tolerance of a ladder whose error is within the limit; else at the tightest.

    `trial`: tolerance to error where a smaller run tells it; else the racer runs.
    """
    for tolerance in ladder:
        if trial is not None:
            if trial(tolerance) <= limit:
                return at(tolerance)
            continue
        racer = at(tolerance)
        try:
            racer = begun(racer)
        except Exception:
            return racer  # it breaks again in the race, which says so
        if error_of(racer) <= limit:
            return racer
    return at(ladder[-1])
