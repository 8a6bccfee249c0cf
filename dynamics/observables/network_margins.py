r"""Margins of networks, and the weights by which the loss counts them.

With $\rho$ the norm of all weights, L the degree and $\mathcal{L}$ the sum of losses. Nothing here underflows: losses enter by
their logarithms.

**Reference:** K. Lyu, J. Li, Gradient descent maximizes the margin of homogeneous neural networks (2020).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dynamics import state as tree
from dynamics.problems import Network
from dynamics.problems.nets import Convolutional, Dense


def log_loss(problem: Network, state: PyTree) -> Float[Array, ""]:
    """The logarithm of the sum of losses, without decay; right where the loss itself underflows."""
    return problem.log_loss(state)


def weight_norm(problem: Network, state: PyTree) -> Float[Array, ""]:
    r"""$\rho$, the norm of all weights together."""
    return tree.norm(state)


def loss_inverse(problem: Network, state: PyTree) -> Float[Array, ""]:
    r"""$\ell^{-1}(\mathcal{L})$: the margin at which one sample has the loss of all; positive exactly once
    $\mathcal{L} < \ell(0)$, and then every sample is classified correctly."""
    return problem.loss.inverse(problem.log_loss(state))


def smoothed_margin(problem: Network, state: PyTree) -> Float[Array, ""]:
    r"""$\ell^{-1}(\mathcal{L})/\rho^L$, at most the normalised margin; it never decreases along the flow of a homogeneous
    network once it is positive (Lyu and Li 2020, theorem 4.1)."""
    return loss_inverse(problem, state) / tree.norm(state) ** problem.degree


def geometric_margin(problem: Network, state: PyTree) -> Float[Array, ""]:
    r"""The margin over the product of the layers' Frobenius norms, each to the degree of the network in that layer (one unless
    activations are powers).

    **Raises:** `ValueError` for a net without layers.
    """
    net = problem.net
    power = net.activation.degree if isinstance(net, Dense) else 1
    matrices = jax.tree.leaves(state) if isinstance(net, Convolutional) else layers_of(problem, state)
    margin = jnp.min(problem.margins(state))
    for above, matrix in enumerate(reversed(matrices)):
        margin = margin / tree.norm(matrix) ** (power**above)
    return margin


def layers_of(problem: Network, state: PyTree) -> list[Float[Array, "outputs inputs"]]:
    """The matrices of the layers; refuses a net that has none."""
    matrices = problem.net.layers(state)
    if not matrices:
        raise ValueError(f"net must have layers, see Net.layers, got {problem.net}")
    return matrices


def modified_margin(bound: tuple[float, ...], degree: float) -> Callable[[Network, PyTree], Array]:
    r"""An observable of nearly homogeneous networks: $(\log(1/\mathcal{L}) - \varphi(\rho))/\rho^M$ with M the degree and
    $\varphi(\rho) = \sum_i c_i\rho^i/(M - i)$, which solves $M\varphi - \rho\varphi' = \sum_i c_i\rho^i$.

    With the exponential loss it never decreases along the flow once it is positive.

    **Arguments:**

    - `bound`: the numbers $c_0, c_1, \ldots$ of `net.defect(radius)`, `radius` at least the largest norm of an input
      (`problem.radius`); empty gives $\log(1/\mathcal{L})/\rho^M$.
    - `degree`: M, the degree of the net.

    **Raises:** `ValueError` where a power in the bound is not below M, or a number in it is not finite or negative.

    **Reference:** Y. Cai, K. Zhou, J. Wu, S. Mei, M. Lindsey, P. Bartlett, Implicit bias of gradient descent for
    non-homogeneous deep networks (2025).
    """
    bound = checked_bound(bound, degree)

    def modified(problem: Network, state: PyTree) -> Float[Array, ""]:
        size = tree.norm(state)
        offset = sum(c * size**power / (degree - power) for power, c in enumerate(bound))
        return (-problem.log_loss(state) - offset) / size**degree

    return modified


def checked_bound(bound: tuple[float, ...], degree: float) -> tuple[float, ...]:
    """A bound on Euler's identity without trailing zeros; refuses numbers and powers that are none of a bound."""
    kept = [float(c) for c in bound]
    if not all(math.isfinite(c) and c >= 0 for c in kept):
        raise ValueError(f"bound must hold finite numbers >= 0, got {tuple(kept)}")
    while kept and kept[-1] == 0:
        kept.pop()
    if kept and len(kept) - 1 >= degree:
        raise ValueError(f"bound must hold powers below the degree {degree:g}, got {tuple(kept)}")
    return tuple(kept)


def euler_defect(problem: Network, state: PyTree) -> Float[Array, ""]:
    r"""The largest over samples and outputs of $|\langle\nabla f, \theta\rangle - L f|$; rounding for a homogeneous network."""
    outputs, along = jax.jvp(problem.outputs, (state,), (state,))
    return jnp.max(jnp.abs(along - problem.degree * outputs))


def gap_factor(problem: Network, state: PyTree) -> Float[Array, ""]:
    r"""$\kappa = h\sum_i p_i q_i/\ell^{-1}(\mathcal{L})$ with $p_i = -\ell'(q_i)/\mathcal{L}$ and
    $h = -d\ell^{-1}/d\log\mathcal{L}$, which is one for the exponential loss; it tends to one.

    With it $d\log\tilde\gamma/d\log\rho = L(\kappa/\beta^2 - 1)$ for every loss of margins and homogeneous network, with
    $\tilde\gamma$ the smoothed margin and $\beta$ the alignment. With more than two classes the $q_i$ are the leads over each
    other class, weighted as the loss weights them.
    """
    weighted, margins = pairs(problem, state)
    return inverse_slope(problem, state) * jnp.sum(weighted * margins) / loss_inverse(problem, state)


def inverse_slope(problem: Network, state: PyTree) -> Float[Array, ""]:
    r"""$-d\ell^{-1}(\mathcal{L})/d\log\mathcal{L}$."""
    value = problem.log_loss(state)
    return -jax.jvp(problem.loss.inverse, (value,), (jnp.ones_like(value),))[1]


def pairs(problem: Network, state: PyTree) -> tuple[Float[Array, "samples pairs"], Float[Array, "samples pairs"]]:
    r"""The constraints of the max-margin problem: weights p >= 0 and margins q with $g = \sum p \nabla q$.

    One a sample where targets are +-1. With logits one for every class, $q_{ij} = z_y - z_j$; the label's own is zero.
    """
    outputs, weights = problem.outputs(state), problem.loss_weights(state)[:, None]
    if not problem.loss.multiclass:
        return weights, (problem.targets * outputs)[:, None]
    label = jnp.arange(outputs.shape[1]) == problem.targets[:, None]
    own = jnp.sum(jnp.where(label, outputs, 0), axis=1, keepdims=True)
    return weights * jax.nn.softmax(outputs, axis=1, where=~label), own - outputs
