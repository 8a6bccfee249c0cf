"""Ensembles: bands of quantiles over time, maps over two swept axes, last values, and how the members ended."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynamics.plotting.curves import COLORS, DASHES, shown
from dynamics.plotting.page import STYLE, page

FEW = 6
"""More groups than these are told apart by a scale instead of a cycle."""
SCALE = "viridis"
OK_COLOR, FAILED_COLORS = "#BDC3C7", ("#B30000", "#EF6548", "#FDBB84", "#7F0000", "#FC8D59", "#D7301F")
EMPTY = "0.9"


def printable(text: str) -> str:
    """The text as it stands: dollar signs are no formula, and a character that the font lacks becomes a question mark."""
    known = get_font(findfont(FontProperties())).get_charmap()
    return "".join(c if c == "\n" or ord(c) in known else "?" for c in text).replace("$", r"\$")


def headline(text: str, width: float) -> str:
    """A title whose lines fit into a page of so many inches."""
    lines = (textwrap.fill(line, int(width / 0.09)) for line in text.splitlines())
    return printable("\n".join(lines))


def spread_evenly_in_log(values) -> bool:
    """Whether numbers, taken in order, are spaced by a factor over at least a decade; exact zeros do not count."""
    values = np.unique(np.asarray(values, float))
    values = values[values != 0]
    if values.size < 3 or values[0] < 0 or values[-1] < 10 * values[0]:
        return False
    steps, factors = np.diff(values), np.diff(np.log(values))
    return bool(factors.std() / factors.mean() < steps.std() / steps.mean())


def over_decades(values, decades: float = 2) -> bool:
    """Whether numbers are >= 0 and those above zero span more than so many decades."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    positive = values[values > 0]
    return bool(positive.size and values.min() >= 0 and positive.max() > 10**decades * positive.min())


def colors(groups: Sequence | np.ndarray) -> list:
    """One colour a group: the cycle for few; for many, a scale from dark to bright along their values."""
    groups = np.asarray(groups)
    if groups.size <= FEW:
        return list(COLORS[: groups.size])
    places, norm = _scale(groups)
    return [matplotlib.colormaps[SCALE](0.92 * float(norm(place))) for place in places]


def color_bar(ax: Axes, groups: Sequence | np.ndarray, name: str) -> Axes:
    """The scale of `colors` beside the axes."""
    groups = np.asarray(groups)
    places, norm = _scale(groups)
    cut = ListedColormap(matplotlib.colormaps[SCALE](np.linspace(0, 0.92, 256)))
    with matplotlib.rc_context(STYLE):
        bar = ax.figure.colorbar(ScalarMappable(norm, cut), ax=ax, pad=0.02, aspect=30)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.ax.set_title(printable(name), fontsize=STYLE["axes.labelsize"], loc="left")
        if not _numeric(groups):
            some = np.unique(np.linspace(0, groups.size - 1, 8).astype(int))
            bar.set_ticks(places[some].tolist(), labels=[printable(str(groups[place])) for place in some])
    return ax


def _numeric(values: np.ndarray) -> bool:
    return values.dtype.kind in "iuf"


def _scale(groups: np.ndarray) -> tuple[np.ndarray, Normalize]:
    """Where groups stand on a colour scale: their values, or for texts their order."""
    places = groups.astype(float) if _numeric(groups) else np.arange(groups.size, dtype=float)
    kind = LogNorm if np.all(places > 0) and spread_evenly_in_log(places) else Normalize
    return places, kind(float(places.min()), float(places.max()))


