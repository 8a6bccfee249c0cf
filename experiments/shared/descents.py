"""The library's descents of whole ensembles, every step with rates of its own: one compiled program for each size."""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from experiments.shared.instances import Draw, Size, instance

STEPS = 40

Method = Literal["plain", "heavy ball", "nesterov"]


class Both(NamedTuple):
    """Iterates 0, 1, ..., STEPS of all members, (members, STEPS + 1, ...): simulated, and by formula."""

    simulated: dyn.Peeled
    formula: dyn.Peeled


def random_rates(draw: Draw, seed: int = 1) -> np.ndarray:
    """Rates of features and of weights, (members, 2, STEPS), each step drawn on its own below the draw's rates."""
    parts = np.random.default_rng(seed).uniform(0.1, 1.0, (draw.rate.size, 2, STEPS))
    return parts * np.stack([draw.ratio * draw.rate, draw.rate], axis=1)[..., None]


def proportional_rates(draw: Draw, seed: int = 1) -> np.ndarray:
    """As `random_rates`, with features' rate the draw's ratio times that of weights."""
    weights = random_rates(draw, seed)[:, 1]
    return np.stack([draw.ratio[:, None] * weights, weights], axis=1)


def descended(draw: Draw, size: Size, rates: np.ndarray, momentum=0.0, method: Method = "plain") -> Both:
    """Descents with decay and biases; `rates` (members, 2, STEPS) of features and of weights, `momentum` (members,)."""
    momentum = np.broadcast_to(momentum, draw.rate.shape)
    return jax.tree.map(np.asarray, _program(size, method)(draw, rates, momentum))


def problem_of(draw: Draw, size: Size, **fields) -> dyn.LayerPeeled:
    """The balanced problem of a draw, with decay."""
    loss, decay = dyn.losses.Unhinged(draw.gamma), dyn.Decay(*draw.decay)
    return dyn.LayerPeeled.balanced(size.classes, size.per_class, loss=loss, decay=decay, **fields)


def rates_of(rates) -> dyn.Rates:
    """Rates (2, STEPS) that step k of a descent reads at time k."""
    boundaries = jnp.arange(STEPS - 1) + 0.5
    return dyn.Rates(dyn.schedules.Piecewise(rates[0], boundaries), dyn.schedules.Piecewise(rates[1], boundaries))


@functools.cache
def _program(size: Size, method: Method):
    def one(draw, rates, momentum):
        problem = problem_of(draw, size, bias=True)
        state = dyn.Peeled(draw.features, draw.prototypes, draw.biases)
        options = {} if method == "plain" else {"momentum": momentum, "nesterov": method == "nesterov"}
        run = problem, state, rates_of(rates), STEPS
        return Both(dyn.descent(*run, **options).states, dyn.exact.descent(*run, **options).states)

    return jax.jit(jax.vmap(one))


HALVINGS = 3
EIGHTHS = 8


def halved(draw: Draw, size: Size, end: float, momentum=0.0) -> np.ndarray:
    """Heavy-ball descents to time `end` by steps of end/128, end/256 and end/512, rates read at the start of each step.

    Features over prototypes at the eighths of `end`, (members, HALVINGS, EIGHTHS, samples + classes, dim).
    """
    momentum = np.broadcast_to(momentum, draw.rate.shape)
    return np.asarray(_halving_program(size)(draw, momentum, end))


@functools.cache
def _halving_program(size: Size):
    steps, each = 128 * 2 ** (HALVINGS - 1), 128 // EIGHTHS

    def one(draw, momentum, end):
        problem, state, rates = instance(draw, size, decay=True)

        def stepped(dt):
            states = dyn.descent(problem, state, rates, steps, every=each, dt=dt, momentum=momentum).states
            return jnp.concatenate([states.features, states.prototypes], axis=-2)

        paths = jax.vmap(stepped)(end / 128 * 0.5 ** jnp.arange(HALVINGS))
        at = np.arange(1, EIGHTHS + 1) * 2 ** np.arange(HALVINGS)[:, None]
        return paths[np.arange(HALVINGS)[:, None], at]

    return jax.jit(jax.vmap(one, in_axes=(0, 0, None)))
