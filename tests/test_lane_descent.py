"""Descents of a batch, side by side or reduced: against loops in NumPy, bit by bit, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import dynamics as dyn
from dynamics.schedules import Cosine
from tests import cases, oracle_rates, oracles
from tests.helpers import refused

LOSSES = {"cross_entropy": dyn.losses.CrossEntropy(), "squared_error": dyn.losses.SquaredError()}
UNEVEN = np.array([2, 0, 1, 0, 1, 2, 2])
VARIANTS = {
    "two classes, heavy ball": (np.array([0, 0, 1, 1, 1]), 3, "cross_entropy", {}, {"every": 7}),
    "on a line, nesterov, biases": (UNEVEN, 1, "squared_error", {"bias": True}, {"every": 3, "nesterov": True}),
    "sphere, rescaled, every iterate": (UNEVEN, 2, "cross_entropy", {"normalize": True, "anchored": True}, {"every": 1}),
}


def numbers(labels, dim: int, members: int, seed: int) -> dict[str, np.ndarray]:
    """Starts and hyper-parameters of a batch."""
    rng = np.random.default_rng(seed)
    classes = max(labels) + 1
    return {
        "features": rng.normal(size=(members, len(labels), dim)),
        "prototypes": rng.normal(size=(members, classes, dim)),
        "biases": 0.3 * rng.normal(size=(members, classes)),
        "rates": rng.uniform(0.1, 0.4, size=(members, 2)),
        "decay": np.array([0.0, 0.1, 0.2]) * rng.uniform(0.5, 1, size=(members, 3)),
        "momentum": rng.uniform(0.2, 0.8, size=members),
    }


def moved_by(labels, loss, fields, steps, rescaled=False, **run):
    """The program of one member."""

    def one(x):
        problem = dyn.LayerPeeled(
            labels, num_classes=max(labels) + 1, loss=LOSSES[loss], decay=dyn.Decay(*x["decay"]), **fields
        )
        start = dyn.Peeled(x["features"], x["prototypes"], x["biases"])
        rates = dyn.Rates(Cosine(x["rates"][0], 50.0), x["rates"][1], rescaled=rescaled)
        return dyn.descent(problem, start, rates, steps, momentum=x["momentum"], **run)

    return one


@pytest.mark.parametrize("name", VARIANTS)
def test_against_a_loop(name):
    labels, dim, loss, fields, run = VARIANTS[name]
    rescaled = "rescaled" in name
    x = numbers(labels, dim, 9, 0)  # more than one chunk of eight, less than one of sixteen
    steps = 42
    moved = jax.jit(jax.vmap(moved_by(labels, loss, fields, steps, rescaled, **run)))(x)
    assert np.all(moved.status == dyn.status.OK) and np.all(moved.stats["steps"] == steps)
    for i in (0, 8):
        one = cases.member(x, i)
        plain = oracles.Plain(labels, loss, decay=one["decay"], rescaled=rescaled, **fields)
        eta1, eta2 = oracle_rates.cosine(one["rates"][0], 50.0), oracle_rates.constant(one["rates"][1])
        options = 1.0, one["momentum"], run.get("nesterov", False)
        truth = oracles.loop(plain, cases.point(one), eta1, eta2, steps, run["every"], *options)
        found = [cases.at(moved.states, i, k) for k in range(len(truth))]
        assert oracles.worst(oracles.relative(a, b) for a, b in zip(found, truth, strict=True)) <= 1e-12


LABELS, DIM = np.array([0, 0, 1, 1, 1]), 3


def bits(moved: dyn.Trajectory, i: int) -> bytes:
    return b"".join(np.asarray(leaf)[i].tobytes() for leaf in jax.tree.leaves(moved))


def test_members_end_by_themselves_and_at_the_same_step_as_alone():
    x = numbers(LABELS, DIM, 20, 1)
    x["momentum"][:] = 0.0
    one = moved_by(LABELS, "squared_error", {}, 40, every=20, norm_cap=20.0)
    together = jax.jit(jax.vmap(one))
    good = together(x)
    bad = {name: values.copy() for name, values in x.items()}
    bad["features"][3, 0, 0] = np.nan
    bad["decay"][5], bad["rates"][5] = [10.0, 10.0, 0.0], [0.22, 0.22]
    bad["rates"][6] = 1e200
    bad["rates"][7] = -0.1
    bad["momentum"][17] = 1.0
    mixed = together(bad)
    ends = {3: "bad_input", 5: "norm_cap", 6: "norm_cap", 7: "bad_input", 17: "bad_input"}
    assert {i: dyn.status.name(code) for i, code in enumerate(mixed.status) if code} == ends
    well = [i for i in range(20) if i not in ends]
    assert all(bits(good, i) == bits(mixed, i) for i in well)
    order = np.random.default_rng(2).permutation(20)
    shuffled = together({name: values[order] for name, values in bad.items()})
    assert all(bits(mixed, i) == bits(shuffled, place) for place, i in enumerate(order))

    run = cases.member(bad, 5)
    plain = oracles.Plain(LABELS, "squared_error", decay=run["decay"])
    eta1, eta2 = oracle_rates.cosine(run["rates"][0], 50.0), oracle_rates.constant(run["rates"][1])
    steps = int(mixed.stats["steps"][5])
    sizes = [np.linalg.norm(z.flat()) for z in oracles.loop(plain, cases.point(run), eta1, eta2, steps + 1, 1)]
    assert 1 < steps < 20 and max(sizes[:-1]) <= 20 < sizes[-1]
    assert np.isnan(mixed.states.features[5, 1:]).all() and np.isfinite(mixed.states.features[5, 0]).all()


def test_single_precision_and_observables():
    x = numbers(LABELS, DIM, 2, 3)
    watch = {"features": lambda problem, state: state.features, "first": lambda problem, state: state.biases[0] > 0}
    run = {"every": 10, "observe": watch}
    narrow = {name: values.astype(np.float32) for name, values in x.items()}
    moved = jax.jit(jax.vmap(moved_by(LABELS, "cross_entropy", {"bias": True}, 20, **run)))(narrow)
    assert moved.observed["features"].dtype == np.float32 and moved.observed["first"].shape == (2, 3)
    one = cases.member(x, 1)
    plain = oracles.Plain(LABELS, "cross_entropy", decay=one["decay"], bias=True)
    eta1, eta2 = oracle_rates.cosine(one["rates"][0], 50.0), oracle_rates.constant(one["rates"][1])
    truth = oracles.loop(plain, cases.point(one), eta1, eta2, 20, 10, 1.0, one["momentum"])
    for k, point in enumerate(truth):
        assert oracles.relative(moved.observed["features"][1, k], point.features) <= 1e-5
        assert bool(moved.observed["first"][1, k]) == (point.biases[0] > 0)


@pytest.mark.slow
def test_derivatives_are_those_of_the_general_way_and_of_differences():
    x = numbers(LABELS, DIM, 2, 4)
    turn = np.random.default_rng(5).normal(size=(5, DIM))
    scale = jnp.asarray(1.3)

    def number(method):
        def value(x, factor):
            # what is observed closes over a traced number
            observe = {"value": lambda problem, state: factor * jnp.sum(state.features * turn)}
            run = {"every": 6, "method": method, "observe": observe}
            return moved_by(LABELS, "cross_entropy", {}, 12, **run)(x).observed["value"][-1]

        return value

    def everything(x, factor):
        def both(way):
            return {method: way(number(method)) for method in ("auto", "general")}

        batched = (0, None)
        return {
            "value": both(lambda f: jax.vmap(f, batched)(x, factor)),
            "vmap of grad": both(lambda f: jax.vmap(jax.grad(f, (0, 1)), batched)(x, factor)),
            "jacfwd": both(lambda f: jax.vmap(jax.jacfwd(f, 1), batched)(x, factor)),
            "grad of vmap": jax.grad(lambda x: jnp.sum(jax.vmap(number("auto"), batched)(x, factor)))(x),
            "jvp": jax.jvp(lambda x: jax.vmap(number("auto"), batched)(x, factor), (x,), (x,))[1],
        }

    found = jax.jit(everything, compiler_options={"xla_backend_optimization_level": 0})(x, scale)
    for name in ("value", "vmap of grad", "jacfwd"):
        ways = found[name]
        for a, b in zip(jax.tree.leaves(ways["auto"]), jax.tree.leaves(ways["general"]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)
    for a, b in zip(jax.tree.leaves(found["grad of vmap"]), jax.tree.leaves(found["vmap of grad"]["general"][0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)

    def end(t):
        """By the loop, from a point shifted along the first member's numbers."""
        one = {name: (1 + t) * values for name, values in cases.member(x, 0).items()}
        plain = oracles.Plain(LABELS, "cross_entropy", decay=one["decay"])
        eta1, eta2 = oracle_rates.cosine(one["rates"][0], 50.0), oracle_rates.constant(one["rates"][1])
        return 1.3 * np.sum(oracles.loop(plain, cases.point(one), eta1, eta2, 12, 12, 1.0, one["momentum"])[-1].features * turn)

    slope = (8 * (end(1e-3) - end(-1e-3)) - (end(2e-3) - end(-2e-3))) / 12e-3
    np.testing.assert_allclose(found["jvp"][0], slope, rtol=1e-8)


