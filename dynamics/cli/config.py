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
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from dynamics import validate
from dynamics.cli import nouns, toml
from dynamics.cli.nouns import ConfigError as ConfigError
from dynamics.extras import need

STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
FREE = ("name", "title", "run")
"""Keys on which no number depends: they do not count in `sha256`. Chunk and lanes change numbers by rounding only."""


class Strict:
    """Tables whose keys are all known."""

    __pydantic_config__: ClassVar[dict] = STRICT


@dataclass(frozen=True)
class Decay(Strict):
    """Weight decay of each part of the state."""

    features: float = 0.0
    prototypes: float = 0.0
    biases: float = 0.0


@dataclass(frozen=True)
class Problem(Strict):
    """A layer-peeled problem; its classes by one of `per_class`, `sizes` and `labels`."""

    num_classes: int
    per_class: int | None = None
    sizes: Any = None
    labels: list[int] | None = None
    loss: dict[str, Any] = field(default_factory=lambda: {"kind": "Unhinged"})
    decay: Decay = Decay()
    bias: Any = False
    anchored: bool = False
    normalize: bool = False
    adjusted: float | None = None
    sample_weights: list[float] | None = None


@dataclass(frozen=True)
class Rates(Strict):
    """Learning rates: `features` and `weights`; or `equal`; or `schedule` and `ratio`."""

    features: Any = None
    weights: Any = None
    equal: Any = None
    schedule: Any = None
    ratio: float | None = None
    rescaled: bool = False


@dataclass(frozen=True)
class Motion(Strict):
    """Flow or descent, simulated or by formula. What only simulation needs is not used by formula."""

    verb: Literal["flow", "descent"] = "flow"
    by: Literal["simulation", "formula"] = "simulation"
    times: Any = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int | None = None
    norm_cap: float | None = None
    steps: int | None = None
    every: int | None = None
    dt: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    batch_size: int | None = None
    shuffle: Literal["step", "epoch"] | None = None


FLOW = {"times": None, "rtol": None, "atol": None, "max_steps": 100_000}
DESCENT = {
    "steps": None,
    "every": 1,
    "dt": 1.0,
    "momentum": 0.0,
    "nesterov": False,
    "batch_size": None,
    "shuffle": "step",
}
"""The keys of each verb, with their defaults; None has none, or leaves it to the verb."""


@dataclass(frozen=True)
class Zipped(Strict):
    """One of several axes that move together."""

    axis: str
    values: Any
    name: str | None = None


@dataclass(frozen=True)
class Factor(Strict):
    """An axis by its dotted path, with `values` or a `count` of random starts; or several, zipped."""

    axis: str | None = None
    name: str | None = None
    values: Any = None
    count: int | None = None
    zip: list[Zipped] | None = None


@dataclass(frozen=True)
class Keep(Strict):
    """What stays of the members, and what is said of all of them."""

    observables: list[str] = field(default_factory=lambda: ["objective"])
    final: bool = True
    trajectories: bool = False
    states: list[int] = field(default_factory=list)
    moments: bool = True
    quantiles: list[float] = field(default_factory=lambda: [0.05, 0.25, 0.5, 0.75, 0.95])
    histograms: dict[str, Any] = field(default_factory=dict)
    by: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run(Strict):
    """How it is run; no number depends on it beyond rounding."""

    chunk: int | None = None
    lanes: int | None = None
    memory: Any = None
    sort: bool = True
    shard: bool = False
    format: Literal["netcdf", "zarr"] = "netcdf"


@dataclass(frozen=True)
class SweepConfig(Strict):
    """A whole sweep file with every default filled in."""

    name: str
    problem: Problem
    start: dict[str, Any]
    rates: Rates
    motion: Motion
    title: str = ""
    seed: int = 0
    precision: Literal["float64", "float32"] = "float64"
    sweep: list[Factor] = field(default_factory=list)
    keep: Keep = Keep()
    run: Run = Run()


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
        config = _adapter().validate_json(json.dumps(tables))
    except pydantic.ValidationError as error:
        faults = error.errors(include_url=False)
        # a misspelt key is missing as well: the misspelling says more
        fault = min(faults, key=lambda one: one["type"] not in ("extra_forbidden", "unexpected_keyword_argument"))
        raise ConfigError(_told(fault, tables)) from None
    return _filled(config)


@cache
def _adapter() -> Any:
    return need("pydantic", "cli").TypeAdapter(SweepConfig)


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
        known = _keys(where)
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


def _keys(where: tuple) -> list[str]:
    """The keys of the table there."""
    table: Any = SweepConfig
    inside = {"problem": Problem, "decay": Decay, "rates": Rates, "motion": Motion, "sweep": Factor, "zip": Zipped}
    inside |= {"keep": Keep, "run": Run}
    for key in where:
        table = inside.get(key, table)
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


# ---- what the skeleton leaves open ----


