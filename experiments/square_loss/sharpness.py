"""Tangent kernel and sharpness of the square loss with both layers free, and where gradient descent stops being stable."""

import functools
from pathlib import Path

import jax
import numpy as np

import dynamics as dyn
from dynamics import plotting
from dynamics.exact import square_modes
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.instances import SIZES, Size, worst_of
from experiments.shared.oracles import column
from experiments.shared.square_modes import Terms, norm_of, one_hot, orthogonal, terms

FITTED = (Size(3, 2, 4), Size(2, 3, 2), Size(3, 2, 3))
"""With dim >= classes: there are points that fit all targets."""
EDGE = Size(3, 4, 5)
STEPS = 200
SOURCE = "derived here"
_spectrum = jax.jit(jax.vmap(lambda h, w, rates: square_modes.kernel_spectrum(h, w, rates=rates)))


@functools.cache
def _point(size: Size, members: int, fitted: bool):
    """Terms, targets, prototypes, features (as columns): any, or such that they fit."""
    rng = np.random.default_rng([53, *size, fitted])
    samples = size.classes * size.per_class
    w, h = rng.normal(size=(members, size.classes, size.dim)), rng.normal(size=(members, size.dim, samples))
    soft = rng.normal(size=(members, size.classes, samples))
    y = np.where(rng.uniform(size=(members, 1, 1)) < 0.5, one_hot([size.per_class] * size.classes), soft)
    if fitted:
        h = h + np.linalg.pinv(w) @ (y - w @ h)
    return terms(rng, members), y, w, h


def _gradient(t: Terms, y, w, h):
    wrong = column(t.kappa) * (w @ h - y)
    return wrong @ h.swapaxes(1, 2), w.swapaxes(1, 2) @ wrong


def _flat(w, h):
    return np.concatenate([w.reshape(len(w), -1), h.reshape(len(h), -1)], axis=1)


def _units(w, h):
    """Each entry of W and H in turn: what is added to them, and the rate it moves at (0: weights, 1: features)."""
    for index in np.ndindex(w.shape[1:]):
        unit = np.zeros(w.shape[1:])
        unit[index] = 1.0
        yield unit, np.zeros(h.shape[1:]), 0
    for index in np.ndindex(h.shape[1:]):
        unit = np.zeros(h.shape[1:])
        unit[index] = 1.0
        yield np.zeros(w.shape[1:]), unit, 1


def _kernel(t: Terms, w, h):
    """Entry by entry: derivatives of all logits, squared and summed with the rates."""
    rates, total = (t.weights, t.features), 0.0
    for unit_w, unit_h, kind in _units(w, h):
        moved = (unit_w @ h + w @ unit_h).reshape(len(w), -1)
        total = total + rates[kind][:, None, None] * moved[:, :, None] * moved[:, None, :]
    return total


def _ntk(size: Size, members: int):
    """All eigenvalues, over the largest."""
    t, _, w, h = _point(size, members, False)
    dense = np.linalg.eigvalsh(_kernel(t, w, h))
    found = np.sort(np.reshape(_spectrum(h.swapaxes(1, 2), w, t.rates), dense.shape), axis=1)
    return np.abs(found - dense).max(axis=1) / dense[:, -1]


def _velocity(size: Size, members: int):
    """The logits' velocity under the flow."""
    t, y, w, h = _point(size, members, False)
    grad_w, grad_h = _gradient(t, y, w, h)
    moved = -column(t.weights) * grad_w @ h - w @ (column(t.features) * grad_h)
    own = column(t.weights) * (w @ h - y) @ h.swapaxes(1, 2) @ h + column(t.features) * w @ w.swapaxes(1, 2) @ (w @ h - y)
    dense = (_kernel(t, w, h) @ (w @ h - y).reshape(len(w), -1, 1)).reshape(moved.shape)
    error = np.maximum(norm_of(moved + column(t.kappa) * dense), norm_of(moved + column(t.kappa) * own))
    return error / norm_of(moved)


