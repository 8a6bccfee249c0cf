"""Cross-entropy with balanced classes: a simplex whose size is explicit, with decay and with bounded norms."""

import jax.numpy as jnp
import numpy as np

from dynamics.exact.minimisers.optimum import (
    Family,
    Norms,
    Optimum,
    common_obstacles,
    is_weighted,
    split,
    two_decays,
    without_decay,
    zero_sum_basis,
)
from dynamics.losses import CrossEntropy
from dynamics.problems import LayerPeeled, Peeled

NOT_ATTAINED = "the infimum 0 is approached as the logits grow and never attained"


def _obstacles(problem, norms: Norms | None, bounded: bool) -> list[str]:
    reasons = common_obstacles(problem, norms, CrossEntropy, bounded=bounded, balanced=True)
    if isinstance(problem, LayerPeeled) and is_weighted(problem):
        reasons.append("samples have different weights")
    return reasons


def decayed(problem: LayerPeeled, norms: Norms | None, dim: int) -> Optimum:
    r"""With $m = \sqrt{N\lambda_1\lambda_2}$: logit gap $z = \log(1/m - C + 1)$ where $Cm < 1$, else zero; value
    $\log(1 + (C-1)e^{-z}) + m(C-1)z$. Biases are zero, by symmetry, whatever their decay (explicit form derived here; the
    simplex: Z. Zhu et al. 2021).
    """
    decays = two_decays(problem, NOT_ATTAINED)
    dtype, classes = decays.pressure.dtype, problem.num_classes
    per_class = problem.num_samples // classes
    m = decays.pressure * np.sqrt(per_class).astype(dtype)
    gap = jnp.log1p(jnp.maximum(1 - classes * m, 0.0) / m)
    basis = zero_sum_basis(classes, dtype)
    right = problem.data.spread(basis) / np.sqrt(per_class).astype(dtype)
    values = jnp.full(classes - 1, gap * np.sqrt(per_class).astype(dtype))
    state = split(values, basis, right, decays.tilt, jnp.zeros(classes, dtype))
    value = jnp.log1p((classes - 1) * jnp.exp(-gap)) + m * (classes - 1) * gap
    return Optimum(value, state, jnp.where(gap > 0, classes - 1, 0), True, decays.code)


def bounded(problem: LayerPeeled, norms: Norms | None, dim: int) -> Optimum:
    r"""A simplex with both norms at their bounds: gap $\frac{C}{C-1}E_1E_2$ (J. Lu, S. Steinerberger 2022)."""
    assert norms is not None
    code, classes = without_decay(problem), problem.num_classes
    product = norms[0] * norms[1]
    basis = zero_sum_basis(classes, product.dtype) * np.sqrt(classes / (classes - 1)).astype(product.dtype)
    state = Peeled(norms[1] * problem.data.spread(basis), norms[0] * basis, jnp.zeros(classes, product.dtype))
    value = jnp.log1p((classes - 1) * jnp.exp(-classes / (classes - 1) * product))
    return Optimum(value, state, jnp.where(product > 0, classes - 1, 0), product > 0, code)


DECAYED = Family(
    "cross-entropy with decay, balanced classes", lambda problem, norms: _obstacles(problem, norms, bounded=False), decayed
)
BOUNDED = Family(
    "cross-entropy with bounded norms, balanced classes",
    lambda problem, norms: _obstacles(problem, norms, bounded=True),
    bounded,
)
