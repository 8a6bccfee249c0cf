"""Losses linear in the logits: the unhinged loss and any label coupling."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics import validate
from dynamics.losses.base import Loss, SymmetricCoupling, one_hot_sum


class Unhinged(Loss):
    r"""The unhinged loss $\ell_\gamma(z, y) = -z_y + \gamma \sum_{j \ne y} z_j$.

    `gamma=None` is the balanced weight $1/(C-1)$ exactly: minus the average margin, whose mean mode and bias drift vanish.

    **Reference:** "On the Dynamics Under the Unhinged Loss and Beyond", JMLR 24 (2023), 23-0771, Section 3.
    """

    gamma: float | Float[Array, ""] | None = None

    def __check_init__(self):
        validate.nonnegative("gamma of Unhinged", self.gamma)

    def __call__(self, logits, label):
        target, others = one_hot_sum(logits, label)
        gamma = 1 / (logits.shape[-1] - 1) if self.gamma is None else self.gamma
        return -target + gamma * others

    def coupling(self, num_classes):
        if self.gamma is None:
            gamma, drift = 1 / (num_classes - 1), 0.0
        else:
            gamma, drift = self.gamma, 1 + self.gamma - self.gamma * num_classes
        return SymmetricCoupling(1 + gamma, gamma, drift)

    def valid(self):
        return super().valid() & (jnp.asarray(0.0 if self.gamma is None else self.gamma) >= 0)


class Linear(Loss):
    r"""Any loss linear in the logits, $\ell(z, y) = -\langle A_y, z\rangle$.

    **Arguments:**

    - `coupling`: A, of shape (classes, classes), one row a label (soft labels, smoothing, costs); or of shape
      (samples, classes), one row a sample (then `label` below is the sample's index); or a `SymmetricCoupling`
      `diagonal I - common 11^T`, whose symmetry the exact solutions use. Where both shapes are the same, rows go by label.
    """

    matrix: SymmetricCoupling | Float[Array, "rows classes"]

    def __init__(self, coupling):
        if isinstance(coupling, SymmetricCoupling):
            self.matrix = coupling
            return
        if np.ndim(coupling) != 2:
            raise ValueError(
                "coupling of Linear must be a SymmetricCoupling or have shape (classes, classes) or (samples, classes), "
                f"got {np.shape(coupling)}"
            )
        validate.finite("coupling of Linear", coupling)
        self.matrix = jnp.asarray(coupling)

    def __call__(self, logits, label):
        if isinstance(self.matrix, SymmetricCoupling):
            target, others = one_hot_sum(logits, label)
            return self.matrix.common * (target + others) - self.matrix.diagonal * target
        return -jnp.sum(self.matrix[label] * logits)

    def coupling(self, num_classes):
        return self.matrix
