"""What makes the formulas fast must not make them wrong: stretches of time side by side, all times at once, no states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import dynamics as dyn
from dynamics.schedules import Cosine, Piecewise
from tests import cases, oracle_rates, oracles
from tests.cases import Shape, balanced

obs = dyn.observables

# steps and iterates between outputs: outputs of one step, several a lane, a prime, more pieces of an output than lanes
LENGTHS = [(130, 1), (150, 5), (202, 101), (1300, 650)]


def varying(x):
    a, b = x["rates"] / 8
    values, cuts = b * np.array([1.0, 0.1, 2.0]), np.array([40.0, 120.5])
    rates = dyn.Rates(Cosine(a, 100.0, 0.1 * a), Piecewise(values, cuts))
    return rates, oracle_rates.cosine(a, 100.0, 0.1 * a), oracle_rates.piecewise(values, cuts)


def steady(x):
    a, b = x["rates"]
    return dyn.Rates(a, b), oracle_rates.constant(a), oracle_rates.constant(b)


@pytest.mark.parametrize(("steps", "every"), LENGTHS)
@pytest.mark.parametrize("rates_of", [varying, steady])
def test_products_of_steps_against_a_plain_loop(steps, every, rates_of):
    """Groups of classes, unequal decays; one member moves its weights only, one has momentum where rates vary."""
    shape = Shape((2, 0, 1, 0, 3, 0, 1), 2)
    x = cases.numbers(shape, 3, 7, decay=True)
    x["momentum"] = np.array([0.0, 0.7, 0.0])
    with_momentum = rates_of is varying and every == 5

    @jax.jit
    @jax.vmap
    def exact(x):
        momentum = x["momentum"] if with_momentum else 0.0
        run = {"every": every, "momentum": momentum}
        return dyn.exact.descent(cases.problem(shape, x), cases.start(x), rates_of(x)[0], steps, **run)

    moved = exact(x)
    assert np.all(moved.status == dyn.status.OK)
    for i in range(3):
        one = cases.member(x, i)
        options = 1.0, one["momentum"] if with_momentum else 0.0, False
        truth = oracles.loop(cases.plain(shape, one), cases.point(one), *rates_of(one)[1:], steps, every, *options)
        error = oracles.worst(
            oracles.relative(part, true)
            for k, point in enumerate(truth)
            for part, true in zip(cases.at(moved.states, i, k), point, strict=True)
        )
        assert error <= 1e-11


def test_a_member_without_numbers_changes_no_other():
    shape = Shape(balanced(3, 2), 2)
    x = cases.numbers(shape, 4, 8, decay=True)

    @jax.jit
    @jax.vmap
    def exact(x):
        return dyn.exact.descent(cases.problem(shape, x), cases.start(x), varying(x)[0], 300, every=30)

    sound, spoilt = exact(x), exact(x | {"rates": np.where(np.arange(4)[:, None] == 1, [np.nan, 1e300], x["rates"])})
    np.testing.assert_array_equal(np.asarray(spoilt.status) == 0, [True, False, True, True])
    others = np.array([0, 2, 3])
    np.testing.assert_array_equal(np.asarray(sound.states.features)[others], np.asarray(spoilt.states.features)[others])


def test_growth_and_decay_past_the_range_of_numbers_inside_a_stretch():
    """Steps that grow by 10^4 and fade by 10^-4, 64 of them in a row, in float32."""
    problem = dyn.LayerPeeled.balanced(2, 1, loss=dyn.losses.Unhinged(0.5))
    start = dyn.Peeled(np.array([[1.0, 2.0], [3.0, -1.0]], np.float32), np.array([[0.5, 1.0], [1.0, 0.2]], np.float32))
    moved = dyn.exact.descent(problem, start, dyn.Rates(2e4, 1e4), 200, every=50, scaled=True)
    h, w = (np.asarray(x, float) for x in (start.features, start.prototypes))
    coupling = (1.5 * np.eye(2) - 0.5) / 2
    log = 0.0
    for k in range(200):
        h, w = h + 2e4 * coupling @ w, w + 1e4 * coupling.T @ h
        size = np.sqrt(np.sum(h**2) + np.sum(w**2))
        h, w, log = h / size, w / size, log + np.log(size)
        if k % 50 == 49:
            np.testing.assert_allclose(moved.states.features[k // 50 + 1], h, atol=3e-6)
            assert abs(float(moved.log_scale[k // 50 + 1]) / log - 1) <= 1e-6
    # the whole motion shrinks to 1e-4 of itself, 60 times; the sum of both sides to a hundredth more
    faded = dyn.LayerPeeled.balanced(2, 1, decay=dyn.Decay(0.9999e6, 0.9999e6))
    moved = dyn.exact.descent(faded, start, dyn.Rates(1e-6, 1e-6), 60, every=60, scaled=True)
    assert moved.ok and abs(float(moved.log_scale[-1]) / (60 * np.log(1e-4 + 1e-6)) - 1) < 0.02


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 5e-6)])
def test_class_mean_states_against_the_iteration(dtype, tolerance):
    """More classes than the features have room for, unequal rates and decays, one sample a class left."""
    full = dyn.LayerPeeled.balanced(6, 3, loss=dyn.losses.Unhinged(0.3), decay=dyn.Decay(0.02, 0.05))
    start = dyn.initial.gaussian(full, dim=2, key=jax.random.key(3), dtype=dtype)
    reduced = dyn.reduce.class_means(full, start)
    moved = dyn.exact.descent(reduced.problem, reduced.state, dyn.Rates(0.4, 0.1), 2000, every=100)
    assert moved.states.features.dtype == dtype
    g, w = (np.asarray(x, float) for x in (reduced.state.features, reduced.state.prototypes))
    coupling = (1.3 * np.eye(6) - 0.3) / 6 / np.sqrt(3)
    for k in range(2000):
        if k % 100 == 0:
            assert oracles.relative(np.asarray(moved.states.features[k // 100]), g) <= tolerance
            assert oracles.relative(np.asarray(moved.states.prototypes[k // 100]), w) <= tolerance
        g, w = g + 0.4 * (coupling @ w - 0.02 * g), w + 0.1 * (coupling @ g - 0.05 * w)


def by_definition(plain: oracles.Plain, x: oracles.Point) -> dict[str, float]:
    """Observables as their definitions say, from a state."""
    h, w, labels, classes = x.features, x.prototypes, plain.labels, len(x.prototypes)
    logits = h @ w.T + x.biases
    own = logits[np.arange(len(labels)), labels]
    others = np.array([np.delete(z, y) for z, y in zip(logits, labels, strict=True)])
    means = np.array([h[labels == c].mean(axis=0) for c in range(classes)]) - h.mean(axis=0)
    lengths = np.linalg.norm(means, axis=1)
    unit = lambda a: a / np.linalg.norm(a)
    cosines = (means @ means.T / np.outer(lengths, lengths))[np.triu_indices(classes, 1)]
    simplex = (np.eye(classes) - 1 / classes) / np.sqrt(classes - 1)
    rate = dict(zip(("h", "w", "b"), plain.decay, strict=True))
    penalty = rate["h"] * np.sum(h**2) + rate["w"] * np.sum(w**2) + rate["b"] * np.sum(x.biases**2)
    loss = plain.objective(x) - 0.5 * penalty
    size = np.sum(h**2) + np.sum(w**2)
    margin = np.min(own - others.max(axis=1))
    return {
        "loss": loss,
        "objective": loss + 0.5 * penalty,
        "feature_norm": np.linalg.norm(h),
        "prototype_norm": np.linalg.norm(w),
        "bias_norm": np.linalg.norm(x.biases),
        "margin": margin,
        "normalized_margin": margin / size,
        "average_margin": np.mean(own - others.mean(axis=1)),
        "accuracy": np.mean(logits.argmax(axis=1) == labels),
        "self_duality": np.linalg.norm(unit(h) - unit(w[labels])),
        "nc2": np.linalg.norm(unit(means @ means.T) - simplex),
        "nc2_norms": np.std(lengths) / np.mean(lengths),
        "nc2_angles": np.mean(np.abs(cosines + 1 / (classes - 1))),
        "nc3": np.linalg.norm(unit(w - w.mean(axis=0)) - unit(means)),
    }


OF_SUMMARY = (
    *("loss", "objective", "feature_norm", "prototype_norm", "bias_norm", "self_duality"),
    *("margin", "normalized_margin", "average_margin", "accuracy", "nc2", "nc2_norms", "nc2_angles", "nc3"),
)
SHAPES = {
    "balanced": Shape(balanced(3, 2), 4),
    "unsorted": Shape((1, 0, 2, 1, 2, 0), 5),
    "two-classes": Shape(balanced(2, 3), 3, loss="optimum"),
    "more-classes-than-room": Shape(balanced(5, 2), 2),
    "one-sample-each": Shape(balanced(4, 1), 3, bias=False),
    "groups": Shape((2, 0, 1, 0, 3, 0, 1), 3),
    "weighted": Shape((1, 2, 0, 0, 2, 1), 3, weighted=True),
}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("name", SHAPES)
def test_observables_against_their_definitions_on_the_dense_exponential(name):
    shape, ts = SHAPES[name], np.array([0.0, 0.7, 4.0])
    x = cases.numbers(shape, 4, 9, decay=True)
    x["decay"][:2] = 0.0
    watch = {key: getattr(obs, key) for key in OF_SUMMARY}

    @jax.jit
    @jax.vmap
    def exact(x):
        rates = dyn.Rates(x["rates"][0], x["rates"][1])
        return dyn.exact.flow(cases.problem(shape, x), cases.start(x), rates, ts, observe=watch)

    moved = exact(x)
    assert np.all(moved.status == dyn.status.OK)
    for i in range(4):
        one = cases.member(x, i)
        plain = cases.plain(shape, one)
        truth = oracles.dense_flow(plain, cases.point(one), np.outer(ts, one["rates"]))
        for k, point in enumerate(truth):
            expected = by_definition(plain, point)
            scale = expected["feature_norm"] * expected["prototype_norm"]
            for key in OF_SUMMARY:
                # what is a difference of numbers of some size is right relative to that size
                size = scale if key in ("loss", "objective", "margin", "average_margin") else 1e-3
                found = float(moved.observed[key][i, k])
                assert abs(found - expected[key]) <= 1e-11 * max(abs(expected[key]), size), (key, k)


@pytest.mark.slow
def test_observables_without_states_are_those_of_states_at_extreme_times_and_in_single_precision():
    """Scaled, at clocks where no state can be written down; each name also as a function that only states can answer."""
    shape = Shape(balanced(4, 3), 3, bias=False)
    names = ("self_duality", "nc2", "nc2_norms", "nc2_angles", "nc3")
    by_state = {key: obs.observable(scale_invariant=True)(lambda p, s, key=key: getattr(obs, key)(p, s)) for key in names}
    for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 1e-5)):
        x = jax.tree.map(lambda v, dtype=dtype: v.astype(dtype), cases.numbers(shape, 4, 11, decay=True))
        x["rates"] = np.array([[1.0, 1.0], [1.0, 1.0], [0.3, 2.0], [1.0, 0.1]], dtype)
        x["gamma"][3] = 0.2  # past its range the common mode wins, and centred means of states are rounding noise
        ts = np.array([0.5, 300.0, 1e9], dtype)

        @jax.jit
        @jax.vmap
        def exact(x, ts=ts):
            args = cases.problem(shape, x), cases.start(x), dyn.Rates(x["rates"][0], x["rates"][1]), ts
            watch = {key: getattr(obs, key) for key in names}
            return [dyn.exact.flow(*args, scaled=True, observe=o) for o in (watch, by_state)]

        quick, slow = exact(x)
        assert np.all(quick.status == 0) and np.all(slow.status == 0)
        np.testing.assert_allclose(quick.log_scale, slow.log_scale, rtol=10 * np.finfo(dtype).eps)
        for key in names:
            found, truth = np.asarray(quick.observed[key]), np.asarray(slow.observed[key])
            assert found.dtype == dtype
            np.testing.assert_allclose(found, truth, rtol=tolerance, atol=20 * np.finfo(dtype).eps, err_msg=key)


def equations(jaxpr):
    """All equations of a program, inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def largest(program, *args) -> int:
    """The size of the largest array a program makes."""
    found = equations(jax.make_jaxpr(program)(*args).jaxpr)
    return max(int(np.prod(v.aval.shape)) for e in found for v in e.outvars if hasattr(v.aval, "shape"))


