r"""How a mode moves: the 2x2 propagators of flow and descent, with their growth factored out.

A mode is a pair (g, w) with $g' = \eta_1(u\,w - \lambda_1 g)$, $w' = \eta_2(d\,g - \lambda_2 w)$; `up` u and `down` d have the
squared singular value $u d = \sigma^2$ as their product. All blocks share the clocks and the decays. A block with
`up = down = 0` is what nothing pulls: its g only decays.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamics import validate
from dynamics.exact.products import products
from dynamics.rates import Rates

Blocks = Float[Array, "blocks *dim"]

ALONE, TOGETHER = 512, 4  # stretches of time side by side: of one run; of an ensemble of schedules, which shares a cache


class Propagator(eqx.Module):
    """A 2x2 matrix for each block, times the common factor `exp(log_scale)`."""

    gg: Blocks
    gw: Blocks
    wg: Blocks
    ww: Blocks
    log_scale: Float[Array, ""]


class Decays(eqx.Module):
    """The decay of a mode's two sides."""

    g: Float[Array, ""]
    w: Float[Array, ""]


def flow_propagator(up: Blocks, down: Blocks, lead: Blocks, decay: Decays, clock_g: Array, clock_w: Array) -> Propagator:
    r"""The propagator of the flow under rates of constant ratio, a function of the two clocks only.

    With $m = -(\lambda_1\zeta_1 + \lambda_2\zeta_2)/2$, $d = (\lambda_1\zeta_1 - \lambda_2\zeta_2)/2$ and
    $r^2 = d^2 + \sigma^2\zeta_1\zeta_2$ it is
    $e^m[\cosh r\,I + \mathrm{sinhc}\,r\,(-d, u\zeta_1; d\zeta_2, d)]$. Exponents are taken relative to the block of largest
    $\sigma$, from differences that do not cancel (`lead`, see `Modes`), so that directions survive clocks of 1e12.

    **Reference:** "On the Dynamics Under the Unhinged Loss and Beyond", JMLR 24 (2023), Theorems 2 and 4, in a form that
    holds for unequal decays and has no removable singularity.
    """
    # clocks in units of the larger one: squares of 1e12 and more would leave float32
    unit = jax.lax.stop_gradient(jnp.maximum(clock_g, clock_w))
    unit = jnp.where(unit > 0, unit, 1.0)
    z_g, z_w = clock_g / unit, clock_w / unit
    kappa = up * down
    mean = -0.5 * (decay.g * z_g + decay.w * z_w)
    skew = 0.5 * (decay.g * z_g - decay.w * z_w)
    square = skew**2 + kappa * z_g * z_w
    large = unit * (unit * square) > 1
    root = jnp.sqrt(jnp.where(large, square, 1.0))

    # every exponent of a block is mean + root (times unit); the top block leads
    top = jnp.argmax(lead)
    kappa_top, lead_top, large_top, root_top = (x.reshape(-1)[top] for x in (kappa, lead, large, root))
    # of the top itself: zero, not a difference whose two sides a compiler may compute, and round, apart
    is_top = (jnp.arange(lead.size) == top).reshape(lead.shape)
    both = jnp.where(is_top, 0.0, unit * z_g * z_w * (lead - lead_top) / (root + root_top))
    behind = jnp.where(large_top, jnp.where(large, both, -unit * root_top), 0.0)
    growth = unit * z_g * z_w * (kappa_top - decay.g * decay.w) / (root_top - mean)
    log_scale = jnp.where(large_top, growth, unit * mean)

    # large r: everything over e^r; 1 - |d|/r without cancellation, |d| with the derivative of the side chosen below
    fade = jnp.exp(-2 * unit * root)
    gap = kappa * z_g * z_w / (root * (root + jnp.where(skew > 0, skew, -skew)))
    slow, fast = 0.5 * (2 - gap) + 0.5 * fade * gap, 0.5 * gap + 0.5 * fade * (2 - gap)
    across = 0.5 * (1 - fade) / root

    # small r: entire functions of r^2
    cosh, sinhc = _cosh_sinhc(jnp.where(large, 0.0, unit * (unit * square)))
    shift = unit * skew * sinhc

    gg = jnp.where(large, jnp.where(skew > 0, fast, slow), cosh - shift)
    ww = jnp.where(large, jnp.where(skew > 0, slow, fast), cosh + shift)
    off = jnp.where(large, across, unit * sinhc)
    factor = jnp.exp(behind)
    return Propagator(factor * gg, factor * off * up * z_g, factor * off * down * z_w, factor * ww, log_scale)


