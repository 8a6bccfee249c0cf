"""A learning rate over the loss, capped by the curvature of its logarithm: to a loss of 1e-800 with the margin kept."""

import functools
from pathlib import Path

import numpy as np

from dynamics import plotting
from dynamics.plotting import ensembles
from dynamics.simulate.step_rules import ConstantRate, LossBased, LossBasedEpochs
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.iterates import BEST, MOST, Iterates, capped, descended, first_weights

SOURCE = "K. Lyu, J. Li (2020), section 5 and appendix L; the cap derived here"
CAPS = (1.0, 10.0)
TARGET = -800 * np.log(10)
"""The logarithm of a loss of 1e-800."""


@functools.cache
def uncapped(members: int) -> Iterates:
    """Steps of 10, whatever the norm."""
    return descended(first_weights(members), LossBased(10.0, None), 100, 1)


@functools.cache
def accepted(members: int) -> Iterates:
    """The acceptance rule of the paper with steps of all samples."""
    return descended(first_weights(members), LossBasedEpochs(), 60, 1)


@functools.cache
def constant(members: int) -> Iterates:
    """A constant rate of 0.1."""
    return descended(first_weights(members), ConstantRate(0.1), 5_000, 20)


def at_target(run: Iterates) -> np.ndarray:
    """The margin over the largest at a loss of 1e-800, linear between kept iterates; NaN where it is not reached."""
    margins = []
    for log_loss, margin in zip(run.log_loss, run.margin, strict=True):
        reached = np.flatnonzero(log_loss <= TARGET)
        if reached.size == 0:
            margins.append(np.nan)
            continue
        k = reached[0]
        share = (log_loss[k - 1] - TARGET) / (log_loss[k - 1] - log_loss[k])
        margins.append(margin[k - 1] + share * (margin[k] - margin[k - 1]))
    return np.array(margins)


def _number(members: int) -> int:
    return min(members, MOST)


def _spread(margins: np.ndarray) -> dict[str, float]:
    names = ("smallest", "5 %", "median", "95 %", "largest")
    values = np.nanquantile(margins, (0.0, 0.05, 0.5, 0.95, 1.0))
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _reaches(members: int) -> Measured:
    run = capped(_number(members), 1.0)
    wrong = ~run.separated
    numbers = {"starts with a sample that no unit serves": float(wrong.sum()), "iterations": float(run.steps[-1])}
    end = np.where(wrong, -np.inf, run.log_loss[:, -1])
    return Measured.worst(
        TARGET / end, numbers, f"member {int(end.argmax())}; left out: members {np.flatnonzero(wrong).tolist()}"
    )


def _median(members: int) -> Measured:
    """A start that never separates counts as margin zero."""
    margins = at_target(capped(_number(members), 1.0))
    median = float(np.median(np.nan_to_num(margins)))
    return Measured(0.92 / median, len(margins), f"median {median:.4f}", _spread(margins))


def _below(members: int) -> Measured:
    """Of the starts that reach the loss."""
    margins = at_target(capped(_number(members), 1.0))
    return Measured.worst(margins[~np.isnan(margins)])


def _every(members: int) -> Measured:
    run = capped(_number(members), 1.0)
    margins = at_target(run)
    reached, off = margins[~np.isnan(margins)], run.misalignment[~np.isnan(margins), -1]
    numbers = {"at least 0.95": float(np.mean(reached >= 0.95)), "at least 0.9": float(np.mean(reached >= 0.9))}
    numbers |= {"misalignment of the worst": float(off[reached.argmin()]), "largest misalignment": float(off.max())}
    return Measured.worst(1 - reached, numbers)


def _caps(members: int) -> Measured:
    """Where both caps reach the loss, which every start does that separates."""
    both = np.stack([at_target(capped(_number(members), cap)) for cap in CAPS], axis=1)
    both = both[~np.isnan(both).any(axis=1)]
    off = np.abs(np.diff(both, axis=1))
    return Measured.worst(off, {"median": float(np.median(off))})


