"""Prototypes and biases stay: each feature relaxes on its own towards what its prototypes pull it to."""

import jax.numpy as jnp

from dynamics import state as tree
from dynamics.exact.closed_form import ClosedForm, Motion, common_obstacles
from dynamics.exact.limit import Limit
from dynamics.exact.linear import stable_step
from dynamics.exact.responses import descent_response, flow_response
from dynamics.problems import LayerPeeled, Peeled
from dynamics.rates import Rates


def obstacles(problem, rates: Rates) -> list[str]:
    """Why the anchored solution does not apply."""
    reasons = common_obstacles(problem, rates)
    if isinstance(problem, LayerPeeled) and not problem.anchored:
        reasons.append("the prototypes are free")
    return reasons


def flow(problem: LayerPeeled, state: Peeled, rates: Rates, ts) -> Motion:
    r"""Theorem 6 of the unhinged paper, $H = e^{-\lambda\zeta}H_0 + (1 - e^{-\lambda\zeta})/\lambda\;B W$, any rates."""
    return Motion(flow_response(problem.decay.features, rates.features.integral(ts)), _place(problem, state))


def descent(problem: LayerPeeled, state: Peeled, rates: Rates, steps, every, dt, momentum, nesterov) -> Motion:
    """The discrete counterpart, with momentum."""
    run = (steps, every, dt, momentum, nesterov)
    return Motion(descent_response(problem.decay.features, rates.features, *run), _place(problem, state))


def _pull(problem: LayerPeeled, state: Peeled):
    coupling = problem.label_coupling
    assert coupling is not None
    pull = coupling.pull_features(state.prototypes)
    if problem.kernel is not None:
        pull = problem.kernel @ pull
    return pull if problem.feature_kernel is None else pull @ problem.feature_kernel


def _place(problem: LayerPeeled, state: Peeled):
    pull = _pull(problem, state)

    def place(scalars):
        kept, pulled = scalars
        return Peeled(kept * state.features + pulled * pull, state.prototypes, state.biases), jnp.zeros_like(kept)

    return place


def limit(problem: LayerPeeled, state: Peeled, rates: Rates) -> Limit:
    """With decay the features converge to the pull over the decay; without it they grow along the pull."""
    pull = _pull(problem, state)
    decay = jnp.asarray(problem.decay.features, pull.dtype)
    decays = decay > 0
    features = pull / jnp.where(decays, decay, 1.0)
    prototypes = jnp.where(decays, state.prototypes, 0.0)
    size = tree.norm((features, prototypes))
    return Limit(
        Peeled(features / size, prototypes / size, state.biases), jnp.zeros_like(decay), decay, {"log_norm": jnp.log(size)}
    )


def max_step(problem: LayerPeeled, rates: Rates, momentum, nesterov: bool):
    """Stable while the decay times the peak rate stays below the bound of one relaxing mode."""
    return stable_step(jnp.asarray(problem.decay.features) * rates.features.peak(), momentum, nesterov)


ANCHORED = ClosedForm("anchored prototypes under a loss linear in the logits", obstacles, flow, descent, limit, max_step, True)
