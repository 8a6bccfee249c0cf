"""Aligned modes of the square loss: sigmoids, the hyperbolic law of unbalanced layers, from rich to lazy; with figure."""

import functools
from pathlib import Path

import jax
import numpy as np

import dynamics as dyn
from dynamics import plotting
from dynamics.exact import square_modes
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.instances import Size, worst_of
from experiments.shared.square_modes import Aligned, aligned, integrate, norm_of, velocity_of

FRACTIONS = np.array([0.05, 0.2, 0.5, 1.0])
SAXE = "A. Saxe, J. McClelland, S. Ganguli (2014), with decay: derived here"
BRAUN = "L. Braun, C. Domine, J. Fitzgerald, A. Saxe (2022); in this form: derived here"


_formula = jax.jit(square_modes.hyperbolic_mode)
_balanced_formula = jax.jit(square_modes.saxe_mode)


def _column(x):
    return np.asarray(x)[:, None, None]


def _numbers(a: Aligned):
    """Kappa and rates shaped for (members, times, modes)."""
    return {"kappa": _column(a.terms.kappa), "rates": tuple(map(_column, a.terms.rates))}


@functools.cache
def _moved(size: Size, members: int, balanced: bool):
    """Times, prototypes and features of the matrix flow, over twelve time constants of its fastest mode."""
    a = aligned(size, members, balanced=balanced)
    fastest = np.hypot(a.sigma + np.abs(a.start), 0.5 * np.abs(a.imbalance)).max(axis=1)
    times = 12 / (a.terms.kappa * a.terms.speed * fastest)[:, None] * FRACTIONS
    start = a.prototypes, a.features
    return a, times, *integrate(velocity_of(a.targets, a.terms), start, times, 9)


def _apart(a: Aligned, strengths, w, h):
    """The whole matrix W H against the modes, over the larger of the targets and the start; worst over time."""
    scale = np.maximum(norm_of(a.targets), norm_of(a.prototypes @ a.features))
    return (norm_of(w @ h - a.matrix(np.asarray(strengths))) / scale[:, None]).max(axis=1)


def _saxe(size: Size, members: int):
    a, times, w, h = _moved(size, members, True)
    t, decay = times[:, :, None], _column(a.terms.decay)
    return _apart(a, _balanced_formula(a.start[:, None], a.sigma[:, None], t, decay=decay, **_numbers(a)), w, h)


def _hyperbolic(size: Size, members: int):
    a, times, w, h = _moved(size, members, False)
    t = times[:, :, None]
    return _apart(a, _formula(a.start[:, None], a.sigma[:, None], a.imbalance[:, None], t, **_numbers(a)), w, h)


def _conserved(size: Size, members: int):
    """Each mode's imbalance along the matrix flow, over the size of its two sides."""
    a, _, w, h = _moved(size, members, False)
    skew = np.sqrt(a.terms.features / a.terms.weights)[:, None, None]
    w2 = skew * np.square(a.left.swapaxes(1, 2)[:, None] @ w).sum(axis=-1)
    h2 = np.square(h @ a.right.swapaxes(1, 2)[:, None]).sum(axis=-2) / skew
    return (np.abs(w2 - h2 - a.imbalance[:, None]) / (w2 + h2)).max(axis=(1, 2))


def _half(members: int) -> Measured:
    """u at the predicted half time over half of where it ends, by integrating the scalar law."""
    rng = np.random.default_rng(5)
    kappa, speed, sigma = 10 ** rng.uniform(-1, 1, (3, members))
    decay = kappa * sigma * rng.uniform(0, 0.9, members)
    end = sigma - decay / kappa
    start = end * 10 ** rng.uniform(-4, -0.4, members)
    half = square_modes.saxe_half_time(start, sigma, decay=decay, kappa=kappa, rates=(speed, speed))
    velocity = lambda x: (2 * speed * x[0] * (kappa * (sigma - x[0]) - decay),)
    (u,) = integrate(velocity, (start,), np.asarray(half)[:, None], 30)
    return Measured.worst(np.abs(u[:, 0] / (0.5 * end) - 1))


