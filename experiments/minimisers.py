"""Batches of regularised problems: the minima by formula, one compiled program a kind, and by descent from random starts."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Measured
from experiments.minimiser_oracles import Found, Kind, descended, measured, packed

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


def worst_of(residuals: Callable, members: int, *, kinds: Sequence[Kind], most: int = 516) -> Measured:
    """The largest of `residuals(kind, share)`, one a member of a kind; at least `members` in all, or `most` of them.

    A residual that is not a number is the worst there is.
    """
    share = -(-min(members, most) // len(kinds))
    found = []
    for kind in kinds:
        values = np.asarray(residuals(kind, share))
        if values.shape != (share,):
            raise ValueError(f"residuals must have shape ({share},), one for each member, got {values.shape}")
        found.append(np.where(np.isfinite(values), values, np.inf))
    kind, values = max(zip(kinds, found, strict=True), key=lambda pair: pair[1].max())
    where = f"{kind.loss}, sizes {tuple(kind.sizes.tolist())}, p={kind.dim}, member {int(values.argmax())}"
    return Measured(float(values.max()), share * len(kinds), where, {"median": float(np.median(np.concatenate(found)))})
