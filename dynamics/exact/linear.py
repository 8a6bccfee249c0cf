"""Both layers free under a loss linear in the logits: every mode moves by its own 2x2 propagator."""

import jax
import jax.numpy as jnp

from dynamics import state as tree
from dynamics.exact.all_times import all_times
from dynamics.exact.closed_form import ClosedForm, Motion, common_obstacles
from dynamics.exact.limit import Limit
from dynamics.exact.magnus import magnus_propagators
from dynamics.exact.modes import Modes, modes_of
from dynamics.exact.propagators import Decays, Propagator, descent_propagators, flow_propagator
from dynamics.exact.responses import descent_response, flow_response
from dynamics.problems import LayerPeeled, Peeled
from dynamics.rates import Rates


def obstacles(problem, rates: Rates) -> list[str]:
    """Why the modes do not apply."""
    reasons = common_obstacles(problem, rates)
    if isinstance(problem, LayerPeeled) and problem.anchored:
        reasons.append("the prototypes are anchored")
    return reasons


def flow(problem: LayerPeeled, state: Peeled, rates: Rates, ts) -> Motion:
    """Theorems 2 and 4 of the unhinged paper for any class sizes, decays, rates, kernels and couplings."""
    modes = modes_of(problem, state.features.shape[1], state.features.dtype)
    decay = _decays(problem)
    error = None
    if rates.constant_ratio:
        clocks = rates.features.integral(ts), rates.weights.integral(ts)
        propagators = jax.vmap(lambda zg, zw: flow_propagator(modes.up, modes.down, modes.lead, decay, zg, zw))(*clocks)
    else:
        propagators, error = magnus_propagators(modes.up, modes.down, decay, rates, ts)
    biases = flow_response(problem.decay.biases, rates.weights.integral(ts))
    return _motion(problem, state, modes, (propagators, biases), error)


def descent(problem: LayerPeeled, state: Peeled, rates: Rates, steps, every, dt, momentum, nesterov) -> Motion:
    """The discrete counterpart: products of the modes' companion matrices."""
    modes = modes_of(problem, state.features.shape[1], state.features.dtype)
    run = (steps, every, dt, momentum, nesterov)
    # the rest is a block of its own, or nothing that could move
    moving = slice(None) if modes.has_rest else slice(-1)
    propagators = descent_propagators(modes.up[moving], modes.down[moving], _decays(problem), rates, *run)
    if not modes.has_rest:
        p = propagators
        gg, gw, wg, ww = (jnp.pad(x, [(0, 0), (0, 1)] + [(0, 0)] * (x.ndim - 2)) for x in (p.gg, p.gw, p.wg, p.ww))
        propagators = Propagator(gg, gw, wg, ww, p.log_scale)
    biases = descent_response(problem.decay.biases, rates.weights, *run)
    return _motion(problem, state, modes, (propagators, biases))


def _decays(problem: LayerPeeled) -> Decays:
    return Decays(jnp.asarray(problem.decay.features), jnp.asarray(problem.decay.prototypes))


def _motion(problem: LayerPeeled, state: Peeled, modes: Modes, scalars, error=None) -> Motion:
    parts = modes.split(state)
    coupling = problem.label_coupling
    assert coupling is not None
    drift = coupling.pull_biases(state.biases.dtype)

    def place(scalars):
        propagator, (kept, pulled) = scalars
        features, prototypes = modes.apply(propagator, parts)
        biases = kept * state.biases + pulled * drift if problem.bias else state.biases
        return Peeled(features, prototypes, biases), propagator.log_scale

    return Motion(scalars, place, error, all_times=all_times(problem, state, modes, parts, drift))


def exponents(modes: Modes, decay: Decays, ratio):
    r"""The two growth exponents of each block per unit of the weights' clock, $\omega_1 \le \omega_2$.

    Eigenvalues of $(-s\lambda_1, s u; d, -\lambda_2)$, the larger one in a form that does not cancel near the threshold
    $\sigma^2 = \lambda_1\lambda_2$.
    """
    kappa = modes.up * modes.down
    fast, slow = ratio * decay.g, decay.w
    square = (fast - slow) ** 2 + 4 * ratio * kappa
    gap = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    total = gap + fast + slow
    upper = jnp.where(total > 0, 2 * ratio * (kappa - decay.g * decay.w) / jnp.where(total > 0, total, 1.0), 0.0)
    return -(fast + slow) - upper, upper


