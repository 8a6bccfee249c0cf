"""Named arrays in the form in which files hold them, one at a time, with a checksum of each."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

CHECKSUMS = "checksums"
"""The attribute of the whole that holds the SHA-256 of each variable, as JSON; of the other attributes under ""."""

NUMBERS = {"float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
TAKEN = {
    "_FillValue",
    "_Encoding",
    "_Unsigned",
    "missing_value",
    "scale_factor",
    "add_offset",
    "coordinates",
    "dtype",
    CHECKSUMS,
}


@dataclass(frozen=True)
class Variable:
    """An array with named dimensions, or a function that gives it when its turn comes.

    Numbers, booleans and text; attributes are text, numbers or lists of numbers, after the CF conventions (`units`,
    `long_name`, `flag_values`, `flag_meanings`).
    """

    name: str
    dims: tuple[str, ...]
    values: np.ndarray | Callable[[], np.ndarray]
    attributes: dict[str, Any] = field(default_factory=dict)


class Stored(NamedTuple):
    """A variable as files hold it: `array` of little-endian numbers, or UTF-8 text of one width (dtype S)."""

    name: str
    dims: tuple[str, ...]
    array: np.ndarray
    attributes: dict[str, Any]


class Contents:
    """Coordinates, then variables: iterated over once, each asked for after the one before it was dropped.

    - `labels`: names of the coordinates that are no dimensions, so far.
    - `dims`: of each variable, `sizes`: of each dimension, so far.
    - `bytes`: of the arrays, so far.
    """

    def __init__(self, coordinates: Iterable[Variable], variables: Iterable[Variable], attributes: dict[str, Any]):
        self._given = coordinates, variables
        self._attributes = plain_attributes("the whole", attributes)
        self._digests: dict[str, str] = {}
        self.dims: dict[str, tuple[str, ...]] = {}
        self.labels: list[str] = []
        self.sizes: dict[str, int] = {}
        self.bytes = 0

    def __iter__(self) -> Iterator[Stored]:
        for variables, coordinates in zip(self._given, (True, False), strict=True):
            for variable in variables:
                values = variable.values() if callable(variable.values) else variable.values
                stored = self._stored(variable, np.asarray(values))
                del variable, values  # the next one is made while the loop still holds them
                if coordinates and stored.dims != (stored.name,):
                    self.labels.append(stored.name)
                self.bytes += stored.array.nbytes
                self._digests[stored.name] = digest(stored)
                yield stored
                del stored

    def labels_of(self, stored: Stored) -> str:
        """The attribute `coordinates` of a variable: the coordinates, other than dimensions, that label its axes."""
        if stored.name in self.labels or stored.name in stored.dims:
            return ""
        return " ".join(label for label in self.labels if set(self.dims[label]) <= set(stored.dims))

    def attributes(self) -> dict[str, Any]:
        """Attributes of the whole, once everything was iterated over."""
        whole = dict(self._attributes)
        if self.labels:
            whole["coordinates"] = " ".join(self.labels)
        digests = {**self._digests, "": digest_of_attributes(whole)}
        return {**whole, CHECKSUMS: json.dumps(digests, sort_keys=True)}

    def _stored(self, variable: Variable, values: np.ndarray) -> Stored:
        name, dims = variable.name, tuple(variable.dims)
        for word in (name, *dims):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.+-]*", word):
                raise ValueError(
                    f"variable {name!r}: names must be letters, digits and any of _.+- without spaces, got {word!r}"
                )
        if name in self.dims:
            raise ValueError(f"variable {name!r} is given twice; rename one")
        if len(dims) != values.ndim or len(set(dims)) != len(dims):
            raise ValueError(
                f"variable {name!r} must have one dimension of its own for each axis, got {dims} and {values.shape}"
            )
        self.dims[name] = dims
        for dim, size in zip(dims, values.shape, strict=True):
            if self.sizes.setdefault(dim, size) != size:
                raise ValueError(f"variable {name!r} has {size} entries along {dim!r}, others have {self.sizes[dim]}")
        for word in (name, *dims):
            if word in self.sizes and self.dims.get(word, (word,)) != (word,):
                raise ValueError(
                    f"variable {word!r} has the name of a dimension of {name!r} and must be 1-D over it, "
                    f"got dimensions {self.dims[word]}; rename one"
                )
        attributes = plain_attributes(f"variable {name!r}", variable.attributes)
        if values.dtype.kind == "b":
            flags = {"flag_values": np.array([0, 1], np.int8), "flag_meanings": "false true"}
            return Stored(name, dims, values.astype(np.int8), {**flags, **attributes})
        return Stored(name, dims, _plain_array(name, values), attributes)


def _plain_array(name: str, values: np.ndarray) -> np.ndarray:
    """C-ordered little-endian numbers, or text as UTF-8 of one width."""
    if values.dtype.kind in "UT" or (values.dtype.kind == "O" and all(isinstance(one, str) for one in values.flat)):
        encoded = np.char.encode(values.astype(object).astype(str), "utf-8")
        return np.ascontiguousarray(encoded).reshape(values.shape)
    if values.dtype.name == "float16":
        values = values.astype(np.float32)  # NetCDF has none
    if values.dtype.name not in NUMBERS:
        remedy = "keep real and imaginary parts apart" if values.dtype.kind == "c" else "cast it"
        raise ValueError(
            f"variable {name!r} must be booleans, text, integers, float32 or float64, got {values.dtype}; {remedy}"
        )
    return np.asarray(values, np.dtype(values.dtype.newbyteorder("<").str), order="C")


def plain_attributes(owner: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes as text, numbers or 1-D arrays of numbers; others are refused."""
    plain = {}
    for name, value in attributes.items():
        array = np.asarray(value)
        array = array.astype(np.int8) if array.dtype.kind == "b" else array
        number = array.dtype.name in NUMBERS and array.ndim <= 1 and array.size
        if name in TAKEN or not isinstance(name, str) or not (isinstance(value, str) or number):
            raise ValueError(
                f"attribute {name!r} of {owner} must be text, a number or a list of numbers, under a name other than "
                f"{sorted(TAKEN)}, got {value!r}"
            )
        plain[name] = value if isinstance(value, str) else array
    return plain


