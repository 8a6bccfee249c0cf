"""Unconstrained features with a trained bias on the symmetric subspace that small starts line up with; with figure."""

import functools
from pathlib import Path

import jax
import numpy as np

from dynamics import plotting
from dynamics.exact import square_modes
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.instances import SIZES, Size, worst_of
from experiments.shared.oracles import column
from experiments.shared.square_modes import integrate, norm_of, one_hot, orthogonal, terms, velocity_with_bias

SOURCE = "D. Mixon, H. Parshall, J. Pi (2020), any kappa and rates"
FRACTIONS = np.array([0.1, 0.25, 0.5, 1.0])
_eigenvalue = jax.jit(square_modes.mpp_subspace)


@functools.cache
def _symmetric(size: Size, members: int):
    """Terms, the start on the subspace with its singular values, times, and the whole flow.

    Every third member has a singular value of zero.
    """
    rng = np.random.default_rng([79, *size])
    classes, per_class, dim = size
    t, samples, modes = terms(rng, members), classes * per_class, min(classes - 1, dim)
    basis = np.linalg.svd(np.eye(classes) - 1 / classes)[0][:, : classes - 1]
    left = basis @ orthogonal(rng, members, classes - 1)[:, :, :modes]
    values = per_class**0.25 * 10 ** rng.uniform(-1.5, 0.2, (members, modes))
    values[::3, -1] = 0.0
    skew = (t.weights / t.features)[:, None] ** 0.25  # of w over the root of w h
    right = orthogonal(rng, members, dim)[:, :modes]
    w = (left * (skew * values)[:, None]) @ right
    hot = one_hot([per_class] * classes)
    h = w.swapaxes(1, 2) @ hot * column(np.sqrt(t.features / t.weights)) / per_class**0.5
    # off the subspace, rounding of 1'W grows by exp(sqrt(n) (s/eta2) |1 - K b0|/N): a start that keeps this below e
    reach = np.minimum(1.0, t.weights * samples / (classes * t.speed * per_class**0.5))
    b = np.broadcast_to(column(1 / classes + reach * rng.uniform(-1, 1, members)), (members, classes, 1))
    fastest = t.kappa * np.maximum(4 * t.speed * per_class**0.5, t.weights * samples)
    times = 12 / fastest[:, None] * FRACTIONS
    return t, (left, right, skew * values), (w, h, b), times, integrate(velocity_with_bias(hot, t), (w, h, b), times, 6)


def _gram(size: Size, members: int):
    """W itself, not only its Gram matrix: singular vectors stay and eigenvalues are logistic; over the limit."""
    t, (left, right, values), _, times, (moved, _, _) = _symmetric(size, members)
    wide = lambda x: x[:, None, None]
    squares = _eigenvalue(
        values[:, None] ** 2, times[:, :, None], size.per_class, kappa=wide(t.kappa), rates=tuple(map(wide, t.rates))
    )
    formula = (left[:, None] * np.sqrt(squares)[:, :, None]) @ right[:, None]
    gram = lambda x: x @ np.swapaxes(x, -1, -2)
    limit = (np.sqrt(size.per_class * t.weights / t.features) * values.shape[1] ** 0.5)[:, None]
    return np.maximum(norm_of(gram(moved) - gram(formula)) / limit, norm_of(moved - formula) / np.sqrt(limit)).max(axis=1)


def _invariant(size: Size, members: int):
    """The velocity at random points of the subspace: how far off its tangent, over its size.

    Points and velocities in 80 bits: how float64 sums round depends on the processor.
    """
    t, _, (w, _, b), _, _ = _symmetric(size, members)
    hot = one_hot([size.per_class] * size.classes).astype(np.longdouble)
    t = type(t)(*(np.asarray(part, np.longdouble) for part in t))
    w = w - np.mean(w, axis=1, keepdims=True, dtype=np.longdouble)
    state = w, w.swapaxes(1, 2) @ hot * column(np.sqrt(t.features / t.weights / size.per_class)), b.astype(np.longdouble)
    w, h, b = velocity_with_bias(hot, t)(state)
    copies = w.swapaxes(1, 2) @ hot * column(np.sqrt(t.features / t.weights / size.per_class))
    off = norm_of(h - copies), norm_of(w.mean(axis=1, keepdims=True)), norm_of(b - b.mean(axis=1, keepdims=True))
    w, h = norm_of(state[0]), norm_of(state[1])
    pull = t.kappa * (1 + w * h) * np.array([t.features * (1 + w), t.weights * (1 + h), t.weights])
    return np.max(np.array(off) / (pull * size.per_class**0.5 * size.classes), axis=0).astype(float)


