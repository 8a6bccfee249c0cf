r"""Squared error with decay: the singular values of the labels, each thresholded.

In $Z = HW^T$ the problem is convex, $\frac{1}{2n}|Z + 1b^T - Y|^2 + \mu|Z|_*$ with $\mu = \sqrt{\lambda_1\lambda_2}$, and
unitarily invariant: the minimiser shares the singular vectors of Y, its singular values are $(\sigma_j - n\mu)_+$.
"""

import jax.numpy as jnp
import numpy as np

from dynamics.exact.closed_form import assume
from dynamics.exact.minimisers.optimum import (
    Family,
    Norms,
    Optimum,
    common_obstacles,
    is_balanced,
    is_weighted,
    split,
    two_decays,
    worst,
    zero_sum_basis,
)
from dynamics.losses import SquaredError
from dynamics.problems import LayerPeeled

NOT_ATTAINED = "without either the loss falls to 0 along every factorisation of the labels, none of them singled out"


def _obstacles(problem, norms: Norms | None) -> list[str]:
    reasons = common_obstacles(problem, norms, SquaredError, bounded=False, balanced=False)
    if isinstance(problem, LayerPeeled) and is_weighted(problem):
        reasons.append("samples have different weights")
    return reasons


def plain_obstacles(problem, norms: Norms | None) -> list[str]:
    """Why the minimum without biases does not apply."""
    reasons = _obstacles(problem, norms)
    if isinstance(problem, LayerPeeled) and problem.bias:
        reasons.append("biases are trained")
    return reasons


def biased_obstacles(problem, norms: Norms | None) -> list[str]:
    """Why the minimum with biases does not apply."""
    reasons = _obstacles(problem, norms)
    if isinstance(problem, LayerPeeled) and not problem.bias:
        reasons.append("biases are not trained")
    return reasons


def plain(problem: LayerPeeled, norms: Norms | None, dim: int) -> Optimum:
    r"""Class k has the singular value $(\sqrt{n_k} - n\mu)_+$ to itself: a class of $n_k \le n^2\mu^2$ is lost."""
    sizes = problem.data.sizes
    order = np.argsort(-sizes, kind="stable")
    return _thresholded(problem, np.sqrt(sizes[order]), np.eye(sizes.size)[:, order], np.zeros(sizes.size))


def biased(problem: LayerPeeled, norms: Norms | None, dim: int) -> Optimum:
    """Balanced classes: any decay of the biases. Else biases without decay: the labels are centred over samples."""
    if is_balanced(problem):
        return _balanced(problem)
    sizes = problem.data.sizes
    decay = jnp.asarray(problem.decay.biases)
    code = assume(decay == 0, lambda: f"classes differ in size, decay of biases must be 0, got {decay}")
    share = np.sqrt(sizes / sizes.sum())
    right, sigma, left = np.linalg.svd((np.eye(sizes.size) - np.outer(share, share)) * np.sqrt(sizes))
    # rows of the second factor are classes; the last singular value is the one that centring removed
    found = _thresholded(problem, sigma[:-1], left[:-1].T, sizes / sizes.sum(), right[:, :-1])
    return found._replace(code=worst(code, found.code))


def _thresholded(problem: LayerPeeled, sigma, left, biases, right=None) -> Optimum:
    """The labels' singular values thresholded; `left`, `right` (classes, rank): vectors over classes and class sums."""
    decays = two_decays(problem, NOT_ATTAINED)
    dtype, samples = decays.pressure.dtype, problem.num_samples
    right = (left if right is None else right) / np.sqrt(problem.data.sizes)[:, None]
    sigma, left, right, biases = (jnp.asarray(x, dtype) for x in (sigma, left, right, biases))
    kept = jnp.maximum(sigma - samples * decays.pressure, 0.0)
    value = jnp.sum((kept - sigma) ** 2) / (2 * samples) + decays.pressure * jnp.sum(kept)
    state = split(kept, left, problem.data.spread(right), decays.tilt, biases)
    return Optimum(value, state, jnp.sum(kept > 0), True, decays.code)


def _balanced(problem: LayerPeeled) -> Optimum:
    r"""C - 1 class modes $(\sqrt N - n\mu)_+$ and the mean of all classes, $(\sqrt N - n\mu(1+r)/r)_+$ with r the decay of
    the biases (derived here): from a simplex at r = 0 to an orthogonal frame as r grows; the mean appears at
    $r/(1+r) = n\mu/\sqrt N$."""
    decays = two_decays(problem, NOT_ATTAINED)
    pressure, dtype = decays.pressure, decays.pressure.dtype
    classes, samples = problem.num_classes, problem.num_samples
    per_class = samples // classes
    sigma = jnp.sqrt(jnp.asarray(per_class, dtype))
    ridge = jnp.asarray(problem.decay.biases, dtype)
    present = ridge > 0
    of_classes = jnp.maximum(sigma - samples * pressure, 0.0)
    of_mean = sigma - samples * pressure * (1 + ridge) / jnp.where(present, ridge, 1.0)
    of_mean = jnp.where(present, jnp.maximum(of_mean, 0.0), 0.0)
    by_bias = (sigma - of_mean) / (1 + ridge)
    kept = jnp.concatenate([jnp.full(classes - 1, of_classes), of_mean[None]])
    errors = (classes - 1) * (of_classes - sigma) ** 2 + (of_mean + by_bias - sigma) ** 2 + ridge * by_bias**2
    even = jnp.full((classes, 1), classes**-0.5, dtype)
    left = jnp.concatenate([zero_sum_basis(classes, dtype), even], axis=1)
    right = problem.data.spread(left) / sigma
    state = split(kept, left, right, decays.tilt, jnp.full(classes, by_bias / np.sqrt(classes * samples)))
    value = errors / (2 * samples) + pressure * jnp.sum(kept)
    return Optimum(value, state, jnp.sum(kept > 0), True, decays.code)


PLAIN = Family("squared error with decay, biases at zero, any class sizes", plain_obstacles, plain)
BIASED = Family(
    "squared error with decay and trained or slaved biases (decayed only where classes are balanced)", biased_obstacles, biased
)
