"""Learning rates over time as plain functions: of a time and of the side of a jump it is taken from."""

import math
from collections.abc import Callable


def constant(value: float) -> Callable:
    return lambda t, side: value


def cosine(value: float, horizon: float, floor: float = 0.0) -> Callable:
    """From `value` to `floor` at `horizon`, then `floor`."""
    return lambda t, side: floor + (value - floor) * (1 + math.cos(math.pi * min(t / horizon, 1))) / 2


def polynomial(value: float, horizon: float, power: float, floor: float = 0.0) -> Callable:
    return lambda t, side: floor + (value - floor) * max(1 - t / horizon, 0.0) ** power


def exponential(value: float, rate: float) -> Callable:
    return lambda t, side: value * math.exp(-rate * t)


def piecewise(values, boundaries) -> Callable:
    """`values[i]` up to `boundaries[i]`, the next from there on; `side` decides at a boundary."""
    return lambda t, side: values[sum(side >= b for b in boundaries)]


def warmup(duration: float, after: Callable, start: float = 0.0) -> Callable:
    """A linear ramp up to the initial rate of `after`, then `after`."""

    def rate(t, side):
        if side < duration:
            return (start + (1 - start) * t / duration) * after(0.0, 0.0)
        return after(t - duration, side - duration)

    return rate