def shapes_of(jaxpr) -> set[tuple[int, ...]]:
    """The shapes of all that a program makes, loops and calls included."""
    shapes = {getattr(out.aval, "shape", ()) for equation in jaxpr.eqns for out in equation.outvars}
    return shapes.union(*(shapes_of(body) for equation in jaxpr.eqns for body in jaxprs_in_params(equation.params)))


def test_no_iterate_is_kept():
    x = numbers(LABELS, DIM, 3, 6)
    for method in ("auto", "general"):
        one = moved_by(LABELS, "cross_entropy", {}, 2 * 977, every=977, method=method)
        shapes = shapes_of(jax.make_jaxpr(jax.vmap(one))(x).jaxpr)
        assert max(max(shape, default=0) for shape in shapes) < 977, method


@pytest.mark.parametrize("loss", ["cross_entropy", "linear"])
def test_reduced_runs(loss):
    """More dimensions than rows; of a linear loss also more samples than classes."""
    labels, dim = np.repeat(np.arange(2), 2), 60
    x = numbers(labels, dim, 3, 7)
    x["biases"][:] = 0.0
    x["decay"] += 0.05
    watch = {"features": lambda problem, state: state.features}

    def run(reduce, observe):
        def one(x):
            chosen = LOSSES.get(loss, dyn.losses.Unhinged(0.4))
            problem = dyn.LayerPeeled(labels, num_classes=2, loss=chosen, decay=dyn.Decay(*x["decay"]))
            start = dyn.Peeled(x["features"], x["prototypes"], x["biases"])
            rates = dyn.Rates(Cosine(x["rates"][0], 50.0), x["rates"][1])
            options = {"every": 200, "momentum": x["momentum"], "observe": observe, "reduce": reduce}
            return dyn.descent(problem, start, rates, 400, **options)

        return jax.jit(jax.vmap(one))

    states = run("auto", None)(x).states if loss == "cross_entropy" else None
    observed = run("auto", watch)(x).observed if loss == "linear" else None
    rows = np.where(np.eye(2)[labels] == 1, 1.0, -0.4)
    for i in range(3):
        one = cases.member(x, i)
        plain = oracles.Plain(labels, loss, rows=rows if loss == "linear" else None, decay=one["decay"])
        eta1, eta2 = oracle_rates.cosine(one["rates"][0], 50.0), oracle_rates.constant(one["rates"][1])
        truth = oracles.loop(plain, cases.point(one), eta1, eta2, 400, 200, 1.0, one["momentum"])
        for k, point in enumerate(truth):
            if states is not None:
                assert oracles.relative(cases.at(states, i, k), point) <= 1e-12
            if observed is not None:
                assert oracles.relative(observed["features"][i, k], point.features) <= 1e-12
    reduced = {"cross_entropy": (4, 6, 8), "linear": (2, 4, 8)}[loss]  # the features of eight members, one feature a class
    for reduce, moving, still in (("auto", reduced, (4, dim, 8)), ("off", (4, dim, 8), reduced)):
        shapes = shapes_of(jax.make_jaxpr(run(reduce, {"nc1": dyn.observables.nc1}))(x).jaxpr)
        assert moving in shapes and still not in shapes


