"""Directions of gradient descent at a constant step without decay: the factor they converge by, and the best gamma."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import size_of
from experiments.shared.descents import STEPS, descended
from experiments.shared.instances import (
    SIZES,
    Draw,
    Size,
    admissible,
    class_sides,
    common_part,
    draws,
    sigmas,
    spread,
    undecayed,
    worst_of,
)
from experiments.shared.oracles import generator, pull_matrix

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Corollary 3, in discrete time"
SIZE = SIZES[2]


def _zero_sum(x):
    return x - common_part(x)


def _drawn(size: Size, members: int):
    """Draws without decay at ratio one, and steps from a tenth to thirty times 1/sigma1."""
    draw = undecayed(admissible(draws(size, members), size))._replace(ratio=np.ones(members))
    return draw, 10 ** (2.5 * draw.spare[:, 3] - 1) / sigmas(draw, size)[0]


def _competitors(draw: Draw, size: Size, eta):
    """Factors of E2 (of the sign that grows), of E3, and of E1 with the sign that fades, over that of the winner."""
    sigma1, sigma2, _ = sigmas(draw, size)
    return np.stack([1 + eta * np.abs(sigma2), np.ones_like(eta), np.abs(1 - eta * sigma1)]) / (1 + eta * sigma1)


def _winner(features, prototypes, size: Size):
    """The part in E1+, features and prototypes."""
    own = _zero_sum(class_sides(features, size) + prototypes) / 2
    return spread(own, size), own


def _errors(draw: Draw, size: Size, eta):
    """What is not in the winning space over what is, at each iterate, (members, STEPS + 1)."""
    rates = np.broadcast_to(eta[:, None, None], (eta.size, 2, STEPS))
    states = descended(draw, size, rates).simulated
    features, prototypes = _winner(states.features, states.prototypes, size)
    rest = np.hypot(size_of(states.features - features), size_of(states.prototypes - prototypes))
    return rest / np.hypot(size_of(features), size_of(prototypes))


def _contracts(size: Size, members: int):
    draw, eta = _drawn(size, members)
    errors = _errors(draw, size, eta)
    factor = _competitors(draw, size, eta).max(axis=0)[:, None]
    return np.maximum((errors[:, 1:] - factor * errors[:, :-1]) / np.maximum(errors[:, :-1], 1), 0).max(axis=1)


def _competing_parts(draw: Draw, size: Size):
    """Parts of the start in the spaces of `_competitors`: features (3, members, samples, dim), and prototypes."""
    g, w = class_sides(draw.features, size), draw.prototypes
    sign = np.where(sigmas(draw, size)[1] < 0, -1.0, 1.0)[:, None, None]
    common, fading = common_part(sign * g + w) / 2, _zero_sum(w - g) / 2
    features = spread(sign * common, size), draw.features - spread(g, size), spread(-fading, size)
    return np.stack(features), np.stack([common, np.zeros_like(w), fading])


def _tight(size: Size, members: int):
    """From starts in the winning space and its slowest competitor."""
    draw, eta = _drawn(size, members)
    factors = _competitors(draw, size, eta)
    slowest = factors.argmax(axis=0), np.arange(members)
    parts = zip(_winner(draw.features, draw.prototypes, size), _competing_parts(draw, size), strict=True)
    features, prototypes = (won + competing[slowest] for won, competing in parts)
    errors = _errors(draw._replace(features=features, prototypes=prototypes), size, eta)
    predicted = errors[:, :1] * factors.max(axis=0)[:, None] ** np.arange(STEPS + 1)
    return np.abs(errors - predicted).max(axis=1) / errors[:, 0]


def _one_step(size: Size, members: int):
    draw, _ = _drawn(size, members)
    sigma1 = sigmas(draw, size)[0]
    states = descended(draw, size, np.broadcast_to(1 / sigma1[:, None, None], (members, 2, STEPS))).simulated
    fading = _zero_sum(states.prototypes[:, 1] - class_sides(states.features[:, 1], size)) / 2
    return size_of(fading) / size_of(states.prototypes[:, 1])


def _best_gamma(size: Size, members: int):
    """The factor at min(1/(C-1), 2 sqrt(N)/eta) minus the best on a grid of gamma, from dense spectra."""
    _, eta = _drawn(size, members)
    labels, winners = np.repeat(np.arange(size.classes), size.per_class), size.classes - 1

    def factor(gamma):
        equal, none = np.ones((2, *gamma.shape)), np.zeros((2, *gamma.shape))
        growth = np.linalg.eigvalsh(generator(pull_matrix(labels, gamma), equal, none))
        growth = 1 + eta[:, None, None] * growth
        return np.abs(growth[..., :-winners]).max(axis=-1) / growth[..., -1]

    top = 2 / (size.classes - 2) if size.classes > 2 else 2.0
    grid = factor(top * np.linspace(0.005, 0.995, 100)[None])
    best = factor(np.minimum(1 / (size.classes - 1), 2 * np.sqrt(size.per_class) / eta)[:, None])
    return np.maximum(best[:, 0] - grid.min(axis=1), 0)


_claim = functools.partial(
    Claim,
    id="beyond.gd",
    source=SOURCE,
    assumptions=("balanced classes", "no decay", "equal rates", "constant step", "0 < gamma < 2/(C-2)"),
)
_check = functools.partial(functools.partial, worst_of, sizes=(SIZE,))

EXPERIMENT = Experiment(
    name="gd-direction",
    family="beyond",
    summary="directions of gradient descent at a constant step",
    claims=(
        _claim(
            name="gd-contraction",
            statement="the direction converges at every constant step: its error shrinks each step at least by "
            "max(1 + eta|sigma2|, 1, |1 - eta sigma1|)/(1 + eta sigma1)",
            tolerance=1e-14,
            check=_check(_contracts),
        ),
        _claim(
            name="gd-contraction-tight",
            statement="that factor is attained from starts in the slowest competing space",
            tolerance=1e-13,
            check=_check(_tight),
        ),
        _claim(
            name="gd-one-step",
            statement="eta sigma1 = 1 removes the fading part of E1 in one step",
            tolerance=1e-14,
            check=_check(_one_step),
        ),
        _claim(
            name="gd-best-gamma",
            statement="the factor is smallest at gamma = min(1/(C-1), 2 sqrt(N)/eta): 1/(C-1) while eta sigma1 <= 2 there",
            tolerance=1e-14,
            check=functools.partial(worst_of, _best_gamma),
        ),
    ),
)
