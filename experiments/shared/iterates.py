"""Ensembles of iterates of networks: a ReLU net on orthonormal inputs; separable samples."""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

import dynamics as dyn
from dynamics.simulate.step_rules import LossBased

MOST = 64
"""Starts, or data sets, that a claim takes."""
WIDTH = 20
TARGETS = np.array([1.0, 1.0, 1.0, -1.0, -1.0])
BEST = dyn.exact.cluster_margin(3, 2)
"""The largest margin over squared norm of a two-layer ReLU net on the orthonormal inputs."""


def clusters() -> dyn.Network:
    """Two layers of 20 ReLU units on five orthonormal inputs, three positive and two negative."""
    return dyn.Network(dyn.nets.two_layer(WIDTH), np.eye(TARGETS.size), TARGETS)


class Iterates(NamedTuple):
    """Kept iterates of many starts: numbers (members, times), weights (members, times, entries).

    Only the weights come from the library; the others are the definitions in NumPy.
    """

    steps: np.ndarray
    weights: np.ndarray
    log_loss: np.ndarray
    margin: np.ndarray
    """Over the largest."""
    misalignment: np.ndarray
    """1 - cosine of weights and scaled force."""
    pull: np.ndarray
    """The squared norm of the scaled force."""

    @property
    def separated(self) -> np.ndarray:
        """Whether every sample is right at the end; (members,)."""
        return self.margin[:, -1] > 0


def _described(steps: np.ndarray, rows: np.ndarray) -> Iterates:
    margins, pulls = margins_and_pulls(rows)
    log_loss = np.asarray(logsumexp(-margins, axis=0))
    force = np.einsum("s...,s...e->...e", np.exp(-margins - log_loss), pulls)
    square, size = np.sum(rows**2, axis=-1), np.sum(force**2, axis=-1)
    cosine = np.sum(rows * force, axis=-1) / np.sqrt(square * size)
    return Iterates(steps, rows, log_loss, np.min(margins, axis=0) / square / BEST, 1 - cosine, size)


def margins_and_pulls(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Margins (samples, ...) and their gradients (samples, ..., entries) of the ReLU net at flat weights (..., entries)."""
    inner, outer = unravelled(rows)
    margins, pulls = [], []
    for sample, y in enumerate(TARGETS):
        entering = inner[..., sample]  # the inputs are unit vectors
        hidden, force = np.maximum(entering, 0), np.zeros_like(inner)
        force[..., sample] = y * outer * (entering > 0)
        margins.append(y * np.sum(outer * hidden, axis=-1))
        pulls.append(np.concatenate([force.reshape(*rows.shape[:-1], -1), y * hidden], axis=-1))
    return np.stack(margins), np.stack(pulls)


def unravelled(flat):
    """The weights of the ReLU net from one row of `Iterates.weights`, or from many."""
    inner = flat[..., : WIDTH * TARGETS.size]
    return inner.reshape(*flat.shape[:-1], WIDTH, TARGETS.size), flat[..., WIDTH * TARGETS.size :]


@functools.cache
def first_weights(members: int):
    """Random weights of the ReLU net, one for each member; entries of the first layer have variance 1/5."""
    problem = clusters()
    draw = lambda key: dyn.initial.weights(problem, key=key)
    return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(71), members))


def descended(start, rule, steps: int, every: int, batch_size: int | None = None) -> Iterates:
    """The ReLU net from `start`, a batch of weights, by a step rule, one for all or a batch of them."""
    problem, members = clusters(), start[0].shape[0]
    keys = jax.random.split(jax.random.key(72), members)

    def one(weights, rule, key):
        given = {} if batch_size is None else {"batch_size": batch_size, "key": key}
        states = dyn.steepest_descent(problem, weights, rule, steps, every=every, **given).states
        return jnp.concatenate([leaf.reshape(steps // every + 1, -1) for leaf in states], axis=1)

    rules = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, members), rule)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*loses the margin")  # what some of the claims are about
        rows = jax.jit(jax.vmap(one))(start, rules, keys)
    return _described(every * np.arange(steps // every + 1), np.asarray(rows))


CAPPED = {1.0: 30_000, 10.0: 3_000}
"""Iterations at which a cap has taken the loss below 1e-800."""


@functools.cache
def capped(members: int, cap: float) -> Iterates:
    """Steps of min(0.5, cap/|weights|^2), 301 kept."""
    return descended(first_weights(members), LossBased(0.5, cap), CAPPED[cap], CAPPED[cap] // 300)


def separable(seed: int, samples: int = 12, dim: int = 4, gap: float = 0.3) -> np.ndarray:
    """Targets times inputs: normal inputs, labelled by a random direction and moved off its plane by the gap."""
    rng = np.random.default_rng([73, seed])
    x, way = rng.normal(size=(samples, dim)), rng.normal(size=dim)
    way /= np.linalg.norm(way)
    return np.sign(x @ way)[:, None] * x + gap * way


@functools.cache
def largest(norm: str, members: int, samples: int = 12, dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The largest margins of linear predictors on the separable data sets, (members,), and their directions."""
    found = [dyn.exact.max_margin(separable(seed, samples, dim), np.ones(samples), norm) for seed in range(members)]  # pyright: ignore[reportArgumentType]
    return np.array([best.margin for best in found]), np.stack([best.direction for best in found])
