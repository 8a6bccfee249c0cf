"""What the closed form of the square loss leaves open: a rotation of feature space, known by a small linear ODE."""

import functools

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.squares import SHAPES, clocks, flowed, integrated, member, pull, rows_of, starts, transposed

SOURCE = "derived here"
SHAPE = SHAPES[1]
MEMBERS = 256


@functools.cache
def _turned():
    """The library's rotations, its representative, and Q by the integrator."""
    start, ts, moved, rows = flowed(SHAPE, MEMBERS)
    found = jax.jit(jax.vmap(lambda start, ts: dyn.exact.rotation(*member(SHAPE, start), ts)))(start, ts)
    return np.asarray(found), rows_of(moved), rows


def _entrywise(members: int) -> Measured:
    turns, representative, rows = _turned()
    gap = np.abs(representative @ turns - rows).max(axis=(1, 2, 3))
    apart = np.abs(representative - rows).max(axis=(1, 2, 3))
    numbers = {"median distance without the rotation": float(np.median(apart))}
    return Measured(float(gap.max()), MEMBERS, f"member {int(gap.argmax())}", numbers)


def _orthogonal(members: int) -> Measured:
    turns = _turned()[0]
    gap = np.abs(turns @ transposed(turns) - np.eye(SHAPE.dim)).max(axis=(1, 2, 3))
    return Measured(float(gap.max()), MEMBERS, f"member {int(gap.argmax())}")


def _factor(members: int) -> Measured:
    """C' = -P^{-1} P' C/2, P = I + c Q^T phi(F) Q, integrated: C C^T = P^{-1} and e^{Ft} Q C the flow itself."""
    start = starts(SHAPE, MEMBERS)
    share = np.array([0.0, 1.0, 3.0])
    ts = clocks(SHAPE, start, share)
    samples, classes = sum(SHAPE.sizes), SHAPE.classes
    c = (start.ratio / samples)[:, None, None]
    skew = c * start.imbalance[:, None, None] / 2
    coupled = np.sqrt(c / samples) * SHAPE.targets.T
    ones = np.broadcast_to(np.eye(classes), (MEMBERS, classes, classes)), np.eye(samples)
    force = np.concatenate(
        [
            np.concatenate([skew * ones[0], coupled], axis=2),
            np.concatenate([transposed(coupled), -skew * ones[1]], axis=2),
        ],
        axis=1,
    ) - start.decay[:, None, None] * np.eye(classes + samples)
    values, vectors = np.linalg.eigh(force)
    scales = np.ones((MEMBERS, classes + samples, 1))
    scales[:, classes:] = np.sqrt(start.ratio)[:, None, None]
    seen = transposed(vectors) @ (start.rows / scales)

    def spent(t):
        x = 2 * values * t[:, None]
        weight = t[:, None] * np.where(np.abs(x) < 1e-12, 1.0, np.expm1(x) / np.where(np.abs(x) < 1e-12, 1.0, x))
        fast = np.exp(x)
        return np.eye(SHAPE.dim) + c * transposed(seen) @ (weight[..., None] * seen), c * transposed(seen) @ (
            fast[..., None] * seen
        )

    # time rides along as an extra row of C: its last entry is t
    first = np.concatenate(
        [np.broadcast_to(np.eye(SHAPE.dim), (MEMBERS, SHAPE.dim, SHAPE.dim)), np.zeros((MEMBERS, 1, SHAPE.dim))], 1
    )

    def velocity(rows):
        whole, rate = spent(rows[:, -1, 0])
        turning = -0.5 * np.linalg.solve(whole, rate) @ rows[:, :-1]
        return np.concatenate([turning, np.ones((MEMBERS, 1, SHAPE.dim))], axis=1)

    factors = integrated(velocity, first, ts)[:, :, :-1]
    rows = integrated(lambda x: pull(SHAPE, start, x), start.rows, ts)
    worst = 0.0
    for k in range(1, share.size):
        factor = factors[:, k]
        inverse = np.linalg.inv(spent(ts[:, k])[0])
        grown = vectors @ (np.exp(values * ts[:, k : k + 1])[..., None] * seen)
        gaps = factor @ transposed(factor) - inverse, scales * (grown @ factor) - rows[:, k]
        worst = max(worst, *(float(np.abs(gap).max()) for gap in gaps))
    return Measured(worst, MEMBERS)


_claim = functools.partial(Claim, id="mse.riccati_rotation", source=SOURCE)
_BALANCED = ("square loss", "balanced start", "delta of both signs, or decay and delta = 0")

EXPERIMENT = Experiment(
    name="square-rotation",
    family="square-loss",
    summary="the rotation between the closed form's representative and the flow itself",
    claims=(
        _claim(
            name="square-rotation-factor",
            statement="Q(t) = e^{Ft} Q0 C(t) with C' = -P^{-1} P' C/2, and C C^T = P^{-1}",
            assumptions=_BALANCED,
            tolerance=7.4e-13,
            check=_factor,
        ),
        _claim(
            name="square-rotation-entrywise",
            statement="features and prototypes of exact.flow times exact.rotation are those of the integrated flow",
            assumptions=_BALANCED,
            tolerance=7.4e-13,
            check=_entrywise,
        ),
        _claim(
            name="square-rotation-orthogonal",
            statement="exact.rotation is orthogonal",
            assumptions=_BALANCED,
            tolerance=1e-13,
            check=_orthogonal,
        ),
    ),
)
