r"""Pre-activations that sit on a kink.

Gradient flow of a ReLU network can slide along $\langle w_j, x_i\rangle = 0$: on the kink the motion is a mixture of those
on its two sides, which no single slope gives.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import validate
from dynamics.problems import Network
from dynamics.problems.nets import Dense, Skip


def on_kink(tolerance: float) -> Callable[[Network, PyTree], Array]:
    r"""An observable: which pre-activations sit on a kink, $|z| \le$ `tolerance` $\|w\|\|x\|$ with w the weights of the unit
    and x what enters its layer; shape (samples, units), the units of all layers one after the other.

    **Arguments:**

    - `tolerance`: > 0. A run of fixed steps chatters across a kink by about one step.

    **Raises:** `ValueError` for a net other than `Dense` and `Skip`, or whose activations have no kinks.
    """
    validate.positive("tolerance", tolerance)

    def sits(problem: Network, state: PyTree) -> Bool[Array, "samples units"]:
        net = problem.net
        if not isinstance(net, Dense | Skip) or not net.kinked:
            raise ValueError(f"net must be Dense or Skip with kinked activations, got {net}")
        z, sizes = jax.vmap(lambda x: _entering(net, state, x))(problem.inputs)
        return jnp.abs(z) <= tolerance * sizes

    return sits


def kink_count(tolerance: float) -> Callable[[Network, PyTree], Array]:
    """An observable: the number of pre-activations on a kink, over all samples and units; see `on_kink`."""
    sits = on_kink(tolerance)

    def count(problem: Network, state: PyTree) -> Int[Array, ""]:
        return jnp.sum(sits(problem, state))

    return count


def _entering(net: Dense | Skip, weights: PyTree, x: Array) -> tuple[Float[Array, " units"], Float[Array, " units"]]:
    """The pre-activations at one input, and the largest that weights and inputs of such norms could give."""
    entering = net.preactivations(weights, x)
    if isinstance(net, Skip):
        return entering[0], jnp.hypot(jnp.linalg.norm(weights[0], axis=1), weights[1]) * jnp.hypot(jnp.linalg.norm(x), 1.0)
    inputs = [x, *(net.activation(z) for z in entering[:-1])]
    rows = [jnp.linalg.norm(matrix, axis=1) for matrix in weights[:-1]]
    sizes = [row * jnp.linalg.norm(into) for row, into in zip(rows, inputs, strict=True)]
    return jnp.concatenate(entering), jnp.concatenate(sizes)
