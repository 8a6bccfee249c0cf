"""Losses linear in the logits: zero or unbounded with decay; with bounded norms, frames."""

import jax.numpy as jnp
import numpy as np

from dynamics import status
from dynamics.exact.closed_form import assume
from dynamics.exact.minimisers.optimum import (
    Family,
    Norms,
    Optimum,
    common_obstacles,
    is_weighted,
    without_decay,
    worst,
    zero_sum_basis,
)
from dynamics.losses import Loss, SymmetricCoupling
from dynamics.problems import LayerPeeled, Peeled


def _obstacles(problem, norms: Norms | None, bounded: bool) -> list[str]:
    reasons = common_obstacles(problem, norms, Loss, bounded=bounded, balanced=bounded)
    if isinstance(problem, LayerPeeled) and problem.label_coupling is None:
        reasons.append(f"the loss {type(problem.loss).__name__} is not linear in the logits")
    return reasons


def bounded_obstacles(problem, norms: Norms | None) -> list[str]:
    """Why the frames do not apply."""
    reasons = _obstacles(problem, norms, bounded=True)
    if isinstance(problem, LayerPeeled):
        if problem.bias:
            reasons.append("biases are trained and nothing bounds them")
        if is_weighted(problem):
            reasons.append("samples have different weights")
        coupling = problem.label_coupling
        if coupling is not None and not isinstance(coupling.coupling, SymmetricCoupling):
            reasons.append("the coupling is not the same for all pairs of classes")
    return reasons


def decayed(problem: LayerPeeled, norms: Norms | None, dim: int) -> Optimum:
    r"""Zero where $\sqrt{\lambda_1\lambda_2} \ge \sigma_{\max}$ of the coupling, attained along its top modes too where
    equal; minus infinity where less. Biases, which nothing else sees, sit at their drift over their decay.
    """
    coupling = problem.label_coupling
    assert coupling is not None
    decay = problem.decay
    pressure = jnp.sqrt(jnp.asarray(decay.features)) * jnp.sqrt(jnp.asarray(decay.prototypes))
    dtype, eps = pressure.dtype, jnp.finfo(pressure.dtype).eps
    threshold = jnp.linalg.norm(coupling.matrix(dtype), 2)
    equal = jnp.abs(pressure - threshold) <= 16 * eps * threshold
    bounded_below, unique = equal | (pressure > threshold), ~equal
    biases, value = jnp.zeros(problem.num_classes, dtype), jnp.zeros((), dtype)
    if problem.bias:
        drift, ridge = coupling.pull_biases(dtype), jnp.asarray(decay.biases, dtype)
        held = ridge > 0
        biases = jnp.where(held, drift / jnp.where(held, ridge, 1.0), 0.0)
        value = -0.5 * jnp.sum(drift * biases)
        still = jnp.max(jnp.abs(drift)) <= 4 * eps  # of the order of one where it is not zero
        bounded_below, unique = bounded_below & (held | still), unique & held
    state = Peeled(jnp.zeros((problem.num_samples, 1), dtype), jnp.zeros((problem.num_classes, 1), dtype), biases)
    value = jnp.where(bounded_below, value, -jnp.inf)
    return Optimum(value, state, 0, unique & bounded_below, jnp.asarray(status.OK))


def bounded(problem: LayerPeeled, norms: Norms | None, dim: int) -> Optimum:
    r"""Lemma 1 of the unhinged paper, corrected, for any coupling $aI - b11^T$: minus $E_1E_2$ times the larger of $|a|$
    (prototypes of sum zero and equal norm, features along them: a simplex where it fits, and other frames from four classes
    on) and $|a - Cb|$ (all prototypes equal). For the unhinged loss: $-(1+\gamma)E_1E_2$ up to $\gamma = 2/(C-2)$,
    $-((C-1)\gamma - 1)E_1E_2$ past it; at 0, at equality and for a frame of four or more classes it is not unique.
    """
    assert norms is not None and problem.label_coupling is not None
    coupling = problem.label_coupling.coupling
    assert isinstance(coupling, SymmetricCoupling)
    product = norms[0] * norms[1]
    dtype, classes = product.dtype, problem.num_classes
    diagonal, drift = jnp.asarray(coupling.diagonal, dtype), jnp.asarray(coupling.drift, dtype)
    slack = 8 * jnp.finfo(dtype).eps * (jnp.abs(diagonal) + classes * jnp.abs(jnp.asarray(coupling.common, dtype)))
    by_frame = jnp.abs(diagonal) >= jnp.abs(drift) - slack
    tie = jnp.abs(jnp.abs(diagonal) - jnp.abs(drift)) <= slack
    frame = _frame(classes, dim, dtype)
    fits = assume(
        ~by_frame | (frame is not None),
        lambda: f"dim must be >= 2 for {classes} prototypes of sum zero and equal norm, got {dim}",
    )
    same = jnp.zeros((classes, 1 if frame is None else frame.shape[1]), dtype).at[:, 0].set(1.0)
    rows = same if frame is None else jnp.where(by_frame, frame, same)
    sign = jnp.where(by_frame, jnp.sign(diagonal), jnp.sign(drift))
    state = Peeled(sign * norms[1] * problem.data.spread(rows), norms[0] * rows, jnp.zeros(classes, dtype))
    value = -product * jnp.maximum(jnp.abs(diagonal), jnp.abs(drift))
    rank = jnp.where(by_frame, rows.shape[1], 1)
    unique = ~tie & (product > 0) & (~by_frame | (classes <= 3))
    code = without_decay(problem)
    return Optimum(value, state, rank, unique, worst(code, fits))


def _frame(classes: int, dim: int, dtype):
    """Unit prototypes of sum zero: a simplex, else a regular polygon, else an even split of a line; None where none fits."""
    if dim >= classes - 1:
        return zero_sum_basis(classes, dtype) * np.sqrt(classes / (classes - 1)).astype(dtype)
    if dim >= 2:
        angles = 2 * np.pi * np.arange(classes) / classes
        return jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], axis=1), dtype)
    return None if classes % 2 else jnp.asarray((-1.0) ** np.arange(classes)[:, None], dtype)


DECAYED = Family(
    "a loss linear in the logits with decay", lambda problem, norms: _obstacles(problem, norms, bounded=False), decayed
)
BOUNDED = Family("a loss linear in the logits with bounded norms, balanced classes", bounded_obstacles, bounded)
