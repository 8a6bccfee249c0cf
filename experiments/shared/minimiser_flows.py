"""Where regularised flows end: from random starts at the global minimum, from starts in an invariant plane at another point."""

import functools
from typing import NamedTuple

import diffrax
import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Measured
from experiments.shared.minimiser_oracles import Found, Kind, hessians, measured, objective, packed
from experiments.shared.minimisers import by_formula, problem_of

MOST = 260
"""Flows of one claim, a quarter of them from an invariant plane: they take longest of all."""

ROUNDS = 30.0
"""Flows run for this many times over the slowest rate at the minimum: long enough to pass saddles on the way."""


class Ends(NamedTuple):
    """The ends of flows: decays (members, 3), the minimum by formula, what was reached, the norm of the force there."""

    decays: np.ndarray
    minimum: Found
    reached: Found
    force: np.ndarray
    planted: np.ndarray


@functools.cache
def _program(kind: Kind):
    @jax.jit
    @jax.vmap
    def one(decays, rates, features, prototypes, horizon):
        problem = problem_of(kind, decays)
        rates = dyn.Rates(rates[0], rates[1])
        ts = horizon * np.array([0.5, 1.0])
        moved = dyn.flow(problem, dyn.Peeled(features, prototypes), rates, ts, rtol=1e-10, atol=1e-10, solver=diffrax.Tsit5())
        return jax.tree.map(lambda x: x[-1], moved.states), moved.status

    return one


def _decays(kind: Kind, members: int, rng) -> np.ndarray:
    """A root of the product from 0.2 to 1.3 of the threshold of the largest class, at least 10 % off every threshold."""
    pressure = rng.uniform(0.2, 1.3, members) * kind.sizes.max() ** 0.5 / kind.samples
    for size in set(kind.sizes.tolist()):
        threshold = size**0.5 / kind.samples
        near = np.abs(pressure / threshold - 1) < 0.1
        pressure = np.where(near, 0.88 * threshold, pressure)
    tilt = 2 ** rng.uniform(-1, 1, members)
    # of the biases: off the threshold r/(1+r) = pressure/threshold of the mean of all classes
    part = np.minimum(pressure / (kind.sizes.max() ** 0.5 / kind.samples), 0.9)
    ridge = part / (1 - part)
    ridge = np.where((rng.random(members) < 0.5) & (ridge < 1), 2 * ridge, np.minimum(ridge / 2, 1.0))
    return np.stack([pressure * tilt, pressure / tilt, ridge], axis=1)


@functools.cache
def ends(kind: Kind, members: int, planted_class: int | None = None) -> Ends:
    """Starts of random scale from a tenth to one; every fourth, if asked, with a class whose features and prototype are 0."""
    rng = np.random.default_rng([47, *kind.labels, members])
    decays, rates = _decays(kind, members, rng), 2 ** rng.uniform(-1, 1, (members, 2))
    scale = 10 ** rng.uniform(-1, 0, (members, 1, 1))
    features = scale * rng.normal(size=(members, kind.samples, kind.dim))
    prototypes = scale * rng.normal(size=(members, kind.classes, kind.dim))
    planted = np.zeros(members, bool)
    if planted_class is not None:
        planted[::4] = True
        features[np.ix_(planted, np.array(kind.labels) == planted_class)] = 0
        prototypes[planted, planted_class] = 0
    minimum, best = by_formula(kind, decays)
    horizon = ROUNDS / _slowest(kind, decays, rates, best)
    states, status = _program(kind)(decays, rates, features, prototypes, horizon)
    if np.any(status):
        raise ValueError(f"flows ended with status {np.unique(status)}")
    x = packed(kind, states.features, states.prototypes, states.biases)
    value, gradient = objective(kind, decays)(x)
    return Ends(decays, minimum, measured(kind, value, x), np.linalg.norm(gradient, axis=1), planted)


def _slowest(kind: Kind, decays, rates, x) -> np.ndarray:
    """The slowest rate of approach at the minimum; rotations of it are no approach."""
    of_features = np.arange(x.shape[1]) < kind.samples * kind.dim
    root = np.sqrt(np.where(of_features, rates[:, :1], rates[:, 1:]))
    found = np.linalg.eigvalsh(root[:, :, None] * hessians(objective(kind, decays), x) * root[:, None])
    return np.where(found > 1e-7, found, np.inf).min(axis=1)


def counted(found: Ends, residual: np.ndarray, other: np.ndarray, where: str) -> Measured:
    """The worst of `residual`, with how many ended at the minimum and how many elsewhere."""
    residual = np.where(np.isfinite(residual), residual, np.inf)
    numbers = {"at the minimum": float(np.sum(~other)), "elsewhere": float(np.sum(other)), "worst force": found.force.max()}
    return Measured(float(residual.max()), len(residual), f"{where}, member {int(residual.argmax())}", numbers)
