"""Pictures of a finished run: every observable over time against its closed form, and maps over two swept axes."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynamics import validate
from dynamics.cli import config as configuration
from dynamics.cli import reading
from dynamics.cli.curves import Curves, Formula, closed_form, curves
from dynamics.plotting import ensembles
from dynamics.plotting.page import label, page, save

PANELS = 3
"""With statistics by several axes: how many values of the others than the first are shown."""


def plot(
    folder: Path | str,
    *,
    observables: Sequence[str] | None = None,
    axes: Sequence[str] | None = None,
    theory: bool = True,
    theory_members: int = 20_000,
    out: Path | str | None = None,
) -> list[Path]:
    """Draw the result of the run in a folder; nothing is simulated, only its closed form is evaluated.

    **Arguments:**

    - `observables`: None is all of the result.
    - `axes`: the two swept axes of the maps; None is the first two that are crossed, where there are such.
    - `theory`: also draw the closed form of the same members, or of `theory_members` spread over them if there are more.
    - `out`: where the pictures go; None is `figures` in the folder.

    Returns the files: `<observable>.png` and `.pdf`, `phase-<observable>-<x>-<y>.png` and `.pdf`.

    **Raises:** `FileNotFoundError` for a run without a result; `ValueError` for an unknown observable or axis, naming the
    nearest, and for maps over axes that are not crossed or of a run that kept no last values.
    """
    folder = Path(folder)
    out = folder / "figures" if out is None else Path(out)
    validate.whole("theory_members", theory_members, 1)
    with reading.opened(folder) as data:
        names = reading.observables(data, observables)
        config, why = _configuration(data)
        pair = reading.pair(data, axes, config)
        for name in names if axes is not None else ():
            if f"{name}_final" not in data:
                raise ValueError(f"axes: no last values of {name} to draw a map of; run again with --set keep.final=true")
        title = _title(data, config)
        itself = config is not None and config.motion.by == "formula"
        formula = Formula({}, "", why if theory else "")
        if theory and config is not None and not itself:
            by = next((found for name in names if (found := reading.kept_apart(data, name))), [])
            formula = closed_form(config, names, by, reading.levels(data), theory_members)
        paths: list[Path] = []
        for name in names:
            paths += _page_over_time(data, name, "by formula" if itself else "simulated", formula, title, out)
            if pair is not None and f"{name}_final" in data:
                paths += _page_of_maps(data, name, pair, title, out)
        return paths


# ---- in words ----


def _configuration(data) -> tuple[configuration.SweepConfig | None, str]:
    """The configuration of the run, or why it cannot be read."""
    try:
        return configuration.loads(data.attrs["config"]), ""
    except (KeyError, configuration.ConfigError) as error:
        return None, f"no closed form: the configuration in the result cannot be read: {error}"


def _title(data, config: configuration.SweepConfig | None) -> str:
    """What the run is called; then how many members, and what moves."""
    called = dict.fromkeys(data.attrs[key] for key in ("title", "name") if data.attrs.get(key))
    words = [f"{ensembles.thousands(data.sizes['member'])} members", *([] if config is None else _words(config))]
    return (" \u2013 ".join(called) or "run") + "\n" + ", ".join(words)


def _words(config: configuration.SweepConfig) -> list[str]:
    motion = config.motion
    moves = ("stochastic " if motion.batch_size is not None else "") + f"gradient {motion.verb}"
    loss = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", config.problem.loss["kind"]).lower()
    return [f"{moves} of the {loss} loss" + (" by formula" if motion.by == "formula" else "")]


def _labelled(data, *names: str) -> str:
    """The name of a quantity and its unit, from the first of the variables that is there."""
    attributes = next((data[name].attrs for name in names if name in data), {})
    unit = attributes.get("units", "")
    return names[0] + (f" ({unit})" if unit not in ("", "1") else "")


def _clock(data) -> str:
    """Time of a flow, or the value of its clock, or the iterations of a descent."""
    text = data["time"].attrs.get("long_name")
    return text if text in ("iteration", "value of the clock") else _labelled(data, "time")


def _short(value) -> str:
    return f"{value:.3g}" if np.issubdtype(np.asarray(value).dtype, np.number) else str(value)


# ---- pages ----


def _page_over_time(data, name: str, how: str, formula: Formula, title: str, out: Path) -> list[Path]:
    """An observable over time and at the end, and how the members ended."""
    by, simulated, exact = reading.kept_apart(data, name), _simulated(data, name), formula.curves.get(name)
    groups = data[f"{by[0]}_cell"].values if by else np.zeros(1)
    few = groups.size <= ensembles.FEW
    bands = None if groups.size == 1 else int(few)  # bands of several groups lie on each other: one each, or none
    cells = _cells(data, by) if simulated is not None else []
    log = ensembles.over_decades(data[f"{name}_final"].values if simulated is None else simulated.middle)
    ends = reading.ends(data, name, by if few else [], log=log)
    if not (cells or ends):
        return []
    figure, over_time, beside, strip = ensembles.sheet(len(cells), last=bool(ends), title=title)
    for ax, (panel, place) in zip(over_time, cells, strict=True):
        label(ax, panel, _clock(data), name, log=log)
        _draw(ax, data["time"].values, simulated, exact, place, bands, _labelled(data, by[0]) if by else "", groups)
    if not few and over_time:
        ensembles.color_bar(over_time[-1], groups, _labelled(data, by[0]))
    for ax in beside:
        label(ax, "", f"{name} at the end", "members")
        for color, (edges, counts) in zip(ensembles.COLORS, ends, strict=False):
            ensembles.histogram(ax, edges, counts, color=color)
    ensembles.status_bar(strip, reading.statuses(data))
    ensembles.key(
        figure,
        (over_time + beside)[0],
        wide=f"{how}, {simulated.text}" if simulated is not None else "",
        shaded=", ".join(simulated.shaded[:bands]) if simulated is not None else "",
        dashed=formula.text if exact is not None else "",
        note=formula.why,
    )
    return save(figure, out, name)


def _draw(ax, times, simulated, exact, place: tuple[int, ...], bands: int | None, axis: str, groups: np.ndarray) -> None:
    """All groups in one panel; the closed form of all, or of some where they are many."""
    few = groups.size <= ensembles.FEW
    dashed = np.unique(np.linspace(0, groups.size - 1, ensembles.FEW).round())
    if ensembles.spread_evenly_in_log(times):
        ax.set_xscale("log")
    for number, color in enumerate(ensembles.colors(groups)):
        text = f"{axis} = {_short(groups[number])}" if axis and few else None
        wide = _cell(simulated, number, place, bands)
        ensembles.band(ax, times, *wide, color=color, label=text, width=3.2 if few else 1.6)
        if exact is not None and number in dashed:
            ensembles.theory(ax, times, *_cell(exact, number, place, bands), color=color if few else "0.1")


def _simulated(data, name: str) -> Curves | None:
    def lookup(key: str):
        return (data[key].values, tuple(map(str, data[key].dims))) if key in data else None

    return curves(name, lookup, reading.levels(data))


def _cell(whole: Curves, number: int, place: tuple[int, ...], bands: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The middle and the first bands of one group in one panel."""
    here = (number, *place)[: whole.middle.ndim - 1]
    return whole.middle[here], whole.low[:bands, *here], whole.high[:bands, *here]


