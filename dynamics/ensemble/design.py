"""The design of a sweep: named axes, crossed or zipped; members are numbered and computed from their number."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dynamics import validate
from dynamics.ensemble.rows import leading_size, on_host, rows_of


class Axis:
    """A named axis of a sweep.

    **Arguments:**

    - `name`: what the value is called in a member and in the result's coordinates.
    - `values`: a pytree of arrays with a common leading axis, one entry a value; static: a sequence of hashable Python values.
    - `static`: the values are structure (class sizes, dimensions, kinds): members get them as Python values, and every
      combination is a program of its own. Else they are arrays, traced.
    """

    name: str
    values: Any
    static: bool

    def __init__(self, name: str, values, static: bool = False):
        if not isinstance(name, str) or not name:
            raise ValueError(f"name of an axis must be a non-empty text, got {name!r}")
        self.name, self.static = name, static
        if static:
            self.values = tuple(values)
            for value in self.values:
                try:
                    hash(value)
                except TypeError:
                    raise ValueError(f"values of the static axis {name!r} must be hashable, got {value!r}") from None
        else:
            values = np.asarray(values) if isinstance(values, list | tuple | range) else values
            leading_size(f"values of axis {name!r}", values)
            self.values = jax.tree.map(on_host, values)
        if len(self) == 0:
            raise ValueError(f"values of axis {name!r} must not be empty")

    def __len__(self) -> int:
        return len(self.values) if self.static else leading_size(self.name, self.values)

    def coordinate(self) -> np.ndarray:
        """One label a value, shape (len,): the number or text itself where it is one, else its position."""
        if self.static:
            numeric = all(isinstance(value, bool | int | float) for value in self.values)
            return np.array(self.values) if numeric else np.array([str(value) for value in self.values])
        leaves = jax.tree.leaves(self.values)
        plain = len(leaves) == 1 and isinstance(leaves[0], np.ndarray) and leaves[0].ndim == 1
        return leaves[0] if plain else np.arange(len(self))


class Group(NamedTuple):
    """Members that share one compiled program: their static values, and their numbers in increasing order."""

    static: dict[str, Any]
    numbers: np.ndarray


class Design:
    """Axes crossed with each other, the last varying fastest; a tuple of axes of one length is zipped.

    `Design(Axis("gamma", [0.1, 0.5]), (Axis("peak", peaks), Axis("horizon", horizons)), Axis("start", range(100)))` has
    members 0, ..., size - 1. A member is a dictionary from axis names to values.
    """

    def __init__(self, *factors: Axis | tuple[Axis, ...]):
        self.factors = tuple((factor,) if isinstance(factor, Axis) else tuple(factor) for factor in factors)
        if not self.factors or not all(self.factors):
            raise ValueError("a design needs at least one axis")
        for factor in self.factors:
            if len({len(axis) for axis in factor}) > 1:
                lengths = ", ".join(f"{axis.name}: {len(axis)}" for axis in factor)
                raise ValueError(f"zipped axes must have one length, got {lengths}")
        self._place = {axis.name: place for place, factor in enumerate(self.factors) for axis in factor}
        if len(self._place) < sum(map(len, self.factors)):
            raise ValueError(f"axes must have different names, got {[axis.name for axis in self.axes]}")
        self.shape = tuple(len(factor[0]) for factor in self.factors)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes, in order."""
        return tuple(axis for factor in self.factors for axis in factor)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(axis.name for axis in self.axes)

    @property
    def size(self) -> int:
        """How many members."""
        return int(np.prod(self.shape, dtype=np.int64))

    def places(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """For members, shape (n,): the position of each on every axis."""
        places = np.unravel_index(numbers, self.shape)
        return {name: places[factor] for name, factor in self._place.items()}

    def rows(self, numbers: np.ndarray) -> dict[str, PyTree]:
        """The traced values of members, leading axis (n,)."""
        places = self.places(numbers)
        return {axis.name: rows_of(axis.values, places[axis.name]) for axis in self.axes if not axis.static}

    def coordinates(self) -> dict[str, np.ndarray]:
        """The label of every member on every axis, each of shape (members,)."""
        places = self.places(np.arange(self.size))
        return {axis.name: axis.coordinate()[places[axis.name]] for axis in self.axes}

    def groups(self) -> list[Group]:
        """Members by program, in the order in which the static values first appear."""
        static = [axis for axis in self.axes if axis.static]
        if not static:
            return [Group({}, np.arange(self.size))]
        places = self.places(np.arange(self.size))
        codes = np.stack([_codes(axis.values)[places[axis.name]] for axis in static], axis=1)
        kinds, of = np.unique(codes, axis=0, return_inverse=True)
        groups = []
        for kind in range(len(kinds)):
            numbers = np.flatnonzero(of.reshape(-1) == kind)
            values = {axis.name: axis.values[code] for axis, code in zip(static, kinds[kind], strict=True)}
            groups.append(Group(values, numbers))
        return sorted(groups, key=lambda group: group.numbers[0])

    def cell_shape(self, names: Sequence[str]) -> tuple[int, ...]:
        """The lengths of the named axes, which statistics are kept apart by."""
        for name in names:
            validate.choice("by", name, self.names)
        factors = [self._place[name] for name in names]
        if len(set(factors)) < len(factors):
            raise ValueError(f"by must name axes that are crossed, not zipped with each other, got {list(names)}")
        return tuple(self.shape[factor] for factor in factors)

    def cells(self, names: Sequence[str], numbers: np.ndarray) -> np.ndarray:
        """The cell of each member, shape (n,), counted through `cell_shape(names)` with the last name fastest."""
        shape = self.cell_shape(names)
        if not names:
            return np.zeros(len(numbers), np.int64)
        places = self.places(numbers)
        return np.ravel_multi_index([places[name] for name in names], shape)


class Listed:
    """Members given one by one: a pytree of arrays with a common leading axis."""

    def __init__(self, members: PyTree):
        self.size = leading_size("members", members)
        self.values = jax.tree.map(on_host, members)

    def rows(self, numbers: np.ndarray) -> PyTree:
        """The values of members, leading axis (n,)."""
        return rows_of(self.values, numbers)

    def coordinates(self) -> dict[str, np.ndarray]:
        """Nothing is known of them but their number."""
        return {}

    def groups(self) -> list[Group]:
        """One program."""
        return [Group({}, np.arange(self.size))]

    def cell_shape(self, names: Sequence[str]) -> tuple[int, ...]:
        """Statistics by axes need axes."""
        if names:
            raise ValueError(f"by must be empty unless members are a Design with named axes, got {list(names)}")
        return ()

    def cells(self, names: Sequence[str], numbers: np.ndarray) -> np.ndarray:
        """All members are in one cell."""
        return np.zeros(len(numbers), np.int64)


def _codes(values: Sequence) -> np.ndarray:
    """For each value the position at which its equal first appears; 1, 1.0 and True are different values."""
    first: dict = {}
    return np.array([first.setdefault((type(value), value), place) for place, value in enumerate(values)])
