"""Pictures of global minima: what survives decay, and where minority classes merge. Markers: descents from random starts."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dynamics import plotting
from dynamics.plotting.page import STYLE
from experiments.shared.minimiser_oracles import descended, kind_of, unpacked
from experiments.shared.minority_entropy import Step, bounded_threshold, minority, ridge_threshold, with_bounds, with_decay

SIZES = (16, 9, 4, 1)
CLASSES, PER_CLASS = 3, 2
GRID = 40


def draw_survival(folder: Path) -> list[Path]:
    """Singular values against decay, both losses, and the phases with decayed biases."""
    with matplotlib.rc_context(STYLE):
        sheet, axes = plotting.page(1, 3, title="Global minima: what survives decay", panel=(4.1, 3.4))
        _one_by_one(axes[0, 0])
        _both_losses(axes[0, 1])
        _phases(axes[0, 2])
        _keys(sheet)
    return plotting.save(sheet, folder, "decay-survival")


def draw_minority(folder: Path) -> list[Path]:
    """Minority cosine against the imbalance ratio, with decay and with bounded norms."""
    step, few = Step(2, 2), 25
    with matplotlib.rc_context(STYLE):
        sheet, axes = plotting.page(1, 2, title="Cross-entropy: minority classes merge at a sharp ratio", panel=(4.9, 3.5))
        with_decays, bounded = axes[0]
        for color, threshold in zip(plotting.COLORS, (2.5, 5.0, 12.0), strict=False):
            ratios = np.geomspace(1.2, 80, few)
            pressure = 1 / (step.many * threshold + step.few)
            decays = np.tile([pressure, pressure, 0.0], (few, 1))
            prototypes = with_decay(step, decays, step.counts(ratios))[1]
            _merging(
                with_decays, step, ratios, prototypes, ridge_threshold(step, pressure, 1.0), color, rf"$\mu={pressure:.3f}$"
            )
        for color, product in zip(plotting.COLORS, (1.0, 1.5, 5**0.5), strict=False):
            ratios = np.geomspace(1.2, 80, few)
            prototypes = with_bounds(step, np.tile([1.0, product], (few, 1)), step.counts(ratios))[1]
            name = rf"$\sqrt{{E_wE_h}}={product:.3g}$"
            _merging(bounded, step, ratios, prototypes, bounded_threshold(step, product), color, name)
        y = "cosine of two minority prototypes"
        title = r"with decay, $\mu=\sqrt{\lambda_1\lambda_2}$, $n_b=1$ (cross: all are zero)"
        plotting.label(with_decays, title, "imbalance ratio $R$", y)
        plotting.label(bounded, "with bounded norms", "imbalance ratio $R$", y)
        for ax in axes[0]:
            ax.set_xscale("log")
            ax.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
            ax.minorticks_off()
            ax.set_ylim(-0.42, 1.08)
            ax.legend(loc="lower right", frameon=True, framealpha=0.9, edgecolor="none")
        _keys(sheet, "threshold by formula")
    return plotting.save(sheet, folder, "minority-collapse")


def _merging(ax: Axes, step: Step, ratios, prototypes, threshold: float, color: str, label: str) -> None:
    _, cosines = minority(step, prototypes)
    gone = np.linalg.norm(prototypes[:, step.many :], axis=(1, 2)) < 1e-4
    cosines = np.where(gone, np.nan, cosines)
    ax.plot(ratios, cosines, color=color, linewidth=1, alpha=0.35)
    ax.plot(ratios, cosines, "o", color=color, markersize=3.8, label=f"{label}, $R_0={threshold:.3g}$")
    if gone.any():
        ax.plot(ratios[gone][0], 1.0, "x", color=color, markersize=6)
    ax.axvline(threshold, color=color, linewidth=1.3, linestyle=(0, (4, 2)))


def _one_by_one(ax: Axes) -> None:
    kind, sizes = kind_of("squared", (1,) * len(SIZES), len(SIZES)), np.array(SIZES, float)
    over = np.linspace(0.1, 4.6, 24)
    pressure = over / sizes.sum()
    decays = np.stack([pressure, pressure, 0 * pressure], axis=1)
    _, x, _ = descended(kind, decays, counts=np.tile(sizes, (over.size, 1)))
    features, prototypes, _ = unpacked(kind, x)
    logits = features @ prototypes.swapaxes(1, 2)
    values = np.linalg.svd(np.sqrt(sizes)[:, None] * logits, compute_uv=False)
    fine = np.linspace(0, 4.6, 300)
    for k, color in zip(range(len(SIZES)), plotting.COLORS, strict=False):
        ax.plot(over, values[:, k], "o", color=color, markersize=3.8, label=f"$n_k={SIZES[k]}$")
        plotting.theory(fine, np.maximum(np.sqrt(SIZES[k]) - fine, 0), ax=ax, color=color)
    ax.legend(loc="upper right")
    plotting.label(
        ax, "squared error: small classes go first", r"decay $\mu/\kappa$", r"singular values $(\sqrt{n_k}-\mu/\kappa)_+$"
    )


def _both_losses(ax: Axes) -> None:
    over, fine = np.linspace(0.04, 1.3, 26), np.linspace(0.02, 1.3, 300)
    pressure = over / (CLASSES * PER_CLASS**0.5)
    decays = np.stack([2 * pressure, pressure / 2, 0 * pressure], axis=1)
    both = kind_of("squared", (PER_CLASS,) * CLASSES, CLASSES), kind_of("entropy", (PER_CLASS,) * CLASSES, CLASSES)
    for color, (kind, name) in enumerate(zip(both, ("squared error", "cross-entropy"), strict=True)):
        _, x, _ = descended(kind, decays)
        features, prototypes, _ = unpacked(kind, x)
        logits = features @ prototypes.swapaxes(1, 2)
        gap = logits[:, 0, 0] - logits[:, 0, 1]
        ax.plot(over, gap, "o", color=plotting.COLORS[color], markersize=3.8, label=name)
    plotting.theory(fine, np.maximum(1 - fine, 0), ax=ax, color=plotting.COLORS[0])
    plotting.theory(fine, np.log(np.maximum(CLASSES / fine - CLASSES + 1, 1)), ax=ax, color=plotting.COLORS[1])
    ax.axvline(1, color="0.35", linewidth=0.9, zorder=0)
    ax.legend(loc="upper right")
    plotting.label(
        ax, "both losses vanish at one decay", r"decay $c=K\sqrt{n\lambda_1\lambda_2}$", "logit gap, true minus other"
    )


def _phases(ax: Axes) -> None:
    """Modes at the ends of descents on a grid (shaded), over the lines by formula."""
    kind = kind_of("squared", (PER_CLASS,) * CLASSES, CLASSES, True)
    edges = (np.arange(GRID) + 0.5) / GRID
    across, up = (part.ravel() for part in np.meshgrid(1.2 * edges, edges))
    pressure = across * PER_CLASS**0.5 / kind.samples
    decays = np.stack([pressure, pressure, up / (1 - up)], axis=1)
    _, x, _ = descended(kind, decays)
    features, prototypes, _ = unpacked(kind, x)
    values = np.linalg.svd(features @ prototypes.swapaxes(1, 2), compute_uv=False)
    count = np.sum(values > 1e-4, axis=1).reshape(GRID, GRID)
    shades = ListedColormap(["#bdbdbd", "#ffffff", "#f3c45b", "#7fb3d8"])
    ax.pcolormesh(1.2 * np.linspace(0, 1, GRID + 1), np.linspace(0, 1, GRID + 1), count, cmap=shades, vmin=-0.5, vmax=3.5)
    for x_text, y_text, name in (
        (0.3, 0.72, "orthogonal frame\n3 modes"),
        (0.68, 0.28, "simplex\n2 modes"),
        (1.1, 0.5, "zero"),
    ):
        ax.text(x_text, y_text, name, ha="center", va="center", rotation=90 if name == "zero" else 0)
    ax.grid(False)
    for line in (([0, 1], [0, 1]), ([1, 1], [0, 1])):
        ax.plot(*line, color="black", linewidth=1.6, linestyle=(0, (4, 2)))
    ax.set(xlim=(0, 1.2), ylim=(0, 1))
    plotting.label(
        ax, "decayed biases: modes of the minimum", r"decay $\mu/(\kappa\sqrt{n})$", r"decay of the biases $r/(1+r)$"
    )


def _keys(sheet: Figure, line: str = "closed form") -> None:
    handles = [
        Line2D([], [], color="0.3", marker="o", markersize=4, linewidth=0),
        Line2D([], [], color="0.2", linewidth=1.3, linestyle=(0, (4, 2))),
    ]
    sheet.legend(
        handles, ["minima found from random starts", line], loc="outside lower center", ncols=2, frameon=False, fontsize=8.5
    )
