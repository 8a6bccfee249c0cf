"""Gradients of a number at the end of a motion: by the library through its four verbs, and by complex steps of dense ones."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import expm

import dynamics as dyn
from experiments.shared.dense import stacked
from experiments.shared.instances import Size, draws
from experiments.shared.oracles import generator, labels_of, pull_matrix

SIZE = Size(3, 2, 3)
PIECES, PIECE, STEPS = 4, 1.5, 24
"""The schedule has as many pieces, each of this duration; descents have as many steps."""

SOLVER = {"solver": diffrax.Tsit5(), "rtol": 1e-9, "atol": 1e-9, "max_steps": 200}
SIMULATED = 256
"""Members whose simulated flow is differentiated, at most: integrating backwards takes the longest of all."""

BOUNDARIES = PIECE * np.arange(1, PIECES)
END = PIECE * PIECES


class Numbers(NamedTuple):
    """What a motion depends on, and what gradients are with respect to; `pieces` are the values of the schedule."""

    gamma: Any
    decay: Any
    ratio: Any
    pieces: Any
    start: Any


@functools.cache
def numbers(members: int) -> Numbers:
    """Random ones: gamma 0, 1/(C-1) or any; ratios in [0.3, 3]; unequal decays; starts features over prototypes."""
    draw, rng = draws(SIZE, members), np.random.default_rng(51)
    pieces = rng.uniform(0.05, 0.6, (members, PIECES))
    return Numbers(draw.gamma, draw.decay[:, :2], draw.ratio**0.5, pieces, stacked(draw.features, draw.prototypes))


@functools.cache
def targets(members: int) -> np.ndarray:
    """The direction whose cosine with the features is part of the number, (members, samples, dim)."""
    return np.random.default_rng(52).normal(size=(members, SIZE.classes * SIZE.per_class, SIZE.dim))


def number(features, prototypes, target, xp):
    """log |W| + <U, H>/|H|, in NumPy or JAX, analytic in its arguments."""
    total = lambda x: xp.sum(x, axis=(-2, -1))
    return 0.5 * xp.log(total(prototypes**2)) + total(target * features) / xp.sqrt(total(features**2))


@functools.cache
def gradients(verb: str, members: int) -> Numbers:
    """Gradients by the library: of `flow`, `descent`, `exact.flow` or `exact.descent`."""
    return gradients_at(verb, numbers(members), targets(members))


def gradients_at(verb: str, x: Numbers, target) -> Numbers:
    """The same at any numbers."""
    return jax.tree.map(np.asarray, _program(verb)(x, target))


@functools.cache
def _program(verb: str):
    def one(x: Numbers, target):
        problem = dyn.LayerPeeled.balanced(
            SIZE.classes, SIZE.per_class, loss=dyn.losses.Unhinged(x.gamma), decay=dyn.Decay(x.decay[0], x.decay[1])
        )
        rates = dyn.Rates.proportional(dyn.schedules.Piecewise(x.pieces, BOUNDARIES), x.ratio)
        state = dyn.Peeled(x.start[: -SIZE.classes], x.start[-SIZE.classes :])
        room = dyn.exact if verb.startswith("exact") else dyn
        if verb.endswith("descent"):
            states = room.descent(problem, state, rates, STEPS, every=STEPS, dt=END / STEPS).states
        else:
            options = {} if room is dyn.exact else SOLVER
            states = room.flow(problem, state, rates, np.array([END]), **options).states
        return number(states.features[-1], states.prototypes[-1], target, jnp)

    # a derivative is right or wrong as it is traced: cheap code generation will do
    return jax.jit(jax.vmap(jax.grad(one)), compiler_options={"xla_backend_optimization_level": 0})


def dense_flow(x: Numbers) -> np.ndarray:
    """Z at the end by the exponential of the dense generator."""
    zeta = x.pieces.sum(axis=-1) * PIECE
    return expm(generator(_pull(x), (x.ratio * zeta, zeta), x.decay.swapaxes(-1, -2))) @ x.start


def looped_descent(x: Numbers) -> np.ndarray:
    """Z at the end by a plain loop."""
    z, dt, each = x.start, END / STEPS, STEPS // PIECES
    for k in range(STEPS):
        rate = dt * x.pieces[..., k // each]
        z = z + generator(_pull(x), (x.ratio * rate, rate), x.decay.swapaxes(-1, -2)) @ z
    return z


def _pull(x: Numbers) -> np.ndarray:
    return pull_matrix(labels_of((SIZE.per_class,) * SIZE.classes), x.gamma)


def ways(members: int) -> list[Numbers]:
    """Directions in the numbers: each by itself, the start along a random one."""
    zero = jax.tree.map(np.zeros_like, numbers(members))
    found = [zero._replace(gamma=np.ones(members)), zero._replace(ratio=np.ones(members))]
    found += [zero._replace(decay=np.tile(unit, (members, 1))) for unit in np.eye(2)]
    found += [zero._replace(pieces=np.tile(unit, (members, 1))) for unit in np.eye(PIECES)]
    return [*found, zero._replace(start=np.random.default_rng(53).normal(size=zero.start.shape))]


def complex_slopes(motion: Callable[[Numbers], np.ndarray], members: int) -> np.ndarray:
    """Derivatives along all `ways`, (members, ways), by a complex step of 1e-30: no difference is taken."""
    found = []
    for way in ways(members):
        z = motion(jax.tree.map(lambda x, v: x + 1e-30j * v, numbers(members), way))
        end = number(z[:, : -SIZE.classes], z[:, -SIZE.classes :], targets(members), np)
        found.append(end.imag / 1e-30)
    return np.stack(found, axis=1)


def along(gradient: Numbers, members: int) -> np.ndarray:
    """Derivatives along all `ways` from a gradient, (members, ways)."""
    product = lambda g, v: np.sum((g * v).reshape(members, -1), axis=1)
    return np.stack([sum(map(product, gradient, way)) for way in ways(members)], axis=1)
