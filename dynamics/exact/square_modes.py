r"""Modes of the square loss, one number each: what an aligned start reduces the training of both layers to.

The objective is $\frac\kappa2\|W H + b 1^\top - Y\|^2$ plus decays, with prototypes W, features H as columns here, targets Y;
$\kappa = 1/\text{samples}$ is the mean over samples of `LayerPeeled` with `SquaredError`. One-hot targets have singular
values $\sqrt{n_k}$, the roots of the class sizes. `rates` are the constant rates of features and of weights; under a common
schedule, t is its integral. All functions act entry by entry, broadcast, and can be jitted, mapped and differentiated.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics import validate
from dynamics.exact.propagators import cosh_sinhc_scaled
from dynamics.schedules import decaying_clock

Number = float | Array | np.ndarray
Pair = tuple[Number, Number]


def saxe_mode(start: Number, target: Number, t: Number, *, decay: Number = 0.0, kappa: Number = 1.0, rates: Pair = (1.0, 1.0)):
    r"""Strength u of a balanced mode: $u' = 2s|u|\,(\kappa(\sigma - u) \mp \mu)$, $s = \sqrt{\eta_1\eta_2}$, - for $u > 0$.

    `start` is u at t = 0, of either sign; `target` the singular value $\sigma$ of the targets, of either sign. `decay` $\mu$ is
    the geometric mean of the two decays, of which each times its rate must be the same. u tends to $\sigma - \mu/\kappa$, or
    to 0 where that is negative: as $1/t$ at the edge between the two, also for $\sigma = \mu = 0$, a mode left over.

    **Reference:** A. Saxe, J. McClelland, S. Ganguli (2014); with decay, either sign and the edge in one form: derived here.
    """
    start, speed = jnp.asarray(start), _speed(t, kappa, rates)
    sign = jnp.where(start < 0, -1.0, 1.0).astype(jnp.result_type(start, float))
    size = sign * start
    growth = 2 * speed * (kappa * sign * target - decay)
    grows = growth >= 0
    rate = jnp.where(grows, growth, -growth)
    t = jnp.minimum(t, _settled(rate))
    used = 2 * speed * kappa * decaying_clock(rate, t)  # per unit of the start
    late = grows & (rate * t > 1)
    fade = jnp.exp(-jnp.where(late, 0.0, rate * t))
    direct = jnp.where(grows, size / (fade + size * used), size * fade / (1 + size * used))
    rises = late & (size > 0)
    reached = jnp.where(rises, used, 1.0)
    risen = jax.nn.sigmoid(jnp.log(jnp.where(rises, size * reached, 1.0)) + rate * t) / reached
    unmoved = start * _bounded_exp(rate * t)  # a start of zero, and its derivative
    return jnp.where(late, jnp.where(rises, sign * risen, unmoved), sign * direct)


def saxe_half_time(start: Number, target: Number, *, decay: Number = 0.0, kappa: Number = 1.0, rates: Pair = (1.0, 1.0)):
    r"""When a balanced mode that starts below it, $0 < u_0 < u_\infty$, is at half of $u_\infty = \sigma - \mu/\kappa$."""
    end = target - decay / kappa
    return jnp.log(end / start - 1) / (2 * kappa * jnp.sqrt(rates[0] * rates[1]) * end)


def hyperbolic_mode(
    start: Number, target: Number, imbalance: Number, t: Number, *, kappa: Number = 1.0, rates: Pair = (1.0, 1.0)
):
    r"""Strength u of an unbalanced mode without decay: $u' = \kappa s\sqrt{\delta^2 + 4u^2}\,(\sigma - u)$.

    `imbalance` is the conserved $\delta = \sqrt{\eta_1/\eta_2}\,w^2 - \sqrt{\eta_2/\eta_1}\,h^2$ of the mode's two sides, of
    either sign: 0 is `saxe_mode`, $|\delta| \gg |\sigma|$ the lazy regime, an exponential approach at rate $\kappa s|\delta|$.
    Absolute errors are of the order of rounding of the larger of `start` and `target`.

    **Reference:** A. Saxe, J. McClelland, S. Ganguli (2014) and, for $\delta \neq 0$, L. Braun et al. (2022). Here as a convex
    combination of start and target, rational in $e^{-2\kappa s\lambda t}$ with $\lambda^2 = \sigma^2 + \delta^2/4$, which has
    no singularity at $\delta = 0$, $\sigma = 0$ or $u_0 = \sigma$ and does not overflow: derived here.
    """
    start, half = jnp.asarray(start), 0.5 * jnp.asarray(imbalance)
    clock = kappa * _speed(t, kappa, rates) * t
    clock = jnp.minimum(clock, _settled(jnp.maximum(jnp.abs(target), jnp.abs(half))))
    angle = (clock * target) ** 2 + (clock * half) ** 2
    cosh, sinhc, log = cosh_sinhc_scaled(angle)
    base, lift = 2 * clock * sinhc, 2 * log

    # w^2 + h^2, and its part along the direction that the two sides turn to; where they must turn round, sum and difference
    # of the two from their product, a square
    still = (start == 0) & (half == 0)
    size = jnp.where(still, start, jnp.sqrt(jnp.where(still, 1.0, start**2 + half**2)))
    along = half**2 + start * target
    opposed = (along < 0) & (angle > 1)
    length = jnp.where(opposed, target**2 + half**2, 1.0)
    away = jnp.where(opposed, size - along / jnp.sqrt(length), 1.0)
    towards = (half * (start - target)) ** 2 / (length * away)
    grown = base * jnp.where(opposed, 0.5 * towards, size * cosh + along * clock * sinhc)  # times exp(lift)
    kept = 1 + jnp.where(opposed, 0.5 * base * away, 0.0)

    # what is left of the start, 1 / (kept + grown exp(lift))
    moves = grown > 0
    safe = jnp.where(moves, grown, 1.0)
    left = jnp.where(moves, jax.nn.sigmoid(jnp.log(kept) - jnp.log(safe) - lift), 1 - grown / kept * _bounded_exp(lift)) / kept
    return target + (start - target) * left


def mpp_bias(start: Number, t: Number, classes: int, samples: int, *, kappa: Number = 1.0, rate: Number = 1.0):
    r"""The common bias on the symmetric subspace, $b' = -\eta\kappa(N b - n)$: it tends to $1/K$ at rate $\eta\kappa N$.

    **Reference:** D. Mixon, H. Parshall, J. Pi (2020), rates added.
    """
    return 1 / classes + (start - 1 / classes) * jnp.exp(-rate * kappa * samples * t)


def mpp_subspace(start: Number, t: Number, per_class: int, *, kappa: Number = 1.0, rates: Pair = (1.0, 1.0)):
    r"""An eigenvalue of $W W^\top$ on the symmetric subspace: logistic, to $\sqrt{\eta_2 n/\eta_1}$; zero stays zero.

    The subspace is $1^\top W = 0$, $H = \sqrt{\eta_1/\eta_2}\,(W \otimes 1_n)^\top/\sqrt n$, b along 1. Singular vectors of W
    do not move there, so that W is known from the eigenvalues: its singular values are their roots.

    **Reference:** D. Mixon, H. Parshall, J. Pi (2020), rates added.
    """
    skew = jnp.sqrt(rates[0] / rates[1])
    return saxe_mode(skew * start, per_class**0.5, t, kappa=kappa, rates=rates) / skew


def mpp_linear(
    prototypes: Float[Array, "classes dim"],
    sides: Float[Array, "classes dim"],
    t: Number,
    per_class: int,
    *,
    bias: Number = 0.0,
    kappa: Number = 1.0,
    rates: Pair = (1.0, 1.0),
):
    r"""Prototypes and class sides near the origin, where the product W H is dropped from the gradients; t is one number.

    `sides` are $\sqrt n$ times the class means of the features; their deviations from the class means do not move. `bias` is
    the common bias at the start. What is the same for all classes only grows until the bias has risen; the rest grows for
    ever, as exp of $\kappa s\sqrt n\,t$.

    **Reference:** D. Mixon, H. Parshall, J. Pi (2020), any rates and any common bias at the start.
    """
    classes = prototypes.shape[0]
    skew, pull = jnp.sqrt(rates[0] / rates[1]), kappa * _speed(t, kappa, rates) * per_class**0.5
    rest = decaying_clock(rates[1] * kappa * classes * per_class, t)
    eye, common = (jnp.asarray(x, prototypes.dtype) for x in (np.eye(classes), np.full((classes, classes), 1 / classes)))
    moved = [jnp.zeros_like(prototypes), jnp.zeros_like(sides)]
    for part, angle in ((eye - common, pull * t), (common, pull * (1 - classes * bias) * rest)):
        w, g, cosh, sinh = part @ prototypes, part @ sides, jnp.cosh(angle), jnp.sinh(angle)
        moved = [moved[0] + cosh * w + sinh / skew * g, moved[1] + cosh * g + sinh * skew * w]
    return moved[0], moved[1]


def central_omega(start: Number, t: Number, per_class: int, classes: int):
    r"""Signal-to-noise ratio $\omega$ on the central path: $n\omega' = \omega/(K + \omega^2)^2$; zero stays zero.

    $\omega_j \geq 0$ are the singular values of $\Sigma_W^{-1/2}(\text{class means} - \text{global mean})$ under the flow of
    the features with prototypes and bias at their least-squares values and $\Sigma_W$ held at the identity. It solves
    $nK^2\log\omega + nK\omega^2 + \frac n4\omega^4 = a + t$, by Newton's method from above in $\log\omega^2$ (convex).
    $\omega \sim (4t/n)^{1/4}$ whatever the start. Constants are those of the loss with 1/2, averaged over samples.

    **Reference:** X. Y. Han, V. Papyan, D. Donoho (2022); the constants: derived here.
    """
    validate.nonnegative("start", start)
    validate.nonnegative("t", t)
    return _omega(start, t / per_class, classes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _omega(start, clock, classes):
    start, clock = (jnp.asarray(x, jnp.result_type(start, clock, float)) for x in (start, clock))
    moves = start > 0
    first = jnp.where(moves, start, 1.0)
    log_first, unit = jnp.log(first), classes + first**2

    def newton(_, z):
        """For z = log(omega^2/start^2): residual and slope over (K + start^2)^2."""
        square = jnp.exp(2 * log_first + z)
        gained = -square * jnp.expm1(-z) / unit
        residual = (classes / unit) ** 2 * z + gained * (2 * classes + 0.5 * (square + first**2)) / unit - 2 * clock / unit**2
        return jnp.maximum(z - residual / ((classes + square) / unit) ** 2, 0.0)

    late = 0.5 * jnp.logaddexp(0.0, jnp.log(4 * clock) - 4 * log_first)
    z = jax.lax.fori_loop(0, 40, newton, jnp.minimum(2 * clock / classes**2, late))
    return jnp.where(moves, jnp.exp(log_first + 0.5 * z), 0.0)


@_omega.defjvp
def _omega_derivative(classes, primals, tangents):
    (start, clock), (start_dot, clock_dot) = primals, tangents
    omega = _omega(start, clock, classes)
    moves = start > 0
    growth = jnp.where(moves, omega / jnp.where(moves, start, 1.0), _bounded_exp(clock / classes**2))
    shrink = (classes + start**2) / (classes + omega**2)
    return omega, growth * shrink**2 * start_dot + omega / (classes + omega**2) ** 2 * clock_dot


def central_loss(omega: Float[Array, "*batch modes"], classes: int):
    r"""Loss on the central path, $\frac12\sum_{j=1}^{K-1} 1/(K + \omega_j^2)$; modes beyond those given have $\omega = 0$.

    **Reference:** X. Y. Han, V. Papyan, D. Donoho (2022), in the form derived here (no decay, with bias).
    """
    missing = (classes - 1 - omega.shape[-1]) / classes
    return 0.5 * (jnp.sum(1 / (classes + omega**2), axis=-1) + missing)


def kernel_spectrum(
    features: Float[Array, "samples dim"], prototypes: Float[Array, "classes dim"], *, rates: Pair = (1.0, 1.0)
) -> Float[Array, "samples classes"]:
    r"""Eigenvalues of the tangent kernel of the logits: all sums $\eta_2\,\lambda_i(H^\top H) + \eta_1\,\lambda_j(W W^\top)$.

    Where targets are fitted exactly, $\kappa$ times the largest is the sharpness: descent is stable there iff its step is
    below 2 over it. For balanced one-hot targets and a balanced point at unit rates it is $2\kappa\sqrt n$.

    **Reference:** derived here.
    """
    own = [jnp.linalg.eigvalsh(x @ x.T) for x in (features, prototypes)]
    return rates[1] * own[0][:, None] + rates[0] * own[1]


def _speed(t, kappa, rates: Pair):
    """The geometric mean of the rates; refuses what no flow has."""
    validate.nonnegative("t", t)
    validate.positive("kappa", kappa)
    for name, rate in zip(("features", "weights"), rates, strict=True):
        validate.positive(f"the rate of {name}", rate)
    return jnp.sqrt(rates[0] * rates[1])


def _settled(rate):
    """A time after which exp(-rate t) is zero in any precision: later ones are replaced by it, so that none overflows."""
    return jax.lax.stop_gradient(jnp.where(rate > 0, 1e4 / jnp.where(rate > 0, rate, 1.0), jnp.inf))


def _bounded_exp(x):
    """exp(x), at most about the largest number: derivatives at an unstable rest point stay finite."""
    return jnp.exp(jnp.minimum(x, 0.99 * jnp.log(jnp.finfo(jnp.result_type(x, float)).max)))
