"""A result in memory with names on its axes."""

from typing import TYPE_CHECKING, Any

import jax

from dynamics import status
from dynamics.ensemble.dataset import Variable
from dynamics.extras import need
from dynamics.trajectory import Trajectory

if TYPE_CHECKING:
    from dynamics.ensemble.batch import Result


def dataset_of(result: "Result") -> Any:
    """An `xarray.Dataset`, see `Result.to_xarray`."""
    xarray = need("xarray", "io")
    times = ()
    if isinstance(result.values, Trajectory):
        data = result.values.to_xarray()
        times = (data.sizes["time"],)
    else:
        attributes = {"long_name": "how the run ended", **status.flags(result.status.dtype)}
        data = xarray.Dataset({"status": ("member", result.status, attributes)})
        for name, values in result.stats.items():
            data[name] = ("member", values)
        for path, leaf in jax.tree_util.tree_leaves_with_path(result.values):
            name = jax.tree_util.keystr(path, simple=True, separator="_") or "value"
            data[name] = (("member", *_rest(name, leaf.ndim - 1)), leaf)
    data = data.assign_coords(member=result.index, **result.coordinates)
    for name, found in result.reduced.items():
        shape = found.values.shape[len(found.dims) :]
        rest = ("time", *_rest(name, len(shape) - 1)) if shape[:1] == times else _rest(name, len(shape))
        data[name] = ((*found.dims, *rest), found.values, found.attributes)
    return data


def variables_of(data: Any) -> tuple[list[Variable], list[Variable]]:
    """Coordinates and variables of a dataset, as files are written from."""

    def listed(names):
        return [
            Variable(str(name), tuple(map(str, data[name].dims)), data[name].values, dict(data[name].attrs)) for name in names
        ]

    return listed(data.coords), listed(data.data_vars)


def _rest(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}_{axis}" for axis in range(count))
