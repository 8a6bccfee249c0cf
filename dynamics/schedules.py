r"""Learning-rate schedules $\eta(t)$ with their exact integrals $\zeta(t) = \int_0^t \eta$.

A schedule is a pytree whose numbers are array leaves: it can be batched with `jax.vmap` and differentiated. It answers

- `schedule(t)`: the rate at time `t >= 0` (a descent asks at `k * dt`),
- `schedule.integral(t)`: the clock $\zeta(t)$ of the flow,
- `schedule.jumps()`: the times, shape (jumps,), where the rate or its slope is discontinuous,
- `schedule.peak()`: the largest rate at any time (infinite when there is none),
- `schedule.valid()`: whether its numbers are finite and in range, traced or not.

A new schedule is one class here, its row in the tests' table, and nothing else.
"""

import abc
import functools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dynamics import validate

Number = float | Float[Array, ""]


class Schedule(eqx.Module):
    """The interface of a learning-rate schedule."""

    @abc.abstractmethod
    def __call__(self, t) -> Array:
        """The rate at time `t`, of the shape of `t`."""

    @abc.abstractmethod
    def integral(self, t) -> Array:
        """The integral of the rate from 0 to `t`, of the shape of `t`."""

    @abc.abstractmethod
    def peak(self) -> Array:
        """The largest rate at any time."""

    def jumps(self) -> Float[Array, " jumps"]:
        """Times where the rate or its slope is discontinuous."""
        return jnp.zeros((0,), jnp.result_type(float, *_numbers(self)))

    def valid(self) -> Bool[Array, ""]:
        """Whether every number is finite and not negative."""
        leaves = map(jnp.asarray, _numbers(self))
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf) & (leaf >= 0)) for leaf in leaves]))


def _numbers(schedule: Schedule) -> list:
    return jax.tree.leaves(eqx.filter(schedule, validate.is_numeric))


class Constant(Schedule):
    """The same rate at all times."""

    value: Number

    def __check_init__(self):
        validate.nonnegative("value of Constant", self.value)

    def __call__(self, t):
        return self.value * jnp.ones_like(t)

    def integral(self, t):
        return self.value * t

    def peak(self):
        return jnp.asarray(self.value)


class Cosine(Schedule):
    r"""Cosine annealing from `value` to `floor` at time `horizon`, then `floor`:
    $\eta = f + (v - f)(1 + \cos(\pi t / T))/2$.
    """

    value: Number
    horizon: Number
    floor: Number = 0.0

    def __check_init__(self):
        validate.nonnegative("value of Cosine", self.value)
        validate.positive("horizon of Cosine", self.horizon)
        validate.nonnegative("floor of Cosine", self.floor)

    def __call__(self, t):
        return self.floor + (self.value - self.floor) * _annealed(jnp.minimum(t / self.horizon, 1.0))

    def integral(self, t):
        u = jnp.minimum(t / self.horizon, 1.0)
        # u - sin(pi u)/pi ... written so that the annealed part stops growing at the horizon
        annealed = 0.5 * self.horizon * (u + jnp.sin(jnp.pi * u) / jnp.pi)
        return self.floor * t + (self.value - self.floor) * annealed

    def jumps(self):
        return jnp.reshape(jnp.asarray(self.horizon), (1,))

    def peak(self):
        return jnp.maximum(self.value, self.floor)

    def valid(self):
        return super().valid() & (jnp.asarray(self.horizon) > 0)


SINE = tuple((-1) ** k * (math.pi / 2) ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(12))
"""The power series of sin(pi x / 2): on [0, 1] what is left out is below 1e-20."""


def _annealed(u):
    r"""$(1 + \cos(\pi u))/2 = \sin^2(\pi (1 - u)/2)$ for u in [0, 1], to rounding also near 1.

    By the power series: on a CPU, XLA takes every cosine by itself from the C library, ten times as slowly.
    """
    x = 1 - u
    square = x * x
    sine = functools.reduce(lambda total, term: total * square + term, reversed(SINE[:-1]), SINE[-1])
    return (x * sine) ** 2


