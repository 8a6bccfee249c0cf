"""Reduced runs, lifted, against the full problem moved by plain NumPy loops, and which reduction a run takes by itself."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics import reduce
from dynamics.losses import CrossEntropy, Linear, SquaredError, Unhinged
from dynamics.reduce.basis import orthonormal
from dynamics.schedules import Cosine
from tests import oracle_rates, oracles
from tests.helpers import UNSORTED, compiled, draw, relative, start

EVEN = np.array([2, 0, 1, 1, 2, 0])
WEIGHTS = np.array([0.5, 1.3, 0.5, 0.9, 1.7, 1.2, 0.6, 1.3])
BY_CLASS = np.array([0.4, 1.1, 1.6])[UNSORTED]  # mean: (2 * 0.4 + 4 * 1.1 + 2 * 1.6) / 8
BY_CLASS = BY_CLASS / BY_CLASS.mean()
PLAIN_LOSSES = {CrossEntropy: "cross_entropy", SquaredError: "squared_error"}


def plain(problem: dyn.LayerPeeled, rescaled: bool = False) -> oracles.Plain:
    """The problem for the oracle."""
    name, rows = PLAIN_LOSSES.get(type(problem.loss), "linear"), None
    if isinstance(problem.loss, Unhinged):
        gamma = 1 / (problem.num_classes - 1) if problem.loss.gamma is None else problem.loss.gamma
        rows = ((1 + gamma) * np.eye(problem.num_classes) - gamma)[problem.labels]
    elif isinstance(problem.loss, Linear):
        rows = np.asarray(problem.loss.matrix)
        rows = rows if len(rows) == problem.num_samples else rows[problem.labels]
    return oracles.Plain(
        problem.labels,
        name,
        rows,
        None if problem.data.static_weights is None else problem.data.weights,
        (problem.decay.features, problem.decay.prototypes, problem.decay.biases),
        None if problem.kernel is None else np.asarray(problem.kernel),
        None if problem.feature_kernel is None else np.asarray(problem.feature_kernel),
        bool(problem.bias),
        problem.anchored,
        problem.normalize,
        rescaled,
    )


def point(state: dyn.Peeled) -> oracles.Point:
    return oracles.Point(*(np.asarray(part, float) for part in (state.features, state.prototypes, state.biases)))


def start_of(problem, dim, collapsed=False, seed=0) -> dyn.Peeled:
    state = start(problem, dim, seed)
    return (
        dyn.Peeled(state.features[: problem.num_classes][problem.labels], state.prototypes, state.biases)
        if collapsed
        else state
    )


def gap(states, truth) -> float:
    """The largest relative error of features, prototypes or biases at any time."""
    errors = []
    for k, x in enumerate(truth):
        for part in ("features", "prototypes", "biases"):
            errors.append(oracles.relative(np.asarray(getattr(states, part)[k]), getattr(x, part)))
    return oracles.worst(errors)


def lifted(reduction, states, kept=None):
    return jax.vmap(reduction.lift)(states, jnp.ones(len(states.biases)) if kept is None else kept)


DECAY = dyn.Decay(0.1, 0.2, 0.3)
SPANS = {
    "cross-entropy, biases, weights": (UNSORTED, 12, {"loss": CrossEntropy(), "bias": True, "sample_weights": WEIGHTS}),
    "squared error, kernel": (UNSORTED, 13, {"loss": SquaredError(), "kernel": draw(8, 8).T @ draw(8, 8) / 8}),
    "normalised, rescaled": (UNSORTED, 40, {"loss": CrossEntropy(), "normalize": True, "decay": dyn.Decay(0.0, 0.2)}),
    "anchored": (UNSORTED, 12, {"loss": CrossEntropy(), "anchored": True, "bias": True}),
    "coupling by sample": (UNSORTED, 12, {"loss": Linear(draw(8, 3)), "bias": True}),
    "two classes of one": (np.array([1, 0]), 5, {"loss": CrossEntropy()}),
}
COLLAPSED = {
    "cross-entropy, biases, weights": (UNSORTED, 3, {"loss": CrossEntropy(), "bias": True, "sample_weights": BY_CLASS}),
    "few dimensions": (np.arange(9) % 4, 2, {"loss": SquaredError(), "feature_kernel": np.diag([0.5, 2.0])}),
    "normalised, rescaled": (UNSORTED, 7, {"loss": CrossEntropy(), "normalize": True, "decay": dyn.Decay(0.0, 0.2)}),
    "unhinged, biases": (UNSORTED, 9, {"loss": Unhinged(0.2), "bias": True}),
}


@pytest.mark.parametrize(
    ("by", "case"), [(by, case) for by, cases in (("span", SPANS), ("collapsed", COLLAPSED)) for case in cases]
)
def test_descent_with_momentum_against_a_loop(by, case):
    labels, dim, fields = (SPANS if by == "span" else COLLAPSED)[case]
    problem = dyn.LayerPeeled(labels, num_classes=labels.max() + 1, **{"decay": DECAY, **fields})
    state, rescaled = start_of(problem, dim, by == "collapsed"), "rescaled" in case
    nesterov = "biases" in case
    options = {"every": 15, "dt": 0.5, "momentum": 0.6, "nesterov": nesterov}
    reduction = reduce.span(problem, state) if by == "span" else reduce.collapsed(problem, state)
    if dim > 2 * problem.num_classes and by == "collapsed":
        reduction = reduce.spanned(reduction)
    rates = dyn.Rates(0.3, Cosine(0.4, 20.0), rescaled=rescaled)
    moved = compiled(lambda r: lifted(r, dyn.descent(r.problem, r.state, rates, 60, **options).states))(reduction)
    eta1, eta2 = oracle_rates.constant(0.3), oracle_rates.cosine(0.4, 20.0)
    truth = oracles.loop(plain(problem, rescaled), point(state), eta1, eta2, 60, 15, 0.5, 0.6, nesterov)
    assert gap(moved, truth) <= 1e-12


@pytest.mark.parametrize("by", ["span", "collapsed"])
def test_slaved_biases(by):
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=SquaredError(), decay=DECAY, bias="slaved", sample_weights=BY_CLASS)
    state = start_of(problem, 12, by == "collapsed")
    reduction = getattr(reduce, by)(problem, state)

    @dataclasses.dataclass(frozen=True)
    class Slaved(oracles.Plain):
        def force(self, x):
            logits = x.features @ x.prototypes.T
            best = np.mean(self.weights[:, None] * (np.eye(3)[self.labels] - logits), axis=0) / (1 + self.decay[2])
            return super().force(x._replace(biases=best))._replace(biases=np.zeros(3))

    still = Slaved(problem.labels, "squared_error", None, BY_CLASS, (0.1, 0.2, 0.3))
    rate = oracle_rates.constant(0.3)
    truth = oracles.loop(still, point(state), rate, rate, 40, 40)
    run = compiled(lambda r: lifted(r, dyn.descent(r.problem, r.state, dyn.Rates.equal(0.3), 40, every=40).states))
    moved = run(reduction)
    assert oracles.relative(moved.features[-1], truth[-1].features) <= 1e-12
    assert oracles.relative(moved.prototypes[-1], truth[-1].prototypes) <= 1e-12


@pytest.mark.parametrize(("dim", "nesterov"), [(8, False), (20, True)])
def test_class_means_in_their_span(dim, nesterov):
    """Deviations kept by their own scalar recursion; dim 8 leaves no room for them beside the span."""
    problem = dyn.LayerPeeled(EVEN, num_classes=3, loss=Linear(draw(3, 3)), decay=DECAY)
    state = start_of(problem, dim)
    rates = dyn.Rates(Cosine(0.4, 20.0), 0.3)
    options = {"dt": 0.5, "momentum": 0.6, "nesterov": nesterov}

    @compiled
    def run(state):
        reduction = reduce.spanned(reduce.class_means(problem, state))
        assert (reduction.turned is None) == (dim == 8)
        moved = dyn.descent(reduction.problem, reduction.state, rates, 60, every=15, **options).states
        kept = reduce.kept_in_descent(problem, rates, 60, 15, **options)
        seen = jax.vmap(lambda x, k: reduction.see(x, k)[1])(moved, kept)
        return lifted(reduction, moved, kept), seen

    states, seen = run(state)
    eta1, eta2 = oracle_rates.cosine(0.4, 20.0), oracle_rates.constant(0.3)
    truth = oracles.loop(plain(problem), point(state), eta1, eta2, 60, 15, 0.5, 0.6, nesterov)
    assert gap(states, truth) <= 1e-12
    assert seen.features.shape[2] == (9 if dim == 20 else dim)
    for k, x in enumerate(truth):
        rows, wanted = (np.concatenate([z.features, z.prototypes]) for z in (jax.tree.map(lambda a, k=k: a[k], seen), x))
        assert oracles.relative(rows @ rows.T, wanted @ wanted.T) <= 1e-12


def rk4(force, x, h: float, steps: int):
    """Fixed steps of the classical method; `x` is a tuple of arrays."""

    def moved(x, k, c):
        return tuple(a + c * b for a, b in zip(x, k, strict=True))

    for _ in range(steps):
        k1 = force(x)
        k2 = force(moved(x, k1, h / 2))
        k3 = force(moved(x, k2, h / 2))
        k4 = force(moved(x, k3, h))
        x = moved(x, tuple((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(k1, k2, k3, k4, strict=True)), h)
    return x


@pytest.mark.parametrize("by", ["span", "collapsed"])
def test_flow_at_fixed_steps(by):
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=CrossEntropy(), decay=DECAY, bias=True)
    state = start_of(problem, 12, by == "collapsed")
    reduction = getattr(reduce, by)(problem, state)
    velocity = compiled(lambda x: tuple(jax.tree.leaves(reduction.problem.force(dyn.Peeled(*x)))))
    moved = dyn.Peeled(*rk4(velocity, tuple(jax.tree.leaves(reduction.state)), 0.2, 40))
    full = plain(problem)
    truth = rk4(lambda x: full.force(oracles.Point(*x)), point(state), 0.2, 40)
    assert relative(reduction.lift(moved), dyn.Peeled(*truth)) <= 1e-12


@pytest.mark.parametrize("by", ["span", "class means"])
def test_adaptive_flow_within_ten_tolerances(by):
    loss = CrossEntropy() if by == "span" else Unhinged(0.3)
    problem = dyn.LayerPeeled(EVEN, num_classes=3, loss=loss, decay=DECAY)
    state, ts, tolerance = start_of(problem, 20), np.array([1.0, 3.0, 8.0]), 1e-7
    rates = dyn.Rates(Cosine(0.4, 6.0), 0.5)

    @compiled
    def run(state):
        reduction = reduce.choose(problem, state, observe=None, alike=by != "span", forces=10**6)
        moved = dyn.flow(reduction.problem, reduction.state, rates, ts, rtol=tolerance, atol=tolerance)
        return lifted(reduction, moved.states, reduce.kept_in_flow(problem, rates, ts) if by != "span" else None)

    eta1, eta2 = oracle_rates.cosine(0.4, 6.0), oracle_rates.constant(0.5)
    truth = oracles.dop853(plain(problem), point(state), eta1, eta2, ts, cuts=[6.0])
    scale = np.array([[np.linalg.norm(x.features), np.linalg.norm(x.prototypes), 1.0] for x in truth])
    moved = run(state)
    off = [
        [np.linalg.norm(np.asarray(part)[k] - wanted) for part, wanted in zip(jax.tree.leaves(moved), x, strict=True)]
        for k, x in enumerate(truth)
    ]
    assert np.max(off / scale) <= 10 * tolerance


INVARIANT = ("nc1 nc2 nc2_norms nc2_angles nc3 nc4 self_duality margin average_margin normalized_margin accuracy loss "
             "objective gradient_norm feature_norm prototype_norm bias_norm stable_rank effective_rank").split()  # fmt: skip


@pytest.mark.parametrize("by", ["span", "composed"])
def test_observables_need_no_lift(by):
    """Every invariant observable through `view`, after some motion, is that of the state lifted by hand in NumPy."""
    watch = {name: getattr(dyn.observables, name) for name in INVARIANT}
    loss = CrossEntropy() if by == "span" else Unhinged(0.3)
    problem = dyn.LayerPeeled(EVEN, num_classes=3, loss=loss, decay=DECAY)
    state = start_of(problem, 20)
    x = oracles.loop(plain(problem), point(state), lambda t, s: 0.3, lambda t, s: 0.3, 10, 10)[-1]
    reduction = reduce.span(problem, state) if by == "span" else reduce.spanned(reduce.class_means(problem, state))
    see = reduce.view(reduction, watch)

    @compiled
    def both(x):
        reduced = dyn.descent(reduction.problem, reduction.state, dyn.Rates.equal(0.3), 10, every=10).states
        reduced = jax.tree.map(lambda leaf: leaf[-1], reduced)
        shown = see(reduced, (1 - 0.3 * 0.1) ** 10)
        return {k: f(*shown) for k, f in watch.items()}, {k: f(problem, x) for k, f in watch.items()}, shown[1]

    found, wanted, shown = both(dyn.Peeled(*x))
    assert shown.features.shape == (6, 9)
    for name in watch:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-11, atol=1e-12, err_msg=name)


def test_what_turns_is_observed_lifted():
    problem = dyn.LayerPeeled(EVEN, num_classes=3, loss=CrossEntropy())
    state = start_of(problem, 12)
    reduction = reduce.span(problem, state)
    for watch in (None, {"all": dyn.observables.nc1, "shape": lambda problem, state: state.features}):
        shown = reduce.view(reduction, watch)(reduction.state)
        assert shown[0] is problem and relative(shown[1], state) <= 1e-15


@functools.cache
def of_starts():
    """Lifted descent in the span, members batched: one program."""
    problem = dyn.LayerPeeled(UNSORTED, num_classes=3, loss=CrossEntropy(), decay=dyn.Decay(0.1, 0.2))

    def one(state):
        reduction = reduce.span(problem, state)
        moved = dyn.descent(reduction.problem, reduction.state, dyn.Rates.equal(0.4), 40, every=40)
        return lifted(reduction, moved.states), moved.status

    return problem, jax.jit(jax.vmap(one))


def stacked(states, dtype=float) -> dyn.Peeled:
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves), dtype), *states)


def deficient(problem) -> list[dyn.Peeled]:
    """Starts of every rank: all, no prototypes, nothing at all, equal rows, one line, rows far apart in size."""
    full = start_of(problem, 12)
    h, w = np.asarray(full.features), np.asarray(full.prototypes)
    line = draw(1, 12)
    states = [(h, w), (h, 0 * w), (0 * h, 0 * w), (h[:1] + 0 * h, h[:1] + 0 * w), (h[:, :1] * line, w[:, :1] * line)]
    states += [(1e-9 * h, w), (h[:1] + 1e-14 * h, 1e-7 * w)]
    return [dyn.Peeled(*pair) for pair in states]


def test_starts_of_any_rank():
    problem, run = of_starts()
    states = deficient(problem)
    moved, status = run(stacked(states))
    assert np.all(status == dyn.status.OK)
    rate = oracle_rates.constant(0.4)
    for i, state in enumerate(states):
        truth = oracles.loop(plain(problem), point(state), rate, rate, 40, 40)[-1]
        for part in ("features", "prototypes"):
            found, wanted = np.asarray(getattr(moved, part)[i, -1]), getattr(truth, part)
            assert np.linalg.norm(found - wanted) <= 1e-12 * np.linalg.norm(wanted), (i, part)


def test_a_bad_member_changes_no_bit_of_the_others():
    problem, run = of_starts()
    states = deficient(problem)
    before, _ = run(stacked(states))
    spoiled = np.asarray(states[1].features).copy()
    spoiled[2, 3] = np.nan
    after, status = run(stacked([states[0], dyn.Peeled(spoiled, states[1].prototypes), *states[2:]]))
    others = np.arange(len(states)) != 1
    assert status[1] == dyn.status.BAD_INPUT and np.all(status[others] == dyn.status.OK)
    assert all(np.array_equal(a[others], b[others]) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))


def test_float32():
    problem, run = of_starts()
    states = deficient(problem)
    moved, _ = run(stacked(states, np.float32))
    truth, _ = run(stacked([dyn.Peeled(*(np.asarray(part, np.float32).astype(float) for part in point(s))) for s in states]))
    assert moved.features.dtype == moved.prototypes.dtype == jnp.float32
    assert relative(moved, truth) <= 3e-6


def test_basis_of_rows_that_repeat():
    """Collapsed features: rounding of one row must not take a part of another with it."""
    starts = [(draw(10, 512, seed=2 * k), draw(10, 512, seed=2 * k + 1)) for k in range(40)]
    rows = np.stack([np.concatenate([np.repeat(0.03 * means, 10, axis=0), 0.1 * prototypes]) for means, prototypes in starts])
    basis = np.asarray(jax.jit(jax.vmap(orthonormal))(rows))
    held = np.einsum("bik,bkd->bid", np.einsum("bid,bkd->bik", rows, basis), basis)
    np.testing.assert_allclose(held, rows, atol=1e-15)
    np.testing.assert_array_equal(np.round(np.sum(basis**2, axis=(1, 2)), 12), 20.0)


def test_basis_of_rows_near_and_far():
    """Orthonormal or zero, and every row held to its own rounding, where directions differ by little or sizes by much."""
    rows = draw(40, 41)
    cases = [
        rows,
        rows[:1] + 1e-8 * rows,
        rows[:1] + 1e-15 * rows,
        rows[:, :5] @ draw(5, 41),
        np.tile(rows[:4], (10, 1)),
        10.0 ** np.linspace(-250, 250, 40)[:, None] * rows,
        np.where(np.arange(40)[:, None] < 20, rows, 0.0),
        1 / (np.arange(40)[:, None] + np.arange(41) + 1.0),
    ]
    for k, basis in enumerate(jax.jit(jax.vmap(orthonormal))(np.stack(cases))):
        basis, x = np.asarray(basis), cases[k] / np.maximum(np.abs(cases[k]).max(axis=1, keepdims=True), 1e-300)
        gram = basis @ basis.T
        assert np.abs(gram - np.diag(np.round(np.diag(gram)))).max() <= 1e-14, k
        assert np.abs(x @ basis.T @ basis - x).max() <= 5e-14, k


@pytest.mark.parametrize("by", ["span", "composed"])
def test_gradients_with_respect_to_start_and_decay(by):
    linear = by == "composed"
    problem = dyn.LayerPeeled(EVEN, num_classes=3, loss=Unhinged(0.3) if linear else CrossEntropy(), bias=not linear)
    state, weights = start_of(problem, 12), draw(9, 12)

    def value(reduced, state, decay):
        decayed = dyn.LayerPeeled(EVEN, num_classes=3, loss=problem.loss, bias=problem.bias, decay=dyn.Decay(decay, 0.2))
        one = decayed, state
        if reduced:
            reduction = reduce.spanned(reduce.class_means(*one)) if linear else reduce.span(*one)
            one = reduction.problem, reduction.state
        moved = jax.tree.map(lambda x: x[-1], dyn.descent(*one, dyn.Rates.equal(0.3), 20, every=20, momentum=0.5).states)
        if reduced:
            kept = reduce.kept_in_descent(decayed, dyn.Rates.equal(0.3), 20, 20, momentum=0.5)[-1]
            moved = reduction.lift(moved, kept)
        return jnp.sum(weights * jnp.concatenate([moved.features, moved.prototypes])) + jnp.sum(moved.biases)

    found, wanted = (compiled(jax.grad(functools.partial(value, on), (0, 1)))(state, 0.1) for on in (True, False))
    assert relative(found, wanted) <= 1e-10


@hypothesis.settings(max_examples=4)
@hypothesis.given(
    sizes=st.lists(st.integers(1, 3), min_size=2, max_size=4),
    more=st.integers(1, 20),
    loss=st.sampled_from([CrossEntropy(), SquaredError(), Unhinged(0.7)]),
    scale=st.floats(-4, 0.5),
    seed=st.integers(0, 2**16),
)
def test_any_size_moves_in_its_span(sizes, more, loss, scale, seed):
    problem = dyn.LayerPeeled(np.repeat(np.arange(len(sizes)), sizes), num_classes=len(sizes), loss=loss, decay=DECAY)
    state = jax.tree.map(lambda x: 10**scale * x, start_of(problem, problem.num_samples + len(sizes) + more, seed=seed))
    reduction = reduce.span(problem, state)
    assert reduction.state.features.shape[1] == problem.num_samples + len(sizes)
    rate = oracle_rates.constant(0.3)
    small, truth = (oracles.loop(plain(problem), point(s), rate, rate, 30, 30)[-1] for s in (reduction.state, state))
    assert relative(reduction.lift(dyn.Peeled(*small)), dyn.Peeled(*truth)) <= 1e-12


NC1, OWN = {"nc1": dyn.observables.nc1}, {"own": lambda problem, state: state.features}


@pytest.mark.parametrize(
    ("fields", "dim", "options", "kind"),
    [
        ({"loss": CrossEntropy()}, 64, {"observe": NC1}, reduce.Span),
        ({"loss": CrossEntropy()}, 9, {"observe": NC1}, None),
        ({"loss": CrossEntropy()}, 11, {"observe": NC1}, None),  # two coordinates fewer are no gain worth a basis
        ({"loss": CrossEntropy()}, 64, {"observe": None, "saves": 10**3}, None),
        ({"loss": CrossEntropy()}, 64, {"observe": OWN, "saves": 10**3}, None),
        ({"loss": CrossEntropy()}, 64, {"observe": None, "forces": 10**4}, reduce.Span),
        ({"loss": CrossEntropy(), "feature_kernel": np.eye(64)}, 64, {"observe": NC1}, None),
        ({"loss": Unhinged(), "normalize": True, "anchored": True, "adjusted": 0.1}, 64, {"observe": NC1}, None),
        ({"loss": Unhinged()}, 64, {"observe": NC1}, reduce.Span),  # samples that are not known to be treated alike
        ({"loss": Unhinged()}, 64, {"observe": NC1, "alike": True, "forces": 10**4}, reduce.Composed),
        ({"loss": Unhinged()}, 5, {"observe": None, "alike": True}, reduce.ClassMeans),
        ({"loss": Unhinged(), "feature_kernel": np.eye(64)}, 64, {"observe": None, "alike": True}, reduce.ClassMeans),
        ({"loss": Unhinged(), "bias": True}, 5, {"observe": None, "alike": True}, None),
        ({"loss": Linear(draw(6, 3))}, 5, {"observe": None, "alike": True}, None),
        ({"loss": CrossEntropy()}, 5, {"observe": None, "alike": True}, None),
    ],
)
def test_the_choice(fields, dim, options, kind):
    problem = dyn.LayerPeeled(EVEN, num_classes=3, **fields)
    shapes = jax.eval_shape(lambda state: reduce.choose(problem, state, **options), start_of(problem, dim))
    assert isinstance(shapes, kind or type(None))


def test_a_problem_that_may_move_otherwise_is_left_alone():
    class Other(dyn.LayerPeeled):
        pass

    other = Other(EVEN, num_classes=3)
    assert reduce.choose(other, start_of(other, 64), observe=NC1, alike=True) is None