def _hessian(t: Terms, y, w, h, step: float = 1e-30):
    """Column by column, by complex steps of the gradient: exact to rounding."""
    columns = []
    for unit_w, unit_h, _ in _units(w, h):
        columns.append(np.imag(_flat(*_gradient(t, y, w + 1j * step * unit_w, h + 1j * step * unit_h))) / step)
    return np.stack(columns, axis=2)


def _sharpness(size: Size, members: int):
    t, y, w, h = _point(size, members, True)
    top = np.linalg.eigvalsh(_hessian(t, y, w, h))[:, -1]
    largest = lambda x: np.linalg.norm(x, ord=2, axis=(1, 2)) ** 2
    kernel = np.asarray(_spectrum(h.swapaxes(1, 2), w, (np.ones(members), np.ones(members)))).max(axis=(1, 2))
    by_norms, by_kernel = t.kappa * (largest(w) + largest(h)), t.kappa * kernel
    return np.maximum(np.abs(by_norms / top - 1), np.abs(by_kernel / top - 1))


def _minimum(size: Size, members: int):
    """Prototypes and features (samples, dim) of the balanced points that fit one-hot targets, turned at random."""
    rng = np.random.default_rng([59, *size])
    turn = orthogonal(rng, members, size.dim)[:, : size.classes]
    hot = one_hot([size.per_class] * size.classes).T
    return size.per_class**0.25 * turn, hot @ turn / size.per_class**0.25


def _balanced(size: Size, members: int):
    """The top eigenvalue of the Hessian at balanced points of one-hot targets."""
    rng = np.random.default_rng(61)
    t, (w, h) = terms(rng, members), _minimum(size, members)
    y = np.broadcast_to(one_hot([size.per_class] * size.classes), (members, size.classes, h.shape[1]))
    top = np.linalg.eigvalsh(_hessian(t, y, w, h.swapaxes(1, 2)))[:, -1]
    return np.abs(top / (2 * t.kappa * size.per_class**0.5) - 1)


