"""Losses that are not linear in the logits."""

import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from dynamics.losses.base import Loss
from dynamics.losses.margins import Logistic


class CrossEntropy(Logistic):
    r"""Cross-entropy $\log\sum_j e^{z_j} - z_y$.

    Written as $m + \log(e^{-m} + \sum_{j\ne y} e^{z_j - z_y - m})$, $m = \max_j(z_j - z_y)$, by log1p: the plain form has loss
    and true-class gradient exactly zero from margin 38 on (float64; 18 in float32), this one keeps every gradient right to
    margin 700 (87). It is the logistic loss of the margin $z_y - \log\sum_{j\ne y} e^{z_j}$, and by the logarithm of that
    good to margins of 1e9.
    """

    multiclass: ClassVar[bool] = True

    def __call__(self, logits, label):
        top, excess = self._parts(logits, label)
        return top + jnp.log1p(excess)

    def mean(self, logits, labels):
        """With one logarithm for many samples."""
        tops, excess = jax.vmap(self._parts)(logits, labels)
        samples, classes = logits.shape
        most = math.log2(float(jnp.finfo(logits.dtype).max)) / math.log2(max(classes, 2))  # as 1 + excess is at most C
        halvings = min(math.ceil(math.log2(samples)), int(math.log2(most)))
        return (jnp.sum(tops) + _sum_of_log1p(excess, halvings)) / samples

    @staticmethod
    def _parts(logits, label):
        r"""$m$ and $e^{-m} + \sum_{j\ne y} e^{z_j - z_y - m} - 1 \ge 0$."""
        others = jnp.arange(logits.shape[-1]) != label
        own = jnp.sum(jnp.where(others, 0, logits))  # picked by a mask: a gather would hold up what is done for many at once
        leads = jnp.where(others, logits - own, 0)
        top = jax.lax.stop_gradient(jnp.max(leads))
        top = jnp.where(jnp.isfinite(top), top, 0)
        powers = jnp.exp(leads - top)
        return top, jnp.sum(jnp.where(others, powers, powers - 1))  # the label's power is 1 unless it trails

    def gradient(self, logits, label):
        """Softmax minus the one-hot label; the label's entry is minus the sum of the others, so that none rounds to zero."""
        others = jnp.arange(logits.shape[-1]) != label
        powers = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits)))
        return jnp.where(others, powers, -jnp.sum(jnp.where(others, powers, 0))) / jnp.sum(powers)


@functools.partial(jax.jit, static_argnums=1)
def _sum_of_log1p(x, halvings):
    """Of numbers >= 0: $(1 + a)(1 + b) = 1 + (a + b + ab)$, where nothing cancels; 2^halvings numbers need one logarithm."""
    x = jnp.pad(x, (0, -len(x) % 2**halvings))  # by zeros, which change no product
    for _ in range(halvings):
        a, b = jnp.split(x, 2)
        x = a + b + a * b
    return jnp.sum(jnp.log1p(x))


class SquaredError(Loss):
    r"""Half the squared distance to the one-hot label, $\|z - e_y\|^2/2$."""

    def __call__(self, logits, label):
        target = (jnp.arange(logits.shape[-1]) == label).astype(logits.dtype)
        return 0.5 * jnp.sum((logits - target) ** 2)

    def gradient(self, logits, label):
        return logits - (jnp.arange(logits.shape[-1]) == label).astype(logits.dtype)

    @staticmethod
    def best_biases(logits, labels, weights, decay):
        targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        return jnp.mean(weights[:, None] * (targets - logits), axis=0) / (1 + decay)
