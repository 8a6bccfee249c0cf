r"""Stochastic gradient descent under a loss linear in the logits: the mean and the second moment over all minibatches.

A minibatch replaces the coupling B by $B_k = (n/m)\,\mathrm{diag}(1_{i\in k})\,B$, whose mean is B: the mean of the iterates is
full-batch descent, whatever the rates. Second moments obey a linear recursion of their own.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamics import validate
from dynamics.exact.closed_form import NoClosedForm
from dynamics.problems import LayerPeeled, Peeled, Problem, check_minibatches
from dynamics.rates import Rates


def check_stochastic(problem: Problem, batch_size, shuffle, momentum, scaled, observe) -> None:
    """Refuse a stochastic descent that has no moments in closed form."""
    check_minibatches(problem.num_samples, batch_size, shuffle)
    if not isinstance(problem, LayerPeeled):
        raise NoClosedForm(f"the moments of stochastic descent are not known by formula for a {type(problem).__name__}")
    reasons = []
    if shuffle == "epoch":
        reasons.append("batches of one epoch depend on each other (their mean differs from descent by order eta^2)")
    if not (validate.is_concrete(momentum) and float(momentum) == 0):
        reasons.append("momentum is not 0")
    if problem.label_coupling is None or problem.normalize:
        reasons.append("the loss is not linear in the logits of free features")
    if problem.feature_kernel is not None:
        reasons.append("a feature kernel is given")
    if reasons:
        raise NoClosedForm("the moments of stochastic descent are not known by formula: " + "; ".join(reasons))
    if scaled or observe is not None:
        raise ValueError(
            "scaled and observe must be left out with a batch_size: states are means, and neither the norm nor an observable "
            "of a mean is a mean"
        )


def second_moments(
    problem: LayerPeeled, state: Peeled, rates: Rates, steps: int, every: int, dt, batch_size: int
) -> Float[Array, "times rows rows"]:
    r"""E[Z Z^T] at iterates 0, every, ..., steps, with Z the features over the prototypes, rows = samples + classes.

    With independent batches of m out of n samples, drawn uniformly without replacement,
    $E[1_i 1_j] = m(m-1)/(n(n-1))$ for $i \ne j$ and $m/n$ for $i = j$, so that
    $E[B_k X B_k^T]$ is $\mathrm{mix}(B X B^T)$, where mix multiplies the diagonal by $n/m$ and the rest by
    $n(m-1)/(m(n-1))$. Decay and rates enter as in descent.
    """
    samples = problem.num_samples
    coupling = problem.label_coupling
    assert coupling is not None
    b = coupling.matrix(state.features.dtype)
    # what drives the features: the coupling, times the kernel where there is one
    kernel = jnp.eye(samples, dtype=b.dtype) if problem.kernel is None else jnp.asarray(problem.kernel, b.dtype)
    apart = samples * (batch_size - 1) / (batch_size * max(samples - 1, 1))
    mixing = jnp.where(jnp.eye(samples, dtype=bool), samples / batch_size, apart)

    def step(k, q):
        hh, hw, ww = q
        t = k * dt
        e1, e2 = dt * rates.features(t), 0.0 if problem.anchored else dt * rates.weights(t)
        keep_h, keep_w = 1 - e1 * problem.decay.features, 1 - e2 * problem.decay.prototypes
        kb = e1 * kernel @ b
        seen = kb @ hw.T  # the mean of (new part of H) H^T
        drawn = mixing * (b @ hw.T)
        cross_h, cross_w = hh @ b, b.T @ hw
        new_hh = keep_h**2 * hh + keep_h * (seen + seen.T) + e1**2 * kernel @ (mixing * (b @ ww @ b.T)) @ kernel.T
        new_hw = keep_h * keep_w * hw + keep_h * e2 * cross_h + keep_w * kb @ ww + e1 * e2 * kernel @ drawn @ b
        new_ww = keep_w**2 * ww + keep_w * e2 * (cross_w + cross_w.T) + e2**2 * b.T @ (mixing * hh) @ b
        return new_hh, new_hw, new_ww

    def snapshot(q, index):
        q = jax.lax.fori_loop(0, every, lambda j, x: step(index * every + j, x), q)
        return q, q

    h, w = state.features, state.prototypes
    with jax.default_matmul_precision("highest"):
        start = (h @ h.T, h @ w.T, w @ w.T)
        _, rest = jax.lax.scan(snapshot, start, jnp.arange(steps // every))
    hh, hw, ww = jax.tree.map(lambda a, x: jnp.concatenate([a[None], x]), start, rest)
    return jnp.block([[hh, hw], [jnp.swapaxes(hw, 1, 2), ww]])