@functools.cache
def _descended(members: int):
    """The step over the threshold, and objectives at iterates 100 and 200 of the library's descent from near a minimum."""
    rng = np.random.default_rng(67)
    relative = 1 + np.where(np.arange(members) % 2 == 0, -1, 1) * rng.uniform(0.005, 0.01, members)
    problem = dyn.LayerPeeled.balanced(EDGE.classes, EDGE.per_class, loss=dyn.losses.SquaredError())
    rate = relative * problem.num_samples / EDGE.per_class**0.5
    w, h = (x + 1e-8 * rng.normal(size=x.shape) for x in _minimum(EDGE, members))

    def one(member):
        rate, w, h = member
        watch = {"loss": lambda problem, state: problem.objective(state)}
        moved = dyn.descent(problem, dyn.Peeled(h, w), dyn.Rates.equal(rate), STEPS, every=STEPS // 2, observe=watch)
        return moved.observed["loss"]

    return relative, np.asarray(dyn.ensemble.run(one, (rate, w, h), progress=False).values)


def _edge(members: int) -> Measured:
    """Members that settle above the threshold or blow up below it."""
    relative, losses = _descended(members)
    wrong = (losses[:, 2] > losses[:, 1]) != (relative > 1)
    return Measured(float(wrong.mean()), members, "", {"members above": float((relative > 1).mean())})


def _multiplier(members: int) -> Measured:
    """The factor of a step, |1 - 2 step/threshold|, from the losses of a hundred steps."""
    relative, losses = _descended(members)
    factor = (losses[:, 2] / losses[:, 1]) ** (1 / STEPS)
    return Measured.worst(np.abs(factor / np.abs(1 - 2 * relative) - 1))


def _draw(folder: Path) -> list[Path]:
    sheet, axes = plotting.page(1, 2, title="Sharpness where one-hot targets are fitted, and the edge of stability")
    w0, h0 = (x[0] for x in _minimum(EDGE, 1))
    rng = np.random.default_rng(2)
    start = [x + 1e-6 * rng.normal(size=x.shape) for x in (w0, h0)]
    hot = one_hot([EDGE.per_class] * EDGE.classes).T
    threshold, steps = len(hot) / EDGE.per_class**0.5, np.arange(101)

    def losses(relative):
        (w, h), found = start, []
        for _ in steps:
            wrong = (h @ w.T - hot) / len(hot)
            found.append(0.5 * len(hot) * np.sum(wrong**2))
            w, h = w - relative * threshold * wrong.T @ h, h - relative * threshold * wrong @ w
        return np.array(found)

    left, right = axes[0]
    plotting.label(left, r"descent at steps about $1/(\kappa\sqrt{n})$", "iterate", "loss", log=True)
    for relative, color in zip((0.95, 0.99, 1.01, 1.03), plotting.COLORS, strict=False):
        found = losses(relative)
        plotting.simulated(steps, found, ax=left, color=color, label=rf"step ${relative:g}/(\kappa\sqrt{{n}})$")
        factor = np.abs(1 - 2 * relative)
        plotting.theory(steps[30:], found[30] * factor ** (2.0 * (steps[30:] - 30)), ax=left, color=color)
    plotting.label(right, "factor of a step", r"step $\times\,\kappa\sqrt{n}$", r"$\sqrt{L_{k+1}/L_k}$")
    around = np.linspace(0.85, 1.04, 20)
    measured = [np.sqrt(found[60] / found[40]) ** 0.05 for found in map(losses, around)]
    plotting.simulated(around, measured, ax=right)
    plotting.theory(around, np.abs(1 - 2 * around), ax=right)
    right.axvline(1.0, color="0.6", linewidth=0.8)
    right.axhline(1.0, color="0.6", linewidth=0.8)
    right.annotate("stable", (0.93, 1.02), color="0.4")
    right.annotate("unstable", (1.003, 0.8), color="0.4")
    plotting.legend(sheet, left)
    return plotting.save(sheet, folder, "square-sharpness")


_ntk_claim = functools.partial(Claim, id="mse.ntk", source=SOURCE, assumptions=("any W, H, Y", "any kappa, rates"))
_claim = functools.partial(Claim, id="mse.sharpness", source=SOURCE)
_ONE_HOT = ("balanced classes, one-hot", "balanced point that fits them", "unit rates")

EXPERIMENT = Experiment(
    name="square-sharpness",
    family="square-loss",
    summary="tangent kernel, sharpness, and the largest stable step",
    claims=(
        _ntk_claim(
            name="ntk-spectrum",
            statement="eigenvalues of the kernel of vec(W H) are all sums eta2 eig(H'H) + eta1 eig(W W')",
            tolerance=4.4e-15,
            check=functools.partial(worst_of, _ntk, sizes=SIZES),
        ),
        _ntk_claim(
            name="ntk-velocity",
            statement="(W H)' = -kappa [eta2 (W H - Y) H'H + eta1 W W'(W H - Y)], the kernel applied to the residual",
            tolerance=1e-14,
            check=functools.partial(worst_of, _velocity, sizes=SIZES),
        ),
        _claim(
            name="sharpness",
            statement="top eigenvalue of the Hessian = kappa (|W|^2 + |H|^2), spectral norms",
            assumptions=("W H = Y", "any targets, kappa"),
            tolerance=1e-13,
            check=functools.partial(worst_of, _sharpness, sizes=FITTED),
        ),
        _claim(
            name="sharpness-balanced",
            statement="it is 2 kappa sqrt(n)",
            assumptions=_ONE_HOT[:2],
            tolerance=1e-13,
            check=functools.partial(worst_of, _balanced, sizes=FITTED),
        ),
        _claim(
            name="sharpness-edge",
            statement="descent is stable iff its rate is below 1/(kappa sqrt(n)) (residual: exceptions)",
            assumptions=(*_ONE_HOT, "rates 0.5 to 1 % off, kappa = 1/samples"),
            tolerance=0.0,
            check=_edge,
        ),
        _claim(
            name="sharpness-factor",
            statement="a step multiplies the distance by |1 - 2 rate kappa sqrt(n)|",
            assumptions=(*_ONE_HOT, "rates 0.5 to 1 % off, kappa = 1/samples"),
            tolerance=1e-6,
            check=_multiplier,
        ),
    ),
    draw=_draw,
)
