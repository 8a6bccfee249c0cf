"""Many members at once: what is asked, and what is returned."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dynamics import status
from dynamics.ensemble.dataset import write
from dynamics.ensemble.design import Design
from dynamics.ensemble.engine import Ensemble, Report, everything, observed
from dynamics.ensemble.identity import opened
from dynamics.ensemble.labelled import dataset_of, variables_of
from dynamics.ensemble.program import Device
from dynamics.ensemble.reductions import Reduced, Reduction
from dynamics.ensemble.statistics import label
from dynamics.ensemble.store import MemoryStore, Store
from dynamics.segmented import Segmented


class Result(NamedTuple):
    """What an ensemble returned, in the order of its members.

    - `values`: what was kept of each member, with a leading axis of members, on the host; None where nothing was.
    - `status`: shape (members,): the status of the returned trajectory, else whether the values are finite.
    - `index`: shape (members,): the number of each member, which its key is folded from.
    - `stats`: `steps` and `t_end` of each member where trajectories say them, each of shape (members,).
    - `reduced`: statistics over members, by name (`nc1_mean`): arrays of shape (*by, ..., *shape) with their dimensions.
    - `report`: how the run went.
    - `coordinates`: labels by name, each with its dimensions: of the members on every swept axis, of the values that statistics
      are kept apart by (`peak_cell`), of quantile levels and bins.
    """

    values: Any
    status: np.ndarray
    index: np.ndarray
    stats: dict[str, np.ndarray]
    reduced: dict[str, Reduced]
    report: Report
    coordinates: dict[str, tuple[tuple[str, ...], np.ndarray]]

    @property
    def ok(self) -> np.ndarray:
        """Which members ended well, shape (members,)."""
        return self.status == status.OK

    def summary(self) -> str:
        """One line on how the members ended: how many failed, the first of them, why, and how far it got."""
        failed = np.flatnonzero(~self.ok)
        if failed.size == 0:
            return f"{self.status.size} of {self.status.size} ok"
        reached = f" at {self.stats['t_end'][failed[0]]:.6g}" if "t_end" in self.stats else ""
        return (
            f"{failed.size} of {self.status.size} failed; first: member {self.index[failed[0]]}, "
            f"{status.name(self.status[failed[0]])}{reached}"
        )

    def to_xarray(self) -> Any:
        """An `xarray.Dataset`: dimension `member` with the swept axes as coordinates, `time` where trajectories were kept,
        statistics over `<axis>_cell`, `quantile` and `<name>_bin`; further axes are `<name>_0`, ...

        **Raises:** `ImportError` without the extra `io`; `ValueError` where two things have one name.
        """
        return dataset_of(self)

    def write(self, path: str | Path) -> Path:
        """Write the same as NetCDF-4, or zarr for a name ending in `.zarr`: with checksums, whole or not at all."""
        data = self.to_xarray()
        coordinates, variables = variables_of(data)
        kind = "zarr" if Path(path).suffix == ".zarr" else "netcdf"
        return write(Path(path), coordinates, variables, dict(data.attrs), format=kind)


def run(
    one: Callable | Segmented,
    members: PyTree | Design,
    *,
    key=None,
    cost: Callable | None = None,
    chunk: int | None = None,
    store: str | Path | Store | None = None,
    progress: bool = True,
    keep: Callable | None = everything,
    watch: Callable = observed,
    reduce: Sequence[Reduction] | Mapping[str, Sequence[Reduction]] = (),
    by: Sequence[str] = (),
    lanes: int | None = None,
    memory: int | float | str | None = None,
    devices: Sequence[Device] | None = None,
    shard: bool = False,
    process: tuple[int, int] = (0, 1),
    only=None,
) -> Result:
    """Map `one` over many members.

    Members are independent: with the same chunk and lanes a member's numbers do not depend, by one bit, on which others share
    its chunk, whether they fail, in what order they run, or how many devices and processes there are. (On a CPU that asks for
    a multiple of 8 lanes, which is the default: else vector loops have a remainder, and numbers round by their place.)

    **Arguments:**

    - `one`: takes one member, and with `key` also a key of its own, `fold_in(key, number)`; returns any pytree. Or a
      `Segmented` motion (`dynamics.segmented_flow`): finished members then leave their lane to the next one.
    - `members`: a pytree of arrays with a common leading axis, or a `Design` of named axes.
    - `cost`: maps a member (and, if it has a second argument, its key) to a number; the hardest members run first, so that
      those alike in cost share a chunk. None: as given.
    - `chunk`: members per call, a multiple of `lanes` (rounded up to one), the unit that is stored. The last chunk is padded.
      None chooses one for the number of members and the memory.
    - `store`: a folder for the finished chunks, one a process. A run that stopped goes on where it was; a folder of another run
      is refused.
    - `progress`: a line on stderr after each chunk, when there are several.
    - `keep`: a function of what `one` returned, whose value is kept for each member; None keeps statuses only.
    - `watch`: a function of what `one` returned to a dictionary of named arrays, which `reduce` sees.
    - `reduce`: reductions over members, for every watched array or by its name. No member is stored for them.
    - `by`: names of axes whose values are not reduced over but kept apart.
    - `lanes`: members that move side by side, in lockstep; None is 16 of a `Segmented` (more pay on accelerators), else 256.
    - `memory`: bytes, or a text such as "2GiB", that the chunks of all devices may take; None is half of what is free.
    - `devices`: None is all local ones. Each runs chunks of its own; with `shard` every chunk is split over all of them.
    - `process`: (index, count): this process runs the chunks i with i % count == index, and returns their members only.
    - `only`: run only these member numbers.

    **Raises:** `ValueError` on the host for what does not fit together; `OutOfMemory` where a chunk does not fit;
    `store.ForeignRun`, `store.Locked`, `store.CorruptFile` and `OSError` from the folder.
    """
    ensemble = Ensemble(
        one,
        members,
        key=key,
        cost=cost,
        chunk=chunk,
        keep=keep,
        watch=watch,
        reduce=reduce,
        by=by,
        lanes=lanes,
        memory=memory,
        devices=devices,
        shard=shard,
        process=process,
        only=only,
    )
    with opened(ensemble, store) as chunks:
        ensemble.execute(chunks, progress=progress)
        return _collected(ensemble, chunks)


def _collected(ensemble: Ensemble, store: Store | MemoryStore) -> Result:
    """Everything in memory."""
    kept = ensemble.shapes[0].kept
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(kept)]
    index = ensemble.array(store, "index")
    leaves = [ensemble.array(store, f"values{jax.tree_util.keystr(path)}") for path in paths]
    return Result(
        values=None if ensemble.keep is None else jax.tree.unflatten(jax.tree.structure(kept), leaves),
        status=ensemble.array(store, "status"),
        index=index,
        stats={name: ensemble.array(store, name) for name in ensemble.shapes[0].stats},
        reduced={
            f"{name}_{key}": one._replace(dims=tuple(label(name, dim) for dim in one.dims))
            for name, found in ensemble.reduced(store)
            for key, one in found.items()
        },
        report=ensemble.report(store),
        coordinates={
            **{name: (("member",), values[index]) for name, values in ensemble.source.coordinates().items()},
            **{name: ((name,), values) for name, values in ensemble.statistics.coordinates().items()},
        },
    )
