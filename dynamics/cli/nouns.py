"""Tables of a sweep file that name a class or a function, `{ kind = "Cosine", value = 0.5, horizon = 200.0 }`.

What may be named, its keys, their types and defaults are read from the public names of the library and their signatures: a
new loss or schedule needs no edit here.
"""

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dynamics import class_sizes, initial, losses, observables, schedules, validate
from dynamics.cli import data
from dynamics.problems import LayerPeeled, Network, Peeled, Problem, nets
from dynamics.simulate import clock as clocks


class ConfigError(ValueError):
    """What a sweep file asks for cannot be had; the message begins with the dotted path."""


class Room(NamedTuple):
    """What one kind of table may name.

    - `what`: for messages.
    - `kinds`: by name, what is called.
    - `given`: parameters that come from elsewhere, no keys of the table.
    - `makes`: the type of what a table that stands for itself must give; a nested one may give another.
    - `shared`: the types of leaves whose values share a compiled program.
    """

    what: str
    kinds: dict[str, Callable]
    given: frozenset[str]
    makes: type
    shared: tuple[str, ...] = ("number", "numbers")


def _public(module) -> dict[str, Any]:
    return {name: thing for name, thing in vars(module).items() if not name.startswith("_")}


def _sayable(thing) -> bool:
    """Whether every parameter of it can be written in a file."""
    if not callable(thing) or inspect.isabstract(thing):
        return False
    return not any("Callable" in str(p.annotation) for p in inspect.signature(thing).parameters.values())


LOSSES = Room(
    "loss",
    {name: thing for name, thing in _public(losses).items() if _sayable(thing) and getattr(thing, "multiclass", True)},
    frozenset({"num_classes"}),
    losses.Loss,
)
MARGIN_LOSSES = Room(
    "loss of a network",
    {
        name: thing
        for name, thing in _public(losses).items()
        if _sayable(thing) and inspect.isclass(thing) and issubclass(thing, losses.MarginLoss)
    },
    frozenset(),
    losses.MarginLoss,
)
SCHEDULES = Room(
    "schedule",
    {
        name: thing
        for name, thing in _public(schedules).items()
        if inspect.isclass(thing) and issubclass(thing, schedules.Schedule) and _sayable(thing)
    },
    frozenset(),
    schedules.Schedule,
)
SIZES = Room(
    "profile of class sizes",
    {
        name: thing
        for name, thing in _public(class_sizes).items()
        if inspect.isfunction(thing) and next(iter(inspect.signature(thing).parameters)) == "num_classes"
    },
    frozenset({"num_classes"}),
    np.ndarray,
    (),
)
NETS = Room(
    "net",
    {
        thing.__name__: thing
        for thing in (nets.linear, nets.deep_linear, nets.two_layer, nets.deep, nets.softplus, nets.Convolutional)
    },
    frozenset(),
    nets.Net,
    (),
)
DATA = Room(
    "data set",
    {name: thing for name, thing in _public(data).items() if getattr(thing, "__module__", "") == data.__name__},
    frozenset(),
    tuple,
    ("number",),
)
CLOCKS = Room(
    "clock",
    {
        name: thing
        for name, thing in _public(clocks).items()
        if inspect.isclass(thing) and issubclass(thing, clocks.Clock) and not inspect.isabstract(thing)
    },
    frozenset(),
    clocks.Clock,
)
STARTS = Room(
    "start",
    {
        name: thing
        for name, thing in _public(initial).items()
        if inspect.isfunction(thing) and inspect.signature(thing).return_annotation is Peeled
    },
    frozenset({"problem", "key", "dtype"}),
    Peeled,
)
WEIGHTS = Room("start", {"weights": initial.weights}, frozenset({"problem", "key", "dtype"}), tuple)


def _observables(problem: type[Problem]) -> dict[str, Callable]:
    """The observables of a kind of problem."""
    found = {}
    for name, thing in _public(observables).items():
        parameters = inspect.signature(thing).parameters if inspect.isfunction(thing) else {}
        if list(parameters) == ["problem", "state"]:
            annotation = parameters["problem"].annotation
            if any(issubclass(problem, one) for one in typing.get_args(annotation) or (annotation,)):
                found[name] = thing
    return found


LOG_TIME = "log_t"
"""Beside the observables: the logarithm of physical time, of flows along a clock."""


class Family(NamedTuple):
    """What goes with one kind of problem."""

    losses: Room
    starts: Room
    observables: dict[str, Callable]


PEELED = Family(LOSSES, STARTS, _observables(LayerPeeled))
NETWORK = Family(MARGIN_LOSSES, WEIGHTS, _observables(Network))


def family(problem: Mapping[str, Any]) -> Family:
    """The family of a problem's table: of networks where it has a net."""
    return NETWORK if "net" in problem else PEELED


def keys(room: Room, kind: str) -> dict[str, inspect.Parameter]:
    """The keys of a table of this kind."""
    found = inspect.signature(room.kinds[kind]).parameters
    return {name: parameter for name, parameter in found.items() if name not in room.given}


def at(path: str, known: Iterable[str], error: Exception) -> ConfigError:
    """What a constructor says, with the path before it: down to the key that its message begins with."""
    word = re.split(r"\W", str(error), maxsplit=1)[0]
    return ConfigError(f"{path}.{word}: {error}" if word in known else f"{path}: {error}")