def _bias(size: Size, members: int):
    t, _, (_, _, b), times, (_, _, biases) = _symmetric(size, members)
    samples = size.classes * size.per_class
    formula = square_modes.mpp_bias(b[:, 0], times, size.classes, samples, kappa=t.kappa[:, None], rate=t.weights[:, None])
    return np.abs(biases[..., 0].mean(axis=-1) - formula).max(axis=1) / np.maximum(np.abs(b[:, 0, 0]), 1.0)


def _rank(size: Size, members: int):
    """The singular value that starts at zero, over the limit of the others; members whose start has none count as zero."""
    t, (_, _, values), _, _, (w, _, _) = _symmetric(size, members)
    smallest = np.linalg.svd(w, compute_uv=False)[:, :, values.shape[1] - 1].max(axis=1)
    return np.where(values[:, -1] == 0, smallest / (size.per_class * t.weights / t.features) ** 0.25, 0.0)


def _collapse(size: Size, members: int):
    """The end of a start on the subspace of full rank, equal rates: W W', b; over sqrt(n)."""
    rng = np.random.default_rng([83, *size])
    classes, per_class, dim = size
    t = terms(rng, members)
    t = t._replace(weights=t.features)
    w = orthogonal(rng, members, dim)[:, : classes - 1] * rng.uniform(0.3, 2, (members, classes - 1, 1))
    w = np.linalg.svd(np.eye(classes) - 1 / classes)[0][:, : classes - 1] @ w
    hot = one_hot([per_class] * classes)
    h, b = w.swapaxes(1, 2) @ hot / per_class**0.5, np.broadcast_to(rng.normal(size=(members, 1, 1)), (members, classes, 1))
    times = 36 / (2 * t.kappa * t.speed * per_class**0.5)[:, None] * np.array([0.3, 1.0])
    w, _, b = integrate(velocity_with_bias(hot, t), (w, h, b), times, 30)
    gram = w[:, -1] @ w[:, -1].swapaxes(1, 2) - per_class**0.5 * (np.eye(classes) - 1 / classes)
    return np.maximum(norm_of(gram) / per_class**0.5, np.abs(b[:, -1] - 1 / classes).max(axis=(1, 2)))


