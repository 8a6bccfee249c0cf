"""What is drawn of an observable over time: a middle and bands around it, of a result or by formula."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dynamics import ensemble
from dynamics.cli import config as configuration
from dynamics.cli import sweep as sweeps
from dynamics.exact import NoClosedForm
from dynamics.plotting.ensembles import thousands

LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
"""Of members that were all kept, where the run has no statistics over them."""

Lookup = Callable[[str], tuple[np.ndarray, tuple[str, ...]] | None]
"""From the name of a variable to its values and dimensions; None where there is no such."""


class Curves(NamedTuple):
    """A middle, shape (*cells, times), and bands around it, shapes (bands, *cells, times), the widest first; both in words."""

    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray
    text: str
    shaded: tuple[str, ...]


class Formula(NamedTuple):
    """The closed form of each observable that has one; how to call it; and where there is none, why."""

    curves: dict[str, Curves]
    text: str
    why: str


def curves(name: str, lookup: Lookup, levels: np.ndarray) -> Curves | None:
    """Median and symmetric bands from quantiles; without those the mean and one standard deviation; else from the members."""
    found = lookup(f"{name}_quantile")
    if found is not None and np.isclose(levels, 0.5).any():
        values, dims = found
        return _of_quantiles(np.moveaxis(values, dims.index("quantile"), 0), levels)
    mean, variance = lookup(f"{name}_mean"), lookup(f"{name}_variance")
    if mean is not None and variance is not None:
        deviation = np.sqrt(variance[0])[None]
        return Curves(mean[0], mean[0] - deviation, mean[0] + deviation, "mean", ("one standard deviation",))
    members = lookup(name)
    return None if members is None else _of_quantiles(_quantiles(members[0], LEVELS), LEVELS)


def _of_quantiles(values: np.ndarray, levels: np.ndarray) -> Curves:
    pairs = [
        (low, high) for low, high in itertools.combinations(range(levels.size), 2) if np.isclose(levels[low], 1 - levels[high])
    ]
    shaded = tuple(f"{100 * levels[low]:g}\u2013{100 * levels[high]:g} % of members" for low, high in pairs)
    low, high = (values[[pair[side] for pair in pairs]] for side in (0, 1))
    return Curves(values[int(np.abs(levels - 0.5).argmin())], low, high, "median", shaded)


def _quantiles(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Over the finite values of members, the first axis; NaN where there are none. Shape (levels, times)."""
    finite = np.isfinite(values)
    out = np.full((levels.size, values.shape[1]), np.nan)
    some = finite.any(axis=0)
    # the definition that statistics over members use
    out[:, some] = np.nanquantile(np.where(finite, values, np.nan)[:, some], levels, axis=0, method="inverted_cdf")
    return out


def closed_form(config, names: Sequence[str], by: Sequence[str], levels: np.ndarray, most: int) -> Formula:
    """The same statistics of the same members by formula, or of at most so many of them."""
    try:
        sweep = sweeps.build(config, by="formula")
        total = sweep.design.size
        result = ensemble.run(
            sweep.one,
            sweep.design,
            key=sweep.key,
            keep=None,
            reduce={name: sweep.reduce.get(name) or [ensemble.Quantiles(tuple(LEVELS))] for name in names},
            by=by,
            only=spread(total, most),
            progress=False,
        )
    except (NoClosedForm, configuration.ConfigError) as error:
        return Formula({}, "", f"no closed form: {str(error).removeprefix('motion.by: ')}")
    good = int(result.ok.sum())
    if not good:
        return Formula({}, "", "no closed form: no member meets its assumptions")

    def lookup(name: str):
        one = result.reduced.get(name)
        return None if one is None else (one.values, tuple(one.dims))

    found = {name: curves(name, lookup, levels if name in sweep.reduce else LEVELS) for name in names}
    text = "closed form" if good == total else f"closed form of {thousands(good)} of the {thousands(total)} members"
    return Formula({name: one for name, one in found.items() if one is not None}, text, "")


def spread(size: int, most: int) -> np.ndarray | None:
    """At most so many member numbers, one from each of as many equal stretches, drawn so that no axis is met in step."""
    if size <= most:
        return None
    places = np.arange(most) + np.random.default_rng(0).random(most)
    return np.unique((places * (size / most)).astype(np.int64))
