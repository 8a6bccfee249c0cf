"""Plain tables as TOML text; the standard library only reads it."""

import json
import re
from collections.abc import Mapping
from typing import Any


def inline(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    return "{ " + ", ".join(f"{_key(key)} = {inline(inner)}" for key, inner in value.items()) + " }" if value else "{}"


def document(tables: Mapping[str, Any]) -> str:
    """Values first, then a section a table, and a section an entry of a list of tables."""

    def lines(table: Mapping[str, Any]) -> list[str]:
        return [f"{_key(key)} = {inline(value)}" for key, value in table.items()]

    def sections(value: Any) -> bool:
        listed = isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)
        return isinstance(value, Mapping) or listed

    out = lines({key: value for key, value in tables.items() if not sections(value)})
    for key, value in tables.items():
        if isinstance(value, Mapping):
            out += ["", f"[{_key(key)}]", *lines(value)]
        elif sections(value):
            for entry in value:
                out += ["", f"[[{_key(key)}]]", *lines(entry)]
    return "\n".join(out) + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else inline(key)
