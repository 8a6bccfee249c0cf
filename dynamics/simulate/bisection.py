"""Where within its last step a motion meets what stops it."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optimistix
from jaxtyping import Array, Float, Int

HALVINGS = 60
"""As many leave nothing of a step but rounding."""


class Bracket(NamedTuple):
    """The ends of what is left of a step, the value at its right end, and how often the function was asked."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]
    above: Float[Array, ""]
    count: Int[Array, ""]


class Bisection(optimistix.AbstractRootFinder):
    """Halves a step until nothing is left of it; a step at whose end the value is zero ends there.

    It asks for no slope, as times that start at minus infinity have none, and values that nothing brackets raise nothing.
    """

    rtol: float = 0.0
    atol: float = 0.0
    norm: ClassVar[Callable] = jnp.abs

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        return Bracket(options["lower"], options["upper"], jnp.zeros_like(y), jnp.asarray(0))

    def step(self, fn, y, args, options, state, tags):
        values, aux = fn(y, args)
        value = jnp.sum(jnp.stack(jax.tree.leaves(values))).astype(y.dtype)
        above = jnp.where(state.count == 0, value, state.above)
        right = jnp.sign(value) == jnp.sign(above)
        lower, upper = jnp.where(right, state.lower, y), jnp.where(right, y, state.upper)
        middle = jnp.where(above == 0, y, lower + 0.5 * (upper - lower))
        return middle, Bracket(lower, upper, above, state.count + 1), aux

    def terminate(self, fn, y, args, options, state, tags):
        done = (state.count > HALVINGS) | ((state.count > 0) & (state.above == 0))
        return done, optimistix.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {}