def descent_propagators(
    up: Blocks, down: Blocks, decay: Decays, rates: Rates, steps: int, every: int, dt, momentum, nesterov: bool
) -> Propagator:
    """The propagators of gradient descent at iterates 0, every, ..., steps (leading axis), any rates.

    Each is the product of the steps' companion matrices, see `products`; the size of each block goes to a logarithm.

    **Reference:** the discrete counterpart of the Theorems above; with momentum the 4x4 companion of heavy ball or Nesterov.
    """
    plain = validate.is_concrete(momentum) and float(momentum) == 0

    def moved(x, speed, velocity, force):
        """A quantity and its velocity after a step; no velocity without momentum."""
        if plain:
            return x + speed * force, ()
        velocity = momentum * velocity[0] + force
        move = momentum * velocity + force if nesterov else velocity
        return x + speed * move, (velocity,)

    def step(column, speeds, couplings):
        (speed_g, speed_w), (u, d) = speeds, couplings
        g, w, *velocities = column
        new_g, velocity_g = moved(g, speed_g, velocities[:1], u * w - decay.g * g)
        new_w, velocity_w = moved(w, speed_w, velocities[1:], d * g - decay.w * w)
        return new_g, new_w, *velocity_g, *velocity_w

    def speeds(k):
        return dt * rates.features(k * dt), dt * rates.weights(k * dt)

    lanes = ALONE if rates.constant_ratio else TOGETHER
    matrices, powers = products(step, speeds, (up, down), 2 if plain else 4, steps, every, lanes)
    log = powers * jnp.asarray(math.log(2), powers.dtype)
    return from_logs(matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 0], matrices[:, 1, 1], log)


def from_logs(gg: Array, gw: Array, wg: Array, ww: Array, log: Array) -> Propagator:
    """A propagator from blocks that each carry their own log factor; the leading axis is time."""
    log_scale = jax.lax.stop_gradient(jnp.max(log, axis=tuple(range(1, log.ndim))))
    factor = jnp.exp(log - log_scale.reshape(-1, *([1] * (log.ndim - 1))))
    return Propagator(factor * gg, factor * gw, factor * wg, factor * ww, log_scale)


def _cosh_sinhc(x: Array) -> tuple[Array, Array]:
    """cosh(sqrt x) and sinh(sqrt x)/sqrt x for |x| <= 1, as power series: smooth in x, right to rounding."""
    cosh, sinhc = jnp.ones_like(x), jnp.ones_like(x)
    for n in range(9, 0, -1):
        cosh = 1 + x / ((2 * n - 1) * (2 * n)) * cosh
        sinhc = 1 + x / ((2 * n) * (2 * n + 1)) * sinhc
    return cosh, sinhc


def cosh_sinhc_scaled(x: Array) -> tuple[Array, Array, Array]:
    """cosh(sqrt x), sinh(sqrt x)/sqrt x and a logarithm, both over its exponential; any real x, finite gradients."""
    large, turning = x > 1, x < -1
    root = jnp.sqrt(jnp.where(large, x, 1.0))
    fade = jnp.exp(-2 * root)
    angle = jnp.sqrt(jnp.where(turning, -x, 1.0))
    near = _cosh_sinhc(jnp.where(large | turning, 0.0, x))
    cosh = jnp.where(large, 0.5 * (1 + fade), jnp.where(turning, jnp.cos(angle), near[0]))
    sinhc = jnp.where(large, 0.5 * (1 - fade) / root, jnp.where(turning, jnp.sin(angle) / angle, near[1]))
    return cosh, sinhc, jnp.where(large, root, 0.0)