def test_observables_form_no_states():
    """37 times of 5 members with 6 classes of 2 in 200 dimensions: nothing as large as one side of the states of a member."""
    problem = dyn.LayerPeeled.balanced(6, 2, loss=dyn.losses.Unhinged())
    start = jax.vmap(lambda key: dyn.initial.gaussian(problem, dim=200, key=key))(jax.random.split(jax.random.key(0), 5))
    watch = {key: getattr(obs, key) for key in OF_SUMMARY}

    def of(observe):
        return jax.vmap(
            lambda state: dyn.exact.flow(problem, state, dyn.Rates(1.0, 0.5), jnp.arange(37.0), observe=observe).observed
        )

    one_side = 37 * 6 * 200
    assert largest(of(watch), start) < 0.5 * one_side
    # nc1 needs states: one of each member after the other
    assert largest(of({"nc1": obs.nc1}), start) < 5 * one_side
    states = jax.vmap(lambda state: dyn.exact.flow(problem, state, dyn.Rates(1.0, 0.5), jnp.arange(37.0)).states)
    assert largest(states, start) >= 5 * one_side


def test_steps_side_by_side_are_few_in_a_row():
    """50 000 steps of one run at rates of one ratio: at most a few hundred after each other."""
    problem = dyn.LayerPeeled.balanced(3, 2)
    start = dyn.initial.gaussian(problem, dim=2, key=jax.random.key(0))

    def in_a_row(jaxpr) -> int:
        total = 0
        for e in jaxpr.eqns:
            inner = [in_a_row(j) for j in jaxprs_in_params(e.params)]
            assert e.primitive.name != "while"
            total += e.params["length"] * max(1, *inner) if e.primitive.name == "scan" else sum(inner)
        return total

    def run(state):
        return dyn.exact.descent(problem, state, dyn.Rates.equal(0.05), 50_000, every=100).states.features

    assert in_a_row(jax.make_jaxpr(run)(start).jaxpr) <= 1500


