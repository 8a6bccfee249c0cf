"""From a configuration to what the ensemble engine runs.

Random starts: where the sweep has the axis `start.seed`, a member's start depends on the run's seed and on that axis's value
only, so that members which differ in other axes share their starts; else every member has a start of its own, by its number.
Draws of minibatches are every member's own.

Values of a leaf that holds floats (or equal-shaped lists of them) share one compiled program; values of any other leaf, and
whole `{ kind = ... }` tables, have one each. To batch tables of one kind, zip their leaves.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import class_sizes, exact, initial, simulate, validate
from dynamics import state as tree
from dynamics.cli import config as configuration
from dynamics.cli import nouns, toml
from dynamics.cli.config import ConfigError, SweepConfig
from dynamics.ensemble import Axis, Design, Histogram, Moments, Quantiles, Reduction
from dynamics.exact.dispatch import choose
from dynamics.problems import Decay, LayerPeeled, Peeled
from dynamics.rates import Rates
from dynamics.segmented import Segmented
from dynamics.simulate.segmented_flow import segmented_flow
from dynamics.trajectory import check_times

START, MINIBATCHES = 0, 1
"""Tags of the two streams of random numbers."""

TAKEN = ("member", "time", "status", "steps", "t_end", "quantile", "whole", "sample", "dim", "class")
TAKEN += ("features", "prototypes", "biases")
"""Names of the result that no axis may have."""

CHECKED = 256
"""At most so many members are built on the host before anything runs."""


class Sweep(NamedTuple):
    """What `dynamics.ensemble.run` is given.

    - `design`: the members; `one`: (member, key) to a trajectory, or a motion in segments.
    - `key`: of the run; `cost`: (member, key) to an estimate of a member's steps, None where all cost the same.
    - `reduce`: the statistics of each observable; `ts`: the times; `observables`: their names.
    - `sources`: what to cite.
    """

    design: Design
    one: Callable | Segmented
    key: jax.Array
    cost: Callable | None
    reduce: dict[str, list[Reduction]]
    ts: np.ndarray
    observables: tuple[str, ...]
    sources: tuple[str, ...]


class Swept(NamedTuple):
    """An axis: the dotted path it stands for, and what the labels of a static one stand for."""

    path: str
    axis: Axis
    meaning: dict[Any, Any]


def build(config: SweepConfig, by: Literal["simulation", "formula"] | None = None, states: bool = False) -> Sweep:
    """The sweep of a configuration; `by` replaces its own, `states` keeps states instead of observables.

    Members of every compiled group are built here, so that constructors speak before anything runs.

    **Raises:** `ConfigError` with the dotted path, also for the reasons why there is no closed form.
    """
    motion = config.motion
    by = motion.by if by is None else by
    try:
        validate.floating_dtype("precision", config.precision)
    except ValueError as error:
        raise ConfigError(f"precision: {error}") from None
    sweep = _factors(config)
    design = Design(*(tuple(one.axis for one in factor) for factor in sweep))
    _check_keep(config, design)
    parts = _Parts(config, [one for factor in sweep for one in factor])
    observe = None if states else {name: nouns.OBSERVABLES[name] for name in config.keep.observables}
    sources = _check_members(parts, design, by)
    ts = _times(config)
    segmented = motion.verb == "flow" and by == "simulation"
    try:
        one = _flow_in_segments(parts, ts, observe) if segmented else _whole(parts, ts, observe, by)
        _check_shapes(one, design, parts.key)
    except ConfigError:
        raise
    except exact.NoClosedForm as error:
        raise ConfigError(f"motion.by: {error}") from error
    except ValueError as error:
        raise nouns.at("motion", vars(motion), error) from error
    return Sweep(
        design=design,
        one=one,
        key=parts.key,
        cost=(lambda member, key: _cost(*parts(member, key)[:3], ts[-1])) if segmented else None,
        reduce=_reductions(config),
        ts=ts,
        observables=tuple(config.keep.observables),
        sources=(*sources, *_references(nouns.OBSERVABLES[name] for name in config.keep.observables)),
    )


# ---- axes ----


def _factors(config: SweepConfig) -> list[list[Swept]]:
    tables = configuration.tables(config)
    factors = []
    for number, factor in enumerate(config.sweep):
        path = f"sweep.{number}"
        if factor.zip is None:
            values = {"count": factor.count} if factor.values is None else factor.values
            factors.append([_swept(tables, path, factor.axis or "", factor.name or "", values)])
        else:
            inner = [
                _swept(tables, f"{path}.zip.{place}", one.axis, one.name or "", one.values)
                for place, one in enumerate(factor.zip)
            ]
            if len({len(one.axis) for one in inner}) > 1:
                lengths = ", ".join(f"{one.axis.name}: {len(one.axis)}" for one in inner)
                raise ConfigError(f"{path}.zip: axes that are zipped must have one length, got {lengths}")
            factors.append(inner)
    every = [one for factor in factors for one in factor]
    for place, one in enumerate(every):
        for other in every[:place]:
            if one.axis.name == other.axis.name:
                raise ConfigError(f"sweep: two axes are named {one.axis.name!r}; give one of them another name")
            if f"{one.path}.".startswith(f"{other.path}.") or f"{other.path}.".startswith(f"{one.path}."):
                raise ConfigError(f"sweep: the axes {other.path!r} and {one.path!r} set the same value")
        clash = [name for name in config.keep.observables if one.axis.name == name or one.axis.name.startswith(f"{name}_")]
        if clash or one.axis.name in TAKEN or re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", one.axis.name) is None:
            raise ConfigError(
                f"sweep: an axis cannot be named {one.axis.name!r}: letters, digits and _ . - after a letter, no name of "
                f"the result ({', '.join([*TAKEN, *clash])}); give it another name"
            )
    return factors or [[Swept("start.seed", Axis("seed", np.arange(1)), {})]]


def _swept(tables: dict, where: str, path: str, name: str, values: Any) -> Swept:
    if path == "start.seed":
        return Swept(path, Axis(name, _seeds(f"{where}.values", values)), {})
    floats = _holds_floats(tables, where, path)
    if isinstance(values, Mapping):
        values = configuration.points(dict(values)).tolist()
        if not floats and all(value == int(value) for value in values):
            values = [int(value) for value in values]
    found = [nouns.numbers(value) for value in values]
    if floats and (shared := _array(found)) is not None:
        return Swept(path, Axis(name, shared), {})
    labels = [toml.inline(value) if isinstance(value, list | dict) else value for value in values]
    return Swept(path, Axis(name, labels, static=True), dict(zip(map(_typed, labels), values, strict=True)))


def _array(found: list) -> np.ndarray | None:
    """Numbers, or lists of them, of one shape; None for anything else."""
    if any(one is None for one in found):
        return None
    try:
        return np.array(found, float)
    except ValueError:  # of several shapes
        return None


def _typed(label: Any) -> tuple:
    return type(label), label


def _seeds(where: str, values: Any) -> np.ndarray:
    if isinstance(values, Mapping):
        if "count" in values:
            return np.arange(values["count"])
        values = configuration.points(dict(values)).tolist()
        values = [int(value) if value == int(value) else value for value in values]
    for place, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise ConfigError(f"{where}.{place}: a seed must be a whole number in [0, 2**31), got {value!r}")
    return np.asarray(values)


def _holds_floats(tables: dict, where: str, path: str) -> bool:
    """Whether values of the leaf at a dotted path are floats, which share a program."""
    section, *below = path.split(".")
    known: dict[str, Any] = {
        "problem": [name for name in configuration.Problem.__dataclass_fields__],
        "rates": [name for name in configuration.Rates.__dataclass_fields__],
        "motion": ["dt", "momentum", "nesterov", "batch_size", "shuffle"] if tables["motion"]["verb"] == "descent" else [],
        "start": ["seed", *configuration.ANCHORS, "kind", *nouns.keys(nouns.STARTS, tables["start"]["kind"])],
    }
    if section not in known:
        hint = validate.nearest(section, known)
        raise ConfigError(f"{where}.axis: {path!r} cannot be swept; axes lie below {', '.join(known)}; {hint}")
    if not below or below[0] not in known[section]:
        hint = validate.nearest(below[0] if below else "", known[section]) if known[section] else "a flow has none"
        raise ConfigError(f"{where}.axis: {path!r} is nothing that can be swept; {hint}")
    name, *rest = below
    if section == "start" and name not in (*configuration.ANCHORS, "seed"):
        return _of_noun(where, path, nouns.STARTS, "start", tables["start"], below)
    rooms = {"loss": nouns.LOSSES, "sizes": nouns.SIZES, **dict.fromkeys(sum(configuration.WAYS, ()), nouns.SCHEDULES)}
    value = tables[section].get(name)
    if rest:
        if name == "decay" and rest[0] in ("features", "prototypes", "biases") and len(rest) == 1:
            return True
        if name == "decay":
            hint = validate.nearest(rest[0], ("features", "prototypes", "biases"))
            raise ConfigError(f"{where}.axis: {path!r} is nothing that can be swept; {hint}")
        if name not in rooms or not isinstance(value, Mapping):
            raise ConfigError(f"{where}.axis: {path!r}: {section}.{name} is no table with keys, got {value!r}")
        return _of_noun(where, path, rooms[name], f"{section}.{name}", value, rest)
    return name in ("features", "weights", "equal", "schedule", "ratio", "adjusted", "dt", "momentum", "prototype_scale")


def _of_noun(where: str, path: str, room: nouns.Room, outer: str, table: Mapping, below: list[str]) -> bool:
    try:
        return nouns.traceable(room, outer, table, below)
    except ConfigError as error:
        raise ConfigError(f"{where}.axis: {path!r}: {error}") from None


# ---- members ----


class _Parts:
    """(member, key) to (problem, start, rates, tables of the member)."""

    def __init__(self, config: SweepConfig, sweep: list[Swept]):
        self.config, self.sweep = config, sweep
        self.key = jax.random.key(config.seed)
        self.dtype = jnp.dtype(config.precision)
        self._tables: dict[tuple, dict] = {}

    def tables(self, member: Mapping[str, Any]) -> dict[str, Any]:
        """The tables of the file with the static values of a member in their places, checked and filled."""
        static = {one.path: one.meaning[_typed(member[one.axis.name])] for one in self.sweep if one.axis.static}
        place = tuple(_typed(member[one.axis.name]) for one in self.sweep if one.axis.static)
        if place not in self._tables:
            self._tables[place] = self.read(static)
        return self._tables[place]

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The tables with values in their places, checked and filled."""
        raw = {**configuration.tables(self.config), "sweep": []}
        for path, value in values.items():
            raw = put(raw, path.split("."), value)
        return configuration.tables(configuration.read(raw))

    def concrete(self, member: Mapping[str, Any]) -> tuple[LayerPeeled, Peeled, Rates]:
        """The parts of a member whose values are known, every one of them checked as if it stood in the file."""
        values = {}
        for one in self.sweep:
            value = member[one.axis.name]
            if one.path != "start.seed":
                values[one.path] = one.meaning[_typed(value)] if one.axis.static else np.asarray(value).tolist()
        tables = self.read(values)
        seeds = {one.path: member[one.axis.name] for one in self.sweep if one.path == "start.seed"}
        return self.made(tables, seeds.get("start.seed"), self.key)

    def __call__(self, member: Mapping[str, Any], key) -> tuple[LayerPeeled, Peeled, Rates, dict[str, Any]]:
        tables, seed = self.tables(member), None
        for one in self.sweep:
            if one.path == "start.seed":
                seed = member[one.axis.name]
            elif not one.axis.static:
                tables = put(tables, one.path.split("."), member[one.axis.name])
        return *self.made(tables, seed, key), tables

    def made(self, tables: dict, seed, key) -> tuple[LayerPeeled, Peeled, Rates]:
        """Problem, start and rates of a member's tables; the start by the seed where there is one, else by the key."""
        problem = problem_of(tables["problem"])
        source = key if seed is None else jax.random.fold_in(self.key, seed)
        start = start_of(tables["start"], problem, jax.random.fold_in(source, START), self.dtype)
        return problem, start, rates_of(tables["rates"])


