"""The bias at its optimum takes one class mode away: what is left over of a balanced start decays as 1/t."""

import functools

import numpy as np

from dynamics.exact import square_modes
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.instances import Size, worst_of
from experiments.shared.square_collapse import SIZES, balanced_start, collapsed
from experiments.shared.square_modes import norm_of

BEGIN = 7
"""Index of the time from which only the mode left over moves: the others are e^-18 in W H."""
GONE = BEGIN + 1
"""Index from which they are gone from W H squared, too."""


def _left_over(size: Size, members: int):
    """Strengths (members, times) of the mode left over, and kappa s t."""
    s, seen = balanced_start(size, members, True), collapsed(size, members, True)
    u = np.linalg.norm(seen.fitted[:, BEGIN:], ord=2, axis=(-2, -1))
    return s, seen, u, (s.terms.kappa * s.terms.speed)[:, None] * seen.times[:, BEGIN:]


def _algebraic(size: Size, members: int):
    _, _, u, clock = _left_over(size, members)
    law = square_modes.saxe_mode(u[:, :1], 0.0, clock[:, 1:] - clock[:, :1])
    return np.abs(u[:, 1:] / np.asarray(law) - 1).max(axis=1)


def _floor(size: Size, members: int):
    """The whole residual is that one mode."""
    _, seen, u, _ = _left_over(size, members)
    return np.abs(norm_of(seen.fitted[:, GONE:]) ** 2 / u[:, 1:] ** 2 - 1).max(axis=1)


def _energy(size: Size, members: int):
    """Within-class energy against sqrt(eta1/eta2) u."""
    s, seen, u, _ = _left_over(size, members)
    skew = np.sqrt(s.terms.features / s.terms.weights)[:, None]
    return np.abs(norm_of(seen.within[:, GONE:]) ** 2 / (skew * u[:, 1:]) - 1).max(axis=1)


def _invisible(size: Size, members: int):
    """What the pseudo-inverse metric sees of it, over tr S_W/tr S_B."""
    _, seen, _, _ = _left_over(size, members)
    total = norm_of(seen.within[:, GONE:]) ** 2 / (size.classes * size.per_class)
    return (seen.ratio[:, GONE:] / total).max(axis=1)


_leftover = functools.partial(Claim, id="mse.leftover", source="derived here")
_check = functools.partial(functools.partial, worst_of, sizes=SIZES)
_SLAVED = (
    "balanced classes, one-hot",
    "balanced start of the size of the limit, not opposed to it",
    "dim >= classes",
    "no decay",
    "bias at its optimum",
)

EXPERIMENT = Experiment(
    name="square-left-over",
    family="square-loss",
    summary="the mode that a bias at its optimum leaves over",
    claims=(
        _leftover(
            name="leftover-law",
            statement="one mode is left over: u = u0/(1 + 2 kappa s u0 t)",
            assumptions=_SLAVED,
            tolerance=2.7e-12,
            check=_check(_algebraic),
        ),
        _leftover(
            name="leftover-floor",
            statement="the loss is kappa u^2/2",
            assumptions=_SLAVED,
            tolerance=1e-12,
            check=_check(_floor),
        ),
        _leftover(
            name="leftover-energy",
            statement="the within-class energy is sqrt(eta1/eta2) u",
            assumptions=_SLAVED,
            tolerance=1e-11,
            check=_check(_energy),
        ),
        _leftover(
            name="leftover-invisible",
            statement="tr(S_W S_B^+) does not see it: orthogonal to the class means (residual: its part of tr S_W)",
            assumptions=_SLAVED,
            tolerance=1e-12,
            check=_check(_invisible),
        ),
    ),
)