class Exponential(Schedule):
    r"""Exponential decay $\eta = v e^{-r t}$ with decay rate `rate` per unit of time (negative: growth)."""

    value: Number
    rate: Number

    def __check_init__(self):
        validate.nonnegative("value of Exponential", self.value)
        validate.finite("rate of Exponential", self.rate)

    def __call__(self, t):
        return self.value * jnp.exp(-self.rate * t)

    def integral(self, t):
        return self.value * decaying_clock(self.rate, t)

    def peak(self):
        return jnp.where(jnp.asarray(self.rate) >= 0, self.value, jnp.inf)

    def valid(self):
        return jnp.isfinite(self.value) & (jnp.asarray(self.value) >= 0) & jnp.isfinite(self.rate)


class Polynomial(Schedule):
    r"""Polynomial decay from `value` to `floor` at `horizon`: $\eta = f + (v - f)(1 - t/T)^p$, then `floor`."""

    value: Number
    horizon: Number
    power: Number = 1.0
    floor: Number = 0.0

    def __check_init__(self):
        validate.nonnegative("value of Polynomial", self.value)
        validate.positive("horizon of Polynomial", self.horizon)
        validate.positive("power of Polynomial", self.power)
        validate.nonnegative("floor of Polynomial", self.floor)

    def __call__(self, t):
        return self.floor + (self.value - self.floor) * _power(1 - t / self.horizon, self.power)

    def integral(self, t):
        exponent = self.power + 1.0
        left = _power(1 - t / self.horizon, exponent)
        return self.floor * t + (self.value - self.floor) * self.horizon * (1 - left) / exponent

    def jumps(self):
        return jnp.reshape(jnp.asarray(self.horizon), (1,))

    def peak(self):
        return jnp.maximum(self.value, self.floor)

    def valid(self):
        return super().valid() & (jnp.asarray(self.horizon) > 0) & (jnp.asarray(self.power) > 0)


class Piecewise(Schedule):
    """Piecewise constant: `values[i]` between `boundaries[i-1]` and `boundaries[i]`; the new value from the boundary on."""

    values: Float[Array, " pieces"]
    boundaries: Float[Array, " jumps"]

    def __init__(self, values, boundaries):
        pieces, jumps = np.shape(values), np.shape(boundaries)
        if len(pieces) != 1 or pieces[0] == 0 or jumps != (pieces[0] - 1,):
            raise ValueError(
                f"values of Piecewise must have shape (pieces,) and boundaries (pieces - 1,), got {pieces} and {jumps}"
            )
        for name, array in (("values", values), ("boundaries", boundaries)):
            if validate.is_concrete(array):
                check = validate.nonnegative if name == "values" else validate.positive
                check(f"{name} of Piecewise", np.asarray(array, float))
        if validate.is_concrete(boundaries):
            validate.increasing("boundaries of Piecewise", np.asarray(boundaries, float))
        self.values = jnp.asarray(values, jnp.result_type(float))
        self.boundaries = jnp.asarray(boundaries, jnp.result_type(float))

    @classmethod
    def step(cls, value, factor, milestones) -> "Piecewise":
        """Step decay: `value`, multiplied by `factor` at each of `milestones`."""
        milestones = jnp.asarray(milestones)
        return cls(value * factor ** jnp.arange(milestones.shape[0] + 1), milestones)

    def __call__(self, t):
        return self.values[jnp.searchsorted(self.boundaries, t, side="right")]

    def integral(self, t):
        starts = jnp.concatenate([jnp.zeros((1,), self.boundaries.dtype), self.boundaries])
        clock = jnp.cumsum(self.values[:-1] * jnp.diff(starts))
        clock = jnp.concatenate([jnp.zeros((1,), clock.dtype), clock])
        piece = jnp.searchsorted(self.boundaries, t, side="right")
        return clock[piece] + self.values[piece] * (t - starts[piece])

    def jumps(self):
        return self.boundaries

    def peak(self):
        return jnp.max(self.values)

    def valid(self):
        return super().valid() & jnp.all(jnp.diff(self.boundaries) > 0)