def _lazy(members: int) -> Measured:
    """The distance to the exponential, at imbalances ten times apart: by which factor it falls, against 100."""
    rng = np.random.default_rng(6)
    start, sigma = rng.uniform(0.2, 1, (2, members))
    times = np.broadcast_to([0.3, 1.0, 3.0], (members, 3))  # of the exponential
    distances = []
    for half in (30.0, 300.0):
        velocity = lambda x, half=half: (np.sqrt(half**2 + x[0] ** 2) / half * (sigma - x[0]),)
        (u,) = integrate(velocity, (start,), times, 12)
        plain = sigma[:, None] + (start - sigma)[:, None] * np.exp(-times)
        distances.append(np.abs(u - plain).max(axis=1))
    return Measured.worst(np.abs(distances[0] / distances[1] / 100 - 1))


_saxe_claim = functools.partial(Claim, id="mse.saxe_mode", source=SAXE)
_hyperbolic_claim = functools.partial(Claim, id="mse.hyperbolic_mode", source=BRAUN)
_BALANCED = ("start aligned with the targets", "balanced", "any kappa, rates", "each decay times its rate the same")
_FREE = ("start aligned with the targets", "any imbalance and sign of each mode", "any kappa, rates", "no decay")


def _draw(folder: Path) -> list[Path]:
    sheet, axes = plotting.page(2, 2, title="Aligned modes of the square loss")
    _staircase(axes[0, 0])
    _decayed(axes[0, 1])
    _rich_to_lazy(axes[1, 0])
    _wrong_sign(axes[1, 1])
    plotting.legend(sheet, axes[0, 0])
    return plotting.save(sheet, folder, "square-modes")


def _staircase(ax):
    """Simulated by the library: every sample's feature, whole prototypes."""
    sizes, begin, ts = np.array([27, 9, 3, 1]), 1e-3, np.linspace(0, 330, 166)
    problem = dyn.LayerPeeled(np.repeat(np.arange(4), sizes), num_classes=4, loss=dyn.losses.SquaredError())
    hot = np.repeat(np.eye(4), sizes, axis=0)
    state = dyn.Peeled(hot / np.sqrt(sizes)[problem.labels, None] * begin**0.5, np.eye(4) * begin**0.5)
    moved = dyn.flow(problem, state, dyn.Rates.equal(1.0), ts, observe={"logit": _own_logits})
    plotting.label(ax, "imbalanced classes are learnt one by one", r"time $t$", "logit of the own class")
    for k, (size, color) in enumerate(zip(sizes, plotting.COLORS, strict=False)):
        u = _balanced_formula(begin, size**0.5, ts, kappa=1 / sizes.sum())
        plotting.simulated(ts, moved.observed["logit"][:, k], ax=ax, color=color, label=f"{size} samples")
        plotting.theory(ts, u / size**0.5, ax=ax, color=color)


def _own_logits(problem, state):
    """The mean logit of each class's own samples."""
    hot = jax.nn.one_hot(problem.labels, problem.num_classes)
    return jax.numpy.sum(hot * problem.logits(state), axis=0) / hot.sum(axis=0)


def _decayed(ax):
    ts = np.concatenate([np.geomspace(0.02, 0.5, 15), np.arange(1, 300, 0.75)])
    decays = np.array([0.0, 0.5, 0.9, 1.0, 1.1])
    velocity = lambda x: (2 * x[0] * (1 - decays - x[0]),)
    (u,) = integrate(velocity, (np.full(5, 0.1),), np.broadcast_to(ts, (5, ts.size)), 1)
    plotting.label(ax, r"decay $\mu$: survival, death, $1/t$ between", r"time $t$", r"strength $u/\sigma$", log=True)
    ax.set_xscale("log")
    ax.set_ylim(1e-5, 5)
    for k, color in zip(range(5), plotting.COLORS, strict=False):
        plotting.simulated(ts, u[k], ax=ax, color=color)
        plotting.theory(ts, _balanced_formula(0.1, 1.0, ts, decay=decays[k]), ax=ax, color=color)
        ax.annotate(rf"$\mu={decays[k]:g}\,\kappa\sigma$", (*_ANCHORS[k],), color=color, fontsize=8)


