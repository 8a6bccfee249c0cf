"""The contract of every schedule: rate, exact integral, jumps, peak, derivatives, precision, validity."""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from jaxtyping import Array

from dynamics.schedules import (
    Constant,
    Cosine,
    Exponential,
    FromOptax,
    Piecewise,
    Polynomial,
    Scaled,
    Schedule,
    Warmup,
    as_schedule,
)
from dynamics.state import cast
from tests.helpers import refused


class Row(NamedTuple):
    """A schedule: how it is built from its numbers, its rate in plain Python, where a derivative breaks, its peak."""

    build: Callable[..., Schedule]
    numbers: tuple
    rate: Callable[..., float]
    breaks: tuple[float, ...] = ()
    peak: float | None = None  # None: the largest sampled rate


def cosine(t, v, horizon, floor=0.0):
    return floor + (v - floor) * (1 + math.cos(math.pi * t / horizon)) / 2 if t < horizon else floor


def exponential(t, v, rate):
    return v * math.exp(-rate * t)


def polynomial(t, v, horizon, power, floor):
    return floor + (v - floor) * (1 - t / horizon) ** power if t < horizon else floor


def pieces(t, values, boundaries):
    return values[sum(t >= b for b in boundaries)]


def warm(after):
    def rate(t, duration, start, *numbers):
        ramp = start + (1 - start) * t / duration
        return ramp * after(0.0, *numbers) if t < duration else after(t - duration, *numbers)

    return rate


def warmup(after):
    return lambda duration, start, *numbers: Warmup(duration, after(*numbers), start)


TABLE = {
    "constant": Row(Constant, (0.3,), lambda t, v: v),
    "cosine": Row(Cosine, (0.5, 7.0, 0.05), cosine, (7.0,)),
    "cosine upwards": Row(Cosine, (0.1, 7.0, 0.4), cosine, (7.0,)),
    "exponential": Row(Exponential, (0.4, 0.3), exponential),
    "exponential, flat": Row(Exponential, (0.4, 0.0), exponential),
    "exponential, growing": Row(Exponential, (0.4, -0.2), exponential, (), math.inf),
    "polynomial": Row(Polynomial, (0.5, 7.0, 1.5, 0.05), polynomial, (7.0,)),
    "root": Row(Polynomial, (0.5, 7.0, 0.5, 0.05), polynomial, (7.0,)),
    "piecewise": Row(
        lambda *x: Piecewise(jnp.stack(x[:3]), jnp.stack(x[3:])),
        (0.1, 0.5, 0.2, 2.0, 5.0),
        lambda t, *x: pieces(t, x[:3], x[3:]),
        (2.0, 5.0),
    ),
    "one piece": Row(lambda v: Piecewise(jnp.stack([v]), jnp.zeros(0)), (0.3,), lambda t, v: v),
    "step": Row(
        lambda v, factor, *m: Piecewise.step(v, factor, jnp.stack(m)),
        (0.4, 0.1, 3.0, 6.0),
        lambda t, v, factor, *m: v * factor ** sum(t >= b for b in m),
        (3.0, 6.0),
    ),
    "warm-up": Row(warmup(Cosine), (2.0, 0.0, 0.5, 7.0, 0.05), warm(cosine), (2.0, 9.0)),
    "warm-up from above": Row(warmup(Cosine), (2.0, 3.0, 0.5, 7.0), warm(cosine), (2.0, 9.0)),
    "warm-up, then steps": Row(
        lambda d, s, *x: Warmup(d, Piecewise(jnp.stack(x[:2]), jnp.stack(x[2:])), s),
        (2.0, 0.1, 0.3, 0.6, 4.0),
        lambda t, d, s, *x: warm(lambda u, *x: pieces(u, x[:2], x[2:]))(t, d, s, *x),
        (2.0, 6.0),
    ),
    "warm-up, then decay": Row(warmup(Exponential), (3.0, 0.2, 0.5, 0.1), warm(exponential), (3.0,)),
    "scaled": Row(lambda k, *x: Scaled(Cosine(*x), k), (2.5, 0.5, 7.0, 0.05), lambda t, k, *x: k * cosine(t, *x), (7.0,)),
}
ROWS = pytest.mark.parametrize("name", TABLE)
TS = np.array([0.0, 0.7, 1.9, 2.6, 4.4, 5.5, 6.8, 7.3, 8.7, 11.0])
DENSE = np.arange(0.0, 12.0, 1e-3) + 5e-4
GROWTH = ("exponential", "warm-up, then decay")  # a negative decay rate, their last number, is growth
WIDTH = 1e-6


