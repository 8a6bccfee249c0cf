"""Labels of long-tailed and step-imbalanced problems: sizes worked out by hand, what is refused, and the problems they make."""

import jax
import numpy as np
import pytest

import dynamics as dyn
from dynamics.class_sizes import labels_of, long_tailed, step
from tests import oracles
from tests.helpers import refused, relative, start


@pytest.mark.parametrize(
    ("labels", "sizes"),
    [
        (long_tailed(3, 100, 100), [100, 10, 1]),
        (long_tailed(4, 8, 8.0), [8, 4, 2, 1]),
        (long_tailed(5, 7, 1), [7] * 5),
        (long_tailed(2, 9, 4), [9, 2]),
        (long_tailed(10, 5000, 100)[4800:], [200, 2997, 1797, 1077, 646, 387, 232, 139, 83, 50]),
        (step(4, 6, 3), [6, 6, 2, 2]),
        (step(5, 10, 10), [10, 10, 10, 1, 1]),
        (step(5, 5, 2, minority=1), [5, 5, 5, 5, 3]),
        (step(3, 7, 7.0, minority=2), [7, 1, 1]),
        (step(2, 4, 1), [4, 4]),
        (labels_of([2, 5, 1]), [2, 5, 1]),
    ],
)
def test_sizes(labels, sizes):
    assert labels.dtype.kind == "i"
    np.testing.assert_array_equal(labels, np.repeat(np.arange(len(sizes)), sizes))


def test_no_class_is_ever_empty():
    for largest in (1, 3, 49, 1000):
        for classes in (2, 3, 10):
            for labels in (long_tailed(classes, largest, largest), step(classes, largest, largest)):
                sizes = np.bincount(labels, minlength=classes)
                assert sizes.min() == 1
                assert sizes.max() == largest


@pytest.mark.parametrize("profile", [long_tailed, step])
def test_refusals(profile):
    refused(lambda: profile(1, 4, 2), "num_classes", "1")
    refused(lambda: profile(3.0, 4, 2), "num_classes", "3.0")
    refused(lambda: profile(3, 0, 1), "largest", "0")
    refused(lambda: profile(3, 4.5, 2), "largest", "4.5")
    for bad in (0.5, 0, -3, 4.1, np.nan, np.inf):
        refused(lambda bad=bad: profile(3, 4, bad), "imbalance", "[1, 4]", str(bad))
    for bad in ("2", True, None, np.array([1.0, 2.0])):
        refused(lambda bad=bad: profile(3, 4, bad), "imbalance", "static")


def test_minority_is_refused_out_of_range():
    for bad, shown in ((0, "0"), (3, "3"), (1.0, "1.0"), (True, "True")):
        refused(lambda bad=bad: step(3, 4, 2, minority=bad), "minority", shown)


@pytest.mark.parametrize("power", [0.0, -0.5])
def test_a_long_tail_moves_as_the_oracle_says(power):
    """With weights n_c^power, against the matrix exponential of every entry."""
    labels = long_tailed(3, 4, 4)
    weights = np.bincount(labels)[labels] ** power
    weights = weights / weights.mean()
    decay = dyn.Decay(0.05, 0.1, 0.2)
    problem = dyn.LayerPeeled(labels, num_classes=3, decay=decay, bias=True, sample_weights=weights)
    begin, ts = start(problem, 2), np.array([0.0, 1.5, 7.0])
    moved = jax.jit(lambda begin: dyn.exact.flow(problem, begin, dyn.Rates(0.7, 0.4), ts))(begin)
    rows = np.where(np.eye(3)[labels] == 1, 1.0, -0.5)
    plain = oracles.Plain(labels, rows=rows, weights=weights, decay=np.array([0.05, 0.1, 0.2]), bias=True)
    expected = oracles.dense_flow(
        plain, oracles.Point(*map(np.asarray, jax.tree.leaves(begin))), [(0.7 * t, 0.4 * t) for t in ts]
    )
    for k, point in enumerate(expected):
        assert relative(jax.tree.map(lambda x, k=k: x[k], moved.states), point) < 1e-13
