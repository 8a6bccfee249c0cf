"""Random instances that the claims are checked on, and the loop over them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from dynamics.verify import Measured

HORIZON = 10.0
"""Cosine schedules end here; claims about trajectories look at times up to about this."""


class Size(NamedTuple):
    """Classes, samples per class, dimension of feature space."""

    classes: int
    per_class: int
    dim: int


SIZES = (Size(3, 2, 4), Size(2, 3, 2), Size(5, 2, 3))
"""Small sizes: generic, two classes, and fewer dimensions than a simplex needs."""


class Instance(NamedTuple):
    """A problem, a start and rates."""

    problem: dyn.LayerPeeled
    state: dyn.Peeled
    rates: dyn.Rates


def gamma_of(key, classes: int):
    """A third each: 0, the optimum 1/(C-1), uniform in the range (0, 2/(C-2)) where the limit theorems hold (C = 2: (0, 2))."""
    which, value = jax.random.split(key)
    top = 2 / (classes - 2) if classes > 2 else 2.0
    choice = jax.random.randint(which, (), 0, 3)
    return jnp.select([choice == 0, choice == 1], [0.0, 1 / (classes - 1)], jax.random.uniform(value, maxval=0.95 * top))


def ratio_of(key):
    """Features' rate over weights' rate, log-uniform in [0.1, 10]."""
    return 10 ** jax.random.uniform(key, minval=-1.0, maxval=1.0)


def schedule_of(key):
    """Half of them constant, half a cosine down to a tenth at `HORIZON`; values log-uniform in [0.1, 1]."""
    which, value = jax.random.split(key)
    value = 10 ** jax.random.uniform(value, minval=-1.0, maxval=0.0)
    floor = jnp.where(jax.random.bernoulli(which), value, 0.1 * value)  # a cosine that ends where it starts is constant
    return dyn.schedules.Cosine(value, HORIZON, floor)


def decay_of(key, largest: float = 0.3) -> dyn.Decay:
    """Unequal decays, uniform up to `largest`."""
    features, prototypes, biases = jax.random.uniform(key, (3,), maxval=largest)
    return dyn.Decay(features, prototypes, biases)


def instance(key, size: Size, *, decay: bool = False, equal_rates: bool = False, **fields) -> Instance:
    """A random balanced instance: gamma, ratio of rates, schedule, unequal decays if asked, Gaussian start with biases.

    Further fields are those of `LayerPeeled`; `loss` replaces the unhinged loss of random gamma.
    """
    keys = jax.random.split(key, 7)
    classes, per_class, dim = size
    fields.setdefault("loss", dyn.losses.Unhinged(gamma_of(keys[0], classes)))
    fields.setdefault("decay", decay_of(keys[1]) if decay else dyn.Decay())
    problem = dyn.LayerPeeled.balanced(classes, per_class, **fields)
    schedule = schedule_of(keys[2])
    rates = dyn.Rates.equal(schedule) if equal_rates else dyn.Rates.proportional(schedule, ratio_of(keys[3]))
    start = dyn.initial.gaussian(problem, dim=dim, key=keys[4])
    biases = jax.random.normal(keys[5], (classes,))
    return Instance(problem, dyn.Peeled(start.features, start.prototypes, biases), rates)


def relative(x, y):
    """The norm of x - y over the norm of y, over all leaves together."""
    from dynamics.state import norm

    return norm(jax.tree.map(jnp.subtract, x, y)) / norm(y)


def worst_over(
    one: Callable, members: int, *, sizes: Sequence[Size] = SIZES, seed: int = 0, chunk: int = 1024
) -> Measured:
    """The largest residual of `one(key, size)` over `members` keys for every size together (at least `members` in all).

    A residual that is not a number is the worst there is.
    """
    share = -(-members // len(sizes))
    worst, where = -1.0, ""
    for number, size in enumerate(sizes):
        key = jax.random.fold_in(jax.random.key(seed), number)
        result = dyn.ensemble.run(
            lambda _, k, size=size: one(k, size), jnp.zeros(share), key=key, chunk=chunk, progress=False
        )
        residuals = np.where(np.isfinite(result.values), result.values, np.inf)
        if residuals.max() > worst:
            worst = float(residuals.max())
            where = f"C={size.classes} N={size.per_class} p={size.dim} member {int(residuals.argmax())}"
    return Measured(worst, share * len(sizes), where)
