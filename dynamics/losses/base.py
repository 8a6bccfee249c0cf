"""What a loss is: a function of one sample's logits and label, and, if it is linear in the logits, its coupling."""

import abc
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class SymmetricCoupling(eqx.Module):
    r"""The coupling $A = a I - b \mathbf{1}\mathbf{1}^T$ of a linear loss $\ell(z, y) = -\langle A_y, z\rangle$.

    **Arguments:**

    - `diagonal`: $a$.
    - `common`: $b$.
    - `drift`: $a - C b$, the eigenvalue of the all-ones vector, kept apart so that it can be exactly zero.
    """

    diagonal: float | Float[Array, ""]
    common: float | Float[Array, ""]
    drift: float | Float[Array, ""]


Coupling = SymmetricCoupling | Float[Array, "rows classes"]


class Loss(eqx.Module):
    """A per-sample loss. A new loss is one class with `__call__`; `coupling` only if it is linear in the logits, `gradient`
    and `mean` only where a formula is faster or more accurate than differentiating or averaging `__call__`."""

    @abc.abstractmethod
    def __call__(self, logits: Float[Array, " classes"], label: Int[Array, ""]) -> Float[Array, ""]:
        """The loss of one sample."""

    def gradient(self, logits: Float[Array, " classes"], label: Int[Array, ""]) -> Float[Array, " classes"]:
        """The gradient of the loss of one sample in its logits."""
        return jax.grad(self)(logits, label)

    def mean(self, logits: Float[Array, "samples classes"], labels: Int[Array, " samples"]) -> Float[Array, ""]:
        """The mean loss of samples of equal weight."""
        return jnp.mean(jax.vmap(self)(logits, labels))

    def coupling(self, num_classes: int) -> Coupling | None:
        """The coupling A of a loss `-<A_y, z>`: symmetric, (classes, classes) by label, (samples, classes) by sample, or
        None when the loss is not linear in the logits."""
        return None

    best_biases: ClassVar[Callable[..., Float[Array, " classes"]] | None] = None
    """`best_biases(logits, labels, weights, decay)`: the biases that minimise the weighted mean loss plus half the decay
    times their squared norm, given logits without biases; None where no formula is known."""

    def valid(self) -> Bool[Array, ""]:
        """Whether the hyper-parameters are finite and in range, traced or not."""
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in [*jax.tree.leaves(self), 0.0]]))


def one_hot_sum(logits: Float[Array, " classes"], label: Int[Array, ""]) -> tuple[Array, Array]:
    """The logit of the label and the sum of all the others."""
    is_label = jnp.arange(logits.shape[-1]) == label
    return jnp.sum(jnp.where(is_label, logits, 0)), jnp.sum(jnp.where(is_label, 0, logits))
