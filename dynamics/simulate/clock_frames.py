r"""What is integrated along a clock, as (weights, ...): beside the weights the time, and far out the samples' shares.

Two frames: `plain` for explicit solvers, and `augmented` for implicit ones, to losses of $e^{-10^{12}}$.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dynamics import state as tree
from dynamics.problems import Network
from dynamics.simulate.clock import At, Clock


class Given(NamedTuple):
    """What a motion along a clock depends on."""

    problem: Network
    begin: At


class Frame(NamedTuple):
    """How to begin from weights, how to move, and what to read off at a value of the variable of integration.

    `begin`: (given, weights) to y, whose first entry is the weights. `velocity`: (x, y, given) to dy/dx. `read`: (x, y, given)
    to E of the weights and the logarithm of the time at unit rate.
    """

    begin: Callable
    velocity: Callable
    read: Callable


def measured(problem: Network, weights: PyTree, rate) -> tuple[At, PyTree]:
    """What speeds are made of, and g."""
    seen, back = jax.vjp(problem.seen_margins, weights)
    log_loss = jax.nn.logsumexp(problem.loss.log_value(seen))
    (g,) = back(jnp.exp(problem.loss.log_slope(seen) - log_loss))
    return At(-log_loss, tree.inner(g, g), tree.norm(weights), tree.inner(g, weights), rate), g


def plain(clock: Clock) -> Frame:
    r"""Weights and $y = \mathcal{L}t$."""

    def begin(given: Given, weights):
        return weights, jnp.zeros_like(given.begin.pull)

    def velocity(x, y, given: Given):
        weights, scaled_time = y
        at, g = measured(given.problem, weights, given.begin.rate)
        speed = clock.speed(at) * _stretch(clock, x, given.begin)
        return jax.tree.map(lambda part: speed * part, g), speed * (1 - at.pull * scaled_time)

    def read(x, y, given: Given):
        weights, scaled_time = y
        log_inverse_loss = -given.problem.log_loss(weights)
        return log_inverse_loss, log_inverse_loss + _log(scaled_time)

    return Frame(begin, velocity, read)


def augmented(clock: Clock) -> Frame:
    r"""Weights, $z_i = \log(\ell_i/\mathcal{L})$ and a scaled time, for the clock of the log-loss.

    With $p = \mathrm{softmax}(z)\,h$, $h = -\ell'/\ell$ (one for the exponential loss), $g = \sum_i p_i\nabla q_i$ and K the
    Gram matrix of the $\nabla q_i$, $dz/dE = (p^\top Kp - h\,Kp)/|g|^2 - \mathrm{logsumexp}\,z$: no margins of $10^9$ are
    subtracted. The last term is zero on the exact solution and damps the direction that softmax does not see. The time is
    $y\,(1 + E^2)^{1 - 1/L}$ over the same at the start without y, times $|g|^2$ there: it stays of order one.
    """

    def begin(given: Given, weights):
        log_values = given.problem.loss.log_value(given.problem.seen_margins(weights))
        return weights, log_values - jax.nn.logsumexp(log_values), jnp.zeros_like(given.begin.pull)

    def velocity(x, y, given: Given):
        weights, logits, scaled_time = y
        problem, loss = given.problem, given.problem.loss
        seen, back = jax.vjp(problem.seen_margins, weights)
        relative = jnp.exp(loss.log_slope(seen) - loss.log_value(seen))
        shares = jax.nn.softmax(logits) * relative
        (g,) = back(shares)
        _, gained = jax.jvp(problem.seen_margins, (weights,), (g,))
        pull = jnp.sum(shares * gained)
        level = clock.value(x, given.begin) + given.begin.log_inverse_loss
        power = 2 - 2 / problem.degree
        gauge = jnp.exp(_log_gauge(level, given) + jnp.log(given.begin.pull))
        stretch = _stretch(clock, x, given.begin)
        return (
            jax.tree.map(lambda part: stretch / pull * part, g),
            stretch * ((pull - relative * gained) / pull - jax.nn.logsumexp(logits)),
            stretch * (gauge / pull - scaled_time * (1 - power * level / (1 + level**2))),
        )

    def read(x, y, given: Given):
        level = clock.value(x, given.begin) + given.begin.log_inverse_loss
        log_scaled = _log(y[2]) - _log_gauge(level, given) - jnp.log(given.begin.pull)
        return -given.problem.log_loss(y[0]), level + log_scaled

    return Frame(begin, velocity, read)


def _log_gauge(level, given: Given):
    """The logarithm of how the time is scaled at E = `level`, against the start."""
    power = 1 - 1 / given.problem.degree
    return power * (jnp.log1p(level**2) - jnp.log1p(given.begin.log_inverse_loss**2))


def _stretch(clock: Clock, x, begin: At):
    """How fast the clock goes in its variable of integration."""
    return jax.jvp(lambda x: clock.value(x, begin), (x,), (jnp.ones_like(x),))[1]


def _log(x):
    """The logarithm, of what is not positive minus infinity, without a derivative there."""
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1.0)), -jnp.inf)