class Warmup(Schedule):
    """Linear warm-up over `duration` from `start` times the rate to the initial rate of `after`, then `after`."""

    duration: Number
    after: Schedule
    start: Number = 0.0

    def __check_init__(self):
        validate.positive("duration of Warmup", self.duration)
        validate.nonnegative("start of Warmup", self.start)
        if not isinstance(self.after, Schedule):
            raise ValueError(f"after of Warmup must be a schedule, got {self.after!r}")

    def __call__(self, t):
        u = jnp.minimum(t / self.duration, 1.0)
        later = jnp.maximum(t - self.duration, 0.0)
        return jnp.where(u < 1, self.start + (1 - self.start) * u, 1.0) * self.after(later)

    def integral(self, t):
        u = jnp.minimum(t / self.duration, 1.0)
        later = jnp.maximum(t - self.duration, 0.0)
        ramp = self.duration * u * (self.start + 0.5 * (1 - self.start) * u)
        return ramp * self.after(jnp.zeros_like(later)) + self.after.integral(later)

    def jumps(self):
        return jnp.concatenate([jnp.reshape(jnp.asarray(self.duration), (1,)), self.duration + self.after.jumps()])

    def peak(self):
        # start above 1 is a warm-up from above: the ramp then begins at its highest
        return jnp.maximum(self.after.peak(), self.start * self.after(jnp.zeros_like(self.duration)))

    def valid(self):
        mine = jnp.isfinite(self.duration) & (jnp.asarray(self.duration) > 0)
        return mine & jnp.isfinite(self.start) & (jnp.asarray(self.start) >= 0) & self.after.valid()


class Scaled(Schedule):
    """`factor` times another schedule."""

    schedule: Schedule
    factor: Number

    def __check_init__(self):
        validate.nonnegative("factor of a scaled schedule", self.factor)

    def __call__(self, t):
        return self.factor * self.schedule(t)

    def integral(self, t):
        return self.factor * self.schedule.integral(t)

    def jumps(self):
        return self.schedule.jumps()

    def peak(self):
        return self.factor * self.schedule.peak()

    def valid(self):
        return jnp.isfinite(self.factor) & (jnp.asarray(self.factor) >= 0) & self.schedule.valid()


class FromOptax(Schedule):
    r"""An optax schedule (any function of the step count) read as a rate in continuous time.

    Up to `horizon` the integral is a Gauss-Legendre quadrature on `panels` panels cut at the given `jumps`; after it the
    rate keeps its last value. `error_estimate` states the quadrature error: twice the largest difference, inside panels too,
    from panels sixteen times as fine. Give `jumps` for a staircase, otherwise its steps cost accuracy, and the estimate says
    how much.
    """

    clock: Float[Array, " edges"]
    edges: Float[Array, " edges"]
    discontinuities: Float[Array, " jumps"]
    error_estimate: Float[Array, ""]
    largest: Float[Array, ""]
    schedule: Callable = eqx.field(static=True)

    def __init__(self, schedule: Callable, horizon: float, jumps=(), panels: int = 256):
        validate.positive("horizon of FromOptax", horizon)
        validate.whole("panels of FromOptax", panels, 1)
        jumps = np.asarray(jumps, float).reshape(-1)
        validate.positive("jumps of FromOptax", jumps)
        validate.increasing("jumps of FromOptax", jumps)
        if not callable(schedule):
            raise ValueError(f"schedule of FromOptax must be a function of the step count, got {schedule!r}")
        inside = jumps[jumps < horizon]
        edges = np.union1d(np.linspace(0.0, horizon, panels + 1), inside)
        judged = np.interp(np.linspace(0, edges.size - 1, 16 * (edges.size - 1) + 1), np.arange(edges.size), edges)
        with jax.ensure_compile_time_eval():
            rates = np.asarray(schedule(jnp.asarray(judged)))
            validate.nonnegative("the rates of an optax schedule", rates)
            self.schedule = schedule
            self.edges = jnp.asarray(edges)
            self.clock = jnp.asarray(np.concatenate([[0.0], np.cumsum(_panel_integrals(schedule, edges))]))
            finer = np.concatenate([[0.0], np.cumsum(_panel_integrals(schedule, judged))])
            apart = 2 * np.max(np.abs(self.integral(jnp.asarray(judged)) - finer))
            self.error_estimate = jnp.asarray(max(apart, _cost_of_jumps(schedule, edges)))
            self.discontinuities = jnp.asarray(np.append(inside, horizon))
            self.largest = jnp.asarray(np.max(rates))

    def __call__(self, t):
        return jnp.asarray(self.schedule(jnp.minimum(t, self.edges[-1])))

    def integral(self, t):
        t = jnp.asarray(t, jnp.result_type(float, t))
        inside = jnp.minimum(t, self.edges[-1])
        panel = jnp.clip(jnp.searchsorted(self.edges, inside, side="right") - 1, 0, self.edges.shape[0] - 2)
        begin = self.edges[panel]
        half = 0.5 * (inside - begin)[..., None]
        rates = jnp.asarray(self.schedule(begin[..., None] + half * (1 + jnp.asarray(_NODES, t.dtype))))
        partial = jnp.sum(half * jnp.asarray(_WEIGHTS, t.dtype) * rates, axis=-1)
        return self.clock[panel] + partial + (t - inside) * self(self.edges[-1])

    def jumps(self):
        return self.discontinuities

    def peak(self):
        return self.largest

    def valid(self):
        return jnp.all(jnp.isfinite(self.clock))


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