def put(tables: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy of nested tables with another value at a path."""
    key, *rest = path
    inner = tables.get(key)
    return {**tables, key: put(inner if isinstance(inner, Mapping) else {}, rest, value) if rest else value}


def problem_of(table: Mapping[str, Any]) -> LayerPeeled:
    """The problem of a checked table."""
    classes = table["num_classes"]
    fields: dict[str, Any] = {key: table.get(key) for key in ("bias", "anchored", "normalize", "adjusted", "sample_weights")}
    loss = nouns.built(nouns.LOSSES, "problem.loss", table["loss"], num_classes=classes)
    try:
        if "per_class" in table:
            labels = np.repeat(np.arange(classes), validate.whole("per_class", table["per_class"], 1))
        elif "labels" in table:
            labels = np.asarray(table["labels"])
        elif isinstance(table["sizes"], list):
            labels = class_sizes.labels_of(table["sizes"])
        else:
            labels = nouns.built(nouns.SIZES, "problem.sizes", table["sizes"], num_classes=classes)
        return LayerPeeled(labels, num_classes=classes, loss=loss, decay=_decay(table["decay"]), **fields)
    except ConfigError:
        raise
    except ValueError as error:
        raise nouns.at("problem", table, error) from error


def _decay(table: Mapping[str, Any]) -> Decay:
    try:
        return Decay(**table)
    except ValueError as error:
        raise nouns.at("problem.decay", table, ValueError(str(error).removeprefix("decay."))) from error


def start_of(table: Mapping[str, Any], problem: LayerPeeled, key, dtype) -> Peeled:
    """The start of a checked table, in a dtype."""
    noun = {name: value for name, value in table.items() if name not in configuration.ANCHORS}
    start = nouns.built(nouns.STARTS, "start", noun, problem=problem, key=key, dtype=dtype)
    if "prototypes" in table:
        try:
            simplex = initial.simplex_etf(problem.num_classes, table["dim"], scale=table["prototype_scale"])
        except ValueError as error:
            raise nouns.at("start", table, ValueError(re.sub("^scale", "prototype_scale", str(error)))) from error
        start = Peeled(start.features, simplex, start.biases)
    return tree.cast(start, dtype)


def rates_of(table: Mapping[str, Any]) -> Rates:
    """The rates of a checked table."""
    found = {
        name: nouns.built(nouns.SCHEDULES, f"rates.{name}", table[name])
        for name in ("features", "weights", "equal", "schedule")
        if name in table
    }
    try:
        if "equal" in found:
            return Rates.equal(found["equal"], table["rescaled"])
        if "schedule" in found:
            return Rates.proportional(found["schedule"], table["ratio"], table["rescaled"])
        return Rates(**found, rescaled=table["rescaled"])
    except ValueError as error:
        message = re.sub(r"^factor of a scaled schedule", "ratio", str(error))
        raise nouns.at("rates", table, ValueError(message)) from error


# ---- motions ----


def _times(config: SweepConfig) -> np.ndarray:
    motion = config.motion
    try:
        if motion.verb == "flow":
            ts = configuration.points(motion.times)
            return np.asarray(check_times(ts, config.precision))
        steps, every = validate.whole("steps", motion.steps, 0), validate.whole("every", motion.every, 1)
    except ValueError as error:
        message = re.sub("^ts", "times", str(error))
        raise nouns.at("motion", vars(motion), ValueError(message)) from None
    return np.arange(0, steps + 1, every)


def _flow_in_segments(parts: _Parts, ts: np.ndarray, observe) -> Segmented:
    motion = parts.config.motion
    options = {name: getattr(motion, name) for name in ("rtol", "atol", "max_steps", "norm_cap")}
    return segmented_flow(lambda member, key: parts(member, key)[:3], ts, observe=observe, **options)


def _whole(parts: _Parts, ts: np.ndarray, observe, by: str) -> Callable:
    """Of (member, key): a flow by formula, or a descent."""
    motion, steps = parts.config.motion, parts.config.motion.steps or 0
    if motion.verb == "flow":
        return lambda member, key: exact.flow(*parts(member, key)[:3], ts, observe=observe)
    names = ("every", "dt", "momentum", "nesterov", "batch_size", "shuffle")

    def one(member, key):
        problem, start, rates, tables = parts(member, key)
        options = {name: tables["motion"].get(name) for name in names}
        if by == "formula":
            return exact.descent(problem, start, rates, steps, observe=observe, **options)
        if options["batch_size"] is not None:
            options["key"] = jax.random.fold_in(key, MINIBATCHES)
        return simulate.descent(problem, start, rates, steps, observe=observe, norm_cap=motion.norm_cap, **options)

    return one


def _cost(problem: LayerPeeled, start: Peeled, rates: Rates, t_end) -> jax.Array:
    """About how many steps an explicit solver needs: each part's clock at the end times its curvature at the start."""
    features, prototypes = (jnp.sum(jnp.square(part)) for part in (start.features, start.prototypes))
    per_sample = 1 / problem.num_samples
    clocks = rates.features.integral(t_end), rates.weights.integral(t_end)
    return clocks[0] * (prototypes * per_sample + problem.decay.features) + clocks[1] * (
        features * per_sample + problem.decay.prototypes
    )


def _reductions(config: SweepConfig) -> dict[str, list[Reduction]]:
    keep = config.keep
    common: list[Reduction] = [Moments()] if keep.moments else []
    try:
        common += [Quantiles(tuple(keep.quantiles))] if keep.quantiles else []
    except ValueError as error:
        raise ConfigError(f"keep.quantiles: {error}") from error
    found = {}
    for name in keep.observables:
        found[name] = list(common)
        if name in keep.histograms:
            try:
                found[name].append(Histogram(tuple(configuration.points(keep.histograms[name]).tolist())))
            except ValueError as error:
                raise ConfigError(f"keep.histograms.{name}: {error}") from error
    return {name: reductions for name, reductions in found.items() if reductions}


# ---- before anything runs ----


def _check_keep(config: SweepConfig, design: Design) -> None:
    for place, name in enumerate(config.keep.by):
        if name not in design.names:
            raise ConfigError(f"keep.by.{place}: unknown axis {name!r}; {validate.nearest(name, design.names)}")
    try:
        design.cell_shape(config.keep.by)
    except ValueError as error:
        raise ConfigError(f"keep.by: {error}") from None
    for place, number in enumerate(config.keep.states):
        if not 0 <= number < design.size:
            raise ConfigError(f"keep.states.{place}: must be a member number from 0 to {design.size - 1}, got {number}")
    if len(set(config.keep.states)) < len(config.keep.states):
        raise ConfigError(f"keep.states: must be different, got {config.keep.states}")


def _check_members(parts: _Parts, design: Design, by: str) -> tuple[str, ...]:
    """Build members of every group on the host: the first, and those at the values of every axis (its ends, where long).

    Returns what to cite for them.
    """
    groups, sources, left = design.groups(), [], CHECKED
    for group in groups:
        numbers = [int(group.numbers[0])]
        places = design.places(group.numbers)
        for axis in design.axes:
            if axis.static or parts.sweep[design.axes.index(axis)].path == "start.seed":
                continue
            values = np.asarray(axis.values)
            ends = [f(values.reshape(len(values), -1)[:, 0]) for f in (np.argmin, np.argmax)]
            for place in range(len(axis)) if len(axis) <= 64 else ends:
                numbers += group.numbers[places[axis.name] == place][:1].tolist()
        for number in dict.fromkeys(numbers):
            if left <= 0 and number != numbers[0]:
                break
            left -= 1
            row = {name: value[0] for name, value in design.rows(np.array([number])).items()}
            try:
                problem, start, rates = parts.concrete({**group.static, **row})
                problem.check(start)
                form = choose(problem, rates) if by == "formula" else None
            except exact.NoClosedForm as error:
                raise ConfigError(f"motion.by: {error}") from error
            except ConfigError as error:
                raise ConfigError(f"{error} (member {number})" if len(parts.config.sweep) else str(error)) from error
            except ValueError as error:
                raise nouns.at("start", (), ValueError(f"{error} (member {number})")) from error
            if number == numbers[0]:
                tables = parts.tables({**group.static, **row})
                sources += _references(_named(nouns.LOSSES, tables["problem"]["loss"]))
                sources += _references([nouns.STARTS.kinds[tables["start"]["kind"]]])
                if isinstance(tables["problem"].get("sizes"), Mapping):
                    sources += _references(_named(nouns.SIZES, tables["problem"]["sizes"]))
                sources += [] if form is None else _of_formula(form.flow)
    return tuple(dict.fromkeys(sources))


def _check_shapes(one: Callable | Segmented, design: Design, key) -> None:
    group = design.groups()[0]
    row = {name: value[0] for name, value in design.rows(group.numbers[:1]).items()}

    def alone(row, key):
        member = {**group.static, **row}
        return one.end(one.begin(member, key)) if isinstance(one, Segmented) else one(member, key)

    jax.eval_shape(alone, row, key)


def _named(room: nouns.Room, table: Mapping[str, Any]) -> list[Callable]:
    inner = [made for value in table.values() if isinstance(value, Mapping) for made in _named(room, value)]
    return [room.kinds[table["kind"]], *inner]


def _references(things) -> list[str]:
    """The references in docstrings, or else in those of their modules."""
    found = []
    for thing in things:
        texts = _texts(inspect.getdoc(thing)) or _texts(inspect.getdoc(inspect.getmodule(thing)))
        found += [f"{thing.__name__}: {text}" for text in texts]
    return list(dict.fromkeys(found))


def _of_formula(flow: Callable) -> list[str]:
    """The references of the module of a closed form, of what stands in it, and of the exact solutions that it calls."""
    home = inspect.getmodule(flow)
    inside = [thing for thing in vars(home).values() if inspect.isfunction(thing)]
    called = [thing for thing in inside if thing.__module__.startswith(f"{exact.__name__}.")]
    things = [home, *called, *(inspect.getmodule(thing) for thing in called)]
    return list(dict.fromkeys(f"closed form: {text}" for thing in things for text in _texts(inspect.getdoc(thing))))


def _texts(doc: str | None) -> list[str]:
    found = re.findall(r"\*\*References?:?\*\*:?\s*(.+?)(?=\n\s*\n|\Z)", doc or "", re.DOTALL)
    return [" ".join(text.split()) for text in found]