_ANCHORS = ((35, 1.4), (35, 0.2), (35, 0.045), (60, 1.4e-2), (1.6, 2.2e-4))


def _unbalanced(ax, starts, imbalances, ts):
    starts, halves = np.asarray(starts, float), 0.5 * np.asarray(imbalances)
    velocity = lambda x: (2 * np.sqrt(halves**2 + x[0] ** 2) * (1 - x[0]),)
    (u,) = integrate(velocity, (starts,), np.broadcast_to(ts[1:], (starts.size, ts.size - 1)), 3)
    for k, color in zip(range(starts.size), plotting.COLORS, strict=False):
        plotting.simulated(ts[1:], u[k], ax=ax, color=color, label=rf"$\delta={imbalances[k]:g}\,\sigma$")
        plotting.theory(ts, _formula(starts[k], 1.0, imbalances[k], ts), ax=ax, color=color)


def _rich_to_lazy(ax):
    plotting.label(ax, "from balanced to lazy", r"time $t$", r"strength $u/\sigma$")
    _unbalanced(ax, [0.01] * 5, [0.0, 0.1, 1.0, 4.0, 16.0], np.linspace(0, 4, 161))
    ax.legend(loc="lower right", frameon=False, fontsize=8.5)


def _wrong_sign(ax):
    plotting.label(ax, "starts of the wrong sign", r"time $t$", r"strength $u/\sigma$")
    _unbalanced(ax, [-0.5] * 5, [0.0, 1e-3, 0.03, 0.3, 3.0], np.linspace(0, 10, 201))
    ax.legend(loc="lower right", ncols=2, frameon=False, fontsize=8.5)


EXPERIMENT = Experiment(
    name="square-modes",
    family="square-loss",
    summary="aligned modes of the square loss, balanced and not",
    claims=(
        _saxe_claim(
            name="saxe-mode",
            statement="flow of whole matrices: W H has modes u0 v/(u0 + (v-u0) exp(-2 kappa s v t)), v = sigma - mu/kappa",
            assumptions=_BALANCED,
            tolerance=5e-12,
            check=functools.partial(worst_of, _saxe),
        ),
        _saxe_claim(
            name="saxe-half-time",
            statement="at log(v/u0 - 1)/(2 kappa s v) the mode is at half of v",
            assumptions=("0 < u0 < v",),
            tolerance=5e-12,
            check=_half,
        ),
        _hyperbolic_claim(
            name="hyperbolic-mode",
            statement="flow of whole matrices: each mode by the hyperbolic law, sigma = 0 and equal sigma included",
            assumptions=_FREE,
            tolerance=3e-11,
            check=functools.partial(worst_of, _hyperbolic),
        ),
        _hyperbolic_claim(
            name="hyperbolic-imbalance",
            statement="sqrt(eta1/eta2) w^2 - sqrt(eta2/eta1) h^2 of each mode is constant",
            assumptions=_FREE,
            tolerance=3e-11,
            check=functools.partial(worst_of, _conserved),
        ),
        _hyperbolic_claim(
            name="hyperbolic-lazy",
            statement="|delta| >> sigma: exponential at rate kappa s |delta| up to (sigma/delta)^2 (residual: factor/100 - 1)",
            assumptions=("|delta| = 60 and 600, sigma <= 1",),
            tolerance=1e-3,
            check=_lazy,
        ),
    ),
    draw=_draw,
)
