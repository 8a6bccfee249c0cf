"""Statistics over members: partial results of chunks, merged in the order of the chunks, whatever order they come in."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from dynamics import validate
from dynamics.ensemble.design import Design, Listed
from dynamics.ensemble.reductions import Reduced, Reduction

Arrays = Mapping[str, np.ndarray]


class Statistics:
    """The reductions of each watched array, over all members or apart for each value of the axes `by`.

    **Raises:** `ValueError` for names that are not watched, and for what is no reduction.
    """

    def __init__(self, reduce, by: tuple[str, ...], source: Design | Listed, watched: dict[str, Any]):
        self.reduce, self.by, self.source = _by_name(reduce, watched), by, source
        self.cell_shape = source.cell_shape(by)
        self._early: dict[int, Arrays] = {}
        self._totals: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        self._turn = 0

    def partials(self, members: np.ndarray, watched: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The partial results of a chunk, named as they are stored."""
        cells = self.source.cells(self.by, members)
        return {
            f"{_head(name, reduction)}{part}": array
            for name, reductions in self.reduce.items()
            for reduction in reductions
            for part, array in reduction.of(watched[name], cells).items()
        }

    def absorb(self, place: int, arrays: Arrays) -> dict[str, np.ndarray]:
        """Take the partial results of the chunk at this place; returns the other arrays.

        They are merged at once where their turn has come, so that memory stays bounded without a folder.
        """
        self._early[place] = {name: array for name, array in arrays.items() if name.startswith("reduced/")}
        while self._turn in self._early:
            partials = self._early.pop(self._turn)
            for name, reductions in self.reduce.items():
                for reduction in reductions:
                    before = self._totals.get((name, reduction.name))
                    self._totals[name, reduction.name] = _merged(reduction, before, _part(partials, name, reduction))
            self._turn += 1
        return {name: array for name, array in arrays.items() if not name.startswith("reduced/")}

    def results(self, chunks: Iterable[Arrays]) -> Iterator[tuple[str, dict[str, Reduced]]]:
        """What comes of one watched array after the other: from what was absorbed, else from stored chunks in their order."""
        chunks = list(chunks)
        cells = int(np.prod(self.cell_shape, dtype=np.int64))
        for name, reductions in self.reduce.items():
            for reduction in reductions:
                total = self._totals.get((name, reduction.name))
                for chunk in chunks if total is None else ():
                    total = _merged(reduction, total, _part(chunk, name, reduction))
                if total is not None:
                    yield name, {key: self._apart(one) for key, one in reduction.result(total, cells).items()}

    def coordinates(self) -> dict[str, np.ndarray]:
        """Labels of the dimensions that results have: values of the axes `by`, quantile levels, bins."""
        axes = {axis.name: axis.coordinate() for axis in self.source.axes} if isinstance(self.source, Design) else {}
        found = {f"{name}_cell": axes[name] for name in self.by}
        for name, reductions in self.reduce.items():
            for reduction in reductions:
                found |= {label(name, dim): values for dim, values in reduction.coordinates().items()}
        return found

    def _apart(self, found: Reduced) -> Reduced:
        """The axis of cells unfolded into the axes that statistics are kept apart by."""
        return found._replace(
            values=found.values.reshape(self.cell_shape + found.values.shape[1:]),
            dims=tuple(f"{name}_cell" for name in self.by) + found.dims,
        )


def label(name: str, dim: str) -> str:
    """The name of a dimension of a result: cells and quantile levels are common to all variables, bins are each one's own."""
    return f"{name}_{dim}" if dim == "bin" else dim


def _head(name: str, reduction: Reduction) -> str:
    return f"reduced/{name}/{reduction.name}/"


def _part(arrays: Arrays, name: str, reduction: Reduction) -> dict[str, np.ndarray]:
    """What one reduction left of one variable among the arrays of a chunk."""
    head = _head(name, reduction)
    return {key.removeprefix(head): arrays[key] for key in arrays if key.startswith(head)}


def _merged(reduction: Reduction, before: dict | None, partial: dict) -> dict[str, np.ndarray]:
    return partial if before is None else reduction.merge(before, partial)


def _by_name(reduce, watched: dict[str, Any]) -> dict[str, list[Reduction]]:
    """The reductions of each watched array."""
    chosen = reduce if isinstance(reduce, Mapping) else {name: reduce for name in watched}
    for name, reductions in chosen.items():
        validate.choice("reduce", name, watched)
        wrong = [one for one in reductions if not isinstance(one, Reduction)]
        if wrong:
            raise ValueError(f"reduce must hold reductions such as ensemble.Moments(), got {wrong[0]!r} for {name!r}")
        names = [one.name for one in reductions]
        if len(set(names)) < len(names):
            raise ValueError(f"reduce must hold each kind of reduction once, got {names} for {name!r}")
    return {name: list(reductions) for name, reductions in chosen.items()}
