r"""Cross-entropy with both layers free from a symmetric start: the path of the unhinged loss at a slower clock.

Class means (centred) $a E$ and prototypes (centred) $b E$ of one simplex E keep that form: with unit columns of E,
$a' = \eta_1 (k/n)\,b\,q$, $b' = \eta_2 (k/C)\,a\,q$, $k = C/(C-1)$, $q = 1/(1 + e^m/(C-1))$ at the margin $m = kab$. At a
constant ratio s of the rates $N a^2/s - b^2$ is conserved, and $\sqrt{N/s}\,a \pm b$ grow and fade by $e^{\pm x}$, x the
spent clock.
"""

import math

import jax
import jax.numpy as jnp

from dynamics import state as tree
from dynamics.exact.closed_form import ClosedForm, Motion, NoClosedForm, assume
from dynamics.exact.conditions import assume_simplex, assume_small, centred, longest, plain_obstacles
from dynamics.exact.limit import Limit
from dynamics.exact.responses import flow_response
from dynamics.exact.spent_clock import quadrature_error, spent_clock
from dynamics.losses import CrossEntropy
from dynamics.problems import LayerPeeled, Peeled
from dynamics.rates import Rates


def obstacles(problem, rates: Rates) -> list[str]:
    """Why it does not apply."""
    reasons = plain_obstacles(problem, rates, CrossEntropy)
    if not isinstance(problem, LayerPeeled):
        return reasons
    if problem.anchored:
        reasons.append("the prototypes are anchored")
    if min(problem.data.sizes) < max(problem.data.sizes):
        reasons.append("the classes have different sizes")
    if (problem.data.weights != 1).any():
        reasons.append("the samples have different weights")
    if not rates.constant_ratio:
        reasons.append("the two rates have no constant ratio")
    return reasons


def _sides(problem: LayerPeeled, state: Peeled):
    """Centred class means and prototypes."""
    return centred(problem.data.class_means(state.features)), centred(state.prototypes)


def _length(rows):
    """The root mean squared norm of a row, right for rows whose squares underflow; its gradient at zero is zero."""
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(rows)))
    size = jnp.where(size > 0, size, 1.0)
    return size * tree.norm(rows / size) / math.sqrt(rows.shape[0])


def _code(problem: LayerPeeled, state: Peeled, rates: Rates):
    means, prototypes = _sides(problem, state)
    ratio, decay = jnp.asarray(rates.ratio()), problem.decay
    decays = jnp.asarray(decay.features) + jnp.asarray(decay.prototypes)
    rest = state.features - problem.data.spread(means)
    one, other, tall, wide = _length(means), _length(prototypes), longest(state.features), longest(state.prototypes)
    along = jnp.where(jnp.sum(means * prototypes) < 0, -1.0, 1.0) * one * prototypes
    leak = jnp.max(jnp.abs(rest @ jnp.concatenate([prototypes, means]).T))
    biases = state.biases
    codes = (
        assume(decays == 0, lambda: "cross-entropy with both layers free has a closed form without decay of them"),
        assume((ratio > 0) & jnp.isfinite(ratio), lambda: f"both rates must be positive, got a ratio of {ratio}"),
        assume_small(jnp.max(biases) - jnp.min(biases), jnp.max(jnp.abs(biases)), "the biases are not equal"),
        assume_simplex(state.prototypes, "prototypes"),
        assume_simplex(problem.data.class_means(state.features), "class means"),
        assume_small(longest(other * means - along), tall * other + one * wide, "class means are not aligned with prototypes"),
        assume_small(
            leak, tall * jnp.maximum(one, other), "what features have beside the class means is not orthogonal to them"
        ),
    )
    return jnp.max(jnp.stack(codes))


def flow(problem: LayerPeeled, state: Peeled, rates: Rates, ts) -> Motion:
    r"""State of the linear dynamics at the spent clock x of $\tau = k\sqrt{s/N}\,\zeta_2/C$.

    Features may differ from their class means by anything orthogonal to E: that stays, as do the mean of the prototypes
    and equal biases (which fade under their own decay where they are trained).

    **Reference:** derived here.
    """
    with jax.default_matmul_precision("highest"):
        code = _code(problem, state, rates)
    means, prototypes = _sides(problem, state)
    classes = problem.num_classes
    ratio = jnp.asarray(rates.ratio(), ts.dtype)
    balance = jnp.sqrt(ratio / (problem.num_samples // classes))  # a = balance * b in the end
    gain = classes / (classes - 1) * balance
    growing, fading = means / balance + prototypes, means / balance - prototypes
    unit = 0.5 * jnp.sqrt(gain)
    path = unit * _length(growing), unit * _length(fading)
    log_others = math.log(classes - 1)
    spent = spent_clock(*path, gain / classes * rates.weights.integral(ts), log_others)
    biases = flow_response(problem.decay.biases, rates.weights.integral(ts))

    def place(scalars):
        x, (kept, _) = scalars
        # x is unbounded only where nothing is there to grow
        ahead = jnp.expm1(jnp.minimum(x, 0.9 * math.log(float(jnp.finfo(x.dtype).max)))) * growing
        behind = jnp.expm1(-x) * fading
        features = state.features + problem.data.spread(0.5 * balance * (ahead + behind))
        trained = kept * state.biases if problem.bias else state.biases
        return Peeled(features, state.prototypes + 0.5 * (ahead - behind), trained), jnp.zeros_like(x)

    return Motion((spent, biases), place, quadrature_error(*path, spent, log_others), code)


def descent(problem, state, rates, steps, every, dt, momentum, nesterov) -> Motion:
    """Iterates have none."""
    raise NoClosedForm(
        "the iterates of gradient descent on cross-entropy have no closed form: a step conserves nothing; "
        "use dynamics.descent, or dynamics.exact.flow for small steps"
    )


def limit(problem: LayerPeeled, state: Peeled, rates: Rates) -> Limit:
    r"""The simplex that grows, features over prototypes sqrt(s/N): neural collapse, its norm like $\sqrt{\log\zeta_2}$.

    `constants`: `norm_per_root_log_clock`, the norm over $\sqrt{\log\zeta_2}$ in the end; `self_duality` and `ratio` as for
    coupled modes. NaN from a start with nothing that grows, or out of the assumptions.
    """
    means, prototypes = _sides(problem, state)
    classes, ratio = problem.num_classes, jnp.asarray(rates.ratio(), means.dtype)
    balance = jnp.sqrt(ratio / (problem.num_samples // classes))
    growing = means / balance + prototypes
    features = problem.data.spread(balance * growing)
    fine = (_code(problem, state, rates) == 0) & jnp.any(growing != 0)
    size = jnp.where(fine, tree.norm((features, growing)), jnp.nan)
    zero = jnp.zeros_like(size)
    speed = jnp.sqrt((classes - 1) * (1 + ratio) / balance)
    constants = {"norm_per_root_log_clock": speed, "self_duality": jnp.sqrt(ratio), "ratio": ratio}
    return Limit(Peeled(features / size, growing / size, state.biases), zero, zero, constants)


def max_step(problem, rates, momentum, nesterov):
    """Unknown: the curvature depends on the state."""
    raise NoClosedForm("no largest stable step is known for cross-entropy: its curvature depends on the whole state")


JOINT_CROSS_ENTROPY = ClosedForm("cross-entropy, both layers, symmetric start", obstacles, flow, descent, limit, max_step)