class Answers(NamedTuple):
    """What a schedule answers, and its derivatives."""

    rate: Array
    integral: Array
    jumps: Array
    peak: Array
    valid: Array


def asked(schedule: Schedule, ts) -> Answers:
    return Answers(schedule(ts), schedule.integral(ts), schedule.jumps(), schedule.peak(), schedule.valid())


def times(row: Row) -> np.ndarray:
    return np.concatenate([TS, row.breaks])  # at a jump the new rate counts


class Table(NamedTuple):
    """The answers of every row, by name, computed by one compiled program.

    - `batch`: for sets of numbers: the row's own, 1.1 and 0.9 times them, then spoiled one by one by NaN, infinity and
      -0.1, then those of central differences.
    - `slopes`: derivatives in the numbers of the rate and of the integral, and in time of the integral.
    """

    batch: dict[str, Answers]
    slopes: dict[str, tuple[Array, Array, Array]]


@pytest.fixture(scope="module")
def table() -> Table:
    def sets_of_numbers(row):
        own = np.array(row.numbers)
        spoiled = [np.where(np.eye(own.size) > 0, bad, own) for bad in (np.nan, np.inf, -0.1)]
        shifts = WIDTH * np.eye(own.size)
        return np.concatenate([own[None], 1.1 * own[None], 0.9 * own[None], *spoiled, own + shifts, own - shifts])

    def all_answers(numbers):
        batch, slopes = {}, {}
        for name, row in TABLE.items():
            ts = jnp.asarray(times(row))
            batch[name] = jax.vmap(lambda x, row=row, ts=ts: asked(row.build(*x), ts))(numbers[name])
            by_number = jax.jacfwd(lambda x, row=row, ts=ts: (row.build(*x)(ts), row.build(*x).integral(ts)))
            by_time = jax.vmap(jax.grad(lambda t, x, row=row: row.build(*x).integral(t)), (0, None))
            slopes[name] = (*by_number(numbers[name][0]), by_time(ts, numbers[name][0]))
        return Table(batch, slopes)

    return jax.jit(all_answers)({name: sets_of_numbers(row) for name, row in TABLE.items()})


def rates(row: Row, ts, factor=1.0) -> np.ndarray:
    return np.array([row.rate(float(t), *(factor * np.array(row.numbers)).tolist()) for t in ts])


@ROWS
def test_rate_alone_and_in_a_batch(name, table):
    row = TABLE[name]
    alone = row.build(*map(jnp.asarray, row.numbers))(jnp.asarray(times(row)))
    np.testing.assert_allclose(alone, rates(row, times(row)), rtol=1e-14, atol=1e-15)
    for member, factor in enumerate((1.0, 1.1, 0.9)):
        got = table.batch[name].rate[member][: TS.size]
        np.testing.assert_allclose(got, rates(row, TS, factor), rtol=1e-14, atol=1e-15)


@ROWS
def test_integral(name, table):
    row = TABLE[name]
    ts = times(row)
    order = np.argsort(ts)
    parts = [
        scipy.integrate.quad(row.rate, a, b, row.numbers, epsabs=1e-14, epsrel=1e-13)[0]
        for a, b in itertools.pairwise(ts[order])
    ]
    expected = np.concatenate([[0.0], np.cumsum(parts)])
    np.testing.assert_allclose(table.batch[name].integral[0][order], expected, rtol=1e-12, atol=1e-14)


