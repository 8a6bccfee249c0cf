"""What to cite for a sweep: the references that stand in docstrings."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from dynamics import exact
from dynamics.cli import nouns


def named(room: nouns.Room, table: Mapping[str, Any]) -> list[Callable]:
    """What a table and those inside it stand for."""
    inner = [made for value in table.values() if isinstance(value, Mapping) for made in named(room, value)]
    return [room.kinds[table["kind"]], *inner]


def references(things) -> list[str]:
    """The references in docstrings, or else in those of their modules."""
    found = []
    for thing in things:
        texts = _texts(inspect.getdoc(thing)) or _texts(inspect.getdoc(inspect.getmodule(thing)))
        found += [f"{thing.__name__}: {text}" for text in texts]
    return list(dict.fromkeys(found))


def of_formula(flow: Callable) -> list[str]:
    """The references of the module of a closed form, of what stands in it, and of the exact solutions that it calls."""
    home = inspect.getmodule(flow)
    inside = [thing for thing in vars(home).values() if inspect.isfunction(thing)]
    called = [thing for thing in inside if thing.__module__.startswith(f"{exact.__name__}.")]
    things = [home, *called, *(inspect.getmodule(thing) for thing in called)]
    return list(dict.fromkeys(f"closed form: {text}" for thing in things for text in _texts(inspect.getdoc(thing))))


def _texts(doc: str | None) -> list[str]:
    found = re.findall(r"\*\*References?:?\*\*:?\s*(.+?)(?=\n\s*\n|\Z)", doc or "", re.DOTALL)
    return [" ".join(text.split()) for text in found]
