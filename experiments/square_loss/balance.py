"""W^T W - H^T H/s under the square loss: conserved by the flow, faded by decay, moved by descent, rarely a multiple of I."""

import functools

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.squares import MOST, SHAPES, Starts, clocks, integrated, member, pull, transposed

SOURCE = "S. Du, W. Hu, J. Lee (2018); S. Arora, N. Cohen, E. Hazan (2018); with unequal rates and decay derived here"
SHAPE = SHAPES[2]
SHARES = np.array([0.0, 1.0, 3.0])


@functools.cache
def _unbalanced(members: int, decay: bool) -> Starts:
    """Independent normal starts; decays between 0 and 0.3 of prototypes, the same rate times decay for features."""
    rng, members = np.random.default_rng([11, decay]), min(members, MOST)
    classes, samples, dim = SHAPE.classes, sum(SHAPE.sizes), SHAPE.dim
    scale = 0.05 * 8 ** rng.uniform(size=(members, 1, 1))
    return Starts(
        scale * rng.normal(size=(members, classes, dim)),
        scale * rng.normal(size=(members, samples, dim)),
        10 ** rng.uniform(-1, 1, members),
        np.zeros(members),
        0.3 * rng.uniform(size=members) * decay,
    )


def _balance(rows, ratio) -> np.ndarray:
    w, h = rows[..., : SHAPE.classes, :], rows[..., SHAPE.classes :, :]
    return transposed(w) @ w - transposed(h) @ h / ratio.reshape(-1, *(1,) * (rows.ndim - 1))


def _flowed(start: Starts, decays=None) -> tuple[np.ndarray, np.ndarray]:
    """Times and the balance over them."""
    ts = clocks(SHAPE, start, SHARES)
    return ts, _balance(integrated(lambda rows: pull(SHAPE, start, rows, decays), start.rows, ts), start.ratio)


def _conserved(members: int) -> Measured:
    start = _unbalanced(members, False)
    balance = _flowed(start)[1]
    return Measured.worst(np.abs(balance - balance[:, :1]))


def _fades(members: int) -> Measured:
    start = _unbalanced(members, True)
    ts, balance = _flowed(start)
    return Measured.worst(np.abs(balance - np.exp(-2 * start.decay[:, None] * ts)[..., None, None] * balance[:, :1]))


def _unequal(members: int) -> Measured:
    """Rate times decay of features three times that of prototypes: how close to a multiple of the start, and to zero."""
    start = _unbalanced(members, True)
    decays = start.decay + 0.1, 3 * (start.decay + 0.1) / start.ratio
    balance = _flowed(start, decays)[1][:, -1]
    first = _balance(start.rows, start.ratio)
    share = (balance * first).sum(axis=(1, 2)) / (first**2).sum(axis=(1, 2))
    off = np.linalg.norm(balance - share[:, None, None] * first, axis=(1, 2)) / np.linalg.norm(balance, axis=(1, 2))
    # a balanced start: both sides the same Gram matrix
    features = np.zeros_like(start.features)
    features[:, : SHAPE.classes] = np.sqrt(start.ratio)[:, None, None] * start.prototypes
    even = start._replace(features=features)
    ts = clocks(SHAPE, even, SHARES)
    last = integrated(lambda rows: pull(SHAPE, even, rows, decays), even.rows, ts)[:, -1]
    size = np.linalg.norm(last[:, : SHAPE.classes], axis=(1, 2)) ** 2
    left = np.linalg.norm(_balance(last, start.ratio), axis=(1, 2)) / size
    numbers = {"smallest deviation from a multiple": float(off.min()), "smallest balance from zero": float(left.min())}
    return Measured(1e-3 / min(off.min(), left.min()), len(off), "1e-3 over the smallest deviation", numbers)


def _descended(members: int) -> Measured:
    """One step at a common rate against D + eta^2 (G_W^T G_W - G_H G_H^T), features' ratio one."""
    start = _unbalanced(members, False)
    members = len(start.ratio)
    start = start._replace(ratio=np.ones(members))
    eta = np.random.default_rng(12).uniform(0.1, 5.0, members)

    def one(start: Starts, eta):
        problem, state, _ = member(SHAPE, start)
        return dyn.descent(problem, state, dyn.Rates.equal(eta), 1).states

    states = jax.jit(jax.vmap(one))(start, eta)
    found = _balance(np.concatenate([states.prototypes[:, -1], states.features[:, -1]], axis=1), start.ratio)
    expected = _balance(start.rows, start.ratio) + eta[:, None, None] ** 2 * _balance(
        pull(SHAPE, start, start.rows), start.ratio
    )
    return Measured.worst(np.abs(found - expected))


def _feasible(members: int) -> Measured:
    """The least eigenvalue of W^T W - H^T H is never positive for dim > classes, the largest never negative, dim > samples."""
    rng = np.random.default_rng(13)
    w, h = rng.normal(size=(members, 3, 5)), rng.normal(size=(members, 4, 5))
    values = np.linalg.eigvalsh(transposed(w) @ w - transposed(h) @ h)
    return Measured.worst(np.maximum(np.stack([values[:, 0], -values[:, -1]], axis=1), 0.0))


_claim = functools.partial(Claim, id="mse.balance", source=SOURCE)
_ANY = ("square loss", "any start", "any ratio of rates")

EXPERIMENT = Experiment(
    name="square-balance",
    family="square-loss",
    summary="W^T W - H^T H/s under the square loss",
    claims=(
        _claim(
            name="square-balance-conserved",
            statement="without decay the flow conserves D = W^T W - H^T H/s",
            assumptions=_ANY,
            tolerance=2.4e-13,
            check=_conserved,
        ),
        _claim(
            name="square-balance-fades",
            statement="with rate times decay g in both layers, D(t) = D(0) exp(-2 g t)",
            assumptions=_ANY,
            tolerance=2.4e-13,
            check=_fades,
        ),
        _claim(
            name="square-balance-unequal-decay",
            statement="with unequal products D is no multiple of its start, and D = 0 does not stay",
            assumptions=(*_ANY, "rate times decay of features three times that of prototypes"),
            tolerance=1.0,
            check=_unequal,
        ),
        _claim(
            name="square-balance-descent",
            statement="a step of descent gives D + eta^2 (G_W^T G_W - G_H G_H^T)",
            assumptions=("square loss", "any start", "equal rates"),
            tolerance=3.2e-14,
            check=_descended,
        ),
        _claim(
            name="square-balance-feasible",
            statement="D = delta I needs dim <= classes for delta > 0 and dim <= samples for delta < 0",
            assumptions=("any start",),
            tolerance=1e-14,
            check=_feasible,
        ),
    ),
)
