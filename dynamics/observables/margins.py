"""Margins: by how much the logit of the label leads. Negative where it does not."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dynamics import state as tree
from dynamics.observables.base import observable
from dynamics.observables.summary import Summary
from dynamics.problems import LayerPeeled, Network, Peeled


def leads(problem: LayerPeeled | Network, state: PyTree) -> Float[Array, " samples"]:
    r"""The margin of every sample, $z_y - \max_{j \neq y} z_j$, or target times output."""
    if isinstance(problem, Network):
        return problem.margins(state)
    own, others = own_and_others(problem, state)
    return own - jnp.max(others, axis=1)


def own_and_others(problem: LayerPeeled, state: Peeled) -> tuple[Float[Array, " samples"], Float[Array, "samples others"]]:
    """The logit of the label of each sample, and its other logits in the order of classes."""
    logits, labels = problem.logits(state), jnp.asarray(problem.labels)[:, None]
    others = jnp.arange(problem.num_classes - 1)
    others = others + (others >= labels)
    return jnp.take_along_axis(logits, labels, axis=1)[:, 0], jnp.take_along_axis(logits, others, axis=1)


def _margin(problem: LayerPeeled, summary: Summary) -> Float[Array, ""] | None:
    return None if summary.collapse is None else summary.collapse.margin()


@observable(from_summary=_margin)
def margin(problem: LayerPeeled | Network, state: PyTree) -> Float[Array, ""]:
    r"""The smallest over samples of $z_y - \max_{j \neq y} z_j$ (of target times output where targets are +-1); positive when
    every sample is classified correctly."""
    return jnp.min(leads(problem, state))


@observable()
def misclassified(problem: LayerPeeled | Network, state: PyTree) -> Int[Array, ""]:
    """The number of samples whose margin is not positive."""
    return jnp.sum(~(leads(problem, state) > 0))


def _average_margin(problem: LayerPeeled, summary: Summary) -> Float[Array, ""] | None:
    if summary.collapse is None:
        return None
    classes, samples = problem.num_classes, problem.num_samples
    # what all classes have in common, and of balanced classes the biases, lead nowhere on average
    apart = jnp.sum(summary.collapse.features[0] * summary.collapse.prototypes[0])
    return (samples / classes) ** 0.5 * apart * classes / (classes - 1) / samples


@observable(from_summary=_average_margin)
def average_margin(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    r"""The mean over samples (not weighted) of $z_y - \frac{1}{C-1}\sum_{j \neq y} z_j$."""
    own, others = own_and_others(problem, state)
    return jnp.mean(own - jnp.mean(others, axis=1))


def _normalized_margin(problem: LayerPeeled, summary: Summary) -> Float[Array, ""] | None:
    found = _margin(problem, summary)
    if found is None:
        return None
    size = tree.norm((summary.feature_norm, summary.prototype_norm))
    return jnp.where(size > 0, found / size / size, jnp.nan)


@observable(from_summary=_normalized_margin)
def normalized_margin(problem: LayerPeeled | Network, state: PyTree) -> Float[Array, ""]:
    r"""The margin over $\|H\|^2 + \|W\|^2$, biases apart; NaN where both are zero. Of a network of degree L the margin over
    $\|\theta\|^L$, all weights together.

    Logits without biases are homogeneous of degree 2 in features and prototypes together, and then this is the margin of the
    direction. Biases, and features that are normalised, break that: no scale invariance is declared.

    **Reference:** K. Lyu, J. Li, Gradient descent maximizes the margin of homogeneous neural networks (2020).
    """
    if isinstance(problem, Network):
        size = tree.norm(state)
        return jnp.where(size > 0, margin(problem, state) / size**problem.degree, jnp.nan)
    size = tree.norm((state.features, state.prototypes))
    # twice by the norm: its square would leave the float range at half the exponent
    return jnp.where(size > 0, margin(problem, state) / size / size, jnp.nan)
