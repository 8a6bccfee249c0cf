"""The axes of a sweep: what may be swept, which values share a compiled program, and what an axis may be named.

Values of a leaf that holds floats (or equal-shaped lists of them) share one compiled program; values of any other leaf, and
whole `{ kind = ... }` tables, have one each. To batch tables of one kind, zip their leaves.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dynamics import validate
from dynamics.cli import config as configuration
from dynamics.cli import nouns, toml
from dynamics.cli.config import ConfigError, SweepConfig
from dynamics.cli.defaults import ANCHORS, SEEDS, WAYS
from dynamics.cli.skeleton import Decay, Network, Problem, Rates
from dynamics.cli.spacing import points
from dynamics.ensemble import Axis

TAKEN = ("member", "time", "status", "steps", "t_end", "quantile", "whole", "sample", "dim", "class")
TAKEN += ("features", "prototypes", "biases")
"""Names of the result that no axis may have."""


class Swept(NamedTuple):
    """An axis: the dotted path it stands for, and what the labels of a static one stand for."""

    path: str
    axis: Axis
    meaning: dict[Any, Any]


def factors(config: SweepConfig) -> list[list[Swept]]:
    """The axes of each factor, several where they are zipped; one of a single start where nothing is swept.

    **Raises:** `ConfigError` with the dotted path.
    """
    tables = configuration.tables(config)
    found = []
    for number, factor in enumerate(config.sweep):
        path = f"sweep.{number}"
        if factor.zip is None:
            values = {"count": factor.count} if factor.values is None else factor.values
            found.append([_swept(tables, path, factor.axis or "", factor.name or "", values)])
        else:
            inner = [
                _swept(tables, f"{path}.zip.{place}", one.axis, one.name or "", one.values)
                for place, one in enumerate(factor.zip)
            ]
            if len({len(one.axis) for one in inner}) > 1:
                lengths = ", ".join(f"{one.axis.name}: {len(one.axis)}" for one in inner)
                raise ConfigError(f"{path}.zip: axes that are zipped must have one length, got {lengths}")
            found.append(inner)
    every = [one for factor in found for one in factor]
    for place, one in enumerate(every):
        for other in every[:place]:
            if one.axis.name == other.axis.name:
                raise ConfigError(f"sweep: two axes are named {one.axis.name!r}; give one of them another name")
            if f"{one.path}.".startswith(f"{other.path}.") or f"{other.path}.".startswith(f"{one.path}."):
                raise ConfigError(f"sweep: the axes {other.path!r} and {one.path!r} set the same value")
        clash = [name for name in config.keep.observables if one.axis.name == name or one.axis.name.startswith(f"{name}_")]
        clash += [other.axis.name for other in every if one.axis.name == f"{other.axis.name}_cell"]
        if clash or one.axis.name in TAKEN or re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", one.axis.name) is None:
            raise ConfigError(
                f"sweep: an axis cannot be named {one.axis.name!r}: letters, digits and _ . - after a letter, no name of "
                f"the result ({', '.join([*TAKEN, *clash])}); give it another name"
            )
    return found or [[Swept("start.seed", Axis("seed", np.arange(1)), {})]]


def _swept(tables: dict, where: str, path: str, name: str, values: Any) -> Swept:
    floats = _holds_floats(tables, where, path)
    if path in SEEDS:
        return Swept(path, Axis(name, _seeds(f"{where}.values", values)), {})
    if isinstance(values, Mapping):
        values = points(dict(values)).tolist()
        if not floats and all(value == int(value) for value in values):
            values = [int(value) for value in values]
    if floats and (shared := _array([nouns.numbers(value) for value in values])) is not None:
        return Swept(path, Axis(name, shared), {})
    labels = [toml.inline(value) if isinstance(value, list | dict | bool) else value for value in values]
    return Swept(path, Axis(name, labels, static=True), dict(zip(map(typed, labels), values, strict=True)))


def _array(found: list) -> np.ndarray | None:
    """Numbers, or lists of them, of one shape; None for anything else."""
    if any(one is None for one in found):
        return None
    try:
        return np.array(found, float)
    except ValueError:  # of several shapes
        return None


def typed(label: Any) -> tuple:
    """A label of a static axis as a key: 1 is not 1.0."""
    return type(label), label


def _seeds(where: str, values: Any) -> np.ndarray:
    if isinstance(values, Mapping):
        if "count" in values:
            return np.arange(values["count"])
        values = points(dict(values)).tolist()
        values = [int(value) if value == int(value) else value for value in values]
    for place, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise ConfigError(f"{where}.{place}: a seed must be a whole number in [0, 2**31), got {value!r}")
    return np.asarray(values)


def _holds_floats(tables: dict, where: str, path: str) -> bool:
    """Whether values of the leaf at a dotted path are floats, which share a program."""
    section, *below = path.split(".")
    network = "net" in tables["problem"]
    starts, beside = nouns.family(tables["problem"]).starts, () if network else ANCHORS
    known: dict[str, Any] = {
        "problem": list((Network if network else Problem).__dataclass_fields__),
        "rates": list(Rates.__dataclass_fields__),
        "motion": ["dt", "momentum", "nesterov", "batch_size", "shuffle"] if tables["motion"]["verb"] == "descent" else [],
        "start": ["seed", *beside, "kind", *nouns.keys(starts, tables["start"]["kind"])],
    }
    if section not in known:
        hint = validate.nearest(section, known)
        raise ConfigError(f"{where}.axis: {path!r} cannot be swept; axes lie below {', '.join(known)}; {hint}")
    if not below or below[0] not in known[section]:
        hint = validate.nearest(below[0] if below else "", known[section]) if known[section] else "a flow has none"
        raise ConfigError(f"{where}.axis: {path!r} is nothing that can be swept; {hint}")
    name, *rest = below
    if section == "start" and name not in (*ANCHORS, "seed"):
        return _of_noun(where, path, starts, "start", tables["start"], below)
    rooms = {"loss": nouns.family(tables["problem"]).losses, "sizes": nouns.SIZES, "net": nouns.NETS, "data": nouns.DATA}
    rooms |= dict.fromkeys(sum(WAYS, ()), nouns.SCHEDULES)
    value = tables[section].get(name)
    if rest:
        if name == "decay" and not network:
            if len(rest) == 1 and rest[0] in Decay.__dataclass_fields__:
                return True
            hint = validate.nearest(rest[0], Decay.__dataclass_fields__)
            raise ConfigError(f"{where}.axis: {path!r} is nothing that can be swept; {hint}")
        if name not in rooms or not isinstance(value, Mapping):
            raise ConfigError(f"{where}.axis: {path!r}: {section}.{name} is no table with keys, got {value!r}")
        return _of_noun(where, path, rooms[name], f"{section}.{name}", value, rest)
    floats = ("features", "weights", "equal", "schedule", "ratio", "adjusted", "dt", "momentum", "prototype_scale")
    return name in floats or (name == "decay" and network)


def _of_noun(where: str, path: str, room: nouns.Room, outer: str, table: Mapping, below: list[str]) -> bool:
    try:
        return nouns.traceable(room, outer, table, below)
    except ConfigError as error:
        raise ConfigError(f"{where}.axis: {path!r}: {error}") from None