def _cost_of_jumps(schedule: Callable, edges: np.ndarray) -> float:
    """A bound on what jumps inside panels cost; two quadratures may agree on them by chance.

    A jump shows as one gap between neighbouring samples that holds most of the panel's swing. Gauss-Legendre mistakes it by
    at most half its largest weight, 0.18 of half a panel times the gap.
    """
    places = np.concatenate([[0.0], np.linspace(0.0, 1.0, 17)[1:-1], [1 - 1e-6]])  # just before the end: it may be a given jump
    rates = np.asarray(schedule(jnp.asarray(edges[:-1, None] + np.diff(edges)[:, None] * places)))
    gaps = np.max(np.abs(np.diff(rates, axis=1)), axis=1)
    return float(np.sum(np.where(gaps > 0.4 * np.ptp(rates, axis=1), 0.1 * np.diff(edges) * gaps, 0.0)))


def _panel_integrals(schedule: Callable, edges: np.ndarray) -> np.ndarray:
    half = 0.5 * np.diff(edges)[:, None]
    rates = np.asarray(schedule(jnp.asarray(edges[:-1, None] + half * (1 + _NODES))))
    return np.sum(half * _WEIGHTS * rates, axis=1)


def _power(base, exponent) -> Array:
    """max(base, 0)**exponent with a finite gradient at and past base = 0."""
    inside = base > 0
    return jnp.where(inside, jnp.where(inside, base, 1.0) ** exponent, 0.0)


def decaying_clock(rate, t) -> Array:
    r"""$\int_0^t e^{-r u} du = (1 - e^{-r t})/r$, smooth at `rate = 0`, where it is `t`."""
    x = rate * t
    small = jnp.abs(x) < 1e-3
    away = jnp.where(small, 1.0, x)
    # the series is cut at x^5/720 < 2e-18, below rounding in float64
    series = 1 - x / 2 * (1 - x / 3 * (1 - x / 4 * (1 - x / 5)))
    return t * jnp.where(small, series, -jnp.expm1(-away) / away)


def as_schedule(x) -> Schedule:
    """A schedule as it is; a number as a constant rate."""
    if isinstance(x, Schedule):
        return x
    if validate.is_numeric(x) and jnp.shape(x) == ():
        return Constant(x)
    raise ValueError(f"a rate must be a number or a schedule, got {x!r}; optax schedules go through schedules.FromOptax")
