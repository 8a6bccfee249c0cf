"""Values of members as columns sorted by cell, and arrays by cell."""

import numpy as np


class Columns:
    """Values as float64 columns, (columns, members), with the members of a cell next to each other.

    `finite`: of the same shape; `clean`: all are. Where they are not finite, `x` is zero. `sizes`: members of each cell.
    """

    def __init__(self, values: np.ndarray, cell: np.ndarray):
        values, cell = np.asarray(values), np.asarray(cell)
        self.shape = values.shape[1:]
        rows = values.reshape(len(values), -1)
        self.cells, self.sizes = np.unique(cell, return_counts=True)
        if len(self.cells) > 1:
            rows = rows[np.argsort(cell, kind="stable")]
        self.x = np.array(rows.T, np.float64, order="C")
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.finite = np.isfinite(self.x)
        self.clean = bool(self.finite.all())
        if not self.clean:
            self.x[~self.finite] = 0.0

    def each(self, operation: np.ufunc, x: np.ndarray) -> np.ndarray:
        """The ufunc over the members of each cell, (columns, cells)."""
        return operation.reduceat(x, self.starts, axis=-1)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Smallest and largest finite value, (columns, cells); NaN where there is none. Zero has no sign."""
        x = self.x if self.clean else np.where(self.finite, self.x, np.nan)
        return self.each(np.fmin, x) + 0.0, self.each(np.fmax, x) + 0.0

    def spread(self, x: np.ndarray) -> np.ndarray:
        """One number a cell, repeated for its members."""
        return np.repeat(x, self.sizes, axis=-1) if len(self.cells) > 1 else x

    def back(self, x: np.ndarray) -> np.ndarray:
        """(columns, cells) as (cells, *shape)."""
        return np.ascontiguousarray(x.T).reshape(len(self.cells), *self.shape)


def onto(cells: np.ndarray, own: np.ndarray, array: np.ndarray, fill) -> np.ndarray:
    """Rows of some cells at their places among `cells`, filled up."""
    out = np.full((len(cells), *array.shape[1:]), fill, array.dtype)
    out[np.searchsorted(cells, own)] = array
    return out


def smallest(counts: np.ndarray) -> np.ndarray:
    """Counts in the smallest unsigned type that holds them."""
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