@pytest.mark.parametrize(("labels", "dim"), [(LABELS, 700), (np.arange(70) % 2, 3)], ids=["large", "many samples"])
def test_batches_of_batches_that_do_not_fit_side_by_side(labels, dim):
    """One after another, or as one batch; numbers that members share have no axis."""
    x = numbers(labels, dim, 4, 9)
    shared = {name: x.pop(name)[0] for name in ("rates", "decay", "momentum")}
    one = moved_by(labels, "cross_entropy", {}, 6, every=3, reduce="off")
    nested = {name: values.reshape(2, 2, *values.shape[1:]) for name, values in x.items()}
    moved = jax.jit(jax.vmap(jax.vmap(lambda x: one(x | shared))))(nested)
    assert moved.status.shape == (2, 2) and np.all(moved.stats["steps"] == 6)
    plain = oracles.Plain(labels, "cross_entropy", decay=shared["decay"])
    eta1, eta2 = oracle_rates.cosine(shared["rates"][0], 50.0), oracle_rates.constant(shared["rates"][1])
    for i in range(4):
        point = cases.point(cases.member(x, i))
        truth = oracles.loop(plain, point, eta1, eta2, 6, 3, 1.0, shared["momentum"])
        for k in range(3):
            assert oracles.relative(cases.at(moved.states, i // 2, i % 2, k), truth[k]) <= 1e-12


def test_a_start_may_be_donated():
    x = numbers(LABELS, DIM, 8, 8)
    one = moved_by(LABELS, "cross_entropy", {}, 4, every=4)
    last = jax.vmap(lambda features, x: one(x | {"features": features}).states.features[-1])
    features = jnp.asarray(x.pop("features"))
    kept = jax.jit(last)(features, x)
    given = features + 0
    assert np.array_equal(jax.jit(last, donate_argnums=0)(given, x), kept) and given.is_deleted()


def test_refused_methods():
    problem = dyn.LayerPeeled.balanced(2, 1)
    start, rates = dyn.Peeled(np.ones((2, 2)), np.ones((2, 2))), dyn.Rates.equal(0.1)
    refused(lambda: dyn.descent(problem, start, rates, 4, method="atuo"), "method", "auto")
    refused(lambda: dyn.descent(problem, start, rates, 4, reduce="of"), "reduce", "off")
    batches = {"batch_size": 1, "key": jax.random.key(0)}
    refused(lambda: dyn.descent(problem, start, rates, 4, method="kernel", **batches), "batch_size", "kernel")
