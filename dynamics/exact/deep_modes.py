r"""A mode of a deep linear network under the square loss: how long it takes, and where it is.

Balanced and aligned, the product u of L layers obeys $u' = \kappa L u^{2-2/L}(\sigma - u)$. The clock here is depth times time
(times the common rate), $\tau = Lt$, so that there is a limit of infinite depth. With $y = u/\sigma$ and $a = 2/L - 1$

$$\kappa\sigma^{1-a}\tau = \int \frac{y^{a-1}}{1-y} dy
= \int e^{ax} dx + \Delta\log\frac{y}{|1-y|} - \Delta x + \int e^{bx} dx - \int e^x\frac{e^{bx}-1}{e^x-1} dx,\quad
x = \log y,\; b = a + 1,$$

of which only the last integral is not elementary; it is smooth, and gone below x = -40.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import validate
from dynamics.schedules import decaying_clock

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_FAR = -40.0


def deep_clock(start, stop, target, depth, *, kappa=1.0):
    r"""The clock $\tau = Lt$ from `start` to `stop`, both on the same side of `target`; all are positive numbers.

    `depth` L is 2 or more, not necessarily whole; infinite is allowed.

    **Reference:** A. Saxe, J. McClelland, S. Ganguli (2014); the limit of infinite depth and this form: derived here.
    """
    for name, x in (("start", start), ("stop", stop), ("target", target), ("kappa", kappa)):
        validate.positive(name, x)
    x0, x1 = jnp.log(start / target), jnp.log(stop / target)
    passed = jnp.log(_gap(start, target)) - jnp.log(_gap(stop, target)) + x1 - x0
    return _clock(x0, x1, passed, depth) / (kappa * target ** (2 - 2 / depth))


def deep_mode(start, target, t, depth, *, kappa=1.0):
    r"""Strength u of a mode at the clock t = $\tau$, depth times time: `deep_clock` solved for its end, by bisection.

    `start` and `target` are positive; `depth` as in `deep_clock`. All broadcast.
    """
    for name, x in (("start", start), ("target", target), ("kappa", kappa)):
        validate.positive(name, x)
    validate.nonnegative("t", t)
    dtype = jnp.result_type(start, target, t, depth, float)
    start, target, t, depth = jnp.broadcast_arrays(*(jnp.asarray(v, dtype) for v in (start, target, t, depth)))
    below = jax.lax.stop_gradient(start <= target)
    sign = jnp.where(below, 1.0, -1.0).astype(start.dtype)
    due = jnp.minimum(t * kappa * target ** (2 - 2 / depth), 1e4)
    x0 = jnp.log(start / target)
    z0 = x0 - jnp.log(_gap(start, target) / target)  # log of y/|1-y|

    def end(z):
        return -jnp.log1p(sign * jnp.exp(-z))

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        early = _clock(x0, end(middle), middle - z0, depth) < due
        return jnp.where(early, middle, low), jnp.where(early, high, middle)

    # dz = y^(-a) dt: at most as fast as t below the target, as at the start above it
    fastest = jnp.exp(jnp.maximum((1 - 2 / depth) * x0, 0.0))
    low, high = jax.lax.stop_gradient(jax.lax.fori_loop(0, 70, halve, (z0, z0 + due * fastest)))
    z = 0.5 * (low + high)
    slope = jnp.exp((2 / depth - 1) * jax.lax.stop_gradient(end(z)))
    z = z + (due - _clock(x0, end(z), z - z0, depth)) / slope  # carries the derivatives
    return target + (start - target) * jnp.exp(z0 - z + end(z) - x0)


def _gap(u, target):
    """|u - target|; at the target itself the least that differs from it, so that its logarithm is finite."""
    gap = jnp.abs(u - target)
    least = jnp.finfo(jnp.result_type(gap, float)).tiny
    return jnp.where(gap > least, gap, least)


def _clock(x0, x1, passed, depth):
    """The formula above from x0 to x1; `passed` is the change of log y/|1-y|."""
    a, b = 2 / depth - 1, 2 / depth
    begin, stop = jnp.maximum(x0, _FAR), jnp.maximum(x1, _FAR)
    half = 0.5 * (stop - begin)
    nodes, weights = (jnp.asarray(v, half.dtype) for v in (_NODES, _WEIGHTS))
    x = 0.5 * (stop + begin)[..., None] + half[..., None] * nodes
    smooth = jnp.sum(_smooth(x, jnp.asarray(b)[..., None]) * weights, axis=-1) * half
    return _exponential(a, x0, x1) + passed - (x1 - x0) + _exponential(b, x0, x1) - smooth


def _exponential(rate, x0, x1):
    """The integral of exp(rate x)."""
    return jnp.exp(rate * x0) * decaying_clock(-rate, x1 - x0)


def _smooth(x, b):
    """exp(x) (exp(b x) - 1) / (exp(x) - 1), b at x = 0."""
    # int_0^x exp(r v) dv for r = b over that for r = 1, the latter is 0 at x = 0
    zero = x == 0
    safe = jnp.where(zero, 1.0, x)
    return jnp.where(zero, b, jnp.exp(safe) * jnp.expm1(b * safe) / jnp.expm1(safe))
