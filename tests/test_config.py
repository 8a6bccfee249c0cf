"""Sweep files: what is wrong is refused with its dotted path and a hint; what is right survives a round trip."""

import dataclasses
import inspect
import tomllib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dynamics as dyn
from dynamics import schedules
from dynamics.cli import config, nouns, skeleton, toml
from dynamics.cli.config import ConfigError
from dynamics.cli.template import template

pytest.importorskip("pydantic")

GOOD = """
name = "demo"
[problem]
num_classes = 3
per_class = 2
loss = { kind = "CrossEntropy" }
[start]
kind = "gaussian"
dim = 4
[rates]
features = { kind = "Cosine", value = 0.5, horizon = 2.0 }
weights = 0.1
[motion]
times = { start = 0.0, stop = 2.0, num = 3 }
[[sweep]]
axis = "start.seed"
count = 5
"""

WRONG = {  # override: what the message begins with, and a word that it must hold
    "nmae='x'": ("nmae", "'name'"),
    "name='../x'": ("name", "A-Z"),
    "name='-x'": ("name", "A-Z"),
    "name='.x'": ("name", "A-Z"),
    "name='a/b'": ("name", "A-Z"),
    f"name='{'x' * 81}'": ("name", "80"),
    "name=3": ("name", "string"),
    "seed=true": ("seed", "integer"),
    "seed=8.5": ("seed", "8.5"),
    "seed=-1": ("seed", "[0, 2**31)"),
    "precision='float46'": ("precision", "'float64'"),
    "problem.num_clases=3": ("problem.num_clases", "'num_classes'"),
    "problem.num_classes='3'": ("problem.num_classes", "'3'"),
    "problem.num_classes=true": ("problem.num_classes", "True"),
    "problem.sizes=[1, 1, 1]": ("problem", "per_class and sizes"),
    "problem.bias='slavd'": ("problem.bias", "'slaved'"),
    "problem.anchored=1": ("problem.anchored", "boolean"),
    "problem.decay.feature=0.1": ("problem.decay.feature", "'features'"),
    "problem.decay.features='x'": ("problem.decay.features", "'x'"),
    "problem.decay.features=nan": ("problem.decay.features", "finite"),
    "problem.decay.features=-inf": ("problem.decay.features", "finite"),
    "problem.decay.features=1979-05-27": ("problem.decay.features", "1979"),
    "problem.loss.kind='CrossEntrop'": ("problem.loss.kind", "'CrossEntropy'"),
    "problem.loss.kind='SymmetricCoupling'": ("problem.loss.kind", "unknown loss"),
    "problem.loss.kind=3": ("problem.loss.kind", "unknown loss"),
    "problem.loss.gamma=0.1": ("problem.loss.gamma", "unknown key of CrossEntropy"),
    "problem.loss={kind='Unhinged', gama=0.1}": ("problem.loss.gama", "'gamma'"),
    "problem.loss={kind='Unhinged', gamma=true}": ("problem.loss.gamma", "a number"),
    "problem.loss={kind='label_noise', rate=0.1}": ("problem.loss.loss", "missing"),
    "problem.loss={}": ("problem.loss.kind", "missing"),
    "problem.loss=3": ("problem.loss", "3"),
    "start.kind='gausian'": ("start.kind", "'gaussian'"),
    "start.dim=4.0": ("start.dim", "whole"),
    "start.dimm=4": ("start.dimm", "'dim'"),
    "start.key=4": ("start.key", "unknown key"),
    "start.prototypes='etf'": ("start.prototypes", "simplex_etf"),
    "start.prototype_scale=2.0": ("start.prototype_scale", "simplex_etf"),
    "rates.features.valu=0.1": ("rates.features.valu", "'value'"),
    "rates.features.value='fast'": ("rates.features.value", "a number"),
    "rates.features.value=[0.1]": ("rates.features.value", "a number"),
    "rates.features={kind='Cosine', value=0.1}": ("rates.features.horizon", "missing"),
    "rates.features={kind='Warmup', duration=1.0, after={kind='Cosin'}}": ("rates.features.after.kind", "'Cosine'"),
    "rates.features={kind='FromOptax'}": ("rates.features.kind", "unknown schedule"),
    "rates.features='x'": ("rates.features", "number or a table"),
    "rates.weights.value=0.1": ("rates.weights.value", "no table"),
    "rates.equal=0.1": ("rates", "features and weights, or equal"),
    "motion.verb='flwo'": ("motion.verb", "'flow'"),
    "motion.by='formla'": ("motion.by", "'formula'"),
    "motion.steps=3": ("motion.steps", "descent"),
    "motion.verb='descent'": ("motion.times", "flow"),
    "motion.times={start=0.0, stop=1.0}": ("motion.times.num", "missing"),
    "motion.times.nmu=3": ("motion.times.nmu", "'num'"),
    "motion.times.num=3.0": ("motion.times.num", "whole"),
    "motion.times.spacing='geometric'": ("motion.times.start", "> 0"),
    "motion.times.spacing='geometrc'": ("motion.times.spacing", "'geometric'"),
    "motion.times=['a']": ("motion.times", "list of numbers"),
    "sweep.0.axs='x'": ("sweep.0.axs", "'axis'"),
    "sweep.0.count=0": ("sweep.0.count", ">= 1"),
    "sweep.0.count=2.5": ("sweep.0.count", "2.5"),
    "sweep.0.axis='start.scale'": ("sweep.0.count", "start.seed"),
    "sweep.1.count=3": ("sweep.1", "one of 1 entries"),
    "sweep.0.values=[1]": ("sweep.0.count", "not both"),
    "sweep.0={axis='start.scale', values=[]}": ("sweep.0.values", "at least one"),
    "sweep.0={axis='start.scale'}": ("sweep.0.values", "missing"),
    "sweep.0={zip=[{axis='start.scale', values=[1.0]}]}": ("sweep.0.zip", "at least two"),
    "keep.observables=['nc5']": ("keep.observables.0", "nc"),
    "keep.observables=['distance_to']": ("keep.observables.0", "unknown observable"),
    "keep.observables=['nc1', 'nc1']": ("keep.observables", "different"),
    "keep.histograms.nc1={start=0.0, stop=1.0, num=3}": ("keep.histograms.nc1", "keep.observables"),
    "keep.histogram={}": ("keep.histogram", "'histograms'"),
    "run.memory='2 apples'": ("run.memory", "GiB"),
    "run.chunk=0": ("run.chunk", ">= 1"),
    "run.format='netcfd'": ("run.format", "'netcdf'"),
    "run.chunks=3": ("run.chunks", "'chunk'"),
    "seed": ("seed", "dotted.path=value"),
    "seed.a=1": ("seed", "integer"),
    "a..b=1": ("a..b", "dotted.path=value"),
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_input_is_refused_with_its_path_and_a_hint(override):
    path, hint = WRONG[override]
    with pytest.raises(ConfigError) as caught:
        config.loads(GOOD, [override])
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and hint in message, message


@pytest.mark.parametrize(
    "text, line", [("name = 'a'\nname = 'b'\n", "line 2"), ("name = 'a'\n\nseed = = 3\n", "line 3"), ("[a]\n[a]\n", "line 2")]
)
def test_text_that_is_no_toml_is_refused_with_its_line(tmp_path, text, line):
    path = tmp_path / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=line) as caught:
        config.load(path)
    assert str(caught.value).startswith(str(path))