@ROWS
def test_jumps_are_where_the_rate_or_its_slope_breaks(name, table):
    row = TABLE[name]
    np.testing.assert_allclose(np.sort(table.batch[name].jumps[0]), row.breaks, rtol=1e-15)
    sampled = rates(row, DENSE)
    bends = np.abs(np.diff(sampled, 2)) / 1e-3  # changes of slope; more where the rate itself jumps
    for t in DENSE[1:-1][bends > 0.02 * sampled.max()]:
        assert np.min(np.abs(np.asarray(row.breaks) - t), initial=np.inf) < 0.05


@ROWS
def test_peak(name, table):
    row = TABLE[name]
    largest = rates(row, [0.0, *DENSE, *row.breaks]).max() if row.peak is None else row.peak
    assert float(table.batch[name].peak[0]) == pytest.approx(largest, rel=1e-14)


@ROWS
def test_derivatives(name, table):
    row = TABLE[name]
    size, answers = len(row.numbers), table.batch[name]
    by_rate, by_integral, by_time = table.slopes[name]
    for auto, values in ((by_rate, answers.rate), (by_integral, answers.integral)):
        assert np.all(np.isfinite(auto))  # at the breaks too
        up, down = np.asarray(values[-2 * size : -size]), np.asarray(values[-size:])
        central = (up - down).T / (2 * WIDTH)
        np.testing.assert_allclose(auto[1 : TS.size], central[1 : TS.size], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(by_time[: TS.size], rates(row, TS), rtol=1e-12, atol=1e-14)


@ROWS
def test_float32_stays_float32(name, table):
    row, own = TABLE[name], table.batch[name]
    narrow = asked(cast(row.build(*map(jnp.asarray, row.numbers)), jnp.float32), jnp.asarray(times(row), jnp.float32))
    assert narrow.rate.dtype == narrow.integral.dtype == narrow.peak.dtype == jnp.float32
    np.testing.assert_allclose(narrow.rate[: TS.size], own.rate[0][: TS.size], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(narrow.integral, own.integral[0], rtol=2e-6)


@ROWS
def test_valid(name, table):
    size = len(TABLE[name].numbers)
    valid = np.asarray(table.batch[name].valid)
    spoiled = valid[3 : 3 + 3 * size]
    assert valid[:3].all()
    if name.startswith(GROWTH):
        assert spoiled[-1]
        spoiled = spoiled[:-1]
    assert not spoiled.any()


@ROWS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1])
def test_bad_numbers_are_refused(name, bad):
    row = TABLE[name]
    for i in range(len(row.numbers) - (name.startswith(GROWTH) and bad == -0.1)):
        refused(lambda i=i: row.build(*np.where(np.arange(len(row.numbers)) == i, bad, row.numbers)), "must be")


def test_bad_shapes_and_types_are_refused():
    refused(lambda: Piecewise(np.ones(2), np.ones(2)), "boundaries", "(pieces - 1,)", "(2,)")
    refused(lambda: Piecewise(np.ones(3), np.array([2.0, 1.0])), "boundaries of Piecewise", "strictly increasing", "2.")
    refused(lambda: Piecewise(np.ones(2), np.zeros(1)), "boundaries of Piecewise", "> 0", "0.")
    refused(lambda: Warmup(1.0, 0.3), "after of Warmup", "schedule", "0.3")
    refused(lambda: as_schedule("fast"), "a rate must be a number or a schedule", "'fast'")
    refused(lambda: as_schedule(np.ones(3)), "a rate must be a number or a schedule", "array([1., 1., 1.])")
    refused(lambda: FromOptax(0.1, 10.0), "schedule of FromOptax", "function", "0.1")
    refused(lambda: FromOptax(lambda t: 0.1 - t, 10.0), "rates", ">= 0")
    refused(lambda: FromOptax(lambda t: 0.1, -1.0), "horizon of FromOptax", "> 0", "-1.0")
    refused(lambda: FromOptax(lambda t: 0.1, 10.0, jumps=[3.0, 2.0]), "jumps of FromOptax", "increasing", "3.")


def test_numbers_may_come_in_lists():
    assert float(Piecewise([0.1, 0.5], [2.0])(3.0)) == 0.5
    assert float(Piecewise.step(0.4, 0.1, [3.0])(3.0)) == pytest.approx(0.04, rel=1e-15)
