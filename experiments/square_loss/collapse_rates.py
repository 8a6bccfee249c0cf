"""Balanced starts of both layers: how fast each sign of neural collapse appears, and the mode that a free bias leaves over."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dynamics import plotting
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.instances import Size, worst_of
from experiments.shared.square_collapse import AT, SIZES, balanced_start, collapsed
from experiments.shared.square_modes import integrate, norm_of, one_hot, velocity_of

DERIVED = "derived here"


def _slope(values, rate: float):
    """Minus the slope of the logarithm between the last two times, against a rate."""
    return np.abs(np.log(values[:, -2] / values[:, -1]) / (AT[-1] - AT[-2]) / rate - 1)


def _within(size: Size, members: int):
    return _slope(norm_of(collapsed(size, members, False).within), 1.0)


def _whole(size: Size, members: int):
    return _slope(norm_of(collapsed(size, members, False).fitted), 1.0)


def _ratio(size: Size, members: int):
    return _slope(collapsed(size, members, False).ratio, 2.0)


def _straight(size: Size, members: int):
    """The second difference, over equal steps, of class means of W H - Y times the exponential."""
    x = AT[5:8]
    lifted = collapsed(size, members, False).own[:, 5:8] * np.exp(2 * x)[:, None, None]
    return norm_of(lifted[:, 0] - 2 * lifted[:, 1] + lifted[:, 2]) / norm_of(lifted[:, 1])


class Lifted(NamedTuple):
    """The same by the exact solution for balanced starts, its exponentials taken out: any time, no cancellation."""

    own: np.ndarray
    within: np.ndarray
    whole: np.ndarray


def _lifted(size: Size, members: int, x: float) -> Lifted:
    """At x = kappa s sqrt(n) t: class means over e^(-2x), deviations and the whole residual over e^(-x)."""
    s, root = balanced_start(size, members, False), size.per_class**0.5
    hot = one_hot([size.per_class] * size.classes)
    sides, rest = hot / root @ s.turn @ s.half, s.turn @ s.half
    rest = rest - hot.T / root @ sides
    up, down = (sides + s.half) / 2**0.5, (sides - s.half) / 2**0.5
    square, fade = lambda z: z.swapaxes(1, 2) @ z, np.exp(-2 * x)
    # time in units of 1/(kappa s root), strengths in units of one: the pull is root, the rate 1
    others = np.eye(size.classes) + (square(down) * (1 - fade) / 2 + square(rest) * x) / root
    ends = square(up) / (2 * root)
    inner = np.linalg.inv((1 - fade) * ends + fade * others)
    moved = lambda a, b, middle=inner: a @ middle @ b.swapaxes(1, 2)
    first = moved(up, up, inner @ (ends - others) @ np.linalg.inv(ends))
    own = 0.5 * (first + moved(up, down) - moved(down, up) - fade * moved(down, down))
    across = moved(up - fade * down, rest) / 2**0.5
    within = np.sqrt(np.trace(moved(rest, rest), axis1=1, axis2=2)) * (s.terms.features / s.terms.weights) ** 0.25
    return Lifted(own, within, np.sqrt(fade * norm_of(own) ** 2 + norm_of(across) ** 2))


def _exactly(size: Size, members: int):
    """The integrated flow against the exact solution, at the first six times."""
    seen, errors = collapsed(size, members, False), []
    for k, x in enumerate(AT[:6]):
        exact = _lifted(size, members, x)
        scale = size.classes**0.5 * size.per_class**0.5
        errors.append(norm_of(seen.own[:, k] - np.exp(-2 * x) * exact.own) / scale)
        errors.append(np.abs(norm_of(seen.within[:, k]) / (np.exp(-x) * exact.within) - 1))
        errors.append(np.abs(norm_of(seen.fitted[:, k]) / (np.exp(-x) * exact.whole) - 1))
    return np.max(errors, axis=0)


def _late(size: Size, members: int):
    """All three rates between x = 1e6 and 2e6."""
    first, second = _lifted(size, members, 1e6), _lifted(size, members, 2e6)
    drift = lambda a, b, rate: np.abs(np.log(b / a) / (1e6 * rate))
    own = drift(norm_of(first.own), norm_of(second.own), 2.0)
    return np.max([own, drift(first.within, second.within, 1.0), drift(first.whole, second.whole, 1.0)], axis=0)


def _draw(folder: Path) -> list[Path]:
    sheet, axes = plotting.page(1, 2, title="Neural collapse under the square loss, both layers free")
    size = Size(4, 5, 6)
    x = np.concatenate([np.linspace(0.2, 10, 50), np.geomspace(10.5, 400, 350)])
    for ax, slaved in zip(axes[0], (False, True), strict=True):
        _panel(ax, size, slaved, x[:50] if not slaved else x)
    axes[0, 1].set_xscale("log")
    axes[0, 0].set_ylim(1e-10, 10)
    axes[0, 1].set_ylim(1e-8, 10)
    plotting.legend(sheet, axes[0, 0])
    return plotting.save(sheet, folder, "square-collapse-rates")


def _panel(ax, size: Size, slaved: bool, x):
    s = balanced_start(size, 1, slaved)
    hot, speed = one_hot([size.per_class] * size.classes), s.terms.kappa * s.terms.speed
    times = x / (speed * size.per_class**0.5)[:, None]
    w, h = integrate(velocity_of(hot, s.terms, slaved=slaved), (s.prototypes, s.features), times, 3)
    wrong = w @ h - hot
    wrong = (wrong - wrong.mean(axis=-1, keepdims=True) if slaved else wrong)[0]
    means = h[0] @ hot.T / size.per_class
    within = h[0] - means @ hot
    centred = means - means.mean(axis=-1, keepdims=True)
    visible = np.trace(
        within @ within.swapaxes(1, 2) @ np.linalg.pinv(centred @ centred.swapaxes(1, 2), 1e-9), axis1=1, axis2=2
    )
    curves = {
        r"class means of $WH-Y$": norm_of(wrong @ hot.T) / size.per_class**0.5,
        r"within-class energy $\|H-\bar H\|^2$": norm_of(within) ** 2,
        r"$\mathrm{tr}(\Sigma_W\Sigma_B^+)$": visible / size.per_class,
    }
    title = "bias at its optimum: one mode is left over" if slaved else r"no bias: all at rate $2\kappa s\sqrt{n}$"
    plotting.label(ax, title, r"$\kappa s\sqrt{n}\,t$", "", log=True)
    for (name, values), color in zip(curves.items(), plotting.COLORS, strict=False):
        plotting.simulated(x, values, ax=ax, color=color, label=name)
    if slaved:
        u = np.linalg.norm(wrong[-1], ord=2)
        strength = u / (1 - 2 * u * (x[-1] - x) / size.per_class**0.5)  # the law, back from the last time
        shown = x > 8
        factor = np.sqrt(s.terms.features / s.terms.weights)
        plotting.theory(x[shown], (strength * factor)[shown], ax=ax, color=plotting.COLORS[1])
        return
    lifted = [_lifted(size, 1, at) for at in x]
    plotting.theory(x, [np.exp(-2 * at) * norm_of(one.own)[0] for at, one in zip(x, lifted, strict=True)], ax=ax)
    energy = [np.exp(-2 * at) * one.within[0] ** 2 for at, one in zip(x, lifted, strict=True)]
    plotting.theory(x, energy, ax=ax, color=plotting.COLORS[1])


_claim = functools.partial(Claim, id="mse.nc1_rate", source=DERIVED)
_check = functools.partial(functools.partial, worst_of, sizes=SIZES)
_NO_BIAS = (
    "balanced classes, one-hot",
    "balanced start of the size of the limit, not opposed to it",
    "dim >= classes",
    "no decay, no bias",
    "any kappa, rates",
)

EXPERIMENT = Experiment(
    name="square-collapse-rates",
    family="square-loss",
    summary="rates of neural collapse from balanced starts, and the mode that a free bias leaves over",
    claims=(
        _claim(
            name="collapse-within",
            statement="|H - class means| falls at kappa s sqrt(n), between 10 and 12 time constants",
            assumptions=_NO_BIAS,
            tolerance=1e-5,
            check=_check(_within),
        ),
        _claim(
            name="collapse-residual",
            statement="|W H - Y| falls at kappa s sqrt(n), no faster: it contains W (H - class means)",
            assumptions=_NO_BIAS,
            tolerance=1e-4,
            check=_check(_whole),
        ),
        _claim(
            name="collapse-nc1",
            statement="tr(S_W S_B^+) falls at 2 kappa s sqrt(n)",
            assumptions=_NO_BIAS,
            tolerance=1e-5,
            check=_check(_ratio),
        ),
        _claim(
            name="collapse-class-means",
            statement="class means of W H - Y are (a + b t) exp(-2 kappa s sqrt(n) t): a factor t, so slopes near 2 come late",
            assumptions=_NO_BIAS,
            tolerance=4e-4,
            check=_check(_straight),
        ),
        _claim(
            name="collapse-exact",
            statement="integrated flow = solution for balanced starts with its exponentials taken out, to 8 time constants",
            assumptions=_NO_BIAS,
            tolerance=1e-10,
            check=_check(_exactly),
        ),
        _claim(
            name="collapse-late",
            statement="by that solution, from 1e6 to 2e6 time constants: rates 2, 1, 1 of class means, deviations, residual",
            assumptions=_NO_BIAS,
            tolerance=1e-6,
            check=_check(_late),
        ),
    ),
    draw=_draw,
)