@pytest.mark.parametrize("rates", [pytest.param((1.0, 1.0), marks=pytest.mark.slow), (0.7, 1.3)])
def test_gradients_in_rates_gamma_and_decay_where_the_mean_mode_stands_still(rates):
    """gamma = 1/(C-1): an eigenvalue is exactly zero. Against differences of the dense exponential, values and summaries."""
    shape = Shape(balanced(4, 2), 3, bias=False)
    x = cases.member(cases.numbers(shape, 1, 12, decay=False), 0)
    at = np.log([*rates, 1 / 3, 5e-3])
    rng = np.random.default_rng(0)
    along = oracles.Point(rng.normal(size=(8, 3)), rng.normal(size=(4, 3)), np.zeros(4))

    def numbers(theta, exp=np.exp):
        eta1, eta2, gamma, decay = (exp(theta[k]) for k in range(4))
        return (eta1, eta2), x | {"gamma": gamma, "decay": (decay, decay, 0.0)}

    def exact(theta):
        (eta1, eta2), one = numbers(theta, jnp.exp)
        args = cases.problem(shape, one), cases.start(one), dyn.Rates(eta1, eta2), np.array([3.0])
        states = dyn.exact.flow(*args).states
        seen = dyn.exact.flow(*args, observe={"margin": obs.average_margin, "norm": obs.feature_norm}).observed
        total = jnp.sum(along.features * states.features[0]) + jnp.sum(along.prototypes * states.prototypes[0])
        return jnp.stack([total, seen["margin"][0], seen["norm"][0]])

    def dense(theta):
        eta, one = numbers(theta)
        plain = cases.plain(shape, one)
        point = oracles.dense_flow(plain, cases.point(one), [(3 * eta[0], 3 * eta[1])])[0]
        found = by_definition(plain, point)
        total = np.sum(along.features * point.features) + np.sum(along.prototypes * point.prototypes)
        return np.array([total, found["average_margin"], found["feature_norm"]])

    forward, backward = jax.jit(lambda theta: (jax.jacfwd(exact)(theta), jax.jacrev(exact)(theta)))(at)
    step = 1e-3
    stencil = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
    truth = np.stack([sum(c * dense(at + k * step * unit) for k, c in stencil) / step for unit in np.eye(4)], axis=1)
    np.testing.assert_allclose(forward, truth, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(backward, forward, rtol=1e-12, atol=1e-13)


TRACED = []


def counted(problem, state):
    TRACED.append(1)
    return obs.feature_norm(problem, state)


def test_a_call_outside_a_program_is_compiled_once():
    problem = dyn.LayerPeeled.balanced(3, 2, loss=dyn.losses.Unhinged(0.4))
    start = dyn.initial.gaussian(problem, dim=2, key=jax.random.key(0))
    TRACED.clear()
    for gamma, rate in ((0.4, 1.0), (0.2, 0.5), (0.1, 0.25)):
        problem = dyn.LayerPeeled.balanced(3, 2, loss=dyn.losses.Unhinged(gamma))
        moved = dyn.exact.flow(problem, start, dyn.Rates(rate, 1.0), [1.0, 2.0], observe={"norm": counted})
    once = len(TRACED)
    dyn.exact.flow(problem, start, dyn.Rates(2.0, 0.3), [0.5, 7.0], observe={"norm": counted})
    assert once == len(TRACED) <= 2
    assert moved.observed["norm"].shape == (2,)
    with pytest.raises(ValueError, match="increasing"):
        dyn.exact.flow(problem, start, dyn.Rates(2.0, 0.3), [7.0, 0.5])
