"""Sweeps from files: every member is the run that its numbers say, and what cannot be run is refused with its path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics import schedules
from dynamics.cli import config, sweep
from dynamics.cli.config import ConfigError
from dynamics.cli.template import template
from dynamics.ensemble import Histogram, Moments, Quantiles
from tests.helpers import compiled

pytest.importorskip("pydantic")

FILE = """
name = "demo"
seed = 3
[problem]
num_classes = 3
per_class = 2
loss = { kind = "Unhinged", gamma = 0.25 }
decay = { features = 0.1, prototypes = 0.2 }
[start]
kind = "gaussian"
dim = 3
scale = 0.3
[rates]
schedule = { kind = "Cosine", value = 0.5, horizon = 2.0 }
ratio = 2.0
[motion]
by = "formula"
times = [0.0, 1.0, 3.0]
[[sweep]]
axis = "rates.schedule.value"
name = "peak"
values = [0.1, 0.4]
[[sweep]]
axis = "start.seed"
count = 3
[keep]
observables = ["objective", "feature_norm"]
"""
SEEDED = FILE.index("[[sweep]]")
TIMES = np.array([0.0, 1.0, 3.0])
OBSERVE = {"objective": dyn.observables.objective, "feature_norm": dyn.observables.feature_norm}


def built(*overrides: str, **options) -> sweep.Sweep:
    return sweep.build(config.loads(FILE, overrides), **options)


def member_of(found: sweep.Sweep, number: int) -> dict:
    """What the engine hands to `one` for a member."""
    (group,) = [group for group in found.design.groups() if number in group.numbers]
    row = {name: value[0] for name, value in found.design.rows(np.array([number])).items()}
    return {**group.static, **row}


def moved(found: sweep.Sweep, *numbers: int) -> list[dyn.Trajectory]:
    """The trajectories of members of one group, as the engine would call it: one program."""
    members = [member_of(found, number) for number in numbers]
    static = {axis.name: members[0][axis.name] for axis in found.design.axes if axis.static}

    @compiled
    def run(row, key):
        return found.one({**static, **row}, key)

    rows = [{name: value for name, value in member.items() if name not in static} for member in members]
    return [run(row, jax.random.fold_in(found.key, number)) for row, number in zip(rows, numbers, strict=True)]


def by_hand(peak, stream, *, gamma=0.25, scale=0.3):
    """Problem, start and rates written out; the start is the stream 0 of the key of a seed, or of a member."""
    problem = dyn.LayerPeeled.balanced(3, 2, loss=dyn.losses.Unhinged(gamma), decay=dyn.Decay(0.1, 0.2))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), stream), 0)
    state = dyn.initial.gaussian(problem, dim=3, key=key, scale=scale)
    return problem, state, dyn.Rates.proportional(schedules.Cosine(peak, 2.0), 2.0)


@compiled
def by_formula(peak, stream, gamma=0.25) -> dyn.Trajectory:
    return dyn.exact.flow(
        *by_hand(peak, stream, gamma=gamma), TIMES, observe=OBSERVE | {"features": lambda _, state: state.features}
    )


def equal(got: dyn.Trajectory, wanted: dyn.Trajectory, rtol=1e-13):
    assert set(got.observed) == set(OBSERVE)
    for name in OBSERVE:
        np.testing.assert_allclose(got.observed[name], wanted.observed[name], rtol=rtol)


def test_members_by_formula_are_the_runs_that_their_numbers_say():
    found = built()
    assert found.design.size == 6 and found.design.names == ("peak", "seed") and found.cost is None
    wanted = {0: (0.1, 0), 2: (0.1, 2), 4: (0.4, 1)}
    for number, got in zip(wanted, moved(found, *wanted), strict=True):
        member = member_of(found, number)
        assert (float(member["peak"]), int(member["seed"])) == wanted[number]
        equal(got, by_formula(*wanted[number]))


@pytest.mark.slow
def test_members_by_simulation_are_the_runs_that_their_numbers_say(monkeypatch):
    """The flow against the closed form; what it is asked for beside its members stands in the file."""
    asked = {}
    whole = sweep.simulate.flow
    monkeypatch.setattr(sweep.simulate, "flow", lambda *given, **options: asked.update(options) or whole(*given, **options))
    options = {"rtol": 1e-9, "atol": 1e-10, "max_steps": 500, "norm_cap": 1e3}
    found = built("motion.by=simulation", *(f"motion.{name}={value}" for name, value in options.items()))
    assert asked.items() >= options.items() and found.cost is not None
    (got,) = moved(found, 4)
    equal(got, by_formula(0.4, 1), rtol=1e-7)
    assert int(got.status) == dyn.status.OK


def test_members_of_a_descent_are_the_runs_that_their_numbers_say():
    found = built(
        "motion={verb='descent', steps=4, every=2, batch_size=3}", "sweep.0={axis='motion.momentum', values=[0.1, 0.9]}"
    )
    np.testing.assert_array_equal(found.ts, [0, 2, 4])
    (got,) = moved(found, 4)
    noise = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 4), 1)
    options = {"every": 2, "momentum": 0.9, "batch_size": 3, "observe": OBSERVE}
    equal(got, compiled(lambda noise: dyn.descent(*by_hand(0.5, 1), 4, key=noise, **options))(noise))


def test_whole_states_of_the_same_members():
    (got,) = moved(built(states=True), 4)
    np.testing.assert_allclose(got.states.features, by_formula(0.4, 1).observed["features"], rtol=1e-12, atol=1e-14)


def test_without_an_axis_of_seeds_every_member_has_its_own_start():
    text = FILE.replace('[[sweep]]\naxis = "start.seed"\ncount = 3\n', "")
    found = sweep.build(config.loads(text))
    for number, (got, peak) in enumerate(zip(moved(found, 0, 1), (0.1, 0.4), strict=True)):
        equal(got, by_formula(peak, number))
    assert sweep.build(config.loads(FILE[:SEEDED])).design.size == 1


def test_structure_is_a_program_each_and_floats_share_one():
    found = built("sweep.0={axis='problem.loss', values=[{kind='Unhinged'}, {kind='Unhinged', gamma=0.4}]}")
    assert [group.static for group in found.design.groups()] == [
        {"problem.loss": '{ kind = "Unhinged" }'},
        {"problem.loss": '{ kind = "Unhinged", gamma = 0.4 }'},
    ]
    (got,) = moved(found, 4)
    equal(got, by_formula(0.5, 1, 0.4))

    assert [group.static for group in built("sweep.0={axis='start.dim', values=[3, 5]}").design.groups()] == [
        {"start.dim": 3},
        {"start.dim": 5},
    ]
    found = built(
        "motion={verb='descent', steps=2, momentum=0.5}", "sweep.0={axis='motion.nesterov', name='n', values=[true, false]}"
    )
    assert [group.static for group in found.design.groups()] == [{"n": "true"}, {"n": "false"}]  # files hold no truth values
    for path, values in (
        ("problem.decay.features", "[0.1, 1]"),
        ("problem.loss.gamma", "{start=0.1, stop=0.2, num=3}"),
        ("rates.ratio", "[1, 2]"),
        ("start.scale", "[[0.1, 0.2], [0.3, 0.4]]"),
    ):
        assert len(built(f"sweep.0={{axis='{path}', values={values}}}").design.groups()) == 1


def test_zipped_axes_and_array_leaves():
    found = built(
        "rates={equal={kind='Piecewise', values=[1, 2], boundaries=[1]}}",
        "sweep.0={zip=[{axis='rates.equal.values', name='pieces', values=[[1, 2], [3, 4]]}, "
        "{axis='start.scale', values=[0.1, 0.2]}]}",
    )
    np.testing.assert_array_equal(member_of(found, 4)["pieces"], [3, 4])
    (got,) = moved(found, 4)
    rates = dyn.Rates.equal(schedules.Piecewise([3.0, 4.0], [1.0]))
    wanted = compiled(lambda stream: dyn.exact.flow(*by_hand(0.5, stream, scale=0.2)[:2], rates, TIMES, observe=OBSERVE))
    equal(got, wanted(1), 1e-12)


def test_class_sizes_starts_and_precision():
    text = FILE.replace("per_class = 2", 'sizes = { kind = "long_tailed", largest = 4, imbalance = 2 }\nanchored = true')
    found = sweep.build(
        config.loads(
            text, ["start={kind='balanced', dim=3, prototypes='simplex_etf', prototype_scale=2}", "precision=float32"]
        ),
        states=True,
    )
    (got,) = moved(found, 0)
    assert got.states.features.dtype == jnp.float32 and found.ts.dtype == np.float32
    assert got.states.features.shape == (3, dyn.class_sizes.long_tailed(3, 4, 2).size, 3)
    np.testing.assert_allclose(np.linalg.norm(got.states.prototypes[0], axis=1), 2.0, rtol=1e-6)
    assert any("long_tailed" in source and "Cui" in source for source in found.sources)


def test_statistics_and_sources():
    found = built(
        "keep.histograms={feature_norm=[0, 1, 10]}",
        "keep.quantiles=[0.5]",
        "keep.by=['peak']",
        "keep.observables=['nc1', 'feature_norm']",
    )
    assert [type(one) for one in found.reduce["nc1"]] == [Moments, Quantiles]
    assert [type(one) for one in found.reduce["feature_norm"]] == [Moments, Quantiles, Histogram]
    texts = "\n".join(found.sources)
    assert "Unhinged: " in texts and "nc1: V. Papyan" in texts and "closed form: " in texts
    assert built("keep.moments=false", "keep.quantiles=[]").reduce == {}


def test_stiffer_members_are_said_to_cost_more():
    found = built("motion.by=simulation", "sweep.0={axis='start.scale', values=[0.1, 3.0]}")
    assert found.cost is not None
    rows = found.design.rows(np.arange(found.design.size))
    costs = np.asarray(compiled(jax.vmap(found.cost, in_axes=(0, None)))(rows, found.key))
    assert costs[:3].max() < costs[3:].min()


def test_steps_over_the_largest_stable_one():
    """Anchored features relax at decay times rate = 0.05: stable below 40, and with momentum m below 40 (1 + m)."""
    anchored = "problem={num_classes=3, per_class=2, anchored=true, decay={features=0.1}}"
    axes = "sweep.0={zip=[{axis='motion.dt', values=[20, 80]}, {axis='motion.momentum', values=[0.0, 0.5]}]}"
    found = built(anchored, "rates={equal=0.5}", "motion={verb='descent', steps=2}", axes)
    assert found.overstep is not None
    rows = found.design.rows(np.array([0, 3]))
    np.testing.assert_allclose(compiled(jax.vmap(found.overstep, in_axes=(0, None)))(rows, found.key), [0.5, 80 / 60])
    assert built("motion={verb='descent', steps=2}", "problem.loss={kind='CrossEntropy'}").overstep is None
    assert built().overstep is None


REFUSED = {
    "rates.schedule.horizon=-1": ("rates.schedule.horizon", "> 0"),
    "problem.num_classes=1": ("problem.num_classes", "single class"),
    "problem.per_class=0": ("problem.per_class", ">= 1"),
    "problem.decay.features=-1": ("problem.decay.features", ">= 0"),
    "problem.bias=slaved": ("problem.bias", "SquaredError"),
    "problem.adjusted=0.5": ("problem.adjusted", "normalize"),
    "problem.sample_weights=[1.0]": ("problem.sample_weights", "shape"),
    "problem.loss.gamma=-1": ("problem.loss.gamma", ">= 0"),
    "problem.loss={kind='Linear', coupling=[1, 2]}": ("problem.loss.coupling", "shape"),
    "problem={num_classes=3, per_class=2, loss={kind='CrossEntropy'}, normalize=true}": ("motion.by", "not linear"),
    "start.dim=0": ("start.dim", ">= 1"),
    "start.scale=-1": ("start.scale", ">= 0"),
    "start={kind='gaussian', dim=1, prototypes='simplex_etf'}": ("start.dim", "num_classes - 1"),
    "start={kind='balanced', dim=5, imbalance=1}": ("start.imbalance", "dim"),
    "rates.ratio=-1": ("rates.ratio", ">= 0"),
    "motion.times=[0.0, 0.0]": ("motion.times", "increasing"),
    "motion={times=[1.0], rtol=1e-30}": ("motion.rtol", "eps"),
    "motion={times=[1.0], max_steps=0}": ("motion.max_steps", ">= 1"),
    "motion={verb='descent', steps=5, every=2}": ("motion.every", "divide"),
    "motion={verb='descent', steps=5, momentum=1}": ("motion.momentum", "[0, 1)"),
    "motion={verb='descent', steps=5, batch_size=7}": ("motion.batch_size", "6"),
    "sweep.0.values=[0.1, -0.4]": ("rates.schedule.value", "member 3"),
    "sweep.0.values=[0.1, 'x']": ("rates.schedule.value", "'x'"),
    "sweep.0.name='seed'": ("sweep", "two axes"),
    "sweep.0.name='time'": ("sweep", "another name"),
    "sweep.0.name='objective_final'": ("sweep", "another name"),
    "sweep.0.name='seed_cell'": ("sweep", "another name"),
    "sweep.0.axis='rates.schedule.valu'": ("sweep.0.axis", "'value'"),
    "sweep.0.axis='rates.schedul.value'": ("sweep.0.axis", "'schedule'"),
    "sweep.0.axis='rate.schedule.value'": ("sweep.0.axis", "'rates'"),
    "sweep.0.axis='rates.ratio.value'": ("sweep.0.axis", "no table"),
    "sweep.0.axis='problem.decay.feature'": ("sweep.0.axis", "'features'"),
    "sweep.0.axis='start.dimm'": ("sweep.0.axis", "'dim'"),
    "sweep.0.axis='motion.dt'": ("sweep.0.axis", "flow"),
    "sweep.0.axis='keep.moments'": ("sweep.0.axis", "cannot be swept"),
    "sweep.0={axis='start.dim', values=[3, 4.5]}": ("start.dim", "4.5"),
    "sweep.1={axis='start.seed', values=[-1]}": ("sweep.1.values.0", "seed"),
    "sweep.1={axis='rates.schedule', values=[0.1]}": ("sweep", "same value"),
    "sweep.1={zip=[{axis='start.scale', values=[1]}, {axis='rates.ratio', values=[1, 2]}]}": ("sweep.1.zip", "one length"),
    "keep.by=['peek']": ("keep.by.0", "'peak'"),
    "keep.states=[6]": ("keep.states.0", "0 to 5"),
    "keep.quantiles=[1.5]": ("keep.quantiles", "1.5"),
    "keep.histograms={objective=[1, 0]}": ("keep.histograms.objective", "increasing"),
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_run_is_refused_with_its_path(override):
    path, hint = REFUSED[override]
    with pytest.raises(ConfigError) as caught:
        built(override)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and hint in message, message


def test_float64_needs_64_bit_numbers():
    with jax.enable_x64(False), pytest.raises(ConfigError, match="^precision: .*jax_enable_x64"):
        built()


def test_the_template_builds():
    found = sweep.build(config.loads(template("demo")))
    assert found.design.size == 600 and found.cost is not None
