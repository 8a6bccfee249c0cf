"""Normalised features, prototypes fixed: every sample turns towards its pull in a plane of its own."""

import math

import jax
import jax.numpy as jnp

from dynamics import state as tree
from dynamics.exact.closed_form import ClosedForm, Motion, NoClosedForm
from dynamics.exact.limit import Limit
from dynamics.exact.planes import Samples, Start, Weights, start_of
from dynamics.problems import LayerPeeled, Peeled
from dynamics.rates import Rates
from dynamics.schedules import decaying_clock


def obstacles(problem, rates: Rates) -> list[str]:
    """Why the half-angle law does not apply."""
    if not isinstance(problem, LayerPeeled):
        return [f"the problem is a {type(problem).__name__}, not a LayerPeeled"]
    reasons = []
    if problem.label_coupling is None:
        reasons.append(f"the loss {type(problem.loss).__name__} is not linear in the logits")
    if not problem.normalize:
        reasons.append("the loss sees the features themselves, not normalised")
    if not problem.anchored:
        reasons.append("the prototypes are free")
    if problem.kernel is not None or problem.feature_kernel is not None:
        reasons.append("a kernel turns the features out of the planes of their pulls")
    return reasons


def flow(problem: LayerPeeled, state: Peeled, rates: Rates, ts) -> Motion:
    r"""The half-angle law $\tan(\theta/2) = \tan(\theta_0/2) e^{-A}$, any schedule of the features.

    Per unit of the features' clock $\zeta$, $A' = |v|/|h|^2$ and $|h|' = -\lambda|h|$; rescaled rates multiply both by |h|.
    So $A = |v|\zeta/|h_0|^2$ without decay and $|v| (e^{2\lambda\zeta}-1)/(2\lambda|h_0|^2)$ with it; rescaled,
    $|h| = |h_0|/(1+\lambda|h_0|\zeta)$ and $A = |v|(\zeta/|h_0| + \lambda\zeta^2/2)$. Derived here.

    Inside the zone of an adjusted prototype, with $\varphi = \pi - \theta$ and $k = \tan\theta_\epsilon$,
    $\tan(\varphi/2) = \tanh(\mathrm{artanh}\tan(\varphi_0/2) + kA/2)$ until $\varphi = \theta_\epsilon$.
    """
    start = start_of(problem, state)
    clock, shrink = _clocks(problem, rates, start.size, rates.features.integral(ts)[:, None])
    x, y = _turned(start, clock)
    z = jnp.zeros_like(x)
    if start.eps is not None:
        x, y, z = (jnp.where(start.behind, a, b) for a, b in zip(_adjusted(start, clock), (x, y, z), strict=True))
    return Motion((shrink * x, shrink * y, shrink * z), _place(state, start))


def _clocks(problem: LayerPeeled, rates: Rates, size: Samples, zeta):
    """A over |v|, and |h| over that of the start; no larger than matters, so that no derivative overflows."""
    decay, most = problem.decay.features, float(jnp.finfo(size.dtype).max)
    if rates.rescaled:
        late = jnp.minimum(zeta, most**0.4)
        return zeta / size + decay * late**2 / 2, 1 / (1 + decay * size * zeta)
    cap = 0.75 * math.log(most)
    late = 2 * decay * zeta > cap
    zeta_seen = jnp.where(late, cap / jnp.where(late, 2 * decay, 1.0), zeta)
    return decaying_clock(-2 * decay, zeta_seen) / size**2, jnp.exp(-decay * zeta)


def _turned(start: Start, clock):
    r"""x and y of the half-angle law, norm kept; nothing cancels near alignment, where h faces away, or at v = 0."""
    turn = jnp.where(start.stays, 0.0, start.strength * clock)
    left, gone, gone2 = jnp.exp(-turn), -jnp.expm1(-turn), -jnp.expm1(-2 * turn)
    whole = left**2 + start.near * gone2
    x, y = left / whole, start.size / start.aim * gone * (left + start.near * gone) / whole
    # at v = 0 the first order in v, for its derivative
    still = jnp.where(start.pulled, 0.0, clock)
    return jnp.where(start.pulled, x, 1 - still * start.along / start.size), jnp.where(start.pulled, y, still * start.size)


def _adjusted(start: Start, clock) -> Weights:
    """The weights of samples that start behind: out of the adjusted zone first, then the half-angle law."""
    eps, away = start.eps, start.behind & ~start.alone
    assert eps is not None
    slope, edge = jnp.sqrt(eps * (2 - eps)) / (1 - eps), jnp.sqrt(eps / (2 - eps))
    near = jnp.where(away, start.near, 0.5 * eps / 2)
    begin = jnp.where(start.alone, 0.0, jnp.arctanh(jnp.sqrt(near / (1 - near))))
    turn = jnp.where(start.behind, start.strength * clock, 0.0)
    inside = jnp.minimum(turn, 2 / slope * (jnp.arctanh(edge) - begin))
    half, left = jnp.tanh(begin + slope * inside / 2), jnp.exp(inside - turn)
    whole = jnp.where(start.behind, half**2 + left**2, 1.0)
    sine, cosine = 2 * half * left / whole, (half**2 - left**2) / whole
    x = jnp.where(away, sine * start.size / jnp.sqrt(jnp.where(away, start.across, 1.0)), -cosine)
    y = jnp.where(away, (start.size * cosine - x * start.along / start.aim) / start.aim, 0.0)
    return x, y, jnp.where(start.alone, start.size * sine, 0.0)