def _cells(data, by: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """The panels: some of the values of all axes but the first that statistics are kept apart by, and where they stand."""
    values = [data[f"{axis}_cell"].values for axis in by[1:]]
    places = list(itertools.product(*(range(of.size) for of in values)))
    some = np.unique(np.linspace(0, len(places) - 1, PANELS).round().astype(int))
    return [
        (", ".join(f"{axis} = {_short(of[i])}" for axis, of, i in zip(by[1:], values, place, strict=True)), place)
        for place in (places[number] for number in some)
    ]


def _page_of_maps(data, name: str, pair: tuple[str, str], title: str, out: Path) -> list[Path]:
    """The median last value over everything but two swept axes, and where members failed."""
    (x, column), (y, row) = (np.unique(data[axis].values, return_inverse=True) for axis in pair)
    cell = row * x.size + column
    shape, good = (y.size, x.size), reading.ended_well(data)
    members = np.bincount(cell, minlength=x.size * y.size)
    failed = np.bincount(cell, weights=~good, minlength=members.size)
    median = reading.medians(np.where(good, data[f"{name}_final"].values, np.nan), cell, members.size)
    columns = 1 + bool(failed.any())
    figure, axes = page(1, columns, title=ensembles.headline(title, 4.9 * columns), panel=(4.9, 3.9))
    maps: list[tuple] = [(f"median of {name} at the end", median.reshape(shape), ensembles.SCALE, None)]
    if failed.any():
        fraction = np.divide(failed, members, out=np.full(members.size, np.nan), where=members > 0)
        maps.append(("fraction of members that failed", fraction.reshape(shape), "magma_r", (0.0, 1.0)))
    for ax, (text, values, scale, limits) in zip(axes[0], maps, strict=True):
        label(ax, "", *(_labelled(data, axis) for axis in pair))
        ensembles.phase_map(ax, x, y, values, label=text, scale=scale, limits=limits)
    if np.isnan(median).any():
        ensembles.key(figure, axes[0, 0], empty="no member ended well")
    return save(figure, out, f"phase-{name}-{pair[0]}-{pair[1]}")
