"""The matrices of the layers of a network: what the flow conserves of them, and how they fall to rank one."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dynamics.observables.network_margins import layers_of
from dynamics.problems import Network
from dynamics.problems.activations import Power
from dynamics.problems.nets import Dense


def layer_balance(problem: Network, state: PyTree) -> Float[Array, " entries"]:
    r"""$W_{l+1}^\top W_{l+1} - W_l W_l^\top$ of every two layers that follow each other, flattened one after the other.

    Conserved along the flow of deep linear networks without decay, whatever the loss.

    **Raises:** `ValueError` for a net with fewer than two layers.

    **Reference:** S. Du, W. Hu, J. Lee, Algorithmic regularization in learning deep homogeneous models (2018), theorem 2.2.
    """
    matrices = _several(problem, state)
    pairs = zip(matrices[:-1], matrices[1:], strict=True)
    return jnp.concatenate([(upper.T @ upper - lower @ lower.T).ravel() for lower, upper in pairs])


def neuron_balance(problem: Network, state: PyTree) -> Float[Array, " units"]:
    r"""$\|w_j\|^2 - k\|a_j\|^2$ of every hidden unit: its incoming weights against its outgoing ones, k the power of the
    activation.

    Conserved along the flow of fully connected networks of (leaky) ReLU units or their powers without decay.

    **Raises:** `ValueError` for other nets.

    **Reference:** S. Du, W. Hu, J. Lee, Algorithmic regularization in learning deep homogeneous models (2018), theorem 2.1.
    """
    net = problem.net
    if not (isinstance(net, Dense) and isinstance(net.activation, Power)):
        raise ValueError(f"net must be fully connected with activations of a degree, got {net}")
    matrices, power = _several(problem, state), net.activation.degree
    sides = zip(matrices[:-1], matrices[1:], strict=True)
    return jnp.concatenate([jnp.sum(lower**2, axis=1) - power * jnp.sum(upper**2, axis=0) for lower, upper in sides])


def rank_one_residual(problem: Network, state: PyTree) -> Float[Array, " layers"]:
    r"""$1 - \sigma_1^2/\|W_l\|_F^2$ of every layer, zero for rank one, taken from the other singular values without
    cancellation."""
    shares = []
    for matrix in layers_of(problem, state):
        squares = jnp.square(jnp.linalg.svd(matrix, compute_uv=False))
        shares.append(jnp.sum(squares[1:]) / jnp.sum(squares))
    return jnp.stack(shares)


def layer_alignment(problem: Network, state: PyTree) -> Float[Array, " pairs"]:
    r"""$|\langle v_{l+1}, u_l\rangle|$ of every two layers that follow each other: the largest right singular vector of one
    against the largest left one of the layer below.

    **Reference:** Z. Ji, M. Telgarsky, Gradient descent aligns the layers of deep linear networks (2019).
    """
    factors = [jnp.linalg.svd(matrix, full_matrices=False) for matrix in _several(problem, state)]
    return jnp.stack([jnp.abs(above[2][0] @ below[0][:, 0]) for below, above in zip(factors[:-1], factors[1:], strict=True)])


def _several(problem: Network, state: PyTree) -> list[Array]:
    matrices = layers_of(problem, state)
    if len(matrices) < 2:
        raise ValueError(f"net must have at least two layers, got {problem.net}")
    return matrices
