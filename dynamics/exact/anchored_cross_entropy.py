r"""Cross-entropy with anchored prototypes at the vertices of a simplex: every sample moves on its own, by Lambert's W.

A sample whose wrong logits are all equal keeps them equal: it moves along $d_y = w_y - \mathrm{mean}_{j\ne y} w_j$, and its
margin m over them obeys $m' = (v_i/n)\,\kappa\,\eta_1/(1 + e^m/(C-1))$ with $\kappa = |d_y|^2 (C-1)/C$ the same for all.
"""

import jax
import jax.numpy as jnp

from dynamics import state as tree
from dynamics.exact.closed_form import ClosedForm, Motion, NoClosedForm, assume
from dynamics.exact.conditions import assume_simplex, assume_small, centred, longest, mean_square, plain_obstacles
from dynamics.exact.lambert import log_lambert_growth
from dynamics.exact.limit import Limit
from dynamics.losses import CrossEntropy
from dynamics.problems import LayerPeeled, Peeled
from dynamics.rates import Rates


def obstacles(problem, rates: Rates) -> list[str]:
    """Why it does not apply."""
    reasons = plain_obstacles(problem, rates, CrossEntropy)
    if isinstance(problem, LayerPeeled) and not problem.anchored:
        reasons.append("the prototypes are free")
    return reasons


def _directions(problem: LayerPeeled, state: Peeled):
    """The direction each class moves along, and kappa."""
    classes = problem.num_classes
    apart = centred(state.prototypes)
    gain = classes / (classes - 1)
    return gain * apart, gain**2 * mean_square(apart)


def _shares(problem: LayerPeeled, dtype):
    """The part of each sample in the mean loss."""
    return jnp.asarray(problem.data.weights / problem.num_samples, dtype)


def _code(problem: LayerPeeled, state: Peeled):
    """No decay, prototypes of a simplex, equal wrong logits."""
    with jax.default_matmul_precision("highest"):
        logits = problem.logits(state)
        wrong = jnp.arange(problem.num_classes) != problem.labels[:, None]
        spread = jnp.max(logits, axis=1, where=wrong, initial=-jnp.inf) - jnp.min(logits, axis=1, where=wrong, initial=jnp.inf)
        size = longest(state.features) * longest(state.prototypes) + jnp.max(jnp.abs(state.biases))
        decay = jnp.asarray(problem.decay.features)
        codes = (
            assume(decay == 0, lambda: f"cross-entropy has a closed form without decay of the features, got {decay}"),
            assume_simplex(state.prototypes, "prototypes"),
            assume_small(jnp.max(spread), size, "the wrong logits of a sample are not equal at the start"),
        )
    return jnp.max(jnp.stack(codes))


def flow(problem: LayerPeeled, state: Peeled, rates: Rates, ts) -> Motion:
    r"""$m + e^m/(C-1)$ grows by $(v_i/n)\kappa\zeta_1$; any rates, class sizes, sample weights, prototypes' size and mean.

    Two classes satisfy every assumption but that on decay from any start. For $h = r w_y$ this is
    $r = X - W(e^{kX}/(C-1))/k$, $k = |w|^2 C/(C-1)$.

    **Reference:** derived here.
    """
    classes, dtype = problem.num_classes, state.features.dtype
    with jax.default_matmul_precision("highest"):
        by_class, kappa = _directions(problem, state)
        directions = problem.data.spread(by_class)
        others = (jnp.sum(state.biases) - state.biases) / (classes - 1)
        margins = jnp.sum(state.features * directions, axis=1) + problem.data.spread(state.biases - others)
    log_w = margins - jnp.log(jnp.asarray(classes - 1, dtype))
    shares = _shares(problem, dtype)
    moves = kappa > 0

    def place(clock):
        spent = shares * clock
        growth = log_lambert_growth(log_w, kappa * spent)
        along = jnp.where(moves, growth / jnp.where(moves, kappa, 1.0), spent * jax.nn.sigmoid(-log_w))
        return Peeled(state.features + along[:, None] * directions, state.prototypes, state.biases), jnp.zeros_like(clock)

    return Motion(rates.features.integral(ts), place, code=_code(problem, state))


def descent(problem, state, rates, steps, every, dt, momentum, nesterov) -> Motion:
    """Iterates have none."""
    raise NoClosedForm(
        "the iterates of gradient descent on cross-entropy have no closed form: a step is not the flow of Lambert's W; "
        "use dynamics.descent, or dynamics.exact.flow for small steps"
    )


def limit(problem: LayerPeeled, state: Peeled, rates: Rates) -> Limit:
    r"""Features grow like $\log(\zeta_1)/\kappa$ along $d_y$ and leave the anchored prototypes behind.

    `constants["norm_per_log_clock"]` is that of the features' norm. Samples of weight zero stay; so does all when the
    prototypes are equal: the direction is then that of the start. Out of the assumptions the direction is NaN.
    """
    by_class, kappa = _directions(problem, state)
    moving = (kappa > 0) & (_shares(problem, kappa.dtype) > 0)
    directions = jnp.where(moving[:, None], problem.data.spread(by_class), 0.0)
    still = ~jnp.any(moving)
    features = jnp.where(still, state.features, directions)
    prototypes = jnp.where(still, state.prototypes, 0.0)
    size = jnp.where(_code(problem, state) == 0, tree.norm((features, prototypes)), jnp.nan)
    zero = jnp.zeros_like(size)
    speed = jnp.where(still, 0.0, size / jnp.where(still, 1.0, kappa))
    return Limit(Peeled(features / size, prototypes / size, state.biases), zero, zero, {"norm_per_log_clock": speed})


def max_step(problem, rates, momentum, nesterov):
    """Unknown: the curvature depends on the prototypes and the features."""
    raise NoClosedForm(
        "no largest stable step is known for cross-entropy: its curvature depends on the prototypes and fades as margins grow"
    )


ANCHORED_CROSS_ENTROPY = ClosedForm(
    "cross-entropy, anchored prototypes of a simplex ETF", obstacles, flow, descent, limit, max_step
)
