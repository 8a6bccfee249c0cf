"""Slaved biases: the same closed form on centred targets and features, and the simplex they lead to."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.squares import (
    MOST,
    SHAPES,
    SLAVED,
    SOURCE,
    Shape,
    clocks,
    deviation,
    exact,
    flowed,
    gram,
    integrated,
    pull,
    rows_of,
    starts,
    transposed,
)

LATE = np.array([0.0, 1.0, 10.0, 35.0, 100.0, 300.0])


def _share(members: int) -> int:
    return -(-min(members, MOST) // len(SLAVED))


def _worst(residual, members: int, shapes=SLAVED) -> Measured:
    """Of `residual(shape, share)`, one a member."""
    found = [(float(np.max(values)), f"{shape.sizes}, dim {shape.dim}") for shape in shapes for values in [residual(shape)]]
    return Measured(*max(found)[:1], members, max(found)[1])


def _grams(members: int) -> Measured:
    def residual(shape: Shape):
        _, _, moved, rows = flowed(shape, _share(members))
        return np.where((moved.status == 0)[:, None], deviation(gram(rows_of(moved)), gram(rows)), np.inf)

    return _worst(residual, _share(members) * len(SLAVED))


def _logits(members: int) -> Measured:
    """Logits with biases against W H + b of the integrator with b = mean(Y - W H); and the biases themselves."""

    def residual(shape: Shape):
        _, _, moved, rows = flowed(shape, _share(members))
        products = rows[:, :, shape.classes :] @ transposed(rows[:, :, : shape.classes])
        best = (np.eye(shape.classes)[shape.labels] - products).mean(axis=-2)
        found = moved.states.features @ transposed(moved.states.prototypes) + moved.states.biases[..., None, :]
        return np.maximum(
            deviation(found, products + best[..., None, :]).max(axis=1),
            np.abs(moved.states.biases - best).max(axis=(1, 2)),
        )

    return _worst(residual, _share(members) * len(SLAVED))


def _mean(members: int) -> Measured:
    """Features shifted by a vector: the mean stays (decays at g), centred features and prototypes move as without it."""

    def residual(shape: Shape):
        start, ts, _, rows = flowed(shape, _share(members))
        shift = np.random.default_rng(31).normal(size=(len(ts), 1, shape.dim))
        shifted = start.rows
        shifted[:, shape.classes :] += shift
        moved = integrated(lambda x: pull(shape, start, x), shifted, ts)
        left = np.exp(-start.decay[:, None] * ts)[..., None, None] * shift[:, None]
        moved[:, :, shape.classes :] -= left
        return deviation(moved, rows)

    return _worst(residual, _share(members) * len(SLAVED))


def _frames(members: int) -> Measured:
    """At clock 300: directions of class means have cosines -1/(K-1) with slaved biases, 0 without."""
    shapes = (SLAVED[1], SHAPES[2])

    def residual(shape: Shape):
        start = starts(shape, _share(members), 0, (0, 1))
        moved = rows_of(exact(shape, start, clocks(shape, start, LATE)))[:, -1]
        classes, per_class = shape.classes, shape.sizes[0]
        means = moved[:, classes:].reshape(len(moved), classes, per_class, -1).mean(axis=2)
        units = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (means, moved[:, :classes])]
        wanted = -1 / (classes - 1) if shape.slaved else 0.0
        off = ~np.eye(classes, dtype=bool)
        if shape.slaved:
            # prototypes keep a common part that slaved biases hide: centred ones
            w = moved[:, :classes] - moved[:, :classes].mean(axis=1, keepdims=True)
            units[1] = w / np.linalg.norm(w, axis=-1, keepdims=True)
        return np.max([np.abs(gram(x)[:, off] - wanted) for x in units], axis=(0, 2))

    return _worst(residual, _share(members) * len(shapes), shapes)


_claim = functools.partial(Claim, id="mse.riccati + bias", source=SOURCE)
_SLAVED = ("square loss, both layers free", "slaved biases", "W^T W - H^T H/s = delta I, H of mean zero", "any class sizes")

EXPERIMENT = Experiment(
    name="square-riccati-bias",
    family="square-loss",
    summary="slaved biases: centred targets, the simplex",
    claims=(
        _claim(
            name="square-riccati-bias-grams",
            statement="Gram matrices by formula are those of the flow with b = mean(Y - W H) at all times, also with decay",
            assumptions=_SLAVED,
            tolerance=2.9e-11,
            check=_grams,
        ),
        _claim(
            name="square-riccati-bias-logits",
            statement="so are logits, and the biases shown are that mean",
            assumptions=_SLAVED,
            tolerance=2.9e-11,
            check=_logits,
        ),
        _claim(
            name="square-riccati-bias-mean",
            statement="the mean of the features only decays (at g); what is centred moves as without it",
            assumptions=("square loss", "slaved biases"),
            tolerance=2.9e-11,
            check=_mean,
        ),
        _claim(
            name="square-riccati-bias-frames",
            statement="slaved biases lead to a simplex ETF, no biases to an orthogonal frame (cosines of class means and "
            "prototypes)",
            assumptions=("square loss", "balanced classes", "balanced start", "dim >= classes", "no decay", "clock 300"),
            tolerance=1e-11,
            check=_frames,
        ),
    ),
)