def _draw(folder: Path) -> list[Path]:
    sheet, axes = plotting.page(1, 3, title="Unconstrained features with a trained bias")
    classes, per_class, dim = 4, 6, 5
    rng, hot, ts = (
        np.random.default_rng(4),
        one_hot([per_class] * classes),
        np.concatenate([np.linspace(0.005, 0.4, 80), np.linspace(0.42, 4, 160)]),
    )
    one = terms(rng, 1)._replace(**{name: np.ones(1) for name in ("kappa", "features", "weights")})
    basis, values = np.linalg.svd(np.eye(classes) - 1 / classes)[0][:, : classes - 1], np.array([0.5, 0.08, 0.0])
    w = ((basis * values) @ orthogonal(rng, 1, dim)[0, :3])[None]
    start = w, w.swapaxes(1, 2) @ hot / per_class**0.5, np.full((1, classes, 1), -0.5)
    w, _, b = integrate(velocity_with_bias(hot, one), start, ts[None], 1)
    plotting.label(axes[0, 0], "on the symmetric subspace", r"time $t$", r"eigenvalues of $WW^\top/\sqrt{n}$")
    plotting.label(axes[0, 1], "the bias there", r"time $t$", r"$b$")
    squares = np.linalg.svd(w[0], compute_uv=False)[:, :3] ** 2
    for k, color in zip(range(3), plotting.COLORS, strict=False):
        label = "starts at 0, stays" if values[k] == 0 else rf"starts at ${values[k] ** 2 / per_class**0.5:.4f}$"
        plotting.simulated(ts, squares[:, k] / per_class**0.5, ax=axes[0, 0], color=color, label=label)
        plotting.theory(ts, _eigenvalue(values[k] ** 2, ts, per_class) / per_class**0.5, ax=axes[0, 0], color=color)
    plotting.simulated(ts, b[0, :, 0, 0], ax=axes[0, 1], color=plotting.COLORS[3])
    formula = square_modes.mpp_bias(-0.5, ts, classes, classes * per_class)
    plotting.theory(ts, formula, ax=axes[0, 1], color=plotting.COLORS[3])
    axes[0, 1].set_xlim(0, 0.4)
    plotting.label(axes[0, 2], "small starts line up with it", r"time $t$", r"$\|P(W-G^\top)\|/\|P(W+G^\top)\|$", log=True)
    centred = np.eye(classes) - 1 / classes
    for scale, color in zip((1e-1, 1e-2, 1e-4), plotting.COLORS[4:], strict=False):
        w, h = scale * rng.normal(size=(1, classes, dim)), scale * rng.normal(size=(1, dim, classes * per_class))
        w, h, _ = integrate(velocity_with_bias(hot, one), (w, h, np.zeros((1, classes, 1))), ts[None], 1)
        side = np.swapaxes(h[0] @ hot.T, 1, 2) / per_class**0.5
        ratio = norm_of(centred @ (w[0] - side)) / norm_of(centred @ (w[0] + side))
        plotting.simulated(ts, ratio, ax=axes[0, 2], color=color, label=f"entries of {scale:g}")
        plotting.theory(ts, ratio[0] * np.exp(-2 * per_class**0.5 * (ts - ts[0])), ax=axes[0, 2], color=color)
    axes[0, 2].legend(loc="lower left", frameon=False, fontsize=8.5)
    axes[0, 2].set_ylim(1e-9, 10)
    plotting.legend(sheet, axes[0, 0])
    return plotting.save(sheet, folder, "square-trained-bias")


_on = functools.partial(Claim, id="mse.mpp_subspace", source=SOURCE)
_check = functools.partial(functools.partial, worst_of, sizes=SIZES)
_SUBSPACE = (
    "balanced classes, one-hot",
    "no decay",
    "1'W = 0, H = sqrt(eta1/(n eta2)) (W x 1)', b in the span of 1 at the start",
)

EXPERIMENT = Experiment(
    name="square-trained-bias",
    family="square-loss",
    summary="unconstrained features with a trained bias on the symmetric subspace",
    claims=(
        _on(
            name="mpp-subspace",
            statement="W keeps its singular vectors; eigenvalues of W W' are logistic, to sqrt(n eta2/eta1)",
            assumptions=_SUBSPACE,
            tolerance=2e-13,
            check=_check(_gram),
        ),
        _on(
            name="mpp-invariant",
            statement="the subspace is invariant: velocities are tangent to it",
            assumptions=_SUBSPACE,
            tolerance=5.6e-16,
            check=_check(_invariant),
        ),
        _on(
            name="mpp-bias",
            statement="b = 1/K + (b0 - 1/K) exp(-eta2 kappa N t)",
            assumptions=_SUBSPACE,
            tolerance=1.7e-12,
            check=_check(_bias),
        ),
        _on(
            name="mpp-rank",
            statement="a zero eigenvalue of W W' stays zero: collapse needs rank K - 1",
            assumptions=_SUBSPACE,
            tolerance=1e-13,
            check=_check(_rank),
        ),
        _on(
            name="mpp-collapse",
            statement="starts of rank K - 1 end at W W' = sqrt(n) (I - 11'/K), b = 1/K",
            assumptions=(*_SUBSPACE, "equal rates"),
            tolerance=1e-13,
            check=functools.partial(worst_of, _collapse, sizes=SIZES[:2]),
        ),
    ),
    draw=_draw,
)
