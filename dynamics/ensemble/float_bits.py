"""Where a float64 lies, read off its leading bits: no logarithm, no search, the same on every machine."""

import functools

import numpy as np

MANTISSA = 52
STEPS = 4
"""With more edges than this in one bucket a search is faster."""


def keys(x: np.ndarray, digits: int) -> np.ndarray:
    """The bucket of each finite float64, int64, in the order of the numbers: sign, exponent, `digits` bits of the mantissa.

    Zero has a bucket of its own, key 0; keys of other numbers lie within +-2**(digits + 11).
    """
    bits = x.view(np.int64)
    found = bits & np.int64(2**63 - 1)
    nonzero = found != 0
    found >>= MANTISSA - digits
    found += nonzero
    negative = bits >> 63  # -1 or 0: the two lines below change the sign without a branch
    found ^= negative
    found -= negative
    return found


def middle(keys: np.ndarray, digits: int) -> np.ndarray:
    """The middle of each bucket, float64: at most 2**-(digits + 1) of its size away from any normal number in it."""
    keys = keys.astype(np.int64)
    shift = MANTISSA - digits
    bits = ((np.abs(keys) - 1) << shift) + (1 << (shift - 1))
    return np.where(keys == 0, 0.0, np.copysign(np.where(keys == 0, 0, bits).view(np.float64), keys))


def edges_passed(x: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    """How many of the increasing edges are <= each finite float64; a number at the last edge has not passed it."""
    bounds = np.array([*edges[:-1], np.nextafter(edges[-1], np.inf), np.inf])
    shift, table, steps = _table(tuple(bounds.tolist()))
    if steps > STEPS:
        return np.searchsorted(bounds, x, side="right")
    passed = table[(x.view(np.uint64) >> np.uint64(shift)).view(np.int64)]
    for _ in range(steps):
        passed += x >= bounds[passed]
    return passed


@functools.lru_cache(maxsize=32)
def _table(bounds: tuple[float, ...], digits: int = 6) -> tuple[int, np.ndarray, int]:
    """By the leading bits of a number: how many bounds every number of a bucket has passed, and the most that one may add."""
    shift = MANTISSA - digits
    ends = np.arange(2 ** (64 - shift), dtype=np.uint64) << np.uint64(shift)
    ends = np.stack([ends, ends | np.uint64(2**shift - 1)]).view(np.float64)
    finite = np.isfinite(ends).all(axis=0)
    low, high = (np.searchsorted(bounds, end, side="right") * finite for end in (ends.min(axis=0), ends.max(axis=0)))
    return shift, low, int(np.max(high - low))
