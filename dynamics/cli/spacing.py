"""Numbers of a sweep file: a list of them, or `{ start, stop, num, spacing }`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dynamics import validate
from dynamics.cli import nouns
from dynamics.cli.nouns import ConfigError

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
