"""Sweep files: TOML text to a checked configuration, and back.

Unknown keys, wrong types and numbers that are not finite are refused with the dotted path and the nearest valid key, before
anything is computed or created.
"""

import dataclasses
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dynamics import validate
from dynamics.cli import skeleton, toml
from dynamics.cli.defaults import filled
from dynamics.cli.nouns import ConfigError as ConfigError
from dynamics.cli.skeleton import Keep as Keep
from dynamics.cli.skeleton import SweepConfig as SweepConfig
from dynamics.extras import need

FREE = ("name", "title", "run")
"""Keys on which no number depends: they do not count in `sha256`. Chunk and lanes change numbers by rounding only."""


# ---- text in ----


def load(path: Path | str, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep file, UTF-8.

    **Raises:** `ConfigError` as in `loads`; `OSError` where it cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: must be UTF-8 text, line {line} is not") from None
    if text.startswith("\ufeff"):
        raise ConfigError(f"{path}: must be UTF-8 without a byte-order mark; save it without")
    return loads(text, overrides, str(path))


def loads(text: str, overrides: Sequence[str] = (), origin: str = "sweep file") -> SweepConfig:
    """Read the text of a sweep file; overrides are `dotted.path=value`, the value as in TOML, else a text.

    **Raises:** `ConfigError` beginning with the dotted path (for what is no TOML, with `origin` and the line).
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: no TOML: {error}") from None
    for override in overrides:
        _override(tables, override)
    return read(tables)


def read(tables: Mapping[str, Any]) -> SweepConfig:
    """Check plain tables and fill in defaults."""
    for path, value in _leaves(tables):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}: must be a finite number, got {value}")
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"{path}: must be a number, a text, true or false, a list or a table, got {value!r}")
    pydantic = need("pydantic", "cli")
    try:
        config = _adapter(skeleton.kind(tables)).validate_json(json.dumps(tables))
    except pydantic.ValidationError as error:
        faults = error.errors(include_url=False)
        # a misspelt key is missing as well: the misspelling says more
        fault = min(faults, key=lambda one: one["type"] not in ("extra_forbidden", "unexpected_keyword_argument"))
        raise ConfigError(_told(fault, tables)) from None
    return filled(config)


@cache
def _adapter(kind: type[SweepConfig]) -> Any:
    return need("pydantic", "cli").TypeAdapter(kind)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{place}")
    else:
        yield path, value


def _told(fault: dict, tables: Mapping[str, Any]) -> str:
    """One fault of the skeleton in a line."""
    path, where = ".".join(map(str, fault["loc"])), fault["loc"][:-1]
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _keys(where, tables)
        return f"{path}: unknown key; {validate.nearest(fault['loc'][-1], known)}"
    if fault["type"] in ("missing", "missing_argument"):
        return f"{path}: missing"
    given = fault["input"]
    hint = ""
    if fault["type"] == "literal_error":
        hint = "; " + validate.nearest(given, re.findall(r"'([^']*)'", fault["ctx"]["expected"]))
    message = fault["msg"].replace("Input should", "must").replace("a valid", "a")
    message = message.replace("an object", "a table").replace("a dictionary", "a table")
    return f"{path}: {message}, got {given!r}{hint}"


def _keys(where: tuple, tables: Mapping[str, Any]) -> list[str]:
    """The keys of the table there."""
    table: Any = SweepConfig
    network = skeleton.kind(tables) is skeleton.NetworkSweep
    for key in where:
        table = skeleton.Network if network and key == "problem" else skeleton.INSIDE.get(key, table)
    return [one.name for one in dataclasses.fields(table)]


def _override(tables: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path or not all(path.split(".")):
        raise ConfigError(f"{path or override}: an override is written dotted.path=value, got {override!r}")
    try:
        found = tomllib.loads(f"v = {text}")
        value = found["v"] if set(found) == {"v"} else text
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *outer, last = path.split(".")
    place: Any = tables
    for depth, key in enumerate(outer):
        place = _inside(place, key, ".".join(outer[: depth + 1]), create=True)
    if isinstance(place, list):
        _inside(place, last, path)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"{path}: {'.'.join(outer)} is no table with keys, got {place!r}")


def _inside(place: Any, key: str, path: str, create: bool = False) -> Any:
    if isinstance(place, list):
        if not (key.isdecimal() and int(key) < len(place)):
            raise ConfigError(f"{path}: must be a number from 0 to {len(place) - 1}, one of {len(place)} entries, got {key!r}")
        return place[int(key)]
    if not isinstance(place, dict):
        raise ConfigError(f"{path}: {path.rpartition('.')[0]} is no table with keys, got {place!r}")
    return place.setdefault(key, {}) if create else place.get(key)


# ---- text out ----


def tables(config: SweepConfig) -> dict[str, Any]:
    """Plain tables; what is None is left out."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def dumps(config: SweepConfig) -> str:
    """TOML text with every default written out; `loads` gives the same configuration."""
    return toml.document(tables(config))


def sha256(config: SweepConfig) -> str:
    """A fingerprint of everything that the numbers depend on: of all keys but those in `FREE`."""
    counted = {key: value for key, value in tables(config).items() if key not in FREE}
    text = json.dumps(counted, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
