"""A page of panels, and its files."""

import logging
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynamics.whole_file import whole_file

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "mathtext.fontset": "cm",
    "pdf.fonttype": 42,
}


def page(rows: int, columns: int, *, title: str = "", panel=(3.9, 3.0)) -> tuple[Figure, np.ndarray]:
    """A figure of `rows` x `columns` panels of the given size in inches, and its axes, shape (rows, columns)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(columns * panel[0], rows * panel[1] + (0.35 if title else 0)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure, axes


def label(ax: Axes, title: str, x: str, y: str, *, log: bool = False) -> Axes:
    """Title, axis labels and scale of a panel."""
    if log:
        ax.set_yscale("log")
    ax.set(title=title, xlabel=x, ylabel=y)
    return ax


def legend(figure: Figure, ax: Axes, *, band: str = "") -> Figure:
    """One legend below all panels: the labelled curves of `ax`, then how to read wide, dashed and shaded.

    `band` says what the shaded bands are; empty leaves them out.
    """
    handles, labels = ax.get_legend_handles_labels()
    keys: list[tuple[Artist, str]] = [
        (Line2D([], [], color="0.4", linewidth=3.2, alpha=0.45), "simulated"),
        (Line2D([], [], color="0.2", linewidth=1.3, linestyle=(0, (4, 2))), "closed form"),
    ]
    if band:
        keys.append((Patch(color="0.4", alpha=0.25, linewidth=0), band))
    with matplotlib.rc_context(STYLE):
        figure.legend(handles, labels, loc="outside lower left", ncols=min(len(labels), 3))
        figure.legend(*zip(*keys, strict=True), loc="outside lower right", ncols=1)
    return figure


def save(figure: Figure, folder: Path | str, name: str) -> list[Path]:
    """Write `name.png` and `name.pdf` into the folder, each whole or not at all; returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fonts = logging.getLogger("fontTools")  # warns of fonts without a date
    level = fonts.level
    fonts.setLevel(logging.ERROR)
    paths = []
    try:
        for kind in ("png", "pdf"):
            target = folder / f"{name}.{kind}"
            # no date inside: the same figure gives the same file
            metadata = {"CreationDate": None} if kind == "pdf" else None
            with matplotlib.rc_context(STYLE), whole_file(target) as file:
                figure.savefig(file, format=kind, dpi=200, metadata=metadata)
            paths.append(target)
    finally:
        fonts.setLevel(level)
    return paths
