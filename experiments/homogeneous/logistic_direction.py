"""A linear predictor on separable data: w = w* log t + r with a bounded r, so errors of order 1/log t."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.networks import FIRM, MOST, UNTIL, deep_linear, picked, separable, worst_of

SOURCE = "D. Soudry, E. Hoffer, M. Nacson, S. Gunasekar, N. Srebro (2018), Theorem 3"


def _weights(members: int, log_t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weights of each member, its direction of the largest margin, and the exact logarithm of the time."""
    runs = deep_linear(1, members)
    best = separable(min(members, MOST)).directions[runs.members]
    return runs.state(log_t)[0], best, picked(runs.log_t, runs.first(log_t))


def _error(members: int, log_t: float) -> np.ndarray:
    weights, best, at = _weights(members, log_t)
    return np.linalg.norm(weights / np.linalg.norm(weights, axis=1, keepdims=True) - best, axis=1) * at


def _clear(members: int) -> np.ndarray:
    """Whether all but the support vectors are 15 % beyond the margin: their part of the loss is e^-7.5 at log t = 50."""
    data = separable(min(members, MOST))
    margins = data.targets * np.einsum("mnd,md->mn", data.inputs, data.directions)
    return np.where(data.multipliers > 0, np.inf, margins).min(axis=1) > 1.15


def _flat(members: int) -> Measured:
    early, late = (_error(members, at)[_clear(members)] for at in (50.0, UNTIL))
    return worst_of({"error times log t": np.abs(early / late - 1)}, {"constant, median": float(np.median(late))})


def _remainder(members: int) -> Measured:
    """The weights at log t = 1000 against w* log t + r, <r, z_i> = -log of the multiplier on every support vector."""
    weights, best, at = _weights(members, UNTIL)
    data, off = separable(min(members, MOST)), []
    for member in np.flatnonzero(data.spanning()):
        support = data.multipliers[member] > 0
        signed = (data.targets[member][:, None] * data.inputs[member])[support]
        rest = np.linalg.solve(signed, -np.log(data.multipliers[member][support]))
        off.append(np.linalg.norm(weights[member] - best[member] * at[member] - rest) / np.linalg.norm(rest))
    return worst_of({"r": np.array(off)})


def _loss(members: int) -> Measured:
    runs = deep_linear(1, members)
    scaled = np.exp(picked(runs.log_t, runs.first(UNTIL)) - runs.at("level", UNTIL))
    return worst_of({"loss times t": np.abs(scaled - 1)})


_LINEAR = ("linear predictor", "exponential loss", "inputs scaled to the largest margin 1", *FIRM)
_claim = functools.partial(Claim, id="logreg.direction", source=SOURCE, assumptions=_LINEAR)

EXPERIMENT = Experiment(
    name="logistic-direction",
    family="homogeneous",
    summary="direction and loss of a linear predictor against log t",
    claims=(
        _claim(
            name="logreg-direction",
            statement="the distance of directions |w/|w| - w*/|w*|| times log t is constant within 3 % from log t = 50 to 1000",
            assumptions=(*_LINEAR, "the others even 15 % beyond the margin"),
            tolerance=0.03,
            check=_flat,
            limited_by="the next term, of order 1/log t",
        ),
        _claim(
            name="logreg-remainder",
            statement="w - w* log t -> r with <r, y_i x_i> = -log alpha_i on the support vectors, w* = sum alpha_i y_i x_i",
            tolerance=1e-4,
            check=_remainder,
            limited_by="the integrator, at weights of norm 1000; where the support vectors span the inputs",
        ),
        _claim(
            name="logreg-loss",
            statement="loss times t tends to 1 over the square of the largest margin",
            tolerance=1e-4,
            check=_loss,
            limited_by="the integrator",
        ),
    ),
)
