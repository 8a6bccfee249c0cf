"""Faults that no other file shows: what a run does when something outside the formulas goes wrong."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics import observables as obs
from dynamics.losses import CrossEntropy, Loss
from tests.helpers import ROOT, UNSORTED, draw, start

PROBLEM = dyn.LayerPeeled(UNSORTED, num_classes=3)
STATE = start(PROBLEM, 2)
RATES = dyn.Rates.equal(0.1)
VERBS = {
    "flow": lambda problem, state, **more: dyn.flow(problem, state, RATES, [0.0, 1.0], **more),
    "descent": lambda problem, state, **more: dyn.descent(problem, state, RATES, 2, **more),
}


class Raising(Loss):
    def __call__(self, logits, label):
        raise RuntimeError("a mistake of the user")


class Vector(Loss):
    def __call__(self, logits, label):
        return logits**2


class Whole(Loss):
    def __call__(self, logits, label):
        return jnp.argmax(logits)


class Nothing(Loss):
    def __call__(self, logits, label):
        return None


def mistaken(problem, state):
    raise RuntimeError("a mistake of the user")


@pytest.mark.parametrize("verb", VERBS)
def test_an_error_of_the_users_function_arrives_as_it_is(verb):
    """At trace time, before any step, with the line of the function in the traceback."""
    loss = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=Raising())
    for problem, more, name in ((loss, {}, "__call__"), (PROBLEM, {"observe": {"mine": mistaken}}, "mistaken")):
        with pytest.raises(RuntimeError, match="a mistake of the user") as caught:
            jax.eval_shape(lambda problem=problem, more=more: VERBS[verb](problem, STATE, **more))
        assert caught.traceback[-1].name == name and str(caught.traceback[-1].path) == __file__


@pytest.mark.parametrize("loss", [Vector(), Whole(), Nothing()])
@pytest.mark.parametrize("labels", [np.arange(3), UNSORTED], ids=["as many samples as classes", "more"])
def test_a_loss_that_is_no_number(loss, labels):
    """Refused at trace time, also where the shapes happen to fit."""
    problem = dyn.LayerPeeled(labels, num_classes=3, loss=loss)
    with pytest.raises(ValueError, match=rf"loss {type(loss).__name__} must return one floating number.*got"):
        jax.eval_shape(lambda: VERBS["flow"](problem, start(problem, 2)))


@pytest.mark.parametrize(("value", "got"), [(None, "NoneType"), ("text", "str"), ({"a": 1.0}, "dict")])
def test_an_observable_that_is_no_array(value, got):
    with pytest.raises(ValueError, match=rf"observe\['mine'\] must return a number or an array, got {got}"):
        jax.eval_shape(lambda: VERBS["descent"](PROBLEM, STATE, observe={"mine": lambda problem, state: value}))


@pytest.mark.parametrize("verb", VERBS)
def test_nan_of_one_observable_is_its_own(verb):
    """The direction of a zero vector at the start: NaN there and nowhere else, and nothing said of the run."""
    state = dyn.Peeled(np.zeros((8, 2)), STATE.prototypes)
    sizes = {"features": obs.feature_norm, "loss": obs.loss}
    both = jax.jit(lambda: VERBS[verb](PROBLEM, state, observe={"gap": obs.self_duality, **sizes}))()
    alone = jax.jit(lambda: VERBS[verb](PROBLEM, state, observe=sizes))()
    gap = np.asarray(both.observed["gap"])
    assert np.isnan(gap[0]) and np.isfinite(gap[1:]).all()
    assert int(both.status) == int(alone.status) == dyn.status.OK
    for name in sizes:
        np.testing.assert_allclose(both.observed[name], alone.observed[name], rtol=1e-14)
        assert np.isfinite(both.observed[name]).all()


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_a_tolerance_near_rounding_is_warned_of(name):
    """Between 2 and 100 eps of the dtype in use; 1e-13 is far enough."""
    for dtype in (np.float64, np.float32):
        tolerance = {name: 50 * float(np.finfo(dtype).eps)}
        state = jax.tree.map(lambda leaf, dtype=dtype: jnp.asarray(leaf, dtype), STATE)
        with pytest.warns(UserWarning, match=rf"{name} = .* within 100 eps of {np.dtype(dtype)}"):
            jax.eval_shape(lambda state, given=tolerance: VERBS["flow"](PROBLEM, state, **given), state)
    jax.eval_shape(lambda: VERBS["flow"](PROBLEM, STATE, **{name: 1e-13}))


def test_a_gradient_past_the_float_range_is_seen_and_not_called_converged():
    """Cross-entropy at a margin of 625: tiny and right. At 900: exactly zero beside a positive margin; no status says rest."""
    problem = dyn.LayerPeeled(np.arange(3), num_classes=3, loss=CrossEntropy())
    frame = np.eye(3)
    watch = {"gradient": obs.gradient_norm, "margin": obs.margin}

    @jax.jit
    @jax.vmap
    def run(size):
        return dyn.descent(problem, dyn.Peeled(size * frame, size * frame), RATES, 2, observe=watch)

    moved = run(jnp.array([25.0, 30.0]))
    np.testing.assert_array_equal(moved.observed["margin"][:, 0], [625.0, 900.0])
    # a row of either part: 25 e^-625 / 3 times (2, -1, -1), six of them
    assert float(moved.observed["gradient"][0, 0]) == pytest.approx(25 * np.exp(-625.0) / 3 * 6, rel=1e-10, abs=0.0)
    np.testing.assert_array_equal(moved.observed["gradient"][1], 0.0)
    assert [dyn.status.name(code) for code in moved.status] == ["ok", "ok"]  # ok: the steps were taken


def test_a_step_past_the_stability_bound():
    """Decay alone: beyond 2/lambda the norm grows until the cap ends the run; below it the same run ends well."""
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3, decay=dyn.Decay(2.0, 2.0, 2.0), bias=True)
    bound = float(dyn.exact.max_step(problem, RATES))

    @jax.jit
    @jax.vmap
    def run(dt):
        return dyn.descent(problem, STATE, RATES, 3000, every=3000, dt=dt, norm_cap=1e3)

    moved = run(bound * jnp.array([0.95, 1.05]))
    assert [dyn.status.name(code) for code in moved.status] == ["ok", "norm_cap"]
    assert 0 < int(moved.stats["t_end"][1]) < 3000 and np.isnan(moved.states.features[1, -1]).all()


WRITE = """
import sys
import numpy as np
import dynamics as dyn

