"""The central path: decomposition of the loss, its value in signal-to-noise ratios, and their flow; with figure."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import plotting
from dynamics.exact import square_modes
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.central_features import (
    TIMES,
    class_means,
    covariance,
    least_squares_loss,
    moved_features,
    projected_velocity,
    signal_to_noise,
    targets_of,
    unit_start,
)
from experiments.shared.instances import Size, worst_of
from experiments.shared.square_modes import integrate, norm_of, orthogonal

SOURCE = "X. Y. Han, V. Papyan, D. Donoho (2022); constants and closed form of the loss: derived here"
SIZES = (Size(3, 3, 3), Size(2, 3, 2), Size(4, 2, 2))
"""The last has dim < classes - 1. Deviations span all dimensions: classes (per_class - 1) >= dim."""
_omega = jax.jit(square_modes.central_omega, static_argnums=(2, 3))


def _decomposition(size: Size, members: int, *, bias: bool):
    """Any features, prototypes, decay; all three parts against the loss summed over samples. Over the loss."""
    rng = np.random.default_rng([91, *size, bias])
    samples, hot = size.classes * size.per_class, targets_of(size)
    x = rng.normal(size=(members, size.dim, samples)) + 2 * rng.normal(size=(members, size.dim, size.classes)) @ hot
    if bias:
        x = np.concatenate([x, np.ones((members, 1, samples))], axis=1)
    eye, decay = np.eye(x.shape[1]), 10 ** rng.uniform(-2, 1, (members, 1, 1))
    w = rng.normal(size=(members, size.classes, x.shape[1]))
    transposed = lambda z: np.swapaxes(z, -1, -2)
    loss = np.square(w @ x - hot).sum(axis=(1, 2)) / (2 * samples) + decay[:, 0, 0] / 2 * np.square(w).sum(axis=(1, 2))

    means, centred = class_means(x, size)
    mean, within = means.mean(axis=-1, keepdims=True), covariance(x - means @ hot)
    a = within + covariance(centred) + mean @ transposed(mean) + decay * eye
    best = transposed(np.linalg.solve(a, means)) / size.classes
    off = w - best
    parts = (
        0.5 * np.trace(best @ (within + decay * eye) @ transposed(best), axis1=1, axis2=2),
        np.square(best @ means - np.eye(size.classes)).sum(axis=(1, 2)) / (2 * size.classes),
        0.5 * np.trace(off @ a @ transposed(off), axis1=1, axis2=2),
    )
    return np.abs(sum(parts) / loss - 1)


def _flow(size: Size, members: int):
    found = signal_to_noise(moved_features(size, members), size)
    formula = _omega(found[:, :1], np.concatenate([[0.0], TIMES])[:, None], size.per_class, size.classes)
    return np.abs(found / np.asarray(formula) - 1).max(axis=(1, 2))


def _zero(size: Size, members: int):
    """A ratio of zero, over the features' norm, until a small one would have grown by exp(2)."""
    times = 2 * size.per_class * size.classes**2 * np.array([0.5, 1.0])
    (x,) = integrate(projected_velocity(size), (unit_start(size, members, zero=True),), np.broadcast_to(times, (members, 2)), 3)
    return (signal_to_noise(x, size)[..., -1] / norm_of(x)).max(axis=1)


def _frozen(size: Size, members: int):
    """Deviations from class means, over their size."""
    x = moved_features(size, members)
    within = x - class_means(x, size)[0] @ targets_of(size)
    return (norm_of(within - within[:, :1]) / norm_of(within[:, :1])).max(axis=1)


def _vectors(size: Size, members: int):
    """Class means at all times between the singular vectors of the start: what is off the diagonal."""
    _, centred = class_means(moved_features(size, members), size)
    u, _, v = np.linalg.svd(centred[:, :1])
    inside = np.swapaxes(u, -1, -2) @ centred @ np.swapaxes(v, -1, -2)
    return (norm_of(inside * (1 - np.eye(*inside.shape[-2:]))) / norm_of(inside)).max(axis=1)


def _loss(size: Size, members: int):
    """Any invertible within-class covariance."""
    rng = np.random.default_rng([101, *size])
    mixing = orthogonal(rng, members, size.dim) * 10 ** rng.uniform(-0.3, 0.3, (members, 1, size.dim))
    x = mixing @ unit_start(size, members)
    return np.abs(
        np.asarray(square_modes.central_loss(jnp.asarray(signal_to_noise(x, size)), size.classes)) - least_squares_loss(x, size)
    )