def _filled(config: SweepConfig) -> SweepConfig:
    """The configuration once every noun is checked, with all defaults."""
    if NAME.fullmatch(config.name) is None or config.name.startswith("-"):
        raise ConfigError(f"name: must be 1 to 80 of A-Z a-z 0-9 . _ - and not begin with . or -, got {config.name!r}")
    if not 0 <= config.seed < 2**31:
        raise ConfigError(f"seed: must lie in [0, 2**31), got {config.seed}")
    return dataclasses.replace(
        config,
        problem=_problem(config.problem),
        start=_start(config.start),
        rates=_rates(config.rates),
        motion=_motion(config.motion),
        sweep=[_factor(f"sweep.{number}", one) for number, one in enumerate(config.sweep)],
        keep=_keep(config.keep),
        run=_run(config.run),
    )


def _problem(problem: Problem) -> Problem:
    given = [name for name in ("per_class", "sizes", "labels") if getattr(problem, name) is not None]
    if len(given) != 1:
        raise ConfigError(f"problem: give one of per_class, sizes and labels, got {' and '.join(given) or 'none'}")
    if not isinstance(problem.bias, bool) and problem.bias != "slaved":
        raise ConfigError(f"problem.bias: must be true, false or 'slaved', got {problem.bias!r}")
    sizes = problem.sizes
    if isinstance(sizes, list):
        for place, one in enumerate(sizes):
            if not isinstance(one, int) or isinstance(one, bool) or one < 1:
                raise ConfigError(f"problem.sizes.{place}: must be a whole number >= 1, got {one!r}")
        if len(sizes) != problem.num_classes:
            raise ConfigError(f"problem.sizes: must have num_classes = {problem.num_classes} entries, got {len(sizes)}")
    elif sizes is not None:
        sizes = nouns.resolved(nouns.SIZES, "problem.sizes", sizes)
    return dataclasses.replace(problem, sizes=sizes, loss=nouns.resolved(nouns.LOSSES, "problem.loss", problem.loss))


ANCHORS = ("prototypes", "prototype_scale")
"""Keys of the start beside those of its kind."""


def _start(start: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in start.items() if key in ANCHORS}
    out = nouns.resolved(nouns.STARTS, "start", start, beside=ANCHORS)
    if "prototypes" in own:
        if own["prototypes"] != "simplex_etf":
            raise ConfigError(f"start.prototypes: must be 'simplex_etf', got {own['prototypes']!r}")
        scale = nouns.numbers(own.get("prototype_scale", 1.0))
        if not isinstance(scale, float):
            raise ConfigError(f"start.prototype_scale: must be a number, got {own['prototype_scale']!r}")
        out |= {"prototypes": "simplex_etf", "prototype_scale": scale}
    elif own:
        raise ConfigError("start.prototype_scale: needs prototypes = 'simplex_etf'")
    return out


WAYS = (("features", "weights"), ("equal",), ("schedule", "ratio"))
"""How rates are given."""


def _rates(rates: Rates) -> Rates:
    given = tuple(name for way in WAYS for name in way if getattr(rates, name) is not None)
    if given not in WAYS:
        raise ConfigError(
            f"rates: give features and weights, or equal, or schedule and ratio, got {' and '.join(given) or 'none of them'}"
        )
    found = {name: nouns.schedule(f"rates.{name}", getattr(rates, name)) for name in given if name != "ratio"}
    return dataclasses.replace(rates, **found)


def _motion(motion: Motion) -> Motion:
    mine, other = (FLOW, DESCENT) if motion.verb == "flow" else (DESCENT, FLOW)
    for name in other:
        if getattr(motion, name) is not None:
            raise ConfigError(f"motion.{name}: belongs to verb = {'descent' if mine is FLOW else 'flow'!r}; for "
                              f"{motion.verb!r} there are {', '.join(mine)} and norm_cap")  # fmt: skip
    needed = "times" if mine is FLOW else "steps"
    if getattr(motion, needed) is None:
        raise ConfigError(f"motion.{needed}: missing; verb = {motion.verb!r} needs it")
    filled = {name: value for name, value in mine.items() if getattr(motion, name) is None}
    if mine is FLOW:
        filled["times"] = spaced("motion.times", motion.times)
    return dataclasses.replace(motion, **filled)


SPACED = ("start", "stop", "num", "spacing")


def points(given: list[float] | dict[str, Any]) -> np.ndarray:
    """The numbers that a checked list or `{ start, stop, num, spacing }` stands for."""
    if isinstance(given, list):
        return np.asarray(given, float)
    space = np.geomspace if given["spacing"] == "geometric" else np.linspace
    return space(given["start"], given["stop"], given["num"])