def resolved(room: Room, path: str, table: Any, nested: bool = False, beside: Sequence[str] = ()) -> dict[str, Any]:
    """The table with every key checked, whole numbers as floats where floats are meant, and defaults filled in.

    Keys that stand `beside` those of the kind are left to the caller.

    **Raises:** `ConfigError` naming the path, what was given, and the nearest of what is allowed.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: must be a table with a kind ({', '.join(_names(room, nested))}), got {table!r}")
    if "kind" not in table:
        raise ConfigError(f"{path}.kind: missing; one of {', '.join(_names(room, nested))}")
    kind = table["kind"]
    if not isinstance(kind, str) or kind not in _names(room, nested):
        raise ConfigError(f"{path}.kind: unknown {room.what} {kind!r}; {validate.nearest(kind, _names(room, nested))}")
    known = keys(room, kind)
    for name in table:
        if name not in ("kind", *known, *beside):
            raise ConfigError(f"{path}.{name}: unknown key of {kind}; {validate.nearest(name, ['kind', *known, *beside])}")
    out: dict[str, Any] = {"kind": kind}
    for name, parameter in known.items():
        if name in table:
            out[name] = _checked(room, f"{path}.{name}", parameter, table[name])
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{path}.{name}: missing; {kind} needs {_needed(known)}")
        elif parameter.default is not None:
            out[name] = parameter.default
    return out


def schedule(path: str, value: Any) -> float | dict[str, Any]:
    """A number or a schedule's table, checked."""
    if _is_number(value):
        return float(value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: must be a number or a table with a kind ({', '.join(SCHEDULES.kinds)}), got {value!r}")
    return resolved(SCHEDULES, path, value)


def traceable(room: Room, path: str, table: Mapping[str, Any], below: list[str]) -> bool:
    """Whether the leaf at `below` (keys from this table inwards) holds floats, so that values of it share a program."""
    name, *rest = below
    known = keys(room, table["kind"])
    if name == "kind" and not rest:
        return False
    if name not in known:
        raise ConfigError(f"{path}.{name}: unknown key of {table['kind']}; {validate.nearest(name, ['kind', *known])}")
    inner = table.get(name)
    if rest:
        if not isinstance(inner, Mapping):
            raise ConfigError(f"{path}.{name}.{rest[0]}: {path}.{name} is no table with keys, got {inner!r}")
        return traceable(room, f"{path}.{name}", inner, rest)
    return _type(known[name]) in room.shared or (room is DATA and name == "seed")


def built(room: Room, path: str, table: Any, **given) -> Any:
    """What a resolved table stands for; numbers in it may be traced.

    **Raises:** `ConfigError` with the path before what the constructor says.
    """
    if not isinstance(table, Mapping):
        return table
    make = room.kinds[table["kind"]]
    wanted = inspect.signature(make).parameters
    arguments = {
        name: _argument(room, f"{path}.{name}", wanted[name], value, given) for name, value in table.items() if name != "kind"
    }
    try:
        return make(**arguments, **{name: value for name, value in given.items() if name in wanted})
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise at(path, arguments, error) from error


def _argument(room: Room, path: str, parameter: inspect.Parameter, value: Any, given: dict) -> Any:
    if isinstance(value, Mapping):
        return built(room, path, value, **given)
    if room is SCHEDULES and _type(parameter) == "noun":
        return schedules.as_schedule(value)
    if room is NETS and isinstance(value, list) or room is STARTS and (isinstance(value, list) or np.ndim(value) == 1):
        return tuple(value)
    return np.asarray(value, float) if isinstance(value, list) else value


def _names(room: Room, nested: bool) -> list[str]:
    """A nested table may name what helps to build one, too."""
    return [name for name, thing in room.kinds.items() if nested or not inspect.isclass(thing) or issubclass(thing, room.makes)]


def _needed(known: Mapping[str, inspect.Parameter]) -> str:
    needed = [name for name, parameter in known.items() if parameter.default is inspect.Parameter.empty]
    free = [name for name in known if name not in needed]
    return ", ".join(needed) + (f" (and may have {', '.join(free)})" if free else "")


def _type(parameter: inspect.Parameter) -> str:
    """What a parameter wants: "whole", "truth", "text", "number", "noun", or else "numbers", of any shape or nested."""
    annotation = parameter.annotation
    if typing.get_origin(annotation) is tuple:
        return "numbers"
    options = [one for one in typing.get_args(annotation) or (annotation,) if one is not type(None)]
    for kind, text in ((bool, "truth"), (int, "whole"), (str, "text"), (float, "number")):
        if kind in options:
            return text
    if any(isinstance(one, str) for one in options):
        return "text"
    if any(inspect.isclass(one) and issubclass(one, schedules.Schedule | losses.Loss) for one in options):
        return "noun"
    return "numbers"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked(room: Room, path: str, parameter: inspect.Parameter, value: Any) -> Any:
    wanted = _type(parameter)
    if wanted == "truth" and isinstance(value, bool) or wanted == "text" and isinstance(value, str):
        return value
    if wanted == "whole" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if wanted == "noun":
        return schedule(path, value) if room is SCHEDULES else resolved(room, path, value)
    if wanted == "number" and _is_number(value):
        return float(value)
    if wanted == "numbers" and room is NETS:  # the widths of its layers
        wanted = "widths"
        if isinstance(value, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in value):
            return value
    if wanted == "numbers":
        if isinstance(value, Mapping):
            return resolved(room, path, value, nested=True)
        if (found := numbers(value)) is not None:
            return found
    texts = {
        "truth": "true or false",
        "text": "a text",
        "whole": "a whole number",
        "number": "a number",
        "numbers": "a number or a list of numbers",
        "widths": "a list of whole numbers",
    }
    raise ConfigError(f"{path}: must be {texts[wanted]}, got {value!r}")


def numbers(value: Any) -> float | list | None:
    """A number, or a list of numbers nested to any depth, as floats; None for anything else."""
    if _is_number(value):
        return float(value)
    if isinstance(value, list) and value:
        found = [numbers(one) for one in value]
        return None if any(one is None for one in found) else found
    return None