def descent(problem: LayerPeeled, state: Peeled, rates: Rates, steps, every, dt, momentum, nesterov) -> Motion:
    """Theorem 7 of the unhinged paper for any W: iterates of three or four numbers a sample, whatever the dimension.

    They are x, y, z and <h, v>. The part of h across v is x times that of the start: it keeps its relative precision.
    """
    start, decay = start_of(problem, state), problem.decay.features

    def force(p):
        x, y, z, g = p
        side = x**2 * start.across + z**2
        # for v = 0 the same square of the norm, with the right derivative in v
        square = jnp.where(start.pulled, (g / start.aim) ** 2 + side, x**2 * start.size**2 + y * (g + x * start.along))
        size = jnp.sqrt(square)
        factor, push = jnp.ones_like(x), jnp.zeros_like(x)
        if start.eps is not None:
            factor, push = _factor(start, g / (start.aim * size), side / square)
        factor = jnp.where(start.stays, 0.0, factor)
        fade = factor * g / size**3 + decay
        return (
            -fade * x,
            factor / size - fade * y,
            push * start.strength / size - fade * z,
            factor * start.strength**2 * side / size**3 - decay * g,
        ), size

    def step(k, carry):
        p, velocity = carry
        pushed, size = force(p)
        velocity = jax.tree.map(lambda v, f: momentum * v + f, velocity, pushed)
        move = jax.tree.map(lambda v, f: momentum * v + f, velocity, pushed) if nesterov else velocity
        pace = dt * rates.features(k * dt) * (size if rates.rescaled else 1.0)
        return jax.tree.map(lambda a, b: a + pace * b, p, move), velocity

    def snapshot(carry, index):
        carry = jax.lax.fori_loop(0, every, lambda j, c: step(index * every + j, c), carry)
        return carry, carry[0]

    zero = jnp.zeros_like(start.size)
    begin = (zero + 1, zero, zero, start.along)
    _, path = jax.lax.scan(snapshot, (begin, jax.tree.map(jnp.zeros_like, begin)), jnp.arange(steps // every))
    x, y, z, _ = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begin, path)
    return Motion((x, y, z), _place(state, start))


def _factor(start: Start, cosine, sine2):
    """What an adjusted prototype multiplies the pull by, and its push along the tangent where there is no other."""
    eps = start.eps
    assert eps is not None
    behind = start.pulled & ~start.stays & (-cosine > 1 - eps)
    alone = behind & start.alone & (sine2 <= (8 * jnp.finfo(cosine.dtype).eps) ** 2)
    lifted = -cosine * jnp.sqrt(eps * (2 - eps)) / (1 - eps)
    sine = jnp.sqrt(jnp.where(behind & ~alone, sine2, 1.0))
    return jnp.where(alone, 0.0, jnp.where(behind, lifted / sine, 1.0)), jnp.where(alone, lifted, 0.0)


def _place(state: Peeled, start: Start):
    def place(weights):
        return Peeled(start.place(weights), state.prototypes, state.biases), jnp.zeros((), start.size.dtype)

    return place


def limit(problem: LayerPeeled, state: Peeled, rates: Rates) -> Limit:
    """Without decay each feature keeps its norm and ends along its pull; with decay the features vanish.

    The slowest sample sets the rate, |v|/|h|^2 (rescaled: |v|/|h|); samples that nothing pulls, or that face away and are not
    adjusted, stay. With decay the rate is its coefficient (rescaled: 0, the norm falls like 1/zeta): angles vanish faster.
    """
    start = start_of(problem, state)
    decay = jnp.asarray(problem.decay.features, start.size.dtype)
    turns = start.pulled & ~start.stays
    turned = jnp.where(turns[:, None], (start.size / start.aim)[:, None] * start.pull, start.features)
    features = jnp.where(decay > 0, jnp.zeros_like(turned), turned)
    per_clock = start.strength / (start.size if rates.rescaled else start.size**2)
    slowest = jnp.min(jnp.where(turns, per_clock, jnp.inf))
    size = tree.norm((features, state.prototypes))
    return Limit(
        Peeled(features / size, state.prototypes / size, state.biases),
        jnp.zeros_like(decay),
        jnp.where(decay > 0, 0.0 if rates.rescaled else decay, slowest),
        {"log_norm": jnp.log(size)},
    )


def max_step(problem: LayerPeeled, rates: Rates, momentum, nesterov: bool):
    """There is none that holds for every start."""
    raise NoClosedForm(
        "with normalised features the largest step depends on the start: without decay and momentum no cos(h_i, v_i) ever "
        "falls while dt * eta * |v_i| / |h_i|^2 <= 2 (rescaled rates: / |h_i|), v_i the rows of "
        "problem.label_coupling.pull_features(prototypes); norms never fall then, so it is enough to check the start"
    )


SPHERICAL = ClosedForm(
    "normalised features turning to anchored prototypes under a loss linear in the logits",
    obstacles,
    flow,
    descent,
    limit,
    max_step,
)
