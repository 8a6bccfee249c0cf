"""What the tables of a sweep file leave open: every noun checked, every default filled in."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from dynamics import validate
from dynamics.cli import nouns
from dynamics.cli.nouns import ConfigError
from dynamics.cli.skeleton import Factor, Keep, Motion, Network, Problem, Rates, Run, SweepConfig, Zipped
from dynamics.cli.spacing import SPACED, spaced
from dynamics.ensemble import memory

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
"""Of a run and of its folder."""
ANCHORS = ("prototypes", "prototype_scale")
"""Keys of the start beside those of its kind."""
SEEDS = ("start.seed", "problem.data.seed")
"""Axes of random numbers."""
WAYS = (("features", "weights"), ("equal",), ("schedule", "ratio"))
"""How rates are given."""
FLOW = {"times": None, "rtol": None, "atol": None, "max_steps": 100_000, "clock": None, "until_log_t": None}
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


def filled(config: SweepConfig) -> SweepConfig:
    """The configuration once every noun is checked, with all defaults."""
    if NAME.fullmatch(config.name) is None:
        raise ConfigError(f"name: must be 1 to 80 of A-Z a-z 0-9 . _ - and not begin with . or -, got {config.name!r}")
    if not 0 <= config.seed < 2**31:
        raise ConfigError(f"seed: must lie in [0, 2**31), got {config.seed}")
    family = nouns.family(vars(config.problem))
    network = isinstance(config.problem, Network)
    return dataclasses.replace(
        config,
        problem=_network(config.problem) if isinstance(config.problem, Network) else _problem(config.problem),
        start=_start(config.start, family.starts, () if network else ANCHORS),
        rates=_rates(config.rates, network),
        motion=_motion(config.motion, network),
        sweep=[_factor(f"sweep.{number}", one) for number, one in enumerate(config.sweep)],
        keep=_keep(config.keep, [*family.observables, *([] if config.motion.clock is None else [nouns.LOG_TIME])]),
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


def _network(problem: Network) -> Network:
    rooms = {"net": nouns.NETS, "data": nouns.DATA, "loss": nouns.MARGIN_LOSSES}
    found = {name: nouns.resolved(room, f"problem.{name}", getattr(problem, name)) for name, room in rooms.items()}
    return dataclasses.replace(problem, **found)


def _start(start: dict[str, Any], starts: nouns.Room, beside: tuple[str, ...]) -> dict[str, Any]:
    own = {key: value for key, value in start.items() if key in beside}
    out = nouns.resolved(starts, "start", start, beside=beside)
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


def _rates(rates: Rates, network: bool) -> Rates:
    given = tuple(name for way in WAYS for name in way if getattr(rates, name) is not None)
    if given not in WAYS:
        raise ConfigError(
            f"rates: give features and weights, or equal, or schedule and ratio, got {' and '.join(given) or 'none of them'}"
        )
    if network and given != ("equal",):
        raise ConfigError(f"rates: all weights of a network move at one rate: give equal, got {' and '.join(given)}")
    found = {name: nouns.schedule(f"rates.{name}", getattr(rates, name)) for name in given if name != "ratio"}
    return dataclasses.replace(rates, **found)


def _motion(motion: Motion, network: bool) -> Motion:
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
    if motion.clock is not None:
        filled["clock"] = _clock(motion, network)
    elif motion.until_log_t is not None:
        raise ConfigError("motion.until_log_t: needs a clock, such as clock = 'auto'")
    return dataclasses.replace(motion, **filled)


def _clock(motion: Motion, network: bool) -> str | dict[str, Any]:
    if not network:
        raise ConfigError("motion.clock: is for networks: a problem with net and data")
    if isinstance(motion.clock, str):
        if motion.clock != "auto":
            raise ConfigError(f"motion.clock: must be 'auto' or a table with a kind, got {motion.clock!r}")
        return motion.clock
    return nouns.resolved(nouns.CLOCKS, "motion.clock", motion.clock)


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
        if factor.axis not in SEEDS:
            seeds = " or ".join(map(repr, SEEDS))
            raise ConfigError(f"{path}.count: only for axis = {seeds}, got axis = {factor.axis!r}; give values")
        if factor.values is not None:
            raise ConfigError(f"{path}.count: give count or values, not both")
        if factor.count < 1:
            raise ConfigError(f"{path}.count: must be >= 1, got {factor.count}")
        return dataclasses.replace(factor, **_named(factor.axis, factor.name))
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


def _keep(keep: Keep, known: list[str]) -> Keep:
    if not keep.observables:
        raise ConfigError(f"keep.observables: must name at least one of {', '.join(known)}")
    for place, name in enumerate(keep.observables):
        if name not in known:
            hint = validate.nearest(name, known)
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
