"""Statistics over members against NumPy on all values at once, whatever the chunks."""

import math
import statistics
from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from dynamics.ensemble.reductions import Histogram, Moments, Quantiles, Reduction
from tests.helpers import refused

LEVELS = (0.0, 0.05, 0.07, 0.5, 0.9, 1.0)
EDGES = (-3.0, -1.0, 0.0, 0.25, 0.250001, 1.0, 40.0)
REDUCTIONS = {"moments": Moments(), "quantiles": Quantiles(LEVELS), "histogram": Histogram(EDGES)}
EXACT = {"count", "nonfinite", "minimum", "maximum", "quantile", "histogram", "histogram_below", "histogram_above"}
RNG = np.random.default_rng(3)


def finite(column: np.ndarray) -> np.ndarray:
    column = np.asarray(column, float)
    return column[np.isfinite(column)]


def moments(column) -> dict[str, float]:
    own = finite(column)
    if not own.size:
        return {**dict.fromkeys(("mean", "variance", "minimum", "maximum"), np.nan), "count": 0, "nonfinite": len(column)}
    exact = [Fraction(float(number)) for number in own]  # rational numbers: no rounding at all
    mean = sum(exact) / len(exact)
    variance = sum((number - mean) ** 2 for number in exact) / len(exact)
    ends = {"minimum": own.min(), "maximum": own.max()}
    return {"mean": float(mean), "variance": float(variance), **ends, "count": own.size, "nonfinite": len(column) - own.size}


def quantiles(column) -> dict[str, list[float]]:
    own = np.sort(finite(column))
    ranks = [max(1, math.ceil(Fraction(str(level)) * own.size)) for level in LEVELS]
    return {"quantile": [own[rank - 1] if own.size else np.nan for rank in ranks]}


def histogram(column) -> dict[str, list[int] | int]:
    own = finite(column)
    counts, _ = np.histogram(own, np.array(EDGES))
    return {
        "histogram": counts.tolist(),
        "histogram_below": int(np.sum(own < EDGES[0])),
        "histogram_above": int(np.sum(own > EDGES[-1])),
    }


TRUTHS = {"moments": moments, "quantiles": quantiles, "histogram": histogram}


def spread(*shape: int) -> np.ndarray:
    return 10.0 ** RNG.uniform(-150, 150, shape) * RNG.choice([-1.0, 1.0], shape)


def some_spoiled(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[RNG.random(values.shape) < 0.3] = np.nan
    values[RNG.random(values.shape) < 0.1] = np.inf
    values[RNG.random(values.shape) < 0.1] = -np.inf
    return values


VALUES = {
    "normal": RNG.normal(size=(300, 3)),
    "scalars": RNG.normal(size=300),
    "matrices": RNG.normal(size=(60, 2, 3)),
    "heavy tails": spread(300, 2),
    "zeros and edges": RNG.choice([*EDGES, -0.0, 5e-324, -5e-324], (200, 2)),
    "failed members": some_spoiled(RNG.normal(size=(200, 2))),
    "large mean": 1e9 + RNG.normal(size=(300, 2)),
    "single precision": RNG.normal(size=(200, 2)).astype(np.float32),
    "integers": RNG.integers(-5, 5, (200, 2)),
    "booleans": RNG.random(200) < 0.3,
}


def over(reduction: Reduction, values, cell, cells: int, size: int | None = None) -> dict:
    """The result of chunks of one size, merged one after the other."""
    size = size or len(values)
    total = None
    for begin in range(0, len(values), size):
        part = reduction.of(values[begin : begin + size], cell[begin : begin + size])
        total = part if total is None else reduction.merge(total, part)
    assert total is not None
    return reduction.result(total, cells)


def assert_true(name: str, found: dict, values: np.ndarray, cell: np.ndarray, cells: int) -> None:
    """Every statistic of every cell and entry is that of the definition."""
    columns = np.asarray(values).reshape(len(values), -1)
    for number in range(cells):
        for column in range(columns.shape[1]):
            own = columns[cell == number, column]
            truth = TRUTHS[name](own)
            assert set(found) == set(truth)
            for key, expected in truth.items():
                one = found[key]
                assert one.values.shape[len(one.dims) + 1 :] == values.shape[1:]
                got = one.values.reshape(*one.values.shape[: len(one.dims) + 1], -1)[number, ..., column]
                if key in ("mean", "variance"):
                    # rounding of a sum is relative to the sum of sizes
                    sizes = float(np.mean(np.abs(finite(own)))) if finite(own).size else 0.0
                    scale = sizes if key == "mean" else 0.0
                    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15 * scale, err_msg=key)
                elif key == "quantile":
                    tiny = 2.0 ** -(8 + 1023)
                    np.testing.assert_allclose(got, expected, rtol=one.attributes["relative_error"] * (1 + 1e-15), atol=tiny)
                    np.testing.assert_array_equal(got == 0, np.array(expected) == 0)
                    np.testing.assert_array_equal(got[[0, -1]], np.array(expected)[[0, -1]])
                else:
                    np.testing.assert_array_equal(got, expected, err_msg=key)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("kind", VALUES)
