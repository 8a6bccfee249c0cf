"""Problems, starts and hyper-parameters that are refused, naming the argument, the value and what is accepted."""

import jax
import numpy as np
import pytest

import dynamics as dyn
from dynamics.class_sizes import labels_of
from dynamics.initial import collapsed, gaussian, simplex_etf
from dynamics.losses import Linear
from tests.helpers import UNSORTED, refused, spoiled

PROBLEM = dyn.LayerPeeled(UNSORTED, num_classes=3)
RATES = dyn.Rates.equal(0.1)
KEY = jax.random.key(0)


def problem(labels=UNSORTED, num_classes=3, **fields):
    return lambda: dyn.LayerPeeled(labels, num_classes=num_classes, **fields)


KERNEL = np.eye(8)
MADE = {
    "labels of wrong rank": (problem(np.ones((2, 2), int)), ("labels", "(samples,)", "(2, 2)")),
    "labels empty": (problem(np.zeros(0, int)), ("labels", "samples >= 1", "(0,)")),
    "labels not whole": (problem(UNSORTED + 0.5), ("labels", "integers", "float64")),
    "label too large": (problem(UNSORTED + 1), ("labels", "0..2", "got 3")),
    "label negative": (problem(UNSORTED - 1), ("labels", "0..2", "got -1")),
    "a class empty": (problem(num_classes=4), ("labels", "every class of 0..3", "class 3 is empty")),
    "one class": (problem(0 * UNSORTED, 1), ("num_classes", ">= 2", "1")),
    "one class, balanced": (lambda: dyn.LayerPeeled.balanced(1, 4), ("num_classes", ">= 2", "1")),
    "no class": (problem(num_classes=0), ("num_classes", ">= 1", "0")),
    "classes not whole": (problem(num_classes=3.0), ("num_classes", "integer", "3.0")),
    "none per class": (lambda: dyn.LayerPeeled.balanced(3, 0), ("per_class", ">= 1", "0")),
    "loss": (problem(loss="hinge"), ("loss", "dynamics.losses.Loss", "'hinge'")),
    "decay of another kind": (problem(decay=0.1), ("decay", "dynamics.Decay", "0.1")),
    "bias not a flag": (problem(bias=1), ("bias", "True or False", "1")),
    "anchored not a flag": (problem(anchored="no"), ("anchored", "True or False", "'no'")),
    "normalize not a flag": (problem(normalize=0), ("normalize", "True or False", "0")),
    "weights of wrong size": (problem(sample_weights=np.ones(7)), ("sample_weights", "(samples,)", "(8,)", "(7,)")),
    "weights negative": (problem(sample_weights=spoiled(np.ones(8), -1.0)), ("sample_weights", ">= 0", "-1.")),
    "weights not numbers": (problem(sample_weights=spoiled(np.ones(8), np.nan)), ("sample_weights", "finite", "nan")),
    "weights of another mean": (problem(sample_weights=2 * np.ones(8)), ("sample_weights", "mean one", "2")),
    "a class without weight": (
        problem(sample_weights=np.where(UNSORTED == 2, 0.0, 8 / 6)),
        ("sample_weights", "every class", "class 2"),
    ),
    "coupling of wrong size": (problem(loss=Linear(np.ones((4, 3)))), ("coupling", "(3, 3)", "(8, 3)", "(4, 3)")),
    "kernel not square": (problem(kernel=np.ones((8, 7))), ("kernel", "square", "(8, 7)")),
    "kernel of wrong size": (problem(kernel=np.eye(7)), ("kernel", "(samples, samples)", "(8, 8)", "(7, 7)")),
    "kernel of wrong rank": (problem(kernel=np.ones(8)), ("kernel", "square", "(8,)")),
    "kernel not symmetric": (problem(kernel=spoiled(KERNEL, 1.0)), ("kernel", "symmetric", "asymmetry 1")),
    "kernel indefinite": (problem(kernel=KERNEL - 2.0), ("kernel", "positive semi-definite", "-15")),
    "kernel not a number": (problem(kernel=spoiled(KERNEL, np.nan)), ("kernel", "finite", "(8, 8)")),
    "feature kernel not square": (problem(feature_kernel=np.ones((2, 3))), ("feature_kernel", "square", "(2, 3)")),
    "feature kernel indefinite": (problem(feature_kernel=-np.eye(2)), ("feature_kernel", "positive semi-definite", "-1")),
    "feature kernel not symmetric": (
        problem(feature_kernel=np.array([[1.0, 0.5], [0.0, 1.0]])),
        ("feature_kernel", "symmetric", "0.5"),
    ),
    "no dimension": (lambda: gaussian(PROBLEM, dim=0, key=KEY), ("dim", ">= 1", "0")),
    "scale negative": (lambda: gaussian(PROBLEM, dim=2, key=KEY, scale=(1.0, -2.0)), ("scale", ">= 0", "-2.0")),
    "three scales": (
        lambda: gaussian(PROBLEM, dim=2, key=KEY, scale=(1.0, 1.0, 1.0)),
        ("scale", "pair", "1.0, 1.0"),
    ),
    "dtype not floating": (lambda: gaussian(PROBLEM, dim=2, key=KEY, dtype=int), ("dtype", "floating", "int64")),
    "a simplex in too few dimensions": (lambda: simplex_etf(5, 3), ("dim", "num_classes - 1 = 4", "3")),
    "a simplex of one": (lambda: simplex_etf(1, 3), ("num_classes", ">= 2", "1")),
    "means of wrong size": (lambda: collapsed(PROBLEM, np.ones((4, 2))), ("means", "(classes, dim)", "(4, 2)")),
    "means not numbers": (lambda: collapsed(PROBLEM, spoiled(np.ones((3, 2)), np.nan)), ("means", "finite", "nan")),
    "sizes not positive": (lambda: labels_of([3, 0]), ("sizes", "positive integers", "[3 0]")),
    "momentum of a bound": (lambda: dyn.exact.max_step(PROBLEM, RATES, momentum=1.0), ("momentum", "[0, 1)", "1.0")),
}


@pytest.mark.parametrize("name", MADE)
def test_nouns(name):
    make, words = MADE[name]
    refused(make, *words)


@pytest.mark.parametrize("part", ["features", "prototypes", "biases"])
@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf])
def test_decay(part, bad):
    refused(lambda: dyn.Decay(**{part: bad}), f"decay.{part}", str(bad), ">= 0" if bad == -0.1 else "finite")


def test_labels_must_be_known():
    with pytest.raises(ValueError, match="labels must be concrete"):
        jax.eval_shape(lambda labels: dyn.LayerPeeled(labels, num_classes=3).num_samples, UNSORTED)


def test_float64_while_it_is_off():
    with jax.enable_x64(False):
        for make in (
            lambda: gaussian(PROBLEM, dim=2, key=KEY, dtype=np.float64),
            lambda: simplex_etf(3, 2, dtype=np.float64),
        ):
            refused(make, "dtype", "float64", "jax_enable_x64")
