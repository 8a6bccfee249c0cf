"""How runs end: statuses, what is kept before a stop, scaled states past the range of numbers, summaries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics import status
from dynamics.trajectory import blank
from tests.helpers import UNSORTED, refused, start

PROBLEM = dyn.LayerPeeled.balanced(3, 2)
STATE = start(PROBLEM, 4)
RATES = dyn.Rates.equal(0.4)
SIGMA = 1.5 / (3 * 2**0.5)  # the top singular value: (1 + gamma) sqrt(N)/n
FAR = 6000.0


def test_names_of_statuses():
    names = ("ok", "bad_input", "non_finite", "norm_cap", "max_steps", "fixed_point", "outside_assumptions")
    assert tuple(status.name(code) for code in range(7)) == names == status.NAMES
    assert status.name(jnp.asarray(3)) == "norm_cap"
    refused(lambda: status.name(7), "code", "0..6", "7")
    refused(lambda: status.name(-1), "code", "0..6", "-1")


def test_summary():
    def ended(codes, t_end):
        return dyn.Trajectory(jnp.zeros(1), None, {}, jnp.asarray(codes), {"t_end": jnp.asarray(t_end)})

    assert ended(0, 1.0).summary() == "1 of 1 ok"
    assert ended([0, 0], [1.0, 1.0]).summary() == "2 of 2 ok"
    assert ended(2, 0.25).summary() == "1 of 1 failed (1 non_finite); first: member 0, non_finite at t = 0.25"
    crowd = ended([[0, 3], [2, 3]], [[9.0, 1.5], [2.0, 3.0]])
    assert crowd.summary() == "3 of 4 failed (1 non_finite, 2 norm_cap); first: member 1, norm_cap at t = 1.5"
    assert crowd.ok.tolist() == [[True, False], [False, False]]


def test_blank_marks_integers_too():
    values = {"count": jnp.arange(3), "flag": jnp.ones((3, 2), bool), "narrow": jnp.ones(3, jnp.float32)}
    marked = blank(jnp.array([False, True, False]), values)
    np.testing.assert_array_equal(marked["count"], [0.0, np.nan, 2.0])
    np.testing.assert_array_equal(marked["flag"], [[1, 1], [np.nan, np.nan], [1, 1]])
    assert marked["narrow"].dtype == jnp.float32


def loop_norms(steps: int) -> np.ndarray:
    """Norms along a plain descent."""
    h, w = np.array(STATE.features), np.array(STATE.prototypes)
    b = np.where(PROBLEM.labels[:, None] == np.arange(3), 1.0, -0.5) / 6
    biases = np.sum(np.square(STATE.biases))
    norms = []
    for _ in range(steps + 1):
        norms.append(np.sqrt(np.sum(h**2) + np.sum(w**2) + biases))
        h, w = h + 0.4 * b @ w, w + 0.4 * b.T @ h
    return np.array(norms)


def test_descent_stops_at_the_norm_cap():
    norms, cap = loop_norms(60), 50.0
    beyond = int(np.argmax(norms > cap))
    moved = dyn.descent(PROBLEM, STATE, RATES, 60, every=4, norm_cap=cap, observe={"size": lambda p, x: jnp.sum(x.features)})
    assert status.name(moved.status) == "norm_cap"
    assert int(moved.stats["t_end"]) == int(moved.stats["steps"]) == beyond - 1
    kept = np.asarray(moved.ts) <= beyond - 1
    assert 3 < kept.sum() < 15
    np.testing.assert_array_equal(np.isfinite(moved.observed["size"]), kept)
    assert moved.states is None


def test_diverging_descent_keeps_what_came_before():
    """By default a run is stopped at the square root of the largest number, if need be at the first step."""

    def one(decay, rate):
        problem = dyn.LayerPeeled.balanced(3, 2, decay=dyn.Decay(decay, decay))
        return dyn.descent(problem, STATE, dyn.Rates.equal(rate), 8)

    moved = jax.jit(jax.vmap(one))(jnp.array([1e40, 1e100]), jnp.array([0.4, 1e300]))
    assert [status.name(code) for code in moved.status] == ["norm_cap", "norm_cap"]
    np.testing.assert_array_equal(moved.stats["t_end"], [3, 0])  # (0.4e40)^4 is beyond 1.3e154
    np.testing.assert_array_equal(np.isfinite(moved.states.features).all(axis=(2, 3)), np.arange(9) <= np.array([[3], [0]]))
    np.testing.assert_allclose(moved.states.features[0, 1], -0.4e40 * np.asarray(STATE.features), rtol=1e-12)
    np.testing.assert_array_equal(moved.states.features[1, 0], STATE.features)


def test_a_feature_without_direction_is_no_motion():
    problem = dyn.LayerPeeled.balanced(3, 2, normalize=True)
    features = jnp.stack([STATE.features, STATE.features.at[4].set(0.0)])
    refused(lambda: dyn.descent(problem, dyn.Peeled(features[1], STATE.prototypes), RATES, 2), "features", "zero", "sample 4")
    moved = jax.vmap(lambda h: dyn.descent(problem, dyn.Peeled(h, STATE.prototypes), RATES, 2))(features)
    assert [status.name(code) for code in moved.status] == ["ok", "bad_input"]
    np.testing.assert_array_equal(np.isfinite(moved.states.prototypes).all(axis=(1, 2, 3)), [True, False])


def exact_flow(scale, scaled=False):
    ts = scale * jnp.array([0.0, 0.1, 0.5, 1.0])
    return dyn.exact.flow(PROBLEM, STATE, RATES, ts, scaled=scaled)


def exact_descent(scale, scaled=False):
    return dyn.exact.descent(PROBLEM, STATE, RATES, 6000, every=2000, dt=scale / FAR, scaled=scaled)


VERBS = pytest.mark.parametrize("verb", [exact_flow, exact_descent])


@functools.cache
def far_and_near(verb):
    """Runs to clocks of 2400 and of 20, scaled and as they are; one compiled program a verb."""
    both = jax.jit(jax.vmap(lambda scale: (verb(scale, True), verb(scale))))(jnp.array([FAR, 50.0]))
    return [jax.tree.map(lambda x, member=member: x[member], both) for member in (0, 1)]


@VERBS
def test_overflow_by_formula_keeps_what_came_before(verb):
    (_, far), (_, near) = far_and_near(verb)
    assert (status.name(far.status), status.name(near.status)) == ("non_finite", "ok")
    kept = np.array([True, True, True, False])
    for part in (far.states.features, far.states.prototypes, far.states.biases):
        np.testing.assert_array_equal(np.isfinite(part.reshape(4, -1)).all(axis=1), kept)
        assert np.all(np.isnan(part[3]))
    assert float(far.stats["t_end"]) == float(far.ts[2])
    assert np.isfinite(near.states.features).all()


@VERBS
def test_scaled_states_outlive_overflow(verb):
    (moved, _), (near, plain) = far_and_near(verb)
    assert status.name(moved.status) == "ok"
    sizes = np.sum(np.square(moved.states.features), (1, 2)) + np.sum(np.square(moved.states.prototypes), (1, 2))
    np.testing.assert_allclose(sizes, 1.0, rtol=1e-13)
    growth = SIGMA * 0.4 * 0.5 * FAR if verb is exact_flow else 2000 * np.log1p(SIGMA * 0.4)
    assert float(moved.log_scale[3] - moved.log_scale[2]) == pytest.approx(growth, rel=1e-12)
    np.testing.assert_allclose(moved.states.features[3], moved.states.features[2], atol=1e-13)
    factor = np.exp(np.asarray(near.log_scale))[:, None, None]
    for part in ("features", "prototypes"):
        np.testing.assert_allclose(factor * getattr(near.states, part), getattr(plain.states, part), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(near.states.biases, plain.states.biases)


VERBS_OF_FLOAT32 = {
    "flow": lambda *start: dyn.flow(*start, [0.0, 1.0]),
    "descent": lambda *start: dyn.descent(*start, 2, momentum=0.5),
    "exact.flow": lambda *start: dyn.exact.flow(*start, [0.0, 1.0]),
    "exact.descent": lambda *start: dyn.exact.descent(*start, 2, momentum=0.5),
}


LOSSES = (dyn.losses.Unhinged(), dyn.losses.Unhinged(0.3), dyn.losses.Linear(np.eye(3)))


@pytest.mark.parametrize(("verb", "loss"), [(v, loss) for v in VERBS_OF_FLOAT32 for loss in LOSSES[: 1 if v == "flow" else 3]])
def test_float32_stays_float32(verb, loss):
    """Whatever precision the hyper-parameters come in, and without a word about the tolerances that the library chose."""
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=loss, decay=dyn.Decay(np.float64(0.1)), bias=True)
    state = start(problem, 2, dtype=np.float32)
    rates = dyn.Rates.proportional(dyn.schedules.Cosine(jnp.asarray(0.1), 5.0), np.float64(2.0))
    moved = jax.eval_shape(lambda: VERBS_OF_FLOAT32[verb](problem, state, rates))
    assert {leaf.dtype for leaf in jax.tree.leaves(moved.states)} == {jnp.dtype(jnp.float32)}