def test_other_encodings_are_refused(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_bytes(b"name = 'a'\n# \xe9\n")
    with pytest.raises(ConfigError, match="line 2"):
        config.load(path)
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    with pytest.raises(ConfigError, match="byte-order"):
        config.load(path)


def test_carriage_returns_and_names_beyond_ascii(tmp_path):
    path = tmp_path / "größe 学.toml"
    text = GOOD.replace('name = "demo"', '# größe 学\nname = "demo"\ntitle = "größe 学\\u007f \\" \\\\ \\t"')
    path.write_bytes(text.replace("\n", "\r\n").encode())
    found = config.load(path)
    assert found.title == 'größe 学\x7f " \\ \t'
    assert config.loads(config.dumps(found)) == found
    assert dataclasses.replace(found, title="") == config.loads(GOOD)


def test_overrides():
    words = [
        "start.scale=2",
        "sweep.0.count=50",
        "run.format=zarr",
        "rates.weights={kind='Constant', value=1}",
        "title=two words",
    ]
    found = config.loads(GOOD, words)
    assert found.start["scale"] == 2.0 and isinstance(found.start["scale"], float)
    assert found.sweep[0].count == 50 and found.run.format == "zarr" and found.title == "two words"
    assert found.rates.weights == {"kind": "Constant", "value": 1.0}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["sweep.0={zip=[{axis='start.scale', values=[1.0, 2]}, {axis='rates.ratio', values={start=1,stop=2,num=2}}]}"],
        ["rates={schedule={kind='Warmup', duration=1, after=0.3}, ratio=2}"],
        ["problem.loss={kind='Linear', coupling=[[1, 0], [0, 1]]}"],
        ["motion={verb='descent', steps=4, momentum=0.5}", "keep.histograms={objective=[0, 0.5, 1e300]}"],
        ["start.scale=[0.1, 0.2]", "problem.sizes={kind='step', largest=4, imbalance=2}", "run.memory=1e9", "name=_a.b-c"],
    ],
)  # fmt: skip
def test_round_trip(words):
    text = GOOD.replace("per_class = 2\n", "") if any("sizes" in word for word in words) else GOOD
    found = config.loads(text, words)
    again = config.loads(config.dumps(found))
    assert again == found and config.dumps(again) == config.dumps(found) and config.sha256(again) == config.sha256(found)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(TEXT, PLAIN, max_size=4))
