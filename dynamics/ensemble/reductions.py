"""Statistics over members that need no member kept: partial results of chunks, merged as the chunks come.

All of them are over finite values: NaN (what a failed member leaves) and infinities are left out, and counted by `Moments`.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dynamics import validate
from dynamics.ensemble import float_bits
from dynamics.ensemble.columns import Columns, onto, smallest

Partial = dict[str, np.ndarray]
"""Named arrays, as a chunk file holds them; `cells` are the sorted cells that have members."""


class Reduced(NamedTuple):
    """One statistic: `values` of shape (cells, *extra, *shape), the names of the extra dimensions, and what to say of it."""

    values: np.ndarray
    dims: tuple[str, ...]
    attributes: dict[str, Any]


class Reduction(abc.ABC):
    """A statistic of members by cell, merged from parts in any grouping; a part does not grow with the number of members."""

    name: ClassVar[str]

    @abc.abstractmethod
    def of(self, values: np.ndarray, cell: np.ndarray) -> Partial:
        """The part of some members: values (members, *shape), numbers or booleans, and the cell of each, (members,)."""

    @abc.abstractmethod
    def merge(self, a: Partial, b: Partial) -> Partial:
        """The part of the members of both."""

    @abc.abstractmethod
    def result(self, partial: Partial, cells: int) -> dict[str, Reduced]:
        """The statistics of cells 0, ..., cells - 1, by the suffix of their name; NaN (or count 0) where there is no value."""

    def coordinates(self) -> dict[str, np.ndarray]:
        """The labels of each extra dimension."""
        return {}


@dataclass(frozen=True)
class Moments(Reduction):
    """Mean, variance (divisor: count), minimum, maximum, how many values are finite and how many are not.

    Deviations are summed about a mean that is kept in two words, so that a large mean cancels nothing. A mean is right while
    values stay below 1e300, a variance is infinite once squares pass the float range.

    **Reference:** T. Chan, G. Golub, R. LeVeque, Algorithms for computing the sample variance (1983), the pairwise update.
    """

    name: ClassVar[str] = "moments"

    def of(self, values: np.ndarray, cell: np.ndarray) -> Partial:
        columns = Columns(values, cell)
        x, finite = columns.x, columns.finite
        count = columns.each(np.add, finite.astype(np.int64)) if not columns.clean else np.tile(columns.sizes, (len(x), 1))
        with np.errstate(all="ignore"):
            share = 1.0 / np.maximum(count, 1)
            scaled = x * columns.spread(share)
            mean = columns.each(np.add, scaled)
            deviations = np.subtract(x, columns.spread(mean), out=scaled)
            if not columns.clean:
                deviations[~finite] = 0.0
            low = columns.each(np.add, deviations) * share
            squares = columns.each(np.add, np.square(deviations, out=deviations)) - count * low**2
        sums = {"count": count, "nonfinite": columns.sizes - count, "mean": mean, "mean_low": low, "squares": squares}
        minimum, maximum = columns.ends()
        parts = {**sums, "minimum": minimum, "maximum": maximum}
        return {"cells": columns.cells, **{name: columns.back(part) for name, part in parts.items()}}

    def merge(self, a: Partial, b: Partial) -> Partial:
        cells = np.union1d(a["cells"], b["cells"])
        a, b = ({name: onto(cells, part["cells"], part[name], 0) for name in part} for part in (a, b))
        count = a["count"] + b["count"]
        with np.errstate(all="ignore"):
            share = b["count"] / np.maximum(count, 1)
            delta = (b["mean"] - a["mean"]) + (b["mean_low"] - a["mean_low"])
            mean, low = _two_words(a["mean"], a["mean_low"] + delta * share)
            squares = a["squares"] + b["squares"] + delta**2 * share * a["count"]
        merged = {"mean": mean, "mean_low": low, "squares": squares}
        merged |= {"minimum": np.minimum(a["minimum"], b["minimum"]), "maximum": np.maximum(a["maximum"], b["maximum"])}
        only_a, only_b = b["count"] == 0, a["count"] == 0
        merged = {name: np.where(only_b, b[name], np.where(only_a, a[name], part)) for name, part in merged.items()}
        return {"cells": cells, "count": count, "nonfinite": a["nonfinite"] + b["nonfinite"], **merged}

    def result(self, partial: Partial, cells: int) -> dict[str, Reduced]:
        full = {name: onto(np.arange(cells), partial["cells"], part, 0) for name, part in partial.items() if name != "cells"}
        count = full["count"]
        with np.errstate(all="ignore"):
            variance = np.maximum(full["squares"], 0.0) / np.maximum(count, 1)
        numbers = {"mean": full["mean"] + full["mean_low"], "variance": variance}
        numbers |= {"minimum": full["minimum"], "maximum": full["maximum"]}
        of = {"values": "finite values only"}
        attributes = {"variance": {**of, "divisor": "count"}}
        found = {
            name: Reduced(np.where(count == 0, np.nan, part), (), attributes.get(name, of)) for name, part in numbers.items()
        }
        return {
            **found,
            "count": Reduced(count, (), of),
            "nonfinite": Reduced(full["nonfinite"], (), {"values": "NaN or infinite"}),
        }


@dataclass(frozen=True)
class Quantiles(Reduction):
    """Quantiles with a stated error, from whole numbers in buckets: the same to the bit whatever the chunks and their order.

    **Arguments:**

    - `levels`: increasing, each in [0, 1]. The quantile of level q of n finite values is the one of rank ceil(q n), at least 1.
    - `digits`: bits of the mantissa that buckets tell apart, 1 to 20. The relative error is at most 2**-(digits + 1) (below
      the normal numbers, 2.2e-308: an absolute error of 2**-(digits + 1023)). Smallest and largest value are exact.
    """

    levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
    digits: int = 8
    name: ClassVar[str] = "quantiles"

    def __post_init__(self):
        levels = _increasing_tuple("levels", self.levels, 1)
        if not (levels[0] >= 0 and levels[-1] <= 1):
            raise ValueError(f"levels must lie in [0, 1], got {levels}")
        if validate.whole("digits", self.digits, 1) > 20:
            raise ValueError(f"digits must be <= 20, got {self.digits}")
        object.__setattr__(self, "levels", levels)

    @property
    def _width(self) -> int:
        """Bits of a key made nonnegative."""
        return self.digits + 12

    def of(self, values: np.ndarray, cell: np.ndarray) -> Partial:
        columns = Columns(values, cell)
        present, rows = len(columns.cells), len(columns.x) * len(columns.cells)
        codes = float_bits.keys(columns.x, self.digits)
        codes += np.repeat((np.arange(present) << self._width) + (1 << (self._width - 1)), columns.sizes)
        left_out = present << self._width
        if not columns.clean:
            codes[~columns.finite] = left_out
        codes.sort(axis=-1)
        first = np.ones(codes.shape, bool)
        np.not_equal(codes[:, 1:], codes[:, :-1], out=first[:, 1:])
        at = np.flatnonzero(first)
        counts, column, codes = np.diff(at, append=first.size), at // max(codes.shape[1], 1), codes.reshape(-1)[at]
        kept = codes < left_out
        codes = (column[kept] * present << self._width) + codes[kept]
        minimum, maximum = (columns.back(end) for end in columns.ends())
        return {"cells": columns.cells, **self._packed(codes, counts[kept], rows), "minimum": minimum, "maximum": maximum}

    def merge(self, a: Partial, b: Partial) -> Partial:
        cells = np.union1d(a["cells"], b["cells"])
        codes = np.concatenate([self._codes(part, cells) for part in (a, b)])
        order = np.argsort(codes, kind="stable")  # two sorted runs: linear time
        codes, counts = codes[order], np.concatenate([a["counts"], b["counts"]])[order]
        at = np.flatnonzero(np.diff(codes, prepend=-1))
        codes, counts = codes[at], np.add.reduceat(counts, at, dtype=np.int64) if len(at) else counts
        minimum = np.fmin(*(onto(cells, part["cells"], part["minimum"], np.nan) for part in (a, b)))
        maximum = np.fmax(*(onto(cells, part["cells"], part["maximum"], np.nan) for part in (a, b)))
        return {"cells": cells, **self._packed(codes, counts, minimum.size), "minimum": minimum, "maximum": maximum}

    def result(self, partial: Partial, cells: int) -> dict[str, Reduced]:
        minimum, shape = partial["minimum"], partial["minimum"].shape
        passed = np.concatenate([[0], np.cumsum(partial["counts"], dtype=np.int64)])[partial["offsets"]]
        totals, inverse = np.unique(np.diff(passed), return_inverse=True)
        # a level means the decimal number it is written as: 0.07 of 100 values is the 7th, though the float is above 0.07
        ranks = [[max(1, -(-Fraction(repr(level)) * int(n) // 1)) for n in totals] for level in self.levels]
        rank, count = np.array(ranks, np.int64)[:, inverse], totals[inverse]
        at = np.searchsorted(np.cumsum(partial["counts"], dtype=np.int64), passed[:-1] + rank)
        keys = np.append(partial["keys"], 0)[np.minimum(at, len(partial["keys"]))]
        low, high = (part.reshape(shape[0], -1).T.reshape(-1) for part in (minimum, partial["maximum"]))
        found = np.clip(float_bits.middle(keys, self.digits), low, high)
        found = np.where(rank == 1, low, np.where(rank == count, high, found))
        found = np.moveaxis(found.reshape(len(self.levels), -1, shape[0]), -1, 0).reshape(shape[0], -1, *shape[1:])
        attributes = {
            "values": "finite values only",
            "definition": "order statistic of rank ceil(q n)",
            "relative_error": 2.0 ** -(self.digits + 1),
        }
        return {"quantile": Reduced(onto(np.arange(cells), partial["cells"], found, np.nan), ("quantile",), attributes)}

    def coordinates(self) -> dict[str, np.ndarray]:
        return {"quantile": np.array(self.levels)}

    def _packed(self, codes: np.ndarray, counts: np.ndarray, rows: int) -> Partial:
        """Sorted codes (row, then key) as the keys of each row one after the other; rows count through (column, cell)."""
        offsets = np.searchsorted(codes, np.arange(rows + 1) << self._width)
        keys = (codes & ((1 << self._width) - 1)) - (1 << (self._width - 1))
        return {"offsets": offsets, "keys": keys.astype(np.int32), "counts": smallest(counts)}

    def _codes(self, partial: Partial, cells: np.ndarray) -> np.ndarray:
        """The sorted codes of a part with its cells placed among `cells`."""
        present = len(partial["cells"])
        row = np.arange(len(partial["offsets"]) - 1)
        row = row // present * len(cells) + np.searchsorted(cells, partial["cells"])[row % present]
        codes = np.repeat((row << self._width) + (1 << (self._width - 1)), np.diff(partial["offsets"]))
        codes += partial["keys"]
        return codes


@dataclass(frozen=True)
class Histogram(Reduction):
    """Counts of the finite values in bins [edge, next edge), the last one closed, and of those below and above all bins.

    **Arguments:**

    - `edges`: finite and increasing, at least two.
    """

    edges: Sequence[float]
    name: ClassVar[str] = "histogram"

    def __post_init__(self):
        object.__setattr__(self, "edges", _increasing_tuple("edges", self.edges, 2))

    def of(self, values: np.ndarray, cell: np.ndarray) -> Partial:
        columns = Columns(values, cell)
        wide, present, kinds = len(columns.x), len(columns.cells), len(self.edges) + 1
        places = float_bits.edges_passed(columns.x, tuple(self.edges))
        places += kinds * (np.repeat(np.arange(present) * wide, columns.sizes) + np.arange(wide)[:, None])
        counts = np.bincount(places.reshape(-1) if columns.clean else places[columns.finite], minlength=kinds * present * wide)
        return {"cells": columns.cells, "counts": smallest(counts.reshape(present, *np.shape(values)[1:], kinds))}

    def merge(self, a: Partial, b: Partial) -> Partial:
        cells = np.union1d(a["cells"], b["cells"])
        counts = [onto(cells, part["cells"], part["counts"].astype(np.int64), 0) for part in (a, b)]
        return {"cells": cells, "counts": smallest(counts[0] + counts[1])}

    def result(self, partial: Partial, cells: int) -> dict[str, Reduced]:
        counts = onto(np.arange(cells), partial["cells"], partial["counts"].astype(np.int64), 0)
        counts = np.moveaxis(counts, -1, 1)
        attributes = {"values": "finite values only", "edges": np.array(self.edges)}
        return {
            "histogram": Reduced(counts[:, 1:-1], ("bin",), attributes),
            "histogram_below": Reduced(counts[:, 0], (), {"edge": self.edges[0]}),
            "histogram_above": Reduced(counts[:, -1], (), {"edge": self.edges[-1]}),
        }

    def coordinates(self) -> dict[str, np.ndarray]:
        edges = np.array(self.edges)
        return {"bin": edges[:-1] + np.diff(edges) / 2}


def _two_words(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x + y rounded, and what rounding lost (Knuth's sum)."""
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def _increasing_tuple(name: str, x, at_least: int) -> tuple[float, ...]:
    """A tuple of at least so many floats, finite and strictly increasing."""
    try:
        found = tuple(float(number) for number in x)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a sequence of numbers, got {x!r}") from None
    if len(found) < at_least:
        raise ValueError(f"{name} must hold at least {at_least} numbers, got {found}")
    validate.finite(name, np.array(found))
    validate.increasing(name, np.array(found))
    return found
