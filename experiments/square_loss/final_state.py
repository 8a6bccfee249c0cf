"""Where the square loss ends from a balanced start without decay: each fitted mode's two sides, and what is left over."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.squares import MOST, SHAPES, Shape, clocks, deviation, exact, gram, rows_of, starts

SOURCE = "derived here; delta = 0: S. Arora, N. Cohen, E. Hazan (2018)"
LATE = np.array([0.0, 1.0, 10.0, 35.0, 100.0, 500.0])
WIDE = (SHAPES[1], SHAPES[2], SHAPES[4])
"""As many dimensions as classes or more."""
DEEP = SHAPES[2]


def _ended(shape: Shape, members: int, kinds=(0, 1, 2)):
    """Starts of unequal rates, and prototypes and features over sqrt(s) at clock 500."""
    start = starts(shape, min(members, MOST), 3, kinds)
    moved = exact(shape, start, clocks(shape, start, LATE))
    rows = np.where((moved.status == 0)[:, None, None], rows_of(moved)[:, -1], np.nan)
    return start, rows[:, : shape.classes], rows[:, shape.classes :] / np.sqrt(start.ratio)[:, None, None]


def _sides(members: int) -> Measured:
    """W W^T and the class block of H^T H of fitted modes; with s, sigma becomes sigma/sqrt(s)."""
    residuals = []
    for shape in WIDE:
        start, w, h = _ended(shape, members // 3 + 1)
        sizes, delta = np.array(shape.sizes), start.imbalance[:, None]
        root = np.sqrt(delta**2 + 4 * sizes / start.ratio[:, None])
        sides = np.add.reduceat(h, np.cumsum([0, *sizes[:-1]]), axis=1) / np.sqrt(sizes)[:, None]
        for side, squares in ((w, (root + delta) / 2), (sides, (root - delta) / 2)):
            residuals.append(deviation(gram(side), squares[:, None] * np.eye(sizes.size)))
    return Measured.worst(np.concatenate(residuals))


def _fitted(members: int) -> Measured:
    """W H = Y."""
    residuals = []
    for shape in WIDE:
        start, w, h = _ended(shape, members // 3 + 1)
        products = np.sqrt(start.ratio)[:, None, None] * h @ np.swapaxes(w, 1, 2)
        residuals.append(np.abs(products - shape.targets).max(axis=(1, 2)))
    return Measured.worst(np.concatenate(residuals))


def _within(h, shape: Shape) -> np.ndarray:
    """Energy of the deviations from class means."""
    means = np.add.reduceat(h, np.cumsum([0, *shape.sizes[:-1]]), axis=1) / np.array(shape.sizes)[:, None]
    return np.sum((h - means[:, shape.labels]) ** 2, axis=(1, 2))


def _left_over(members: int) -> Measured:
    """delta < 0 and dim > classes: (dim - K)|delta|."""
    start, _, h = _ended(DEEP, members, (1, 2))
    expected = (DEEP.dim - DEEP.classes) * np.abs(start.imbalance)
    energy = _within(h, DEEP)
    half = energy[start.imbalance == -0.5]
    numbers = {"at delta = -1/2, least": float(half.min()), "largest": float(half.max())}
    return Measured(float(np.abs(energy - expected).max()), energy.size, "", numbers)


def _collapsed(members: int) -> Measured:
    """delta >= 0, or dim <= classes: none is left."""
    energies = []
    for shape, kinds in ((SHAPES[1], (0, 1, 2)), (DEEP, (0,)), (SHAPES[3], (0, 1, 2))):
        energies.append(_within(_ended(shape, members // 3 + 1, kinds)[2], shape))
    return Measured.worst(np.concatenate(energies))


def _narrow(members: int) -> Measured:
    """dim 1, three equal singular values: W H ends at a matrix of rank one and strength sigma inside the targets."""
    shape = SHAPES[0]
    start, w, h = _ended(shape, members)
    product = np.sqrt(start.ratio)[:, None, None] * w @ np.swapaxes(h, 1, 2)
    strength = np.linalg.norm(product, axis=(1, 2))
    inside = (product * shape.targets.T).sum(axis=(1, 2)) / strength
    sigma = np.sqrt(shape.sizes[0])
    return Measured.worst(np.maximum(np.abs(strength - sigma), np.abs(inside - sigma)))


_claim = functools.partial(Claim, id="mse.final_state", source=SOURCE)
_BALANCED = ("square loss, no biases, no decay", "W^T W - H^T H/s = delta I", "clock 500 over the fastest rate")

EXPERIMENT = Experiment(
    name="square-final-state",
    family="square-loss",
    summary="where the square loss ends from a balanced start",
    claims=(
        _claim(
            name="square-final-fit",
            statement="the targets are fitted, W H = Y",
            assumptions=(*_BALANCED, "dim >= classes"),
            tolerance=1e-12,
            check=_fitted,
        ),
        _claim(
            name="square-final-sides",
            statement="fitted modes have w^2, h^2 = (sqrt(delta^2 + 4 sigma^2) +- delta)/2 (features and sigma over sqrt(s))",
            assumptions=(*_BALANCED, "dim >= classes", "any class sizes, any ratio s"),
            tolerance=4.9e-14,
            check=_sides,
        ),
        _claim(
            name="square-final-within-class",
            statement="for delta < 0 within-class energy (dim - K)|delta| is left (over s)",
            assumptions=(*_BALANCED, "dim > classes"),
            tolerance=1e-9,
            check=_left_over,
        ),
        _claim(
            name="square-final-collapse",
            statement="none is left for delta >= 0 or dim <= classes",
            assumptions=_BALANCED,
            tolerance=1e-12,
            check=_collapsed,
        ),
        _claim(
            name="square-final-narrow",
            statement="dim < rank of the targets: only dim directions are fitted, each wholly",
            assumptions=(*_BALANCED, "dim 1, three equal singular values"),
            tolerance=1e-12,
            check=_narrow,
        ),
    ),
)