def test_definitions(name, kind):
    values = VALUES[kind]
    for cells in (1, 4):
        cell = RNG.integers(0, cells, len(values))
        cell[cell == 2] = 3  # cell 2 has no member
        for size in (None, 7):
            assert_true(name, over(REDUCTIONS[name], values, cell, cells, size), values, cell, cells)


@pytest.mark.parametrize("name", REDUCTIONS)
@hypothesis.given(
    sizes=strategies.lists(strategies.integers(1, 9), min_size=1, max_size=8),
    seed=strategies.integers(0, 1000),
    hard=strategies.booleans(),
)
def test_any_chunks_in_any_grouping(name, sizes, seed, hard):
    """Merged from the left, from the right and pairwise, in another order of members: counts and quantiles to the bit."""
    reduction, rng, members = REDUCTIONS[name], np.random.default_rng(seed), sum(sizes)
    values = rng.normal(size=(members, 2)) * 10.0 ** (30 * hard * rng.uniform(-1, 1, (members, 2)))
    values[rng.random(values.shape) < 0.2] = np.nan
    cell = rng.integers(0, 3, members)
    mixed = rng.permutation(members)
    cuts = np.cumsum(sizes)[:-1]
    parts = [reduction.of(values[rows], cell[rows]) for rows in np.split(mixed, cuts)]
    left, right, pairs = parts[0], parts[-1], parts
    for part in parts[1:]:
        left = reduction.merge(left, part)
    for part in parts[-2::-1]:
        right = reduction.merge(part, right)
    while len(pairs) > 1:
        pairs = [reduction.merge(*pairs[i : i + 2]) if i + 1 < len(pairs) else pairs[i] for i in range(0, len(pairs), 2)]
    whole = reduction.result(reduction.of(values, cell), 3)
    for partial in (left, right, pairs[0]):
        for key, one in reduction.result(partial, 3).items():
            if key in EXACT:
                np.testing.assert_array_equal(one.values, whole[key].values)
                assert one.values.dtype == whole[key].values.dtype
            else:
                tolerance = {"rtol": 1e-12, "atol": 1e-14 * np.nanmax(np.abs(values), initial=0.0) if key == "mean" else 0.0}
                np.testing.assert_allclose(one.values, whole[key].values, **tolerance)


@pytest.mark.parametrize("mean", [1e6, 1e12, -3e15])
def test_a_large_mean_cancels_nothing(mean):
    values = mean + RNG.integers(-3, 4, 2000).astype(float)
    cell = np.zeros(2000, int)
    expected = statistics.pvariance([int(number) for number in values - mean])
    for size in (2000, 64, 1):
        found = over(Moments(), values, cell, 1, size)
        assert found["variance"].values[0] == pytest.approx(expected, rel=1e-13)
        assert found["mean"].values[0] == pytest.approx(values.mean(), rel=1e-15)