def one(member):
    return {"Größe λ": member * 2.0}

result = dyn.ensemble.run(one, np.arange(5.0), chunk=2, lanes=2, store=sys.argv[1], progress=False)
assert result.ok.all()
"""


def test_names_beyond_ascii_in_any_locale(tmp_path):
    """Observables, folders and spaces in them; the process that writes has the C locale."""
    folder = tmp_path / "Läufe, erste Reihe"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "JAX_PLATFORMS": "cpu"}
    script = tmp_path / "script.py"
    script.write_text(WRITE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), os.fsencode(folder)],
        env={**os.environ, **locale, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    chunks = [np.load(path, allow_pickle=False) for path in sorted(folder.rglob("chunk-*.npz"))]
    assert len(chunks) == 3
    numbers = np.concatenate([chunk["values['Größe λ']"] for chunk in chunks])
    np.testing.assert_array_equal(numbers, 2.0 * np.arange(5))


def test_an_observable_of_any_name_and_kind():
    watch = {"Größe λ": obs.feature_norm, "a / b": lambda problem, state: (1, 2), "index": lambda problem, state: 3}
    moved = dyn.descent(PROBLEM, dyn.Peeled(draw(8, 2), draw(3, 2)), RATES, 0, observe=watch)
    assert {name: values.shape for name, values in moved.observed.items()} == {"Größe λ": (1,), "a / b": (1, 2), "index": (1,)}


def test_the_table_of_faults_names_tests_that_exist():
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| .* \|", text, re.MULTILINE)
    assert rows == [str(number) for number in range(1, 41)]
    for path, name in re.findall(r"`(tests/\w+\.py)::(\w+)`", text):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"
