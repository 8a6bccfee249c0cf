"""Curves over time: simulation solid, theory dashed on top of it, an ensemble as its median and a quantile band."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""A cycle that colour-blind readers can tell apart (M. Okabe, K. Ito, 2008)."""
DASHES = (0, (4, 2))
"""Of curves by formula."""


def shown(scale: str, values) -> np.ndarray:
    """What an axis of this scale can show; on a log axis zero and less are left out, never moved."""
    values = np.asarray(values, float)
    hidden = ~np.isfinite(values)
    if scale == "log":
        hidden |= values <= 0
    return np.where(hidden, np.nan, values)


def simulated(ts, values, *, ax: Axes | None = None, color: str = COLORS[0], label: str | None = None) -> Axes:
    """A simulated curve: solid, wide and light, so that the theory on top of it stays visible.

    **Arguments:** `ts` and `values` of shape (times,).
    """
    ax = plt.gca() if ax is None else ax
    ax.plot(ts, shown(ax.get_yscale(), values), color=color, linewidth=3.2, alpha=0.45, solid_capstyle="round", label=label)
    return ax


def theory(ts, values, *, ax: Axes | None = None, color: str = COLORS[0], label: str | None = None) -> Axes:
    """A curve by formula: dashed, thin and full. `ts` and `values` of shape (times,)."""
    ax = plt.gca() if ax is None else ax
    ax.plot(ts, shown(ax.get_yscale(), values), color=color, linewidth=1.3, linestyle=DASHES, label=label, zorder=3)
    return ax


def band(
    ts, values, *, quantiles=(0.05, 0.95), ax: Axes | None = None, color: str = COLORS[0], label: str | None = None
) -> Axes:
    """The band between two quantiles over members; `values` of shape (members, times)."""
    ax = plt.gca() if ax is None else ax
    low, high = np.nanquantile(np.asarray(values, float), quantiles, axis=0)
    ax.fill_between(
        ts, shown(ax.get_yscale(), low), shown(ax.get_yscale(), high), color=color, alpha=0.18, linewidth=0, label=label
    )
    return ax


def ensemble(
    ts, values, *, quantiles=(0.05, 0.95), ax: Axes | None = None, color: str = COLORS[0], label: str | None = None
) -> Axes:
    """Median and quantile band of simulated members; `values` of shape (members, times), NaN where a member had ended."""
    ax = band(ts, values, quantiles=quantiles, ax=ax, color=color)
    return simulated(ts, np.nanmedian(np.asarray(values, float), axis=0), ax=ax, color=color, label=label)
