"""How ratios are shown: their spread, and with how many digits."""

from typing import Any

import numpy as np


def quartiles(base: dict[str, Any], racer: dict[str, Any]) -> tuple[float, float]:
    """The lower and the upper one, over rounds, of the seconds of the base over those of a racer; "ratio" is their median."""
    low, high = np.quantile(np.divide(base["seconds"], racer["seconds"]), [0.25, 0.75])
    return float(low), float(high)


def sized(x: float) -> str:
    """Three digits, no exponent."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"
