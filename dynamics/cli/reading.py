"""What a result file holds that there is a picture of."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynamics import status, validate
from dynamics.cli.config import SweepConfig
from dynamics.cli.defaults import SEEDS
from dynamics.extras import need

BINS = 40


def opened(folder: Path) -> Any:
    """The result of the run in a folder, an `xarray.Dataset` that reads a variable when it is asked for."""
    for name, engine in (("result.nc", "netcdf4"), ("result.zarr", "zarr")):
        if (folder / name).exists():
            return need("xarray", "io").open_dataset(folder / name, engine=engine)
    raise FileNotFoundError(f"{folder} holds no result.nc; complete the run first: dynamics resume {folder}")


def observables(data, wanted: Sequence[str] | None) -> list[str]:
    """The observables to draw: those asked for, or all that are one number at a time."""
    known: dict[str, None] = {}
    beside = {"quantile": "quantile", "mean": "variance"}
    for name, array in data.data_vars.items():
        head, _, kind = str(name).rpartition("_")
        if array.dims == ("member", "time"):
            known[str(name)] = None
        elif array.dims == ("member",) and kind == "final":
            known[head] = None
        elif kind in ("quantile", "mean") and f"{head}_{beside[kind]}" in data:
            if {dim for dim in array.dims if not dim.endswith("_cell")} <= {"quantile", "time"}:
                known[head] = None
    for name in known if wanted is None else wanted:
        validate.choice("observable", name, known)
    return list(known if wanted is None else dict.fromkeys(wanted))


def kept_apart(data, name: str) -> list[str]:
    """The axes whose values the statistics of an observable are kept apart by."""
    found = next((data[key] for key in (f"{name}_quantile", f"{name}_mean") if key in data), None)
    return [] if found is None else [str(dim).removesuffix("_cell") for dim in found.dims if str(dim).endswith("_cell")]


def levels(data) -> np.ndarray:
    """The levels of the quantiles."""
    return data["quantile"].values if "quantile" in data.coords else np.array([])


def _axes(config: SweepConfig | None) -> dict[str, str]:
    """The dotted path of each axis by its name, in the order of the file."""
    factors = [] if config is None else config.sweep
    return {one.name or "": one.axis or "" for factor in factors for one in (factor.zip or [factor])}


def pair(data, axes: Sequence[str] | None, config: SweepConfig | None) -> tuple[str, str] | None:
    """The two axes of the maps: those asked for, or the first two of the file that are crossed with each other.

    No map is drawn over axes that only draw starts anew, unless asked for.
    """
    paths = _axes(config)
    per_member = [str(name) for name, values in data.coords.items() if values.dims == ("member",) and name != "member"]
    swept = [name for name in per_member if np.unique(data[name].values).size > 1]
    if axes is None:
        order = [*paths, *swept]  # a zarr folder lists its arrays by the alphabet
        free = [name for name in sorted(swept, key=order.index) if paths.get(name, name) not in (*SEEDS, "seed")]
        return next((pair for pair in itertools.combinations(free, 2) if _crossed(data, *pair)), None)
    for name in axes:
        validate.choice("axes", name, swept)
    if len(set(axes)) != 2:
        raise ValueError(f"axes must name two different swept axes, got {list(axes)}")
    x, y = axes
    if not _crossed(data, x, y):
        raise ValueError(f"axes must be crossed with each other; {x} and {y} are swept together")
    return x, y


def _crossed(data, x: str, y: str) -> bool:
    (columns, i), (rows, j) = (np.unique(data[name].values, return_inverse=True) for name in (x, y))
    return np.unique(i * rows.size + j).size > max(columns.size, rows.size)


def ended_well(data) -> np.ndarray:
    """Which members are ok, shape (members,)."""
    return data["status"].values == status.OK if "status" in data else np.ones(data.sizes["member"], bool)


def statuses(data) -> dict[str, int]:
    """How many members ended in each way."""
    if "status" not in data:
        return {"members": data.sizes["member"]}
    counts = np.bincount(data["status"].values.astype(int), minlength=len(status.NAMES))
    return dict(zip(status.NAMES, counts.tolist(), strict=True))


def ends(data, name: str, by: Sequence[str], *, log: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Edges and counts of the last values, for each value of the first axis in `by` or of all together.

    Of members that ended well where their last values were kept, else of the histogram over members; empty without either.
    """
    if f"{name}_final" not in data:
        return _last_histogram(data, name, by)
    values = data[f"{name}_final"].values
    good = ended_well(data) & np.isfinite(values) & (values > 0 if log else True)
    if not good.any():
        return []
    low, high = values[good].min(), values[good].max()
    edges = np.geomspace(low, high, BINS + 1) if log and low < high else np.histogram_bin_edges([low, high], BINS)
    groups = [data[by[0]].values == value for value in data[f"{by[0]}_cell"].values] if by else [np.ones(values.size, bool)]
    return [(edges, np.histogram(values[good & group], edges)[0]) for group in groups]


def _last_histogram(data, name: str, by: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    if f"{name}_histogram" not in data:
        return []
    whole = data[f"{name}_histogram"]
    counts = whole.isel(time=-1) if "time" in whole.dims else whole
    groups = [f"{axis}_cell" for axis in by[:1]]
    counts = counts.sum([dim for dim in counts.dims if str(dim).endswith("_cell") and dim not in groups])
    return [(np.asarray(whole.attrs["edges"]), row) for row in np.atleast_2d(counts.transpose(*groups, ...).values)]


def medians(values: np.ndarray, cell: np.ndarray, cells: int) -> np.ndarray:
    """The median of the finite values of each cell, shape (cells,); NaN where there is none."""
    finite = np.isfinite(values)
    values, cell = values[finite], cell[finite]
    order = np.argsort(cell, kind="stable")
    pieces = np.split(values[order], np.searchsorted(cell[order], np.arange(1, cells)))
    return np.array([np.median(piece) if piece.size else np.nan for piece in pieces])