def limit(problem: LayerPeeled, state: Peeled, rates: Rates) -> Limit:
    """Corollaries 3 and 5 of the unhinged paper: the blocks of largest singular value win, alone or tied.

    The start is assumed to have a component in the winning modes; otherwise the direction is NaN.
    """
    modes = modes_of(problem, state.features.shape[1], state.features.dtype)
    decay, ratio = _decays(problem), rates.ratio()
    lower, upper = exponents(modes, decay, ratio)
    kappa = modes.up * modes.down
    best = jnp.max(kappa)
    eps = jnp.finfo(kappa.dtype).eps
    # tied singular values (gamma = 0, gamma = 2/(C-2)) win together; they agree to rounding, not to the bit
    wins = (kappa >= best * (1 - 64 * eps)) & (kappa > 0)
    growth = jnp.max(jnp.where(wins, upper, -jnp.inf))

    split = jnp.where(upper - lower > 0, upper - lower, 1.0)
    gg, gw = (upper + decay.w) / split, ratio * modes.up / split
    wg, ww = modes.down / split, (upper + ratio * decay.g) / split
    g, w, rest = modes.split(state)
    of_mode = [jnp.where(wins, x, 0.0)[modes.block.values].reshape(g.shape[0], -1) for x in (gg, gw, wg, ww)]
    g, w = of_mode[0] * g + of_mode[1] * w, of_mode[2] * g + of_mode[3] * w
    features, prototypes = modes.join(g, w, 0 * rest)
    size = tree.norm((features, prototypes))

    # the runner-up: another block, the fading partner of the winner, or the rest (its own exponent is that of its decay)
    runners = jnp.concatenate([jnp.where(wins, lower, upper)[:-1].reshape(-1), _rest_exponent(modes, decay, ratio)])
    share = jnp.sqrt(jnp.sum(g**2) / jnp.sum(w**2))
    coupling = problem.label_coupling
    assert coupling is not None
    return Limit(
        Peeled(features / size, prototypes / size, _bias_limit(problem, state, coupling.pull_biases(size.dtype))),
        growth,
        growth - jnp.max(runners),
        {"log_norm": jnp.log(size), "self_duality": share, "ratio": ratio},
    )


def _rest_exponent(modes: Modes, decay: Decays, ratio):
    return jnp.reshape(-ratio * decay.g, (1,)) if modes.has_rest else jnp.zeros((0,))


def _bias_limit(problem: LayerPeeled, state: Peeled, drift):
    if not problem.bias:
        return state.biases
    decay = jnp.asarray(problem.decay.biases, drift.dtype)
    grown = jnp.where(drift == 0, state.biases, jnp.where(drift > 0, jnp.inf, -jnp.inf))
    return jnp.where(decay > 0, drift / jnp.where(decay > 0, decay, 1.0), grown)


def max_step(problem: LayerPeeled, rates: Rates, momentum, nesterov: bool):
    """2/|omega_1| over the peak rate for the fastest decaying mode; with momentum times 1 + mu or (1 + mu)/(1 + 2 mu)."""
    # without a feature kernel the blocks do not depend on the dimension
    dim = 1 if problem.feature_kernel is None else problem.feature_kernel.shape[0]
    modes = modes_of(problem, dim, jnp.result_type(float, *jax.tree.leaves((problem.loss, problem.decay, problem.kernel))))
    lower, _ = exponents(modes, _decays(problem), rates.ratio())
    fastest = jnp.max(-lower)
    if problem.bias:
        fastest = jnp.maximum(fastest, problem.decay.biases)
    return stable_step(fastest * rates.weights.peak(), momentum, nesterov)


def stable_step(fastest, momentum, nesterov: bool):
    """The largest dt at which a mode that decays at `fastest` per unit of time stays stable; infinite if none decays."""
    gain = (1 + momentum) / (1 + 2 * momentum) if nesterov else 1 + momentum
    return jnp.where(fastest > 0, 2 * gain / jnp.where(fastest > 0, fastest, 1.0), jnp.inf)


MODES = ClosedForm("independent modes of a loss linear in the logits", obstacles, flow, descent, limit, max_step, True)
