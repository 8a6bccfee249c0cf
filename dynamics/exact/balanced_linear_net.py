r"""A balanced deep linear network on samples of equal margins, exponential loss: at any time, by the logarithm of time.

Balanced layers ($W_{l+1}^\top W_{l+1} = W_l W_l^\top$) under one output are of rank one with one singular value $\sigma$. Where
the margins are all equal to $v = \gamma\sigma^L$ and the predictor points along the mean of the signed inputs, all layers grow
by one factor and

$$t = \frac{\gamma^{-2/L}}{nL}\int_{v_0}^{v} e^u u^{-a}\,du,\quad a = 2 - 2/L.$$

Below u = 16 the integral is a series of positive terms, above it is $e^v v^{-a}\int e^{-s}(1 - s/v)^{-a} ds$, cut where
$e^{-s}$ is below rounding: nothing cancels and nothing overflows.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dynamics import state as tree
from dynamics import validate
from dynamics.exact.closed_form import ClosedForm, Motion, assume
from dynamics.exact.conditions import assume_small, longest
from dynamics.exact.limit import Limit
from dynamics.exact.linear_predictor import descent, equal_margins, max_step, network_obstacles, signed_inputs
from dynamics.losses import Exponential
from dynamics.losses.margins import log_softplus
from dynamics.problems import Network
from dynamics.problems.activations import IDENTITY
from dynamics.problems.nets import Dense
from dynamics.rates import Rates
from dynamics.schedules import decaying_clock

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_SPLIT = 16.0
_TERMS = 70
"""Terms of the series: what is left out is below 1e-19 of its sum at the split."""
_TAIL = 45.0
"""e^-45 is 3e-20."""
_HALVINGS = 64


def obstacles(problem, rates: Rates) -> list[str]:
    """Why it does not apply."""
    if not isinstance(problem, Network):
        return [f"the problem is a {type(problem).__name__}, not a Network"]
    reasons, net = network_obstacles(problem, rates, Exponential), problem.net
    if not (isinstance(net, Dense) and net.widths and net.activation == IDENTITY and net.outputs is None):
        reasons.append(f"the net is {net}, not a deep linear one of one output")
    return reasons


def _start(problem: Network, state: PyTree):
    """The margin, the logarithm of gamma, and the code of the assumptions."""
    layers = [jnp.atleast_2d(matrix) for matrix in jax.tree.leaves(state)]
    depth = len(layers)
    with jax.default_matmul_precision("highest"):
        signed = signed_inputs(problem)
        mean, size = jnp.mean(signed, axis=0), longest(signed)
        gaps = [jnp.max(jnp.abs(b.T @ b - a @ a.T)) for a, b in zip(layers, layers[1:], strict=False)]
        predictor = functools.reduce(lambda product, matrix: matrix @ product, layers)[0]
        margins = signed @ predictor
    square = tree.norm(state) ** 2 / depth  # sigma^2
    reach = jnp.sqrt(jnp.sum(predictor**2))
    ray = predictor / jnp.where(reach > 0, reach, 1.0)
    aside = jnp.max(jnp.abs(mean - jnp.dot(mean, ray, precision="highest") * ray))
    margin = jnp.mean(margins)
    codes = (
        assume(margin > 0, lambda: f"the margin at the start must be > 0, got {margin}"),
        *equal_margins(problem, margins, size * square ** (depth / 2)),
        assume_small(jnp.max(jnp.stack(gaps)), square, "the layers are not balanced"),
        assume_small(aside, size, "the predictor is not along the mean of targets times inputs"),
    )
    margin = jnp.where(margin > 0, margin, 1.0)
    return margin, jnp.log(margin) - 0.5 * depth * jnp.log(jnp.where(square > 0, square, 1.0)), jnp.max(jnp.stack(codes))


def flow(problem: Network, state: PyTree, rates: Rates, ts) -> Motion:
    r"""All layers times $(v/v_0)^{1/L}$, v by `balanced_margin`. Any schedule.

    **Reference:** derived here.
    """
    margin, log_gamma, code = _start(problem, state)
    depth = int(problem.degree)
    shift = _log_speed(depth, log_gamma, problem.num_samples)

    def place(clock):
        moved = clock > 0
        growth = jnp.where(moved, _growth(margin, jnp.log(jnp.where(moved, clock, 1.0)) + shift, depth), 0.0)
        factor = jnp.exp(jnp.log1p(growth / margin) / depth)
        return jax.tree.map(lambda matrix: factor * matrix, state), jnp.zeros_like(clock)

    return Motion(rates.weights.integral(ts), place, code=code)


def limit(problem: Network, state: PyTree, rates: Rates) -> Limit:
    r"""The direction stays and the norm grows like $(\log\zeta)^{1/L}$ times `constants["norm_per_root_log_clock"]`.

    Out of the assumptions the direction is NaN.
    """
    margin, _, code = _start(problem, state)
    size, known = tree.norm(state), jnp.where(code == 0, 1.0, jnp.nan)
    zero = jnp.zeros_like(size)
    constants = {"norm_per_root_log_clock": size * margin ** (-1 / int(problem.degree))}
    return Limit(jax.tree.map(lambda matrix: known * matrix / size, state), zero, zero, constants)


def balanced_log_time(margin, start, *, depth, gamma=1.0, samples: int = 1) -> Float[Array, "..."]:
    r"""The logarithm of the time that a balanced linear network takes from the margin `start` to `margin`.

    Minus infinity where the two are equal. At unit rate; a rate r divides time by r.

    **Arguments:**

    - `margin`, `start`: v and v_0, the common margin of all samples, $0 < v_0 \le v$; any shapes. 1e12 is not too far.
    - `depth`: L >= 1, the number of layers, a Python number.
    - `gamma`: > 0, the margin over the product of the layers' norms.
    - `samples`: n, the loss being the sum over them.

    **Raises:** `ValueError` for concrete values out of range.

    **Reference:** derived here; for depth 2 it is $(\mathrm{Ei}(v) - \mathrm{Ei}(v_0))/(2n\gamma)$.
    """
    _check_net(depth, gamma, samples)
    validate.positive("margin", margin)
    validate.positive("start", start)
    if validate.is_concrete((margin, start)) and np.any(np.asarray(margin) < np.asarray(start)):
        raise ValueError(f"margin must be at least start, got {validate.shown(margin)} and {validate.shown(start)}")
    dtype = jnp.result_type(margin, start, gamma, float)
    margin, start, gamma = jnp.broadcast_arrays(*(jnp.asarray(x, dtype) for x in (margin, start, gamma)))
    log_integral = jax.jit(_log_integral, static_argnums=2)(start, margin - start, depth)
    return log_integral - _log_speed(depth, jnp.log(gamma), samples)


def balanced_margin(log_t, start, *, depth, gamma=1.0, samples: int = 1) -> Float[Array, "..."]:
    """The margin of a balanced linear network at the logarithm of time: `balanced_log_time` solved for its end, by bisection.

    **Arguments:** as there; `log_t` up to 1e12 in float64, where its digits give out.

    **Raises:** `ValueError` for concrete values out of range.
    """
    _check_net(depth, gamma, samples)
    validate.finite("log_t", log_t)
    validate.positive("start", start)
    dtype = jnp.result_type(log_t, start, gamma, float)
    log_t, start, gamma = jnp.broadcast_arrays(*(jnp.asarray(x, dtype) for x in (log_t, start, gamma)))
    return start + _growth(start, log_t + _log_speed(depth, jnp.log(gamma), samples), depth)


def _check_net(depth, gamma, samples) -> None:
    if not (isinstance(depth, int | float | np.integer | np.floating) and 1 <= depth < math.inf):
        raise ValueError(f"depth must be a Python number >= 1, got {depth!r}")
    validate.positive("gamma", gamma)
    validate.whole("samples", samples, 1)


def _log_speed(depth, log_gamma, samples: int):
    """The logarithm of the integral over time."""
    return math.log(samples * depth) + 2 / depth * log_gamma


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _log_integral(start, growth, depth):
    r"""$\log\int_{v_0}^{v_0 + d} e^u u^{-a} du$, d = `growth` >= 0, to a few eps however small or large d is."""
    a, dtype = 2 - 2 / depth, growth.dtype
    room = jnp.maximum(_SPLIT - start, 0.0)
    # each term of the series is (v^p - v0^p)/p over k!; p <= 0 is possible in the first
    below = jnp.minimum(growth, room)
    powers = jnp.asarray(np.arange(_TERMS) + 1 - a, dtype)
    factorials = jnp.asarray([math.lgamma(k + 1) for k in range(_TERMS)], dtype)
    parts = decaying_clock(powers, jnp.log1p(below / start)[..., None])
    series = jax.nn.logsumexp(powers * jnp.log(start + below)[..., None] - factorials, b=parts, axis=-1)
    end = jnp.maximum(start + growth, _SPLIT)
    span = jnp.clip(growth - room, 0.0, _TAIL)
    nodes, weights = (jnp.asarray(x, dtype) for x in (_NODES, _WEIGHTS))
    s = 0.5 * span[..., None] * (1 + nodes)
    tail = 0.5 * span * jnp.sum(weights * jnp.exp(-s) * (1 - s / end[..., None]) ** -a, axis=-1)
    return jnp.logaddexp(series, end - a * jnp.log(end) + jnp.log(tail))


@_log_integral.defjvp
def _derivative(depth, primals, tangents):
    start, growth = primals
    a, log_integral = 2 - 2 / depth, _log_integral(*primals, depth)
    end = start + growth
    # the integrand at both ends over the integral; the later one is e^apart times the earlier one
    at_start = jnp.exp(start - a * jnp.log(start) - log_integral)
    at_end = jnp.exp(end - a * jnp.log(end) - log_integral)
    apart = growth - a * jnp.log1p(growth / start)
    rise = jnp.where(apart > 0, -at_end * jnp.expm1(-jnp.maximum(apart, 0.0)), at_start * jnp.expm1(jnp.minimum(apart, 0.0)))
    return log_integral, at_end * tangents[1] + rise * tangents[0]


@functools.partial(jax.jit, static_argnums=(2,))
def _growth(start, log_integral, depth):
    """By how much the margin exceeds its start when the integral has this logarithm: bisection, then a step of Newton."""
    a = 2 - 2 / depth
    begins, due = jax.lax.stop_gradient((start, log_integral))
    # on the way e^u u^-a is at most e^u v0^-a, and at least 0.46 e^(u/2)
    low = log_softplus(due + a * jnp.log(begins) - begins)
    high = math.log(2) + log_softplus(due + 0.1 - 0.5 * begins)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        early = _log_integral(begins, jnp.exp(middle), depth) < due
        return jnp.where(early, middle, low), jnp.where(early, high, middle)

    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))
    growth = jnp.exp(0.5 * (low + high))
    margin = begins + growth
    slope = jnp.exp(margin - a * jnp.log(margin) - jax.lax.stop_gradient(_log_integral(begins, growth, depth)))
    return growth + (log_integral - _log_integral(start, growth, depth)) / slope  # carries the derivatives


BALANCED_LINEAR_NET = ClosedForm(
    "balanced deep linear network, samples of equal margins", obstacles, flow, descent, limit, max_step
)