def band(ax: Axes, times, median, low, high, *, color=COLORS[0], label: str | None = None, width: float = 3.2) -> Axes:
    """The median of simulated members, and bands around it.

    **Arguments:** `times` and `median` of shape (times,), `low` and `high` of the same or of (bands, times), the widest first;
    bands overlap, so inner ones are darker.
    """
    ts = shown(ax.get_xscale(), times)
    scale = ax.get_yscale()
    for bottom, top in zip(np.atleast_2d(low), np.atleast_2d(high), strict=True):
        ax.fill_between(ts, shown(scale, bottom), shown(scale, top), color=color, alpha=0.17, linewidth=0)
        for edge in (bottom, top):  # a band down to zero has no inside on a log axis, but its upper edge
            ax.plot(ts, shown(scale, edge), color=color, linewidth=0.6, alpha=0.4)
    ax.plot(ts, shown(scale, median), color=color, linewidth=width, alpha=0.5, solid_capstyle="round", label=label)
    return ax


def theory(ax: Axes, times, median, low, high, *, color=COLORS[0]) -> Axes:
    """The same by formula, over the band: the median dashed, the edges of bands dashed and thinner; shapes as for `band`."""
    ts = shown(ax.get_xscale(), times)
    scale = ax.get_yscale()
    for edge in (*np.atleast_2d(low), *np.atleast_2d(high)):
        ax.plot(ts, shown(scale, edge), color=color, linewidth=0.7, linestyle=DASHES, alpha=0.9, zorder=3)
    ax.plot(ts, shown(scale, median), color=color, linewidth=1.3, linestyle=DASHES, zorder=3.1)
    return ax


def histogram(ax: Axes, edges, counts, *, color=COLORS[0], label: str | None = None) -> Axes:
    """How many members lie between the edges, shape (bins + 1,); `counts` of shape (bins,). A log axis for edges spaced so."""
    if np.all(np.asarray(edges) > 0) and spread_evenly_in_log(edges):
        ax.set_xscale("log")
    ax.stairs(counts, edges, fill=True, color=color, alpha=0.3, linewidth=0)
    ax.stairs(counts, edges, color=color, alpha=0.9, linewidth=1, label=label)
    ax.set_ylim(bottom=0, auto=True)  # others may be drawn over it
    return ax


def phase_map(
    ax: Axes, x, y, values, *, label: str = "", scale: str = SCALE, limits: tuple[float, float] | None = None
) -> Axes:
    """Values over two swept axes, coloured cells around their points.

    Axes are log where their values are spaced so; colours where the values are positive and span more than two decades. Cells
    without a value (NaN) are grey and hatched.

    **Arguments:** `x` of shape (columns,) and `y` of shape (rows,), increasing numbers, or texts; `values` (rows, columns);
    `limits`: the ends of the colours.
    """
    x, y, values = np.asarray(x), np.asarray(y), np.ma.masked_invalid(np.asarray(values, float))
    found = values.compressed()
    low, high = limits or ((float(found.min()), float(found.max())) if found.size else (0.0, 1.0))
    norm = (LogNorm if found.size and found.min() > 0 and over_decades(found) else Normalize)(low, high)
    ax.grid(False)
    ax.patch.set(facecolor=EMPTY, hatch="////", edgecolor="0.6", linewidth=0)
    mesh = ax.pcolormesh(_edges(x), _edges(y), values, cmap=scale, norm=norm, rasterized=True)
    for axis, points, set_scale in ((ax.xaxis, x, ax.set_xscale), (ax.yaxis, y, ax.set_yscale)):
        if not _numeric(points):
            axis.set_ticks(np.arange(points.size), [printable(str(point)) for point in points])
        elif _in_log(points):
            set_scale("log")
    with matplotlib.rc_context(STYLE):
        bar = ax.figure.colorbar(mesh, ax=ax, label=printable(label), pad=0.03, aspect=25)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return ax


def _in_log(points: np.ndarray) -> bool:
    return bool(points[0] > 0) and spread_evenly_in_log(points)


