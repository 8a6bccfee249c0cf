"""The exact flow of the square loss from balanced starts against integrators, at long times and in float32."""

import functools

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.squares import (
    CLOCKS,
    MOST,
    SHAPES,
    SOURCE,
    Starts,
    clocks,
    deviation,
    exact,
    flowed,
    gram,
    integrated,
    member,
    pull,
    rows_of,
    starts,
)
from experiments.shared.squares_long import gram_at

LONG = np.array([1.0, 10.0, 35.0, 100.0, 300.0, 1000.0])


def _share(members: int) -> int:
    return -(-min(members, MOST) // len(SHAPES))


def _grams(members: int) -> Measured:
    """Over all shapes, times and members."""
    worst, where, median = -1.0, "", []
    for shape in SHAPES:
        _, ts, moved, rows = flowed(shape, _share(members))
        values = np.where((moved.status == 0)[:, None], deviation(gram(rows_of(moved)), gram(rows)), np.inf)
        k, time = np.unravel_index(values.argmax(), values.shape)
        median.append(np.median(values.max(axis=1)))
        if not values.max() <= worst:
            worst, where = float(values.max()), f"{shape.sizes}, dim {shape.dim}, member {k}, clock {CLOCKS[time]:g}"
    return Measured(worst, _share(members) * len(SHAPES), where, {"median": float(np.median(median))})


def _spectrum(members: int) -> Measured:
    """Eigenvalues of F for any targets against the formula, relative to the largest."""
    worst = 0.0
    for k in range(members):
        rng = np.random.default_rng([21, k])
        classes, samples = int(rng.integers(2, 5)), int(rng.integers(5, 9))
        targets = rng.normal(size=(classes, samples))
        a, c, delta, g = 10 ** rng.uniform(-1, 0), 10 ** rng.uniform(-1, 0), rng.normal(), rng.uniform()
        delta, g = (0.0, 0.0) if k % 3 == 0 else (delta, g)
        e = c * delta / 2
        matrix = np.block([[e * np.eye(classes), a * targets], [a * targets.T, -e * np.eye(samples)]]) - g * np.eye(
            classes + samples
        )
        root = np.sqrt((a * np.linalg.svd(targets, compute_uv=False)) ** 2 + e**2)
        expected = np.sort(np.concatenate([root - g, -root - g, np.full(samples - classes, -e - g)]))
        worst = max(worst, np.abs(np.linalg.eigvalsh(matrix) - expected).max() / np.abs(expected).max())
    return Measured(worst, members)


def _long(members: int) -> Measured:
    """Two members of each kind and shape at clocks up to 1000, against the formula in hundreds of digits."""
    worst, where, count = -1.0, "", 0
    for shape in (SHAPES[1], SHAPES[2]):
        start = starts(shape, _share(members))
        ts = clocks(shape, start, LONG)
        found = gram(rows_of(exact(shape, start, ts)))
        for k in range(4):
            count += 1
            one = Starts(*(x[k] for x in start))
            for time in (2, 3, 4, 5) if k < 2 else (2, 3):
                value = float(deviation(found[k, time], gram_at(shape, one, ts[k, time], LONG[time])))
                if not value <= worst:
                    worst, where = value, f"{shape.sizes}, dim {shape.dim}, member {k}, clock {LONG[time]:g}"
    return Measured(worst, count, where)


def _single(members: int) -> Measured:
    """Starts, rates and times in float32."""
    shape = SHAPES[2]
    start = starts(shape, MOST)
    ts = clocks(shape, start)
    rows = integrated(lambda x: pull(shape, start, x), start.rows, ts)
    small = Starts(*(np.asarray(x, np.float32) for x in start))

    moved = jax.jit(jax.vmap(lambda start, ts: dyn.exact.flow(*member(shape, start), ts)))(small, np.asarray(ts, np.float32))
    if moved.states.features.dtype != np.float32:
        return Measured(np.inf, 0, "not float32")
    values = np.where((moved.status == 0)[:, None], deviation(gram(rows_of(moved).astype(float)), gram(rows)), np.inf)
    return Measured(float(values.max()), len(values), f"member {int(values.max(axis=1).argmax())}")


def _simulated(members: int) -> Measured:
    """`dynamics.flow` at tolerance 1e-10, `dynamics.compare` on Gram matrices."""
    shape = SHAPES[1]
    start = starts(shape, min(members, MOST), 1, (0, 1, 2))
    ts = clocks(shape, start)

    def one(start: Starts, ts):
        return dyn.flow(*member(shape, start), ts, rtol=1e-10, atol=1e-13)

    comparison = dyn.compare(jax.jit(jax.vmap(one))(start, ts), exact(shape, start, ts))
    return Measured(float(comparison.worst), len(ts), str(comparison))


_claim = functools.partial(Claim, id="mse.riccati", source=SOURCE)
_BALANCED = (
    "square loss, both layers free",
    "W^T W - H^T H/s = delta I",
    "no decay, or the same rate times decay and delta = 0",
)

EXPERIMENT = Experiment(
    name="square-riccati",
    family="square-loss",
    summary="the exact flow of the square loss from balanced starts",
    claims=(
        _claim(
            name="square-riccati-grams",
            statement="logits and Gram matrices by formula are those of the integrated flow (a saddle in one dimension, where "
            "the integrator errs, is the worst)",
            assumptions=(*_BALANCED, "dim 1 to 8, imbalance, unequal rates, delta of both signs"),
            tolerance=8e-11,
            check=_grams,
        ),
        _claim(
            name="square-riccati-spectrum",
            statement="F has eigenvalues +- sqrt(a^2 sigma^2 + e^2) - g and N - K times -e - g: singular for delta = g = 0",
            assumptions=("any targets",),
            tolerance=1.3e-14,
            check=_spectrum,
        ),
        _claim(
            name="square-riccati-long-times",
            statement="at clocks 35 to 1000 over the fastest rate the formula agrees with itself in hundreds of digits",
            assumptions=_BALANCED,
            tolerance=1e-12,
            check=_long,
        ),
        _claim(
            name="square-riccati-float32",
            statement="in float32 Gram matrices are right to 3e-6 of the larger of one and their entries",
            assumptions=(*_BALANCED, "dim 5 > classes"),
            tolerance=3e-6,
            check=_single,
        ),
        _claim(
            name="square-riccati-simulated",
            statement="dynamics.flow has the Gram matrices of the formula, to 100 times its tolerance of 1e-10 a step",
            assumptions=_BALANCED,
            tolerance=1e-8,
            check=_simulated,
        ),
    ),
)