def _slope(members: int) -> Measured:
    """The fall of the log of the loss per iteration over the second half of the way, against L^2 c times the squared margin."""
    off = []
    for cap in CAPS:
        run = capped(_number(members), cap)
        for log_loss, margin in zip(run.log_loss[run.separated], run.margin[run.separated], strict=True):
            half = np.flatnonzero((log_loss < TARGET / 2) & (log_loss > TARGET * 1.1))
            fall = (log_loss[half[0]] - log_loss[half[-1]]) / (run.steps[half[-1]] - run.steps[half[0]])
            off.append(fall / (4 * cap * (BEST * margin[half].mean()) ** 2) - 1)
    return Measured.worst(np.abs(off))


def _lost(members: int) -> Measured:
    """Median over separated starts of the margin without the cap over that with it."""
    kept, lost = at_target(capped(_number(members), 1.0)), at_target(uncapped(_number(members)))
    both = ~np.isnan(kept) & ~np.isnan(lost)
    ratio = lost[both] / kept[both]
    numbers = {"median without": float(np.median(lost[both])), "largest without": float(lost[both].max())}
    return Measured(float(np.median(ratio)), int(both.sum()), "the median", numbers)


def _permissive(members: int) -> Measured:
    """The same for the acceptance rule; how many iterations it takes, and how many it refuses."""
    run = accepted(_number(members))
    kept, lost = at_target(capped(_number(members), 1.0)), at_target(run)
    both = ~np.isnan(kept) & ~np.isnan(lost)
    taken = [int(np.flatnonzero(row <= TARGET)[0]) for row in run.log_loss[both]]
    numbers = {
        "median margin": float(np.median(lost[both])),
        "smallest margin": float(lost[both].min()),
        "median iterations": float(np.median(taken)),
        "starts that reach the loss": float(both.sum()),
    }
    return Measured(float(np.median(lost[both] / kept[both])), int(both.sum()), "the median", numbers)


def _slow(members: int) -> Measured:
    """What a constant rate leaves of the way: the log of its last loss over that of 1e-800."""
    run = constant(_number(members))
    rows = run.log_loss[run.separated, -1]
    numbers = {
        "median loss": float(np.exp(np.median(rows))),
        "median margin": float(np.median(run.margin[run.separated, -1])),
    }
    return Measured.worst(rows / TARGET, numbers)


def _draw(folder: Path) -> list[Path]:
    run, slow = capped(MOST, 1.0), constant(MOST)
    kept, blue, orange, green = run.separated, *plotting.COLORS[:3]
    page, axes = plotting.page(1, 3, title="A learning rate over the loss: ReLU net on orthonormal inputs, 64 starts")
    falls, grows, spread = axes[0]
    plotting.label(falls, "the loss", "iteration", r"$\log_{10}\mathcal{L}$")
    plotting.ensemble(run.steps, run.log_loss[kept] / np.log(10), ax=falls, color=blue, label=r"over the loss, capped ($c=1$)")
    pace = 4 * (BEST * np.median(run.margin[kept], axis=0)) ** 2
    fall = np.append(0.0, np.cumsum((pace[1:] + pace[:-1]) / 2 * np.diff(run.steps)))
    plotting.theory(run.steps, -fall / np.log(10), ax=falls, color=blue)
    plotting.ensemble(slow.steps, slow.log_loss[slow.separated] / np.log(10), ax=falls, color=orange, label="constant rate 0.1")
    plotting.simulated([], [], ax=falls, color=green, label="over the loss, not capped (rate 10)")
    falls.set_ylim(-840, 40)
    falls.set_xlim(0, 25_000)
    falls.set_xticks([0, 10_000, 20_000], ["0", "10 000", "20 000"])
    falls.axhline(-800, color="0.6", linewidth=0.8)
    falls.text(300, -795, r"$10^{-800}$", va="bottom", color="0.4", fontsize=8.5)

    plotting.label(grows, "the margin", r"$\log_{10}(1/\mathcal{L})$", r"margin / optimum")
    grows.set_xscale("log")
    depth = np.geomspace(0.5, 800, 120)
    for one, color in ((uncapped(MOST), green), (slow, orange), (run, blue)):
        rows = zip(one.log_loss[one.separated], one.margin[one.separated], strict=True)
        paths = np.stack([_at(depth, -log_loss / np.log(10), margin) for log_loss, margin in rows])
        some = np.mean(np.isfinite(paths), axis=0) > 0.5
        plotting.ensemble(depth[some], paths[:, some], ax=grows, color=color)
    grows.axhline(1, color="0.2", linewidth=1.3, linestyle=ensembles.DASHES)
    grows.set_ylim(0, 1.08)
    grows.set_xlim(0.5, 800)

    plotting.label(spread, r"margins at a loss of $10^{-800}$", "margin / optimum", "starts")
    edges = np.linspace(0, 1.02, 52)
    for margins, color in ((at_target(uncapped(MOST)), green), (at_target(run), blue)):
        ensembles.histogram(spread, edges, np.histogram(margins[~np.isnan(margins)], edges)[0], color=color)
    spread.axvline(1, color="0.2", linewidth=1.3, linestyle=ensembles.DASHES)
    ensembles.key(
        page, falls, wide="median of 64 starts", shaded="5 % to 95 % of them",
        dashed="predicted pace; the optimum",
    )  # fmt: skip
    return plotting.save(page, folder, "loss-based-rate")


