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


def label_smoothing(loss: Loss, epsilon, num_classes: int) -> Linear:
    r"""A linear loss under label smoothing: $(1-\epsilon)\,\ell(z, y) + \frac{\epsilon}{C}\sum_k \ell(z, k)$.

    The coupling becomes $A((1-\epsilon)I + \epsilon J)$, one column a label, $J = \mathbf{1}\mathbf{1}^T/C$. Of a symmetric
    one, the singular value of the zero-sum directions shrinks to $(1-\epsilon)\sigma_1$; that of the common direction and
    the bias drift stay, exactly.

    **Arguments:**

    - `loss`: linear in the logits, the same function of every sample (no coupling by sample).
    - `epsilon`: in [0, 1]; may be traced (out of range it then becomes the status `bad_input`).
    - `num_classes`: C >= 2.

    **Reference:** "On the Dynamics Under the Unhinged Loss and Beyond", JMLR 24 (2023), Section 3, with smoothed labels;
    derived here.
    """
    return _mixed("label_smoothing", loss, _probability("epsilon of label_smoothing", epsilon), num_classes)


def label_noise(loss: Loss, rate, num_classes: int) -> Linear:
    r"""The expectation of a linear loss when a label is, with probability `rate`, replaced by a uniform draw of the others.

    It is label smoothing with $\epsilon = \rho C/(C-1)$, past 1 for $\rho > (C-1)/C$: $\sigma_1$ becomes
    $(1 - \rho C/(C-1))\sigma_1$. Where the losses over all labels sum to zero (the unhinged loss at $\gamma = 1/(C-1)$)
    noise multiplies the whole loss by that factor: it only slows the clock.

    This is a statement about the expected loss. Features that are free for every sample follow the label each was given.

    **Arguments:**

    - `loss`: linear in the logits, the same function of every sample (no coupling by sample).
    - `rate`: in [0, 1]; may be traced (out of range it then becomes the status `bad_input`).
    - `num_classes`: C >= 2.

    **Reference:** "On the Dynamics Under the Unhinged Loss and Beyond", JMLR 24 (2023), Section 3, with noisy labels;
    derived here.
    """
    rate = _probability("rate of label_noise", rate)
    num_classes = validate.whole("num_classes", num_classes, 2)
    return _mixed("label_noise", loss, rate * (num_classes / (num_classes - 1)), num_classes)


def _mixed(name: str, loss: Loss, share, num_classes: int) -> Linear:
    """The coupling times (1 - share) I + share J: of the uniform mixture of all labels, the given share."""
    num_classes = validate.whole("num_classes", num_classes, 2)
    if not isinstance(loss, Loss):
        raise ValueError(f"loss of {name} must be a dynamics.losses.Loss, got {loss!r}")
    coupling = loss.coupling(num_classes)
    if coupling is None:
        raise ValueError(f"loss of {name} must be linear in the logits, got {type(loss).__name__}")
    if isinstance(coupling, SymmetricCoupling):
        kept = 1 - share
        common = kept * coupling.common - share * coupling.drift / num_classes
        return Linear(SymmetricCoupling(kept * coupling.diagonal, common, coupling.drift))
    if coupling.shape != (num_classes, num_classes):
        raise ValueError(
            f"loss of {name} must have one coupling a label, of shape (classes, classes) = ({num_classes}, {num_classes}), "
            f"got {coupling.shape}"
        )
    return Linear((1 - share) * coupling + share * jnp.mean(coupling, axis=0))


def _probability(name: str, x):
    """A number in [0, 1], refused where concrete; NaN where it is traced and out of range."""
    if np.shape(x) != ():
        raise ValueError(f"{name} must be a scalar, got shape {np.shape(x)}; batch it with jax.vmap")
    validate.nonnegative(name, x)
    if not validate.is_concrete(x):
        return jnp.where((x >= 0) & (x <= 1), x, jnp.nan)
    if float(x) > 1:
        raise ValueError(f"{name} must lie in [0, 1], got {validate.shown(x)}")
    return x