def test_quantiles_over_the_whole_float_range():
    values = np.concatenate([spread(2000) * 10.0 ** RNG.uniform(-150, 150, 2000), [np.finfo(float).max, -np.finfo(float).max]])
    levels = tuple(np.linspace(0, 1, 101).round(2))
    ordered = np.sort(values)
    for digits in (1, 8, 20):
        found = over(Quantiles(levels, digits), values, np.zeros(len(values), int), 1, 500)["quantile"]
        exact = [ordered[max(1, math.ceil(Fraction(str(level)) * len(values))) - 1] for level in levels]
        assert found.dims == ("quantile",) and found.attributes["relative_error"] == 2.0 ** -(digits + 1)
        error = np.abs(found.values[0] / exact - 1)
        assert np.all(error <= 2.0 ** -(digits + 1) * (1 + 1e-14))
        assert np.max(error) > 2.0 ** -(digits + 3)  # the stated error is not a loose one


@pytest.mark.parametrize(
    "edges",
    [np.linspace(-2, 2, 65), np.linspace(-2, 2, 640), 1e6 + np.arange(30), [-1e300, -1e-300, 1e-300, 1e300], [0.0, 5e-324]],
)
def test_histograms_of_numpy(edges):
    near = RNG.choice(edges, 4000)
    values = np.concatenate([near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf), RNG.normal(size=4000)])
    found = over(Histogram(edges), values, np.zeros(len(values), int), 1, 3000)
    np.testing.assert_array_equal(found["histogram"].values[0], np.histogram(values, edges)[0])
    assert sum(one.values.sum() for one in found.values()) == len(values)
    np.testing.assert_array_equal(found["histogram"].attributes["edges"], edges)


def test_nothing_finite():
    for values in (np.full((5, 2), np.nan), np.full((5, 2), np.inf)):
        for name, reduction in REDUCTIONS.items():
            found = over(reduction, values, np.zeros(5, int), 2, 2)
            assert_true(name, found, values, np.zeros(5, int), 2)
    assert over(Moments(), values, np.zeros(5, int), 2)["nonfinite"].values.tolist() == [[5, 5], [0, 0]]


def test_variance_past_the_float_range():
    """Squares that overflow make an infinite variance; mean, extremes and quantiles stay right, and nothing warns."""
    values = np.array([1e200, 3e200, -1e200])
    for size in (3, 1):
        found = over(Moments(), values, np.zeros(3, int), 1, size)
        assert found["variance"].values[0] == np.inf
        assert found["mean"].values[0] == pytest.approx(1e200, rel=1e-15)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_part_does_not_grow_with_members(name):
    """And it can be stored as it is: plain arrays, no objects."""
    reduction, total, sizes = REDUCTIONS[name], None, []
    for step in range(1, 41):
        part = reduction.of(np.random.default_rng(step).uniform(1, 2, (5000, 4)), np.zeros(5000, int))
        assert all(array.dtype.kind in "iuf" and "/" not in key for key, array in part.items())
        total = part if total is None else reduction.merge(total, part)
        if step in (10, 40):
            sizes.append(sum(array.nbytes for array in total.values()))
    assert sizes[1] <= sizes[0] + 4 * 256  # counts may need a wider type
    assert sizes[1] < 12_000  # of 6.4 MB


def test_coordinates():
    assert Moments().coordinates() == {}
    assert Quantiles((0.1, 0.5)).coordinates()["quantile"].tolist() == [0.1, 0.5]
    assert Histogram((0.0, 1.0, 4.0)).coordinates()["bin"].tolist() == [0.5, 2.5]
    assert repr(Histogram([0, 1])) == "Histogram(edges=(0.0, 1.0))"  # what is asked for is told from equal text


def test_refusals():
    for levels in ((), 0.5, "median", (0.5, 0.25), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.5), (0.5, np.nan)):
        refused(lambda levels=levels: Quantiles(levels), "levels")
    for digits in (0, 21, 8.0, True):
        refused(lambda digits=digits: Quantiles(digits=digits), "digits")
    for edges in ((), (1.0,), (0.0, 0.0), (1.0, 0.0), (0.0, np.inf), 3):
        refused(lambda edges=edges: Histogram(edges), "edges")