def test_the_writer_writes_what_the_standard_library_reads(tables):
    assert tomllib.loads(toml.document(tables)) == tables


def test_fingerprint_counts_what_numbers_depend_on():
    base = config.sha256(config.loads(GOOD))
    for word in ("name=other", "title=other", "run.chunk=7", "run.memory=2GiB", "run.sort=false"):
        assert config.sha256(config.loads(GOOD, [word])) == base
    for word in (
        "seed=1",
        "start.scale=0.9",
        "sweep.0.count=6",
        "motion.rtol=1e-6",
        "keep.observables=['nc1']",
        "precision=float32",
    ):
        assert config.sha256(config.loads(GOOD, [word])) != base
    assert config.sha256(config.loads(GOOD, ["start.scale=1", "seed=0"])) == base  # a default written out


def test_the_template_loads_and_shows_every_key():
    text = template("demo")
    found = config.loads(text)
    assert found.name == "demo"
    for table in (skeleton.SweepConfig, *skeleton.INSIDE.values()):
        for one in dataclasses.fields(table):
            assert f"{one.name} = " in text or f"[{one.name}]" in text, one.name


SYMMETRIC = {"kind": "SymmetricCoupling", "diagonal": 1, "common": 0.25, "drift": 0}
LOSSES = {
    "Unhinged": ({"gamma": 0.2}, lambda: dyn.losses.Unhinged(0.2)),
    "Linear": ({"coupling": SYMMETRIC}, lambda: dyn.losses.Linear(dyn.losses.SymmetricCoupling(1.0, 0.25, 0.0))),
    "CrossEntropy": ({}, dyn.losses.CrossEntropy),
    "SquaredError": ({}, dyn.losses.SquaredError),
    "label_noise": (
        {"loss": {"kind": "Unhinged"}, "rate": 0.1},
        lambda: dyn.losses.label_noise(dyn.losses.Unhinged(), 0.1, 3),
    ),
    "label_smoothing": (
        {"loss": {"kind": "Unhinged", "gamma": 1}, "epsilon": 0.1},
        lambda: dyn.losses.label_smoothing(dyn.losses.Unhinged(1.0), 0.1, 3),
    ),
}
SCHEDULES = {
    "Constant": ({"value": 2}, lambda: schedules.Constant(2.0)),
    "Cosine": ({"value": 0.5, "horizon": 3}, lambda: schedules.Cosine(0.5, 3.0)),
    "Exponential": ({"value": 0.5, "rate": -1}, lambda: schedules.Exponential(0.5, -1.0)),
    "Polynomial": ({"value": 1, "horizon": 3, "power": 2}, lambda: schedules.Polynomial(1.0, 3.0, 2.0)),
    "Piecewise": ({"values": [1, 0.1], "boundaries": [2]}, lambda: schedules.Piecewise([1.0, 0.1], [2.0])),
    "Warmup": (
        {"duration": 1, "after": {"kind": "Cosine", "value": 0.5, "horizon": 3}},
        lambda: schedules.Warmup(1.0, schedules.Cosine(0.5, 3.0)),
    ),
    "Scaled": ({"schedule": 0.5, "factor": 2}, lambda: schedules.Scaled(schedules.Constant(0.5), 2.0)),
}


def test_the_tables_below_cover_every_loss_and_schedule():
    assert set(LOSSES) == {name for name in nouns.LOSSES.kinds if name != "SymmetricCoupling"}
    exported = {
        name for name, thing in vars(schedules).items()
        if inspect.isclass(thing) and issubclass(thing, schedules.Schedule) and not inspect.isabstract(thing)
    }  # fmt: skip
    assert set(SCHEDULES) == exported - {"FromOptax"}


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_from_tables_equal_those_built_by_hand(kind):
    keys, by_hand = LOSSES[kind]
    built = nouns.built(nouns.LOSSES, "loss", nouns.resolved(nouns.LOSSES, "loss", {"kind": kind, **keys}), num_classes=3)
    logits = jnp.asarray([0.3, -1.2, 0.7])
    assert type(built) is type(by_hand())
    for label in range(3):
        assert float(built(logits, label)) == float(by_hand()(logits, label))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_from_tables_equal_those_built_by_hand(kind):
    keys, by_hand = SCHEDULES[kind]
    built = nouns.built(nouns.SCHEDULES, "rate", nouns.resolved(nouns.SCHEDULES, "rate", {"kind": kind, **keys}))
    assert type(built) is type(by_hand())
    for t in (0.0, 0.7, 2.0, 2.5, 9.0):
        np.testing.assert_array_equal(built(jnp.asarray(t)), by_hand()(jnp.asarray(t)))
        np.testing.assert_array_equal(built.integral(jnp.asarray(t)), by_hand().integral(jnp.asarray(t)))
