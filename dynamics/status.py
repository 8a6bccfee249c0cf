"""How a run ended: one stable integer code per member."""

from typing import Any, Final

import numpy as np

OK: Final = 0
BAD_INPUT: Final = 1
NON_FINITE: Final = 2
NORM_CAP: Final = 3
MAX_STEPS: Final = 4
FIXED_POINT: Final = 5
OUTSIDE_ASSUMPTIONS: Final = 6

NAMES: Final = ("ok", "bad_input", "non_finite", "norm_cap", "max_steps", "fixed_point", "outside_assumptions")


def name(code) -> str:
    """The name of a status code (an int or a 0-d array)."""
    number = int(code)
    if not 0 <= number < len(NAMES):
        raise ValueError(f"code must be one of 0..{len(NAMES) - 1}, got {number}")
    return NAMES[number]


def flags(dtype) -> dict[str, Any]:
    """Attributes of a labelled array of codes that say what each means, as the CF conventions have it."""
    return {"flag_values": np.arange(len(NAMES), dtype=dtype), "flag_meanings": " ".join(NAMES)}
