"""A race: the product and its peers on one workload, in turns, at a measured error."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np


class Racer(NamedTuple):
    """A way to do the workload: `run` takes nothing and returns its result; `error` measures it against a reference."""

    name: str
    run: Callable
    error: Callable


class Lap(NamedTuple):
    """Median seconds of a racer, their quartiles, and its error."""

    name: str
    seconds: float
    low: float
    high: float
    error: float


def race(racers: list[Racer], repeats: int = 5) -> list[Lap]:
    """Run all racers in turns, `repeats` times each; compilation and a first run are excluded."""
    errors = [float(racer.error(jax.block_until_ready(racer.run()))) for racer in racers]
    seconds = np.empty((repeats, len(racers)))
    for row in seconds:
        for number, racer in enumerate(racers):
            begin = time.perf_counter()
            jax.block_until_ready(racer.run())
            row[number] = time.perf_counter() - begin
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75], axis=0)
    return [Lap(racer.name, *map(float, row)) for racer, *row in zip(racers, middle, low, high, errors, strict=True)]


def table(title: str, laps: list[Lap]) -> str:
    """Ratios to the first racer (above 1: faster), seconds with quartiles, errors."""
    lines = [title]
    for lap in laps:
        lines.append(
            f"  {lap.name:<34} {laps[0].seconds / lap.seconds:>8.2f}x  {lap.seconds:.4f} s "
            f"({lap.low:.4f}-{lap.high:.4f})  error {lap.error:.1e}"
        )
    return "\n".join(lines)