def _floor(size: Size, members: int):
    """The loss along the flow less the share of the ratios, against the floor."""
    x = moved_features(size, members)
    above = 0.5 * (1 / (size.classes + signal_to_noise(x, size) ** 2)).sum(axis=-1)
    floor = max(size.classes - 1 - size.dim, 0) / (2 * size.classes)
    return np.abs(least_squares_loss(x, size) - above - floor).max(axis=1)


@functools.cache
def _late(members: int):
    """n, C fixed; times, ratios at 1e3 ... 1e30 by the scalar law in logarithmic time, and by the formula."""
    rng = np.random.default_rng(103)
    per_class, classes = 5, 4
    start, unit = 10 ** rng.uniform(-4, 2, (members, 3)), per_class * classes**2
    times = np.array([1e3, 1e6, 1e12, 1e20, 1e30])

    def velocity(state):
        log, clock = state
        return np.exp(clock) * unit / (per_class * (classes + np.exp(2 * log)) ** 2), np.ones_like(clock)

    clocks = np.broadcast_to(np.log1p(times / unit), (members, times.size))
    log, _ = integrate(velocity, (np.log(start), np.zeros((members, 1))), clocks, 80)
    return times, np.exp(log), np.asarray(_omega(start[:, None], times[:, None], per_class, classes)), per_class


def _log_time(members: int) -> Measured:
    _, integrated, formula, _ = _late(members)
    return Measured.worst(np.abs(formula / integrated - 1).max(axis=(1, 2)))


def _power(members: int) -> Measured:
    times, integrated, _, per_class = _late(members)
    return Measured.worst(np.abs(integrated[:, -1] / (4 * times[-1] / per_class) ** 0.25 - 1).max(axis=1))


def _equal(members: int) -> Measured:
    _, integrated, _, _ = _late(members)
    last = integrated[:, -1]
    return Measured.worst(last.max(axis=1) / last.min(axis=1) - 1)


def _draw(folder: Path) -> list[Path]:
    size, start, ts = Size(4, 6, 7), np.array([3.0, 0.6, 0.1]), np.geomspace(1, 1e6, 121)
    sheet, axes = plotting.page(1, 3, title="The central path: signal-to-noise ratios become equal")
    ratios, losses = _path(size, start, ts)
    formula = np.asarray(_omega(start, ts[:, None], size.per_class, size.classes))
    plotting.label(axes[0, 0], r"each ratio $\omega_j$", r"time $t$", r"$\omega_j$", log=True)
    plotting.label(axes[0, 1], "they merge", r"time $t$", r"$\omega_1/\omega_j$", log=True)
    for k, color in zip(range(3), plotting.COLORS, strict=False):
        plotting.simulated(ts, ratios[:, k], ax=axes[0, 0], color=color, label=rf"$\omega_{k + 1}(0)={start[k]:g}$")
        plotting.theory(ts, formula[:, k], ax=axes[0, 0], color=color)
        plotting.simulated(ts, ratios[:, 0] / ratios[:, k], ax=axes[0, 1], color=color)
        plotting.theory(ts, formula[:, 0] / formula[:, k], ax=axes[0, 1], color=color)
    axes[0, 0].plot(ts[40:], (4 * ts[40:] / size.per_class) ** 0.25, color="0.6", linewidth=1, linestyle=":")
    axes[0, 0].annotate(r"$(4t/n)^{1/4}$", (1.5e2, 6), color="0.4")
    plotting.label(axes[0, 2], "the loss, and its floor", r"time $t$", "loss", log=True)
    narrow = Size(4, 6, 2)
    for one, found, color, name in (
        (size, losses, plotting.COLORS[3], "dim $=7$"),
        (narrow, _path(narrow, start[:2], ts)[1], plotting.COLORS[4], "dim $=2$, below $C-1=3$"),
    ):
        omega = _omega(start[: min(one.dim, 3)], ts[:, None], one.per_class, one.classes)
        plotting.simulated(ts, found, ax=axes[0, 2], color=color, label=name)
        plotting.theory(ts, square_modes.central_loss(omega, one.classes), ax=axes[0, 2], color=color)
    axes[0, 2].axhline(1 / 8, color="0.6", linewidth=1, linestyle=":")
    axes[0, 2].legend(loc="lower left", frameon=False, fontsize=8.5)
    for ax in axes[0]:
        ax.set_xscale("log")
    plotting.legend(sheet, axes[0, 0])
    return plotting.save(sheet, folder, "square-central-path")


