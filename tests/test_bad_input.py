"""What is refused: on the host, before anything is traced, naming the argument, the value and what is accepted.

Inside a batch the same becomes a status of its member, never an exception: see the tests of isolation.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

import dynamics as dyn
from dynamics.losses import CrossEntropy
from tests.helpers import UNSORTED, refused, spoiled, start

PROBLEM = dyn.LayerPeeled(UNSORTED, num_classes=3)
STATE = start(PROBLEM, 2)
NARROW = start(PROBLEM, 2, dtype=np.float32)
RATES = dyn.Rates.equal(0.1)
TS = np.array([0.0, 1.0])
VERBS: dict[str, Callable] = {
    "flow": lambda problem=PROBLEM, state=STATE, rates=RATES, ts=TS, **more: dyn.flow(problem, state, rates, ts, **more),
    "exact.flow": lambda problem=PROBLEM, state=STATE, rates=RATES, ts=TS, **more: dyn.exact.flow(
        problem, state, rates, ts, **more
    ),
    "descent": lambda problem=PROBLEM, state=STATE, rates=RATES, steps=2, **more: dyn.descent(
        problem, state, rates, steps, **more
    ),
    "exact.descent": lambda problem=PROBLEM, state=STATE, rates=RATES, steps=2, **more: dyn.exact.descent(
        problem, state, rates, steps, **more
    ),
}
FLOWS, DESCENTS = ("flow", "exact.flow"), ("descent", "exact.descent")


def state_with(**parts) -> dyn.Peeled:
    """The start with some of its parts replaced."""
    return dyn.Peeled(**{"features": STATE.features, "prototypes": STATE.prototypes, "biases": STATE.biases, **parts})


class Row(NamedTuple):
    """Arguments that a verb refuses, and words of the message."""

    options: dict
    words: tuple[str, ...]


EVERY_VERB = {
    "features of wrong rank": Row({"state": state_with(features=np.ones(8))}, ("features", "(samples, dim)", "(8,)")),
    "features of wrong size": Row({"state": state_with(features=np.ones((7, 2)))}, ("features", "(8, dim)", "(7, 2)")),
    "features without dimension": Row({"state": dyn.Peeled(np.ones((8, 0)), np.ones((3, 0)))}, ("features", "dim >= 1", "0")),
    "prototypes of wrong rank": Row(
        {"state": state_with(prototypes=np.ones(3), biases=np.ones(3))}, ("prototypes", "(3, 2)", "(3,)")
    ),
    "prototypes of wrong size": Row({"state": state_with(prototypes=np.ones((3, 5)))}, ("prototypes", "(3, 2)", "(3, 5)")),
    "biases of wrong size": Row({"state": state_with(biases=np.ones(4))}, ("biases", "(classes,)", "(3,)", "(4,)")),
    "features not a number": Row(
        {"state": state_with(features=spoiled(STATE.features, np.nan))}, ("features", "finite", "(8, 2)")
    ),
    "prototypes infinite": Row(
        {"state": state_with(prototypes=spoiled(STATE.prototypes, np.inf))}, ("prototypes", "finite", "inf")
    ),
    "biases not a number": Row({"state": state_with(biases=spoiled(STATE.biases, np.nan))}, ("biases", "finite", "nan")),
    "state of another kind": Row({"state": (STATE.features, STATE.prototypes)}, ("state", "dynamics.Peeled", "tuple")),
    "rates of another kind": Row({"rates": 0.1}, ("rates", "dynamics.Rates", "float")),
    "feature kernel of another dimension": Row(
        {"problem": dyn.LayerPeeled(UNSORTED, num_classes=3, feature_kernel=np.eye(3))}, ("feature_kernel", "(2, 2)", "(3, 3)")
    ),
    "observe not a dictionary": Row({"observe": dyn.observables.nc1}, ("observe", "dictionary", "nc1")),
    "observe not functions": Row({"observe": {"nc1": 1.0}}, ("observe", "functions", "1.0")),
}
OF_FLOWS = {
    "times unsorted": Row({"ts": np.array([2.0, 1.0])}, ("ts", "strictly increasing", "[2. 1.]")),
    "times duplicated": Row({"ts": np.array([0.0, 1.0, 1.0])}, ("ts", "no duplicates", "[0. 1. 1.]")),
    "times empty": Row({"ts": np.zeros(0)}, ("ts", "times >= 1", "(0,)")),
    "times of wrong rank": Row({"ts": np.float64(1.0)}, ("ts", "(times,)", "()")),
    "times negative": Row({"ts": np.array([-1.0, 1.0])}, ("ts", ">= 0", "-1.")),
    "times not a number": Row({"ts": np.array([0.0, np.nan])}, ("ts", "finite", "nan")),
    "times that float32 cannot tell apart": Row(
        {"ts": np.array([1.0, 1.0 + 1e-9]), "state": NARROW}, ("ts", "float32", "strictly increasing")
    ),
}
OF_DESCENTS = {
    "steps negative": Row({"steps": -1}, ("steps", ">= 0", "-1")),
    "steps not whole": Row({"steps": 2.5}, ("steps", "integer", "2.5")),
    "every zero": Row({"every": 0}, ("every", ">= 1", "0")),
    "every not whole": Row({"every": 1.0}, ("every", "integer", "1.0")),
    "every does not divide": Row({"steps": 5, "every": 2}, ("every", "divide steps", "2", "5")),
    "dt negative": Row({"dt": -0.1}, ("dt", ">= 0", "-0.1")),
    "dt not a number": Row({"dt": np.nan}, ("dt", "finite", "nan")),
    "momentum negative": Row({"momentum": -0.1}, ("momentum", ">= 0", "-0.1")),
    "momentum one": Row({"momentum": 1.0}, ("momentum", "[0, 1)", "1.0")),
    "momentum not a number": Row({"momentum": np.nan}, ("momentum", "finite", "nan")),
    "nesterov not a flag": Row({"nesterov": 1, "momentum": 0.5}, ("nesterov", "True or False", "1")),
}
OF_FLOW = {
    "rtol below resolution": Row({"rtol": 4e-16}, ("rtol", "4.44e-16", "2 eps of float64", "4e-16")),
    "rtol below that of float32": Row({"rtol": 1e-8, "state": NARROW}, ("rtol", "2 eps of float32", "1e-08")),
    "atol zero": Row({"atol": 0.0}, ("atol", "2 eps", "0.0")),
    "rtol negative": Row({"rtol": -1e-3}, ("rtol", "2 eps", "-0.001")),
    "atol not a number": Row({"atol": np.nan}, ("atol", "finite", "nan")),
    "rtol of another kind": Row({"rtol": "tight"}, ("rtol", "number", "'tight'")),
    "max_steps": Row({"max_steps": 0}, ("max_steps", ">= 1", "0")),
    "norm_cap": Row({"norm_cap": 0.0}, ("norm_cap", "> 0", "0.0")),
    "norm_cap not a number": Row({"norm_cap": np.nan}, ("norm_cap", "finite", "nan")),
    "solver": Row({"solver": "tsit5"}, ("solver", "diffrax solver", "'tsit5'")),
    "method": Row({"method": "fast"}, ("method", "did you mean 'auto'", "'fast'")),
}
OF_DESCENT = {
    "optimizer": Row({"optimizer": "adam"}, ("optimizer", "optax", "'adam'")),
    "optimizer with momentum": Row({"optimizer": optax.sgd(1.0), "momentum": 0.5}, ("momentum must be 0", "optimizer", "0.5")),
    "nesterov without momentum": Row({"nesterov": True}, ("nesterov", "momentum > 0")),
    "norm_cap": Row({"norm_cap": -1.0}, ("norm_cap", "> 0", "-1.0")),
}
OF_EXACT = {
    "an observable that knows the scale": Row(
        {"scaled": True, "observe": {"size": dyn.observables.feature_norm}},
        ("observe['size']", "scale-invariant", "scaled=True"),
    )
}
CALLS = [
    pytest.param(VERBS[verb], row, id=f"{verb}: {name}")
    for verb in VERBS
    for table in (
        EVERY_VERB,
        OF_FLOWS if verb in FLOWS else OF_DESCENTS,
        {"flow": OF_FLOW, "descent": OF_DESCENT}.get(verb, OF_EXACT),
    )
    for name, row in table.items()
]


@pytest.mark.parametrize(("verb", "row"), CALLS)
def test_verbs(verb, row):
    refused(lambda: verb(**row.options), *row.words)


def test_no_closed_form_is_a_value_error_that_names_each():
    curved = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=CrossEntropy(), normalize=True)
    for verb in ("exact.flow", "exact.descent"):
        with pytest.raises(dyn.NoClosedForm) as caught:
            VERBS[verb](problem=curved, rates=dyn.Rates.equal(0.1, rescaled=True))
        for word in ("modes", "anchored", "CrossEntropy is not linear", "normalised", "rescaled"):
            assert word in str(caught.value)
    refused(lambda: dyn.exact.limit(PROBLEM, STATE, dyn.Rates(dyn.schedules.Cosine(0.1, 3.0), 0.1)), "no constant ratio")


NO_LENGTH = {
    "flow": {"ts": np.zeros(1)},
    "exact.flow": {"ts": np.zeros(1)},
    "descent": {"steps": 0},
    "exact.descent": {"steps": 0},
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_of_no_length_returns_the_start(verb):
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3, decay=dyn.Decay(0.1, 0.2, 0.3), bias=True)
    state = start(problem, 2)
    stays = jax.jit(lambda state: VERBS[verb](problem=problem, state=state, **NO_LENGTH[verb]))(state)
    assert int(stays.status) == dyn.status.OK and float(stays.stats["t_end"]) == 0
    assert stays.ts.shape == (1,) and stays.ts[0] == 0
    eps = 1e-15 if verb.startswith("exact") else 0.0  # by formula: up to rounding
    for part in ("features", "prototypes", "biases"):
        got, own = getattr(stays.states, part), getattr(state, part)
        assert got.shape == (1, *own.shape)
        np.testing.assert_allclose(got[0], own, rtol=0, atol=eps * np.max(np.abs(own)))