def spaced(path: str, given: Any) -> list[float] | dict[str, Any]:
    """Numbers as a list, or as `{ start, stop, num, spacing }`, checked; `points` turns either into numbers."""
    if isinstance(given, list):
        found = nouns.numbers(given)
        if isinstance(found, list) and all(isinstance(one, float) for one in found):
            return found
        raise ConfigError(f"{path}: must be a list of numbers, got {given!r}")
    if not isinstance(given, Mapping):
        raise ConfigError(f"{path}: must be a list of numbers or a table of {', '.join(SPACED)}, got {given!r}")
    for key in given:
        if key not in SPACED:
            raise ConfigError(f"{path}.{key}: unknown key; {validate.nearest(key, SPACED)}")
    for key in SPACED[:3]:
        if key not in given:
            raise ConfigError(f"{path}.{key}: missing")
        if not isinstance(nouns.numbers(given[key]), float) or (key == "num" and not isinstance(given[key], int)):
            raise ConfigError(f"{path}.{key}: must be a {'whole ' * (key == 'num')}number, got {given[key]!r}")
    spacing = given.get("spacing", "linear")
    if spacing not in ("linear", "geometric"):
        raise ConfigError(f"{path}.spacing: unknown {spacing!r}; {validate.nearest(spacing, ('linear', 'geometric'))}")
    start, stop, num = float(given["start"]), float(given["stop"]), given["num"]
    if num < 1:
        raise ConfigError(f"{path}.num: must be >= 1, got {num}")
    if spacing == "geometric" and not (start > 0 and stop > 0):
        raise ConfigError(f"{path}.start: geometric spacing needs start and stop > 0, got {start} and {stop}")
    return {"start": start, "stop": stop, "num": num, "spacing": spacing}


def _factor(path: str, factor: Factor) -> Factor:
    if factor.zip is not None:
        for name in ("axis", "name", "values", "count"):
            if getattr(factor, name) is not None:
                raise ConfigError(f"{path}.{name}: an entry with zip has nothing beside it")
        if len(factor.zip) < 2:
            raise ConfigError(f"{path}.zip: must have at least two axes, got {len(factor.zip)}")
        return dataclasses.replace(factor, zip=[_zipped(f"{path}.zip.{place}", one) for place, one in enumerate(factor.zip)])
    if factor.axis is None:
        raise ConfigError(f"{path}.axis: missing; the dotted path of what is swept, or zip")
    if factor.count is not None:
        if factor.axis != "start.seed":
            raise ConfigError(f"{path}.count: only for axis = 'start.seed', got axis = {factor.axis!r}; give values")
        if factor.values is not None:
            raise ConfigError(f"{path}.count: give count or values, not both")
        if factor.count < 1:
            raise ConfigError(f"{path}.count: must be >= 1, got {factor.count}")
        return dataclasses.replace(factor, name=factor.name or "seed")
    return Factor(**_named(factor.axis, factor.name), values=_values(f"{path}.values", factor.values))


def _zipped(path: str, one: Zipped) -> Zipped:
    return Zipped(**_named(one.axis, one.name), values=_values(f"{path}.values", one.values))


def _named(axis: str, name: str | None) -> dict[str, Any]:
    return {"axis": axis, "name": name or ("seed" if axis == "start.seed" else axis)}


def _values(path: str, values: Any) -> Any:
    if values is None:
        raise ConfigError(f"{path}: missing")
    if isinstance(values, Mapping):
        return spaced(path, values)
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{path}: must be a list of at least one value or a table of {', '.join(SPACED)}, got {values!r}")
    return values


def _keep(keep: Keep) -> Keep:
    if not keep.observables:
        raise ConfigError(f"keep.observables: must name at least one of {', '.join(nouns.OBSERVABLES)}")
    for place, name in enumerate(keep.observables):
        if name not in nouns.OBSERVABLES:
            hint = validate.nearest(name, nouns.OBSERVABLES)
            raise ConfigError(f"keep.observables.{place}: unknown observable {name!r}; {hint}")
    if len(set(keep.observables)) < len(keep.observables):
        raise ConfigError(f"keep.observables: must be different, got {keep.observables}")
    for name in keep.histograms:
        if name not in keep.observables:
            raise ConfigError(
                f"keep.histograms.{name}: must be one of keep.observables; {validate.nearest(name, keep.observables)}"
            )
    return dataclasses.replace(
        keep, histograms={name: spaced(f"keep.histograms.{name}", one) for name, one in keep.histograms.items()}
    )


def _run(run: Run) -> Run:
    from dynamics.ensemble import memory

    for name in ("chunk", "lanes"):
        value = getattr(run, name)
        if value is not None and value < 1:
            raise ConfigError(f"run.{name}: must be >= 1, got {value}")
    if run.memory is not None:
        if not isinstance(run.memory, int | float | str):
            raise ConfigError(f"run.memory: must be bytes or a text such as '2GiB', got {run.memory!r}")
        try:
            memory.size("memory", run.memory)
        except ValueError as error:
            raise ConfigError(f"run.memory: {error}") from None
    return run


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