def _edges(points: np.ndarray) -> np.ndarray:
    """Borders half-way between points, in the log where they are spaced so; texts stand one apart."""
    if not _numeric(points):
        return np.arange(points.size + 1) - 0.5
    points = np.asarray(points, float)
    if _in_log(points):
        return np.exp(_edges(np.log(points)))
    if points.size == 1:
        return points[0] + np.array([-0.5, 0.5])
    middle = (points[1:] + points[:-1]) / 2
    return np.concatenate([[2 * points[0] - middle[0]], middle, [2 * points[-1] - middle[-1]]])


def status_bar(ax: Axes, counts: Mapping[str, int]) -> Axes:
    """How the members ended: one stacked bar of the whole width, with the number of each status, in the order given."""
    some = {name: int(count) for name, count in counts.items() if count}
    total, left = sum(some.values()), 0
    cycle = iter(FAILED_COLORS)
    for name, count in some.items():
        color = OK_COLOR if name == "ok" else next(cycle)
        ax.barh(0, count, left=left, height=1, color=color, linewidth=0, label=f"{thousands(count)} {name}")
        left += count
    ax.set(xlim=(0, max(total, 1)), ylim=(-0.5, 0.5))
    ax.set_axis_off()
    with matplotlib.rc_context(STYLE):
        ax.legend(
            loc="upper left", bbox_to_anchor=(0, 0), ncols=max(len(some), 1), borderaxespad=0.2, borderpad=0,
            handlelength=0.9, handleheight=0.9, columnspacing=1.4,
        )  # fmt: skip
    return ax


def thousands(count: int) -> str:
    """A count with thin gaps between thousands."""
    return f"{count:,}".replace(",", "\u2009")


def sheet(panels: int, *, last: bool, title: str) -> tuple[Figure, list[Axes], list[Axes], Axes]:
    """A page of panels over time with a common y axis, one beside them for the last values, and a strip for the status bar.

    Returns the figure, its panels, the one beside them or none, and the strip.
    """
    width = max(4.6 * panels + 2.7 * last, 4.6)
    figure, axes = page(1, 1, title=headline(title, width), panel=(width, 3.75))
    axes[0, 0].remove()
    with matplotlib.rc_context(STYLE):
        grid = GridSpec(2, panels + last, figure, height_ratios=(1, 0.045), width_ratios=(1.0,) * panels + (0.6,) * last)
        over_time: list[Axes] = []
        for column in range(panels):
            over_time.append(figure.add_subplot(grid[0, column], sharey=over_time[0] if over_time else None))
        beside = [figure.add_subplot(grid[0, panels])] if last else []
        return figure, over_time, beside, figure.add_subplot(grid[1, :])


def key(
    figure: Figure, ax: Axes, *, wide: str = "", shaded: str = "", dashed: str = "", empty: str = "", note: str = ""
) -> Figure:
    """The legend below the page: the labelled groups of `ax`, then what wide, shaded, dashed and hatched mean, and a note."""
    handles, labels = ax.get_legend_handles_labels()
    columns = 1 + (len(labels) > 3)
    beside = columns * (0.7 + 0.068 * max(map(len, labels))) if labels else 0.0
    letters = max(int((figure.get_figwidth() - 0.6 - beside) / 0.068), 20)  # that fit into a line beside the groups
    marks = (
        (wide, Line2D([], [], color="0.4", linewidth=3.2, alpha=0.5)),
        (shaded, Patch(color="0.4", alpha=0.25, linewidth=0)),
        (dashed, Line2D([], [], color="0.2", linewidth=1.3, linestyle=DASHES)),
        (empty, Patch(facecolor=EMPTY, hatch="////", edgecolor="0.6", linewidth=0)),
        (textwrap.fill(note, letters, max_lines=4), Line2D([], [], linestyle="none")),
    )
    keys = [(mark, printable(text)) for text, mark in marks if text]
    with matplotlib.rc_context(STYLE):
        if handles:
            figure.legend(handles, labels, loc="outside lower left", ncols=columns)
        if keys:
            figure.legend(*zip(*keys, strict=True), loc="outside lower right" if handles else "outside lower left", ncols=1)
    return figure
