"""Batches of regularised problems: the minima by formula, one compiled program a kind, and by descent from random starts."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Measured
from experiments.shared import instances
from experiments.shared.minimiser_oracles import Found, Kind, apart, certificate, descended, measured, objective, packed

LOSSES = {"squared": dyn.losses.SquaredError, "entropy": dyn.losses.CrossEntropy}


def random_decays(kind: Kind, members: int) -> np.ndarray:
    """Decay of features, prototypes and biases, (members, 3): the root of the product of the first two is uniform in
    (0.05, 1.3) of the threshold of the largest class, their ratio is log-uniform in (0.01, 100), the third in (0.01, 10)."""
    rng = np.random.default_rng([41, *kind.labels, kind.dim, bool(kind.bias)])
    pressure = rng.uniform(0.05, 1.3, members) * kind.sizes.max() ** 0.5 / kind.samples
    tilt = 10 ** rng.uniform(-1, 1, members)
    return np.stack([pressure * tilt, pressure / tilt, 10 ** rng.uniform(-2, 1, members)], axis=1)


def problem_of(kind: Kind, decays) -> dyn.LayerPeeled:
    """The library's problem of one member; `decays` of shape (3,)."""
    return dyn.LayerPeeled(
        np.array(kind.labels), num_classes=kind.classes, loss=LOSSES[kind.loss](), bias=kind.bias, decay=dyn.Decay(*decays)
    )


@functools.cache
def _program(kind: Kind) -> Callable:
    @jax.jit
    @jax.vmap
    def one(decays):
        best = dyn.exact.minimiser(problem_of(kind, decays), dim=kind.dim)
        grams = best.feature_gram, best.prototype_gram, best.logits
        return best.state, best.status, (best.value, best.feature_norm, best.prototype_norm, best.bias, *grams)

    return one


def by_formula(kind: Kind, decays) -> tuple[Found, np.ndarray]:
    """The library's minima, and the states that attain them as rows of numbers, (members, variables)."""
    state, status, found = _program(kind)(decays)
    if np.any(status):
        raise ValueError(f"{int(np.sum(np.asarray(status) != 0))} members without a formula")
    return Found(*map(np.asarray, found)), packed(kind, state.features, state.prototypes, state.biases)


@functools.cache
def judged(kind: Kind, members: int) -> tuple[np.ndarray, Found, np.ndarray, Found]:
    """Random decays, the minima by formula, states that attain them, the minima by descent from random starts."""
    decays = random_decays(kind, members)
    formula, states = by_formula(kind, decays)
    value, x, _ = descended(kind, decays)
    return decays, formula, states, measured(kind, value, x)


def value_gap(kind: Kind, members: int) -> np.ndarray:
    """Of the value, against descents from random starts and against the objective at the state itself."""
    decays, formula, states, descended = judged(kind, members)
    at_state = objective(kind, decays)(states)[0]
    return np.maximum(np.abs(descended.value - formula.value), np.abs(at_state - formula.value))


def gram_gap(kind: Kind, members: int) -> np.ndarray:
    """Of Gram matrices, logits and biases, against descents from random starts."""
    _, formula, _, descended = judged(kind, members)
    return apart(formula, descended)


def uncertified(kind: Kind, members: int) -> np.ndarray:
    """By how much the state misses the conditions of the convex problem."""
    decays, _, states, _ = judged(kind, members)
    return certificate(kind, decays, states)


def worst_of(residuals: Callable, members: int, *, kinds: Sequence[Kind], most: int = 516) -> Measured:
    """The largest of `residuals(kind, share)`, one a member of a kind; at least `members` in all, or `most` of them."""

    def named(kind: Kind) -> str:
        return f"{kind.loss}, sizes {tuple(kind.sizes.tolist())}, p={kind.dim}"

    return instances.worst_of(residuals, min(members, most), sizes=kinds, named=named)
