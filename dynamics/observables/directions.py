r"""The direction $u = \theta/\rho$ of the weights of a network: against the gradient, and over time.

**Reference:** Z. Ji, M. Telgarsky, Directional convergence and alignment in deep learning (2020).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dynamics import state as tree
from dynamics import validate
from dynamics.problems import Network


def gradient_alignment(problem: Network, state: PyTree) -> Float[Array, ""]:
    r"""$\beta = \langle u, g\rangle/\|g\|$, the cosine between the weights and minus the gradient of the loss.

    It tends to one for smooth networks. For ReLU networks it stays below where pre-activations sit on kinks, since
    differentiation takes one slope there: see `averaged_alignment`.
    """
    force = problem.scaled_force(state)
    return tree.inner(_unit(state), _unit(force))


def gradient_misalignment(problem: Network, state: PyTree) -> Float[Array, ""]:
    r"""$1 - \beta$ without cancellation, $\frac12\|u - g/\|g\|\|^2$."""
    between = jax.tree.map(jnp.subtract, _unit(state), _unit(problem.scaled_force(state)))
    return 0.5 * tree.inner(between, between)


def averaged_alignment(states: PyTree, window: int = 1) -> Float[Array, " pieces"]:
    r"""The alignment of the motion itself, $1/\sqrt{1 + \|\Delta u/\Delta s\|^2}$ with $s = \log\rho$; negative
    where the norm falls.

    Along a flow it is the alignment of weights and velocity, averaged over a piece of the way, and so counts the velocity that
    a ReLU network slides with along kinks.

    **Arguments:**

    - `states`: saved states of one run, leading axis times.
    - `window`: how many saved intervals a piece spans; pieces start at every saved time.

    **Returns:** shape (times - window,); NaN from the end of the run on.

    **Raises:** `ValueError` where `window` is not below the number of times.
    """
    window = validate.whole("window", window, 1)
    times = jax.tree.leaves(states)[0].shape[0]
    if window >= times:
        raise ValueError(f"window must be below the number of saved times, {times}, got {window}")
    sizes, directions = jax.vmap(tree.norm)(states), jax.vmap(_unit)(states)
    moved = jax.vmap(tree.norm)(jax.tree.map(lambda leaf: leaf[window:] - leaf[:-window], directions))
    # log1p keeps the digits of small growth
    grown = jnp.log1p((sizes[window:] - sizes[:-window]) / sizes[:-window])
    return grown / jnp.hypot(grown, moved)


def path_length(states: PyTree) -> Float[Array, " times"]:
    r"""The length of the way of the direction up to each saved time, $\sum\|\Delta u\|$; zero at the first.

    **Arguments:**

    - `states`: saved states of one run, leading axis times.
    """
    directions = jax.vmap(_unit)(states)
    moved = jax.vmap(tree.norm)(jax.tree.map(lambda leaf: jnp.diff(leaf, axis=0), directions))
    return jnp.concatenate([jnp.zeros(1, moved.dtype), jnp.cumsum(moved)])


def _unit(weights: PyTree) -> PyTree:
    size = tree.norm(weights)
    return jax.tree.map(lambda leaf: leaf / size, weights)
