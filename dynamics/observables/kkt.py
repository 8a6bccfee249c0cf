r"""How far weights are from a KKT point of the max-margin problem $\min\frac12\|\theta\|^2$ subject to $q_i(\theta) \ge 1$.

The weights are first scaled to margin one, $\tilde\theta = \theta/q_{\min}^{1/L}$; an $(\varepsilon,\delta)$-KKT point has
multipliers $\lambda \ge 0$ with $\|\tilde\theta - \sum_i\lambda_i\nabla q_i(\tilde\theta)\| \le \varepsilon$ and
$\lambda_i(q_i(\tilde\theta) - 1) \le \delta$. All are NaN before separation.

**Reference:** K. Lyu, J. Li, Gradient descent maximizes the margin of homogeneous neural networks (2020).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dynamics import state as tree
from dynamics.observables.directions import gradient_misalignment
from dynamics.observables.network_margins import pairs
from dynamics.problems import Network


def kkt_multipliers(problem: Network, state: PyTree) -> Float[Array, "samples pairs"]:
    r"""The canonical multipliers $\lambda_i = q_{\min}^{1-2/L}(\rho/\|g\|)p_i$: one a sample, shape (samples, 1), where targets
    are +-1; with logits one for every other class, shape (samples, classes), the label's own zero."""
    return _multipliers(problem, state)[0]


def _multipliers(problem: Network, state: PyTree):
    """The multipliers, the margins they belong to, and the smallest margin (NaN where not positive)."""
    weights, margins = pairs(problem, state)
    least = jnp.min(problem.margins(state))
    least = jnp.where(least > 0, least, jnp.nan)
    size = tree.norm(state) / tree.norm(problem.scaled_force(state))
    # the ratio by itself: a power of zero makes one of NaN
    return (least / least) * least ** (1 - 2 / problem.degree) * size * weights, margins, least


def kkt_stationarity(problem: Network, state: PyTree) -> Float[Array, ""]:
    r"""$\varepsilon$ with the canonical multipliers, which is $\bar\gamma^{-1/L}\sqrt{2(1-\beta)}$ with the normalised margin
    and the alignment.

    It takes the slopes that differentiation takes at kinks; `clarke_kkt` allows any.
    """
    least = jnp.min(problem.margins(state))
    scaled = tree.norm(state) / jnp.where(least > 0, least, jnp.nan) ** (1 / problem.degree)
    return scaled * jnp.sqrt(2 * gradient_misalignment(problem, state))


def kkt_slackness(problem: Network, state: PyTree) -> Float[Array, ""]:
    r"""$\delta$ with the canonical multipliers: the largest $\lambda_i(q_i(\tilde\theta) - 1)$."""
    multipliers, margins, least = _multipliers(problem, state)
    return jnp.max(multipliers * (margins / least - 1))
