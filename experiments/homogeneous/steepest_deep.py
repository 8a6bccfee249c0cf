"""Steepest descent of two-layer linear nets: the soft margin of each norm never falls, and weights and force align."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import dynamics as dyn
from dynamics import plotting
from dynamics.plotting import ensembles
from dynamics.simulate.step_rules import Normalized
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.iterates import MOST, largest, separable

SOURCE = "N. Tsilivis, G. Vardi, J. Kempe (2025)"
NORMS: dict[str, dyn.norms.Norm] = {
    "l2": dyn.norms.L2(),
    "linf": dyn.norms.Linf(),
    "l1": dyn.norms.L1(),
    "spectral": dyn.norms.Spectral(),
}
SHORT = {"l2": r"$L_2$", "linf": r"$L_\infty$", "l1": r"$L_1$", "spectral": "spectral"}
LENGTH, STEPS = 1e-3, 20_000
SAMPLES, DIM, WIDTH = 10, 3, 4
FEW = 8
"""Starts of spectral descent, whose singular value decompositions cost most."""

SHARES = {"l2": ("l2", 1 / 2), "linf": ("linf", WIDTH), "l1": ("l1", 1 / 4), "spectral": ("l2", 1.0)}
r"""The largest margin is this part of that of a linear predictor: of $a^\top W$ with $|a|^2 + |W|^2 = 1$; of units alike with
entries at most one; with entries adding up to one, half in each layer; with both operator norms one."""


class Run(NamedTuple):
    """Every iterate of many starts, (members, times): log of the loss, soft margin, Bregman gap over the squared norm."""

    log_loss: np.ndarray
    soft: np.ndarray
    gap: np.ndarray


@functools.cache
def run(norm: str, members: int) -> Run:
    """Steps of length 1e-3 from random weights, each start on its own data."""
    measure = NORMS[norm]
    observe = {
        "log_loss": dyn.observables.log_loss,
        "soft": measure.soft_margin,
        "gap": lambda problem, weights: measure.bregman_gap(problem, weights) / measure(weights) ** 2,
    }

    def one(signed, key):
        problem = dyn.Network(dyn.nets.deep_linear((WIDTH,)), signed, np.ones(SAMPLES))
        start = dyn.initial.weights(problem, key=key, scale=0.5)
        return dyn.steepest_descent(problem, start, Normalized(LENGTH), STEPS, norm=measure, observe=observe).observed

    data = np.stack([separable(seed, SAMPLES, DIM) for seed in range(members)])
    seen = jax.jit(jax.vmap(one))(data, jax.random.split(jax.random.key(75), members))
    return Run(**{name: np.asarray(values) for name, values in seen.items()})


def optima(norm: str, members: int) -> np.ndarray:
    """The largest margins over the squared norm, by programs, (members,)."""
    of, share = SHARES[norm]
    return share * largest(of, members, SAMPLES, DIM)[0]


def _number(members: int, norm: str) -> int:
    return min(members, FEW if norm == "spectral" else MOST)


def _falls(members: int, norm: str, window: int = 1) -> Measured:
    """The largest fall of the soft margin over the largest margin, once the loss is below one."""
    number = _number(members, norm)
    moved = run(norm, number)
    soft, separated = moved.soft[:, ::window], moved.log_loss[:, ::window] < 0
    falls = np.where(separated[:, :-1], -np.diff(soft, axis=1), 0.0).max(axis=1) / optima(norm, number)
    never = ~separated[:, -1]
    return Measured.worst(falls, {"starts that never separate": float(never.sum())})


def _bounded(members: int) -> Measured:
    """The last soft margin over the largest one, all norms."""
    numbers, found = {}, []
    for norm in NORMS:
        number = _number(members, norm)
        parts = run(norm, number).soft[:, -1] / optima(norm, number)
        numbers |= {f"{norm} median": float(np.median(parts)), f"{norm} smallest": float(parts.min())}
        found.append(parts.max())
    return Measured(float(max(found)), _number(members, "l2"), f"norm {list(NORMS)[int(np.argmax(found))]}", numbers)


def _aligns(members: int, norm: str) -> Measured:
    """The mean gap over the last tenth of the steps over that of the first tenth below a loss of one."""
    moved = run(norm, _number(members, norm))
    early, late = [], []
    for log_loss, gap in zip(moved.log_loss, moved.gap, strict=True):
        begin = int(np.argmax(log_loss < 0))
        early.append(gap[begin : begin + STEPS // 10].mean())
        late.append(gap[-STEPS // 10 :].mean())
    early, late = np.array(early), np.array(late)
    numbers = {"median early": float(np.median(early)), "median late": float(np.median(late))}
    return Measured.worst(late / early, numbers)


def _positive(members: int) -> Measured:
    """By how much a gap is ever below zero, all norms."""
    return Measured(
        float(max(-run(norm, _number(members, norm)).gap.min() for norm in NORMS)), _number(members, "l2"), "all norms"
    )


def _draw(folder: Path) -> list[Path]:
    page, axes = plotting.page(1, 2, title="Steepest descent of two-layer linear nets", panel=(4.9, 3.3))
    margins, gaps = axes[0]
    plotting.label(margins, "soft margin, below a loss of one", "length of the path", "soft margin / optimum")
    plotting.label(gaps, "Bregman gap, means of 200 steps", "length of the path", "gap / squared norm", log=True)
    ts = LENGTH * np.arange(STEPS + 1)
    for norm, color in zip(NORMS, plotting.COLORS, strict=False):
        number = _number(MOST, norm)
        moved = run(norm, number)
        soft = np.where(moved.log_loss < 0, moved.soft, np.nan)[:, ::50] / optima(norm, number)[:, None]
        some = np.mean(np.isfinite(soft), axis=0) > 0.5
        plotting.ensemble(ts[::50][some], soft[:, some], ax=margins, color=color, label=SHORT[norm])
        means = moved.gap[:, 1:].reshape(number, -1, 200).mean(axis=2)
        plotting.ensemble(ts[100::200], means, ax=gaps, color=color)
    margins.axhline(1, color="0.2", linewidth=1.3, linestyle=ensembles.DASHES)
    margins.set_ylim(0, 1.05)
    for axis in (margins, gaps):
        axis.set_xlim(0, LENGTH * STEPS)
    ensembles.key(
        page, margins, wide="median of 64 starts (spectral: 8)", shaded="5 % to 95 % of them", dashed="optimum by programs"
    )
    return plotting.save(page, folder, "steepest-deep")


CROSSING = (
    "a step of sign descent crosses where an entry of the force is zero, and the next one comes back: single steps lower the "
    "margin by the order of their squared length (at half the length by a quarter), hundreds of them never do"
)

_claim = functools.partial(Claim, source=SOURCE)
_SETTING = ("two-layer linear net 3-4-1, exponential loss", "64 starts on separable data (spectral: 8)", "steps of 1e-3")

EXPERIMENT = Experiment(
    name="steepest-deep",
    family="homogeneous",
    summary="soft margins and Bregman gaps of steepest descent of two-layer linear nets",
    claims=(
        *(
            _claim(
                name=f"steepest-deep-monotone-{norm}",
                id="steepest.monotone",
                statement=f"steepest descent in {norm}: below a loss of one the soft margin never falls, step by step",
                assumptions=_SETTING,
                tolerance=1e-12,
                check=functools.partial(_falls, norm=norm),
                finding=finding,
            )
            for norm, finding in (("l2", ""), ("l1", ""), ("spectral", ""), ("linf", CROSSING))
        ),
        _claim(
            name="steepest-deep-monotone-linf-order",
            id="steepest.monotone",
            statement="steepest descent in linf: no step lowers the soft margin by more than 50 squared lengths of the largest",
            assumptions=_SETTING,
            tolerance=50 * LENGTH**2,
            check=functools.partial(_falls, norm="linf"),
        ),
        _claim(
            name="steepest-deep-monotone-linf-hundred",
            id="steepest.monotone",
            statement="steepest descent in linf: below a loss of one the soft margin never falls over a hundred steps",
            assumptions=_SETTING,
            tolerance=1e-12,
            check=functools.partial(_falls, norm="linf", window=100),
        ),
        _claim(
            name="steepest-deep-bounded",
            id="steepest.monotone",
            statement="no soft margin exceeds the largest margin by linear or quadratic programs (residual: best part of it)",
            assumptions=_SETTING,
            tolerance=1.0,
            check=_bounded,
        ),
        *(
            _claim(
                name=f"steepest-deep-bregman-{norm}",
                id="steepest.bregman",
                statement=f"steepest descent in {norm}: the relative Bregman gap falls, late to under {part} of early",
                assumptions=(*_SETTING, "means over 2000 steps, the first below a loss of one, and the last"),
                tolerance=part,
                check=functools.partial(_aligns, norm=norm),
            )
            for norm, part in (("l2", 0.1), ("linf", 1.0), ("l1", 0.5), ("spectral", 0.25))
        ),
        _claim(
            name="steepest-deep-bregman-positive",
            id="steepest.bregman",
            statement="the gap is never negative",
            assumptions=_SETTING,
            tolerance=1e-14,
            check=_positive,
        ),
    ),
    draw=_draw,
)
