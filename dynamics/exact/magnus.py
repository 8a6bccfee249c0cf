r"""Flow of the modes when the two rates are not proportional: generators at different times do not commute.

$\Phi' = (-\lambda_1\eta_1, u\eta_1; d\eta_2, -\lambda_2\eta_2)\,\Phi$ by the fourth-order Magnus expansion at two Gauss points
a step, with the closed 2x2 exponential and Richardson extrapolation (order six).

**Reference:** S. Blanes, F. Casas, J. A. Oteo, J. Ros, The Magnus expansion and some of its applications (2009), Section 5.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamics.exact.propagators import Blocks, Decays, Propagator, cosh_sinhc_scaled, from_logs
from dynamics.rates import Rates

COARSE_STEPS = 256


def magnus_propagators(
    up: Blocks, down: Blocks, decay: Decays, rates: Rates, ts: Float[Array, " times"]
) -> tuple[Propagator, Float[Array, ""]]:
    """Propagators at the times (leading axis) and the estimated relative error of the worst."""
    nodes, at = _nodes(ts, rates.jumps().astype(ts.dtype))
    halves = jnp.stack([nodes[:-1], 0.5 * (nodes[:-1] + nodes[1:])], axis=1).reshape(-1)
    coarse, coarse_log = _product(up, down, decay, rates, nodes)
    fine, fine_log = _product(up, down, decay, rates, jnp.append(halves, nodes[-1]))
    coarse, coarse_log, fine, fine_log = coarse[at], coarse_log[at], fine[2 * at], fine_log[2 * at]
    coarse = coarse * jnp.exp(coarse_log - fine_log)[:, None, None]
    error = jnp.max(jnp.abs(fine - coarse)) / 15 / jnp.max(jnp.abs(fine))
    best = fine + (fine - coarse) / 15
    traceless = from_logs(best[:, 0, 0], best[:, 0, 1], best[:, 1, 0], best[:, 1, 1], fine_log)
    trace = -0.5 * (decay.g * rates.features.integral(ts) + decay.w * rates.weights.integral(ts))
    propagator = eqx.tree_at(lambda x: x.log_scale, traceless, traceless.log_scale + trace)
    return propagator, jax.lax.stop_gradient(error)


def _nodes(ts: Array, jumps: Array) -> tuple[Array, Array]:
    """Step boundaries with one at every time and jump, the rest shared out in proportion to length; and where the times are.

    Positions are differentiable in times and jumps; how many steps a segment gets is not.
    """
    end = ts[-1]
    marks = jnp.concatenate([jnp.zeros((1,), ts.dtype), ts, jnp.clip(jumps, 0.0, end)])
    order = jnp.argsort(marks, stable=True)
    cuts = marks[order]
    segments = cuts.shape[0] - 1
    spare = max(COARSE_STEPS - segments, segments)
    share = jax.lax.stop_gradient(cuts / jnp.where(end > 0, end, 1.0))
    first = jnp.arange(segments + 1) + jnp.floor(spare * share).astype(jnp.int32)
    first = first.at[-1].set(segments + spare)
    k = jnp.arange(segments + spare + 1)
    segment = jnp.clip(jnp.searchsorted(first, k, side="right") - 1, 0, segments - 1)
    fraction = (k - first[segment]) / (first[segment + 1] - first[segment])
    nodes = cuts[segment] + fraction.astype(ts.dtype) * (cuts[segment + 1] - cuts[segment])
    # a time that meets 0 or a jump keeps its own mark: its derivative is not that of what it meets
    return nodes, first[jnp.argsort(order)[1 : 1 + ts.shape[0]]]


def _product(up, down, decay: Decays, rates: Rates, nodes: Array) -> tuple[Array, Array]:
    """The traceless part of the propagator at every node, (nodes, 2, 2, blocks, ...), over the exponential of its log."""
    shape = (-1,) + (1,) * up.ndim
    h = jnp.diff(nodes)
    early, late = (nodes[:-1] + h * (0.5 + sign * 3**0.5 / 6) for sign in (-1, 1))

    def generator(t):
        rate_g, rate_w = rates.features(t).reshape(shape), rates.weights(t).reshape(shape)
        return 0.5 * (decay.g * rate_g - decay.w * rate_w), up * rate_g, down * rate_w

    (d1, b1, c1), (d2, b2, c2) = generator(early), generator(late)
    # the first moment by the schedules' exact integrals: only the commutator sees a rate that is not smooth at a node
    spent_g, spent_w = (jnp.diff(rate.integral(nodes)).reshape(shape) for rate in (rates.features, rates.weights))
    bend = -(3**0.5) / 12 * h.reshape(shape) ** 2
    diagonal = -0.5 * (decay.g * spent_g - decay.w * spent_w) + bend * (b1 * c2 - b2 * c1)
    above = up * spent_g + 2 * bend * (b1 * d2 - d1 * b2)
    below = down * spent_w + 2 * bend * (d1 * c2 - c1 * d2)
    cosh, sinhc, logs = cosh_sinhc_scaled(diagonal**2 + above * below)
    above, below, diagonal = jnp.broadcast_arrays(above, below, diagonal)
    factors = jnp.stack(
        [jnp.stack([cosh + sinhc * diagonal, sinhc * above], 1), jnp.stack([sinhc * below, cosh - sinhc * diagonal], 1)], 1
    )

    def step(carry, factor_and_log):
        product, log = carry
        factor, more = factor_and_log
        product = jnp.einsum("ij...,jk...->ik...", factor, product)
        size = jax.lax.stop_gradient(jnp.max(jnp.abs(product), axis=(0, 1)))
        carry = (product / size, log + more + jnp.log(size))
        return carry, carry

    start = (jnp.broadcast_to(jnp.eye(2, dtype=up.dtype).reshape(2, 2, *(1,) * up.ndim), (2, 2, *up.shape)), jnp.zeros_like(up))
    _, path = jax.lax.scan(step, start, (factors, logs))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, path)
