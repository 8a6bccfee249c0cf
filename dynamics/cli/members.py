"""From the tables of a sweep file to the problem, the start and the rates of each member.

Random starts: where the sweep has the axis `start.seed`, a member's start depends on the run's seed and on that axis's value
only, so that members which differ in other axes share their starts; else every member has a start of its own, by its number.
Draws of minibatches are every member's own.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dynamics import class_sizes, exact, initial, validate
from dynamics import state as tree
from dynamics.cli import config as configuration
from dynamics.cli import nouns, sources
from dynamics.cli.axes import Swept, typed
from dynamics.cli.config import ConfigError, SweepConfig
from dynamics.cli.defaults import ANCHORS
from dynamics.ensemble import Design
from dynamics.exact.dispatch import choose
from dynamics.problems import Decay, LayerPeeled, Network, Peeled, Problem
from dynamics.rates import Rates

START, MINIBATCHES = 0, 1
"""Tags of the two streams of random numbers."""

CHECKED = 256
"""At most so many members are built on the host before anything runs."""


class Parts:
    """(member, key) to (problem, start, rates, tables of the member)."""

    def __init__(self, config: SweepConfig, sweep: list[Swept]):
        self.config, self.sweep = config, sweep
        self.key = jax.random.key(config.seed)
        self.dtype = jnp.dtype(config.precision)
        self._tables: dict[tuple, dict] = {}

    def tables(self, member: Mapping[str, Any]) -> dict[str, Any]:
        """The tables of the file with the static values of a member in their places, checked and filled."""
        static = {one.path: one.meaning[typed(member[one.axis.name])] for one in self.sweep if one.axis.static}
        place = tuple(typed(member[one.axis.name]) for one in self.sweep if one.axis.static)
        if place not in self._tables:
            self._tables[place] = self.read(static)
        return self._tables[place]

    def read(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The tables with values in their places, checked and filled."""
        raw = {**configuration.tables(self.config), "sweep": []}
        for path, value in values.items():
            raw = put(raw, path.split("."), value)
        return configuration.tables(configuration.read(raw))

    def concrete(self, member: Mapping[str, Any]) -> tuple[Problem, PyTree, Rates]:
        """The parts of a member whose values are known, every one of them checked as if it stood in the file."""
        values = {}
        for one in self.sweep:
            value = member[one.axis.name]
            if one.path != "start.seed":
                values[one.path] = one.meaning[typed(value)] if one.axis.static else np.asarray(value).tolist()
        tables = self.read(values)
        seeds = {one.path: member[one.axis.name] for one in self.sweep if one.path == "start.seed"}
        return self.made(tables, seeds.get("start.seed"), self.key)

    def __call__(self, member: Mapping[str, Any], key) -> tuple[Problem, PyTree, Rates, dict[str, Any]]:
        tables, seed = self.tables(member), None
        for one in self.sweep:
            if one.path == "start.seed":
                seed = member[one.axis.name]
            elif not one.axis.static:
                tables = put(tables, one.path.split("."), member[one.axis.name])
        return *self.made(tables, seed, key), tables

    def made(self, tables: dict, seed, key) -> tuple[Problem, PyTree, Rates]:
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


def problem_of(table: Mapping[str, Any]) -> Problem:
    """The problem of a checked table."""
    return _network(table) if "net" in table else _peeled(table)


def _network(table: Mapping[str, Any]) -> Network:
    net = nouns.built(nouns.NETS, "problem.net", table["net"])
    inputs, targets = nouns.built(nouns.DATA, "problem.data", table["data"])
    loss = nouns.built(nouns.MARGIN_LOSSES, "problem.loss", table["loss"])
    try:
        return Network(net, inputs, targets, loss, table["decay"])
    except ValueError as error:
        if str(error).startswith(("inputs", "targets")):
            raise nouns.at("problem.data", table["data"], error) from error
        raise nouns.at("problem", table, error) from error


def _peeled(table: Mapping[str, Any]) -> LayerPeeled:
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


def start_of(table: Mapping[str, Any], problem: Problem, key, dtype) -> PyTree:
    """The start of a checked table, in a dtype."""
    noun = {name: value for name, value in table.items() if name not in ANCHORS}
    if not isinstance(problem, LayerPeeled):
        return nouns.built(nouns.WEIGHTS, "start", noun, problem=problem, key=key, dtype=dtype)
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


def check(parts: Parts, design: Design, by: str) -> tuple[str, ...]:
    """Build members of every group on the host: the first, and those at the values of every axis (its ends, where long).

    Returns what to cite for them.
    """
    groups, cited, left = design.groups(), [], CHECKED
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
                family = nouns.family(tables["problem"])
                cited += sources.references(sources.named(family.losses, tables["problem"]["loss"]))
                cited += sources.references([family.starts.kinds[tables["start"]["kind"]]])
                if isinstance(tables["problem"].get("sizes"), Mapping):
                    cited += sources.references(sources.named(nouns.SIZES, tables["problem"]["sizes"]))
                cited += [] if form is None else sources.of_formula(form.flow)
    return tuple(dict.fromkeys(cited))