def _path(size: Size, omega, ts):
    """Ratios and losses of the projected flow of one set of features."""
    x = unit_start(size, 2)[1:]
    means, centred = class_means(x, size)
    u, _, v = np.linalg.svd(centred, full_matrices=False)
    k = len(omega)
    x = x + ((u[:, :, :k] * omega) @ v[:, :k] - centred) @ targets_of(size)
    (path,) = integrate(projected_velocity(size), (x,), ts[None], 1)
    return signal_to_noise(path, size)[0], least_squares_loss(path, size)[0]


_parts = functools.partial(Claim, id="mse.decomposition", source=SOURCE)
_value = functools.partial(Claim, id="mse.central_loss", source=SOURCE)
_motion = functools.partial(Claim, id="mse.central_omega", source=SOURCE)
_check = functools.partial(functools.partial, worst_of, sizes=SIZES)
_FLOW = ("balanced classes", "no decay", "W and b of least squares", "S_W held at the identity, of full rank")

EXPERIMENT = Experiment(
    name="square-central-path",
    family="square-loss",
    summary="decomposition of the square loss, and the flow along its central path",
    claims=(
        _parts(
            name="decomposition",
            statement="loss = tr W_LS (S_W + decay) W_LS'/2 + |W_LS M - I|^2/(2C) + tr (W - W_LS) A (W - W_LS)'/2",
            assumptions=("balanced classes", "any features, prototypes, decay"),
            tolerance=2e-14,
            check=_check(functools.partial(_decomposition, bias=False)),
        ),
        _parts(
            name="decomposition-bias",
            statement="the same with a bias, a feature that is 1 (decay then acts on it too)",
            assumptions=("balanced classes", "any features, prototypes, decay"),
            tolerance=2e-14,
            check=_check(functools.partial(_decomposition, bias=True)),
        ),
        _value(
            name="central-loss",
            statement="least-squares loss = sum over C - 1 ratios of 1/(2 (C + omega^2)), zeros counted",
            assumptions=("balanced classes", "no decay, with bias", "S_W of full rank"),
            tolerance=2.8e-16,
            check=_check(_loss),
        ),
        _value(
            name="central-floor",
            statement="dim < C - 1: the loss stays above (C - 1 - dim)/(2C), by the share of the ratios there are",
            assumptions=_FLOW,
            tolerance=1e-14,
            check=_check(_floor),
        ),
        _motion(
            name="central-omega",
            statement="projected flow to t = 600: n C^2 log w + n C w^2 + (n/4) w^4 grows by t, also for dim < C - 1",
            assumptions=_FLOW,
            tolerance=5.6e-12,
            check=_check(_flow),
        ),
        _motion(
            name="central-frozen",
            statement="deviations from class means do not move",
            assumptions=_FLOW,
            tolerance=6e-14,
            check=_check(_frozen),
        ),
        _motion(
            name="central-vectors",
            statement="singular vectors of the class means do not move",
            assumptions=_FLOW,
            tolerance=1e-12,
            check=_check(_vectors),
        ),
        _motion(
            name="central-zero",
            statement="a ratio of zero stays zero",
            assumptions=(*_FLOW, "three classes or more"),
            tolerance=1e-13,
            check=functools.partial(worst_of, _zero, sizes=SIZES[::2]),
        ),
        _motion(
            name="central-late",
            statement="the formula = the scalar law integrated in logarithmic time, from 1e3 to 1e30",
            assumptions=("ratios from 1e-4 to 1e2",),
            tolerance=5.6e-12,
            check=_log_time,
        ),
        _motion(
            name="central-power",
            statement="omega (4t/n)^(-1/4) -> 1, at t = 1e30",
            assumptions=("ratios from 1e-4 to 1e2",),
            tolerance=5.6e-12,
            check=_power,
        ),
        _motion(
            name="central-equal",
            statement="ratios of ratios -> 1, at t = 1e30",
            assumptions=("ratios from 1e-4 to 1e2",),
            tolerance=5.6e-12,
            check=_equal,
        ),
    ),
    draw=_draw,
)
