"""Losses of a margin, in a form that survives margins of 1e9: by the logarithm of the loss and of its slope."""

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics import validate
from dynamics.losses.base import Loss, one_hot_sum


class MarginLoss(Loss):
    r"""A decreasing loss $\ell(q)$ of one number of a sample, its margin.

    A new one is one class with `log_value`, `log_slope` and `inverse`. Outputs are one number a sample with targets +-1, or
    with `multiclass` the logits, (classes,), with the label as target.
    """

    multiclass: ClassVar[bool] = False

    @abc.abstractmethod
    def log_value(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$\log \ell(q)$."""

    @abc.abstractmethod
    def log_slope(self, margin: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$\log(-\ell'(q))$."""

    @abc.abstractmethod
    def inverse(self, log_value: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""The margin at which the loss has this logarithm, $\ell^{-1}(e^v)$."""

    def margin(self, outputs: Float[Array, "..."], target) -> Float[Array, ""]:
        """By how much a sample is on the right side: target times output, or its own logit minus the largest other."""
        if not self.multiclass:
            return target * outputs
        others = jnp.arange(outputs.shape[-1]) != target
        return _own(outputs, target) - jnp.max(outputs, where=others, initial=-jnp.inf)

    def seen_margin(self, outputs: Float[Array, "..."], target) -> Float[Array, ""]:
        r"""The margin that the loss is a function of: with logits, $z_y - \log\sum_{j\ne y} e^{z_j}$."""
        if not self.multiclass:
            return target * outputs
        others = jnp.arange(outputs.shape[-1]) != target
        return -jax.nn.logsumexp(outputs - _own(outputs, target), where=others)

    def check_targets(self, targets) -> None:
        """Refuse targets, shape (samples,), that are not +-1 (labels 0, 1, ... with `multiclass`), where they are concrete."""
        if not validate.is_concrete(targets):
            return
        values = np.asarray(targets)
        if self.multiclass:
            if not np.issubdtype(values.dtype, np.integer) or np.any(values < 0):
                raise ValueError(f"targets of {type(self).__name__} must be class labels 0, 1, ..., got {_some(values)}")
        elif not np.all(np.abs(values) == 1):
            raise ValueError(f"targets of {type(self).__name__} must be +1 or -1, got {_some(values)}")

    def __call__(self, logits: Float[Array, "..."], label) -> Float[Array, ""]:
        return jnp.exp(self.log_value(self.seen_margin(logits, label)))


def _own(outputs, target):
    return one_hot_sum(outputs, target)[0]


def _some(values: np.ndarray) -> str:
    found = ", ".join(f"{value:g}" for value in np.unique(values)[:5])
    return f"{values.dtype} values {found}" + (", ..." if np.unique(values).size > 5 else "")


class Exponential(MarginLoss):
    r"""The exponential loss $e^{-q}$ of targets +-1, $q = y f$."""

    def log_value(self, margin):
        return -margin

    def log_slope(self, margin):
        return -margin

    def inverse(self, log_value):
        return -log_value


class Logistic(MarginLoss):
    r"""The logistic loss $\log(1 + e^{-q})$ of targets +-1, $q = y f$."""

    def log_value(self, margin):
        return log_softplus(-margin)

    def log_slope(self, margin):
        return -jax.nn.softplus(margin)

    def inverse(self, log_value):
        return -log_expm1_of_exp(log_value)


def log_softplus(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$\log\log(1 + e^x)$, to rounding also where $e^x$ underflows."""
    far = x < -20  # there log(1 + w) = w (1 - w/2) to 1e-18
    near = jnp.log(jax.nn.softplus(jnp.where(far, 0.0, x)))
    return jnp.where(far, x - 0.5 * jnp.exp(jnp.where(far, x, 0.0)), near)


def log_expm1_of_exp(v: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$\log(e^{e^v} - 1)$, the inverse of `log_softplus`."""
    small = v < -20
    w = jnp.exp(jnp.where(small, 0.0, v))
    return jnp.where(small, v + 0.5 * jnp.exp(jnp.where(small, v, 0.0)), w + jnp.log(-jnp.expm1(-w)))