def digest(stored: Stored) -> str:
    """The SHA-256 of a variable: of its name, dimensions, type, shape, attributes and numbers."""
    kind = "text" if stored.array.dtype.kind == "S" else stored.array.dtype.str
    head = [stored.name, stored.dims, kind, stored.array.shape, digest_of_attributes(stored.attributes)]
    whole = hashlib.sha256(json.dumps(head).encode())
    whole.update(np.ascontiguousarray(stored.array).reshape(-1).view(np.uint8).data if stored.array.size else b"")
    return whole.hexdigest()


def digest_of_attributes(attributes: dict[str, Any]) -> str:
    """The SHA-256 of attributes, the same for a number and a list of one."""

    def plain(value):
        numbers = np.ravel(value).tolist()
        return numbers[0] if len(numbers) == 1 else numbers

    texts = {name: plain(value) for name, value in attributes.items()}
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def blocks(shape: tuple[int, ...], itemsize: int, limit: int) -> tuple[int, ...]:
    """The shape of the pieces that an array is cut into: at most `limit` bytes, whole along the last axes."""
    left, cut = max(1, limit // itemsize), []
    for size in reversed(shape):
        cut.append(max(1, min(size, left)))
        left = max(1, left // cut[-1])
    return tuple(reversed(cut))


def impossible(shape: tuple[int, ...], itemsize: int, size: int) -> bool:
    """Whether an array is too large to have been compressed into a file of so many bytes."""
    return math.prod(shape) * itemsize > 2**20 + 1100 * size  # deflate gains at most a factor of 1032