def _at(depth, path, margin) -> np.ndarray:
    """The margin at depths of the loss; NaN outside of what was kept."""
    path = np.maximum.accumulate(path)
    return np.interp(depth, path, margin, left=np.nan, right=np.nan)


SPLIT = (
    "so it is from 40 of 64 starts. A unit that is off on an input stays off there; in the worst starts no large unit is on "
    "all inputs of one class, two share them, and weights and force align near that margin of 0.85 instead"
)

_claim = functools.partial(Claim, id="margin.loss_based_lr", source=SOURCE)
_SETTING = ("two layers of 20 ReLU units", "five orthonormal inputs, three positive", "64 random starts", "exponential loss")

EXPERIMENT = Experiment(
    name="loss-based-rate",
    family="homogeneous",
    summary="a learning rate over the loss, with and without a cap, to a loss of 1e-800",
    claims=(
        _claim(
            name="loss-based-reaches",
            statement="with the cap c = 1 the loss is below 1e-800 within 30 000 iterations from every start that separates",
            assumptions=_SETTING,
            tolerance=1.0,
            check=_reaches,
        ),
        _claim(
            name="loss-based-median",
            statement="at a loss of 1e-800 the median margin is above 0.92 of the largest (residual: 0.92 over it)",
            assumptions=_SETTING,
            tolerance=1.0,
            check=_median,
        ),
        _claim(
            name="loss-based-below-optimum",
            statement="no margin exceeds the largest, 1/(2 (sqrt 3 + sqrt 2)) (residual: the best part of it)",
            assumptions=_SETTING,
            tolerance=1.0,
            check=_below,
        ),
        _claim(
            name="loss-based-every-start",
            statement="at a loss of 1e-800 every margin is within 0.05 of the largest",
            assumptions=(*_SETTING, "starts that separate"),
            tolerance=0.05,
            check=_every,
            finding=SPLIT,
        ),
        _claim(
            name="loss-based-caps",
            statement="caps of 1 and of 10 reach the same margins at a loss of 1e-800",
            assumptions=(*_SETTING, "starts that separate"),
            tolerance=0.01,
            check=_caps,
        ),
        _claim(
            name="loss-based-pace",
            statement="an iteration lowers the log of the loss by L^2 c margin^2, L = 2",
            source="derived here",
            assumptions=(*_SETTING, "caps 1 and 10", "losses between 1e-400 and 1e-880"),
            tolerance=0.1,
            check=_slope,
        ),
        _claim(
            name="loss-based-uncapped",
            statement="without the cap, at a rate of 10, the margin at a loss of 1e-800 is under a tenth of that with it",
            assumptions=(*_SETTING, "starts that separate with both"),
            tolerance=0.1,
            check=_lost,
        ),
        _claim(
            name="loss-based-acceptance",
            statement="accepting every full-batch step that lowers the loss keeps less than half of the margin",
            assumptions=(*_SETTING, "starts that separate with both"),
            tolerance=0.5,
            check=_permissive,
        ),
        _claim(
            name="loss-based-constant",
            statement="5 000 iterations at a constant rate go less than 1 % of the way to a loss of 1e-800, in logarithms",
            assumptions=(*_SETTING, "rate 0.1"),
            tolerance=0.01,
            check=_slow,
        ),
    ),
    draw=_draw,
)
