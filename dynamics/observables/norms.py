"""Sizes, loss, gradient and accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dynamics import state as tree
from dynamics.observables.base import observable
from dynamics.observables.margins import leads
from dynamics.observables.summary import Summary
from dynamics.problems import LayerPeeled, Network, Peeled, Problem
from dynamics.rates import Rates


@observable(from_summary=lambda problem, summary: summary.feature_norm)
def feature_norm(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    """Frobenius norm of the features."""
    return tree.norm(state.features)


@observable(from_summary=lambda problem, summary: summary.prototype_norm)
def prototype_norm(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    """Frobenius norm of the prototypes."""
    return tree.norm(state.prototypes)


@observable(from_summary=lambda problem, summary: tree.norm(summary.biases))
def bias_norm(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    """Euclidean norm of the biases."""
    return tree.norm(state.biases)


@observable(from_summary=lambda problem, summary: summary.loss)
def loss(problem: LayerPeeled | Network, state: PyTree) -> Float[Array, ""]:
    """The weighted mean loss over samples, without decay; of a network the sum, see also `log_loss`."""
    if isinstance(problem, Network):
        return jnp.exp(problem.log_loss(state))
    return problem.data_loss(state)


def _objective(problem: LayerPeeled, summary: Summary) -> Float[Array, ""]:
    decay = problem.decay
    penalty = (
        decay.features * summary.feature_norm**2
        + decay.prototypes * summary.prototype_norm**2
        + decay.biases * jnp.sum(summary.biases**2)
    )
    return summary.loss + 0.5 * penalty


@observable(from_summary=_objective)
def objective(problem: Problem, state) -> Float[Array, ""]:
    """What is minimised: the loss and the decay terms."""
    return problem.objective(state)


@observable()
def gradient_norm(problem: Problem, state) -> Float[Array, ""]:
    """The norm of the motion at unit rates, all parts together: zero exactly where flow and descent stand still.

    That is the norm of the gradient of the objective in the parts that are trained (kernels included where there are any),
    right down to the smallest numbers: an exact zero beside a positive margin says that the gradient itself has underflowed.
    """
    start = jnp.zeros((), jnp.result_type(*jax.tree.leaves(state)))
    motion = problem.pace(problem.force(state), state, Rates.equal(1.0), start)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(motion)]))
    unit = jnp.where(largest > 0, largest, 1.0)
    return unit * tree.norm(jax.tree.map(lambda leaf: leaf / unit, motion))


def _accuracy(problem: LayerPeeled, summary: Summary) -> Float[Array, ""] | None:
    if summary.collapse is None:
        return None
    logits = summary.collapse.logits()
    labels = problem.labels if logits.shape[0] == problem.num_samples else np.arange(problem.num_classes)
    labels, classes = jnp.asarray(labels)[:, None], jnp.arange(problem.num_classes)
    own = jnp.take_along_axis(logits, labels, axis=1)
    # argmax takes the first of equals; a logit is never compared with itself, it may be computed, and rounded, twice
    behind = jnp.where(classes < labels, logits < own, logits <= own) | (classes == labels)
    right = jnp.all(behind, axis=1)
    return jnp.mean(right.astype(logits.dtype))


@observable(from_summary=_accuracy)
def accuracy(problem: LayerPeeled | Network, state: PyTree) -> Float[Array, ""]:
    """The fraction of samples whose largest logit is that of their label (of a network: whose margin is positive); near ties
    it is rounding noise."""
    if isinstance(problem, Network):
        right = leads(problem, state)
        return jnp.mean((right > 0).astype(right.dtype))
    right = jnp.argmax(problem.logits(state), axis=1) == jnp.asarray(problem.labels)
    return jnp.mean(right.astype(state.features.dtype))
