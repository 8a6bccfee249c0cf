"""The kernels, interpreted, against SciPy and NumPy; and that they lower for CUDA on a machine without a GPU."""

import functools
import math
import warnings
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from scipy.integrate import solve_ivp

import dynamics as dyn
from benchmarks.ensemble_gpu import ensemble_gpu, field_kernel, lorenz_field, races
from dynamics.simulate.kernel import kernel_descent, kernel_flow
from dynamics.simulate.kernel_step import Step, Stepper, taken, within
from tests import oracles

schedules, status = dyn.schedules, dyn.status


class Halved(schedules.Schedule):
    """A user's own schedule: half as fast from a time on."""

    value: float
    at: float

    def __call__(self, t):
        return jnp.where(t < self.at, self.value, self.value / 2) * jnp.ones_like(t)

    def integral(self, t):
        return self.value * (t - jnp.maximum(t - self.at, 0.0) / 2)

    def jumps(self):
        return jnp.reshape(jnp.asarray(self.at), (1,))

    def peak(self):
        return jnp.asarray(self.value)


class Case(NamedTuple):
    """A problem for the library and for the oracle; two members, `dim` and labels are static."""

    labels: tuple[int, ...]
    dim: int
    loss: str
    decay: tuple[float, float, float] = (0.02, 0.03, 0.01)
    bias: bool = False
    anchored: bool = False
    weighted: bool = False
    scheduled: bool = False

    @property
    def classes(self) -> int:
        return max(self.labels) + 1

    @property
    def weights(self) -> np.ndarray | None:
        if not self.weighted:
            return None
        weights = np.random.default_rng(1).uniform(0.3, 2.0, len(self.labels))
        return weights / weights.mean()

    @property
    def rows(self) -> np.ndarray | None:
        """The coupling of a linear loss, one row a sample."""
        samples, labels = len(self.labels), np.asarray(self.labels)
        if self.loss == "by_label":
            return np.random.default_rng(2).normal(size=(self.classes, self.classes))[labels]
        if self.loss == "unhinged":
            rows = np.full((samples, self.classes), -1 / (self.classes - 1))
            rows[np.arange(samples), labels] = 1.0
            return rows
        return None

    def problem(self) -> dyn.LayerPeeled:
        losses: dict[str, Any] = {
            "cross_entropy": dyn.losses.CrossEntropy,
            "squared_error": dyn.losses.SquaredError,
            "unhinged": dyn.losses.Unhinged,
            "by_label": lambda: dyn.losses.Linear(np.random.default_rng(2).normal(size=(self.classes, self.classes))),
        }
        return dyn.LayerPeeled(
            self.labels,
            num_classes=self.classes,
            loss=losses[self.loss](),
            decay=dyn.Decay(*self.decay),
            bias=self.bias,
            anchored=self.anchored,
            sample_weights=self.weights,
        )

    def plain(self) -> oracles.Plain:
        kind = self.loss if self.rows is None else "linear"
        return oracles.Plain(
            np.asarray(self.labels),
            loss=kind,
            rows=self.rows,
            weights=self.weights,
            decay=self.decay,
            bias=self.bias,
            anchored=self.anchored,
        )

    def starts(self, members: int = 2) -> dyn.Peeled:
        rng = np.random.default_rng(len(self.labels))
        shapes = ((len(self.labels), self.dim), (self.classes, self.dim), (self.classes,))
        return dyn.Peeled(*(rng.normal(size=(members, *shape)) for shape in shapes))

    def rates(self) -> tuple[dyn.Rates, Any, Any]:
        """The library's rates and the oracle's; the scheduled ones have a kink and a jump at 3."""
        if not self.scheduled:
            return dyn.Rates(0.9, 0.6), lambda t, _: 0.9, lambda t, _: 0.6
        rates = dyn.Rates(schedules.Cosine(0.9, horizon=3.0, floor=0.2), schedules.Exponential(0.6, 0.1))
        return (
            rates,
            lambda t, _: 0.2 + 0.7 * (1 + math.cos(math.pi * min(t / 3, 1))) / 2,
            lambda t, _: 0.6 * math.exp(-0.1 * t),
        )


CASES = {
    "cross-entropy, uneven classes, weights, biases": Case((0, 0, 0, 1, 2), 5, "cross_entropy", bias=True, weighted=True),
    "cross-entropy, two classes, no decay, dim 1, scheduled": Case(
        (0, 1, 1), 1, "cross_entropy", decay=(0.0, 0.0, 0.0), scheduled=True
    ),
    "squared error, dim < classes - 1, biases stay": Case((0, 1, 2, 3, 3), 2, "squared_error"),
    "unhinged, uneven, biases": Case((0, 1, 2, 2), 3, "unhinged", bias=True, weighted=True),
    "linear by label, anchored, scheduled": Case((0, 0, 1, 2), 4, "by_label", anchored=True, scheduled=True),
}
SMALL = CASES["squared error, dim < classes - 1, biases stay"]
TS = np.array([0.0, 0.7, 2.9, 5.0])


def point(states: dyn.Peeled, *index) -> oracles.Point:
    return oracles.Point(*(np.asarray(part)[index] for part in (states.features, states.prototypes, states.biases)))


def compiled(function):
    """Compiled in a hurry: these programs run for milliseconds."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def vmapped(verb, case: Case, *args, **options):
    problem, (rates, _, _) = case.problem(), case.rates()
    return compiled(jax.vmap(lambda start: verb(problem, start, rates, *args, **options)))


SLOW = (
    "unhinged, uneven, biases",
    "cross-entropy, two classes, no decay, dim 1, scheduled",
    "linear by label, anchored, scheduled",
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES])
def test_flow_is_the_reference_solution(name):
    case = CASES[name]
    starts = case.starts()
    moved = vmapped(kernel_flow, case, TS, rtol=1e-9, atol=1e-9)(starts)
    assert np.all(moved.status == status.OK)
    _, eta1, eta2 = case.rates()
    for member in range(2):
        truth = oracles.dop853(case.plain(), point(starts, member), eta1, eta2, TS, cuts=[3.0])
        for i, state in enumerate(truth):
            assert oracles.relative(point(moved.states, member, i), state) < 3e-8


DESCENTS = {
    "cross-entropy, uneven classes, weights, biases": {"momentum": 0.7},
    "cross-entropy, two classes, no decay, dim 1, scheduled": {"dt": 0.1},
    "squared error, dim < classes - 1, biases stay": {"momentum": 0.6, "nesterov": True, "dt": 0.3},
    "unhinged, uneven, biases": {},
    "linear by label, anchored, scheduled": {"momentum": 0.5, "dt": 0.1},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES])
def test_descent_is_the_loop(name):
    case, options = CASES[name], DESCENTS[name]
    starts = case.starts()
    moved = vmapped(kernel_descent, case, 40, every=10, **options)(starts)
    assert np.all(moved.status == status.OK)
    assert np.all(moved.stats["steps"] == 40)
    assert np.array_equal(moved.ts[0], [0, 10, 20, 30, 40])
    _, eta1, eta2 = case.rates()
    for member in range(2):
        for i, state in enumerate(oracles.loop(case.plain(), point(starts, member), eta1, eta2, 40, 10, **options)):
            assert oracles.relative(point(moved.states, member, i), state) < 1e-12


def members(scales: list[float]) -> dyn.Peeled:
    """Starts of the small case, one a scale."""
    return jax.tree.map(lambda leaf: leaf[:1] * np.reshape(scales, (-1,) + (1,) * (leaf.ndim - 1)), SMALL.starts())


def same_bits(a, b) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@functools.cache
def small_flow(method: str, case: Case = SMALL):
    """Relaxed tolerances, few steps."""
    options: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6, "max_steps": 150}
    if method == "kernel":
        return vmapped(kernel_flow, case, TS, **options)
    return vmapped(dyn.flow, case, TS, **options, method=method)


def test_flow_takes_the_steps_of_the_general_method_and_ends_alike():
    for scales in ([1.0, 0.3, np.nan, 20.0], [1e200, 0.0, 2.0, 0.5]):
        mine, other = (small_flow(method)(members(scales)) for method in ("kernel", "general"))
        assert mine.status.tolist() == other.status.tolist()
        assert mine.stats["steps"].tolist() == other.stats["steps"].tolist()
        np.testing.assert_allclose(mine.stats["t_end"], other.stats["t_end"], rtol=1e-9)
        for a, b in zip(*map(jax.tree.leaves, (mine.states, other.states)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)
    assert mine.status.tolist() == [status.NORM_CAP, status.OK, status.OK, status.OK]


@pytest.mark.slow
def test_flow_takes_the_steps_of_the_general_method_across_a_jump():
    case = CASES["linear by label, anchored, scheduled"]
    mine, other = (small_flow(method, case)(case.starts()) for method in ("kernel", "general"))
    assert mine.stats["steps"].tolist() == other.stats["steps"].tolist()


def test_no_step_goes_across_a_jump():
    def velocity(t, y):
        return (jnp.where(t < 1.0, -y[0], 5 - y[0]),)

    stepper = Stepper(velocity, lambda parts: parts[0], 1, jnp.asarray(2.0), 1e-8, 1e-8, jnp.asarray([1.0, np.inf]))
    moving, ends, attempt = stepper.at_rest((jnp.asarray(1.0),), 0.01), [], jax.jit(stepper.attempt)
    while stepper.ahead(moving):
        moving, _ = attempt(moving)
        ends.append(float(moving.t))
        if ends[-1] == 1.0:
            np.testing.assert_allclose(moving.k[0], 5 - moving.y[0], rtol=1e-14)
    assert 1.0 in ends and ends[-1] == 2.0 and len(ends) < 40
    np.testing.assert_allclose(moving.y[0], 5 + (math.exp(-1) - 5) * math.exp(-1), rtol=1e-7)


def test_a_bad_member_changes_no_other_by_a_bit():
    descent, general = (
        vmapped(verb, SMALL, 40, every=10, norm_cap=1e3, **method)
        for verb, method in ((kernel_descent, {}), (dyn.descent, {"method": "general"}))
    )
    bad = members([1.0, np.nan, 1e120, 20.0])
    for verb in (small_flow("kernel"), descent):
        alone, crowd = verb(members([1.0, 0.5, 0.4, 0.3])), verb(bad)
        assert same_bits(*(jax.tree.map(lambda leaf: leaf[0], moved) for moved in (alone, crowd)))
        assert np.all(alone.status == status.OK)
    moved = small_flow("kernel")(bad)
    assert moved.status.tolist() == [status.OK, status.BAD_INPUT, status.NON_FINITE, status.MAX_STEPS]
    assert np.all(np.isfinite(moved.states.features[0])) and np.all(np.isnan(moved.states.features[1]))
    moved, other = (verb(members([1.0, np.nan, 1e200, 20.0])) for verb in (descent, general))
    assert moved.status.tolist() == other.status.tolist() == [status.OK, status.BAD_INPUT, status.NORM_CAP, status.NORM_CAP]
    assert moved.stats["steps"].tolist() == other.stats["steps"].tolist()
    assert np.array_equal(np.isnan(moved.states.features), np.isnan(other.states.features))


def test_observables_are_those_of_the_states():
    def norms(problem, state):
        return jnp.sum(state.features**2) + jnp.sum(state.prototypes**2)

    case = CASES["unhinged, uneven, biases"]
    moved = vmapped(kernel_descent, case, 20, every=10, observe={"norms": norms})(case.starts())
    _, eta1, eta2 = case.rates()
    truth = oracles.loop(case.plain(), point(case.starts(), 1), eta1, eta2, 20, 10)
    expected = [np.sum(state.features**2) + np.sum(state.prototypes**2) for state in truth]
    np.testing.assert_allclose(moved.observed["norms"][1], expected, rtol=1e-12)
    assert moved.states is None


def test_float32_keeps_time_to_a_million():
    """Decay holds the steps to about a thousand; the biases count the time."""
    case = Case((0, 1, 2, 2), 3, "unhinged", decay=(1.0, 1.0, 0.0), bias=True)
    start = jax.tree.map(lambda leaf: leaf[0].astype(jnp.float32), case.starts())
    rates, ts = dyn.Rates.equal(0.003), np.array([1e3, 1e6])
    moved = compiled(lambda start: kernel_flow(case.problem(), start, rates, ts, max_steps=1_000_000))(start)
    assert moved.states.biases.dtype == moved.ts.dtype == jnp.float32
    assert moved.status == status.OK and moved.stats["t_end"] == 1e6
    assert moved.stats["steps"] > 500
    drift = 0.003 * np.mean(case.rows, axis=0)
    np.testing.assert_allclose(moved.states.biases, start.biases + ts[:, None] * drift, rtol=1e-5, atol=2e-4)


def test_the_clock_moves_where_a_step_is_less_than_its_rounding():
    start, end = np.float32(1e6), np.float32(1e6 + 1)  # neighbours are 1/16 apart; steps are 1/1000

    def velocity(t, y):
        return (-3000 * y[0], jnp.ones_like(y[1]))

    stepper = Stepper(velocity, lambda parts: sum(parts), 2, jnp.asarray(end), 1e-4, 1e-4)
    begin = stepper.at_rest((jnp.asarray(np.float32(1.0)), jnp.asarray(np.float32(0.0))), 1e-3)

    @jax.jit
    def run(moving):
        return jax.lax.while_loop(
            lambda moving: stepper.ahead(moving) & (moving.steps < 10_000), lambda moving: stepper.attempt(moving)[0], moving
        )

    moved = run(begin._replace(t=jnp.asarray(start)))
    assert 300 < moved.steps < 3000
    assert moved.t == end
    assert abs(moved.y[1] - 1) < 1e-4


def test_a_step_is_of_fifth_order_and_its_interpolation_is_that_of_diffrax():
    exact = solve_ivp(
        lambda t, y: lorenz_field(t, y, (21.0,)), (0, 1), [1.0, 0.0, 0.0], method="DOP853", rtol=1e-13, atol=1e-14
    )

    @jax.jit
    def run(steps):
        def velocity(_, y):
            return lorenz_field(0.0, y, (21.0,))

        def step(_, carry):
            y, stages = taken(velocity, *carry, 1 / steps)
            return y, stages[-1]

        y = (jnp.asarray(1.0), jnp.asarray(0.0), jnp.asarray(0.0))
        return jnp.stack(jax.lax.fori_loop(0, steps, step, (y, velocity(0.0, y)))[0])

    errors = [np.linalg.norm(run(steps) - exact.y[:, -1]) for steps in (100, 200, 400)]
    orders = np.log2(errors[:-1]) - np.log2(errors[1:])
    assert np.all((orders > 4.4) & (orders < 5.6)), orders

    rng = np.random.default_rng(0)
    y, k, h, where = rng.normal(size=3), rng.normal(size=(7, 3)), 0.3, 0.37
    curve = diffrax.Tsit5.interpolation_cls(t0=0.0, t1=h, y0=jnp.asarray(y), y1=None, k=jnp.asarray(h * k))
    mine = within(Step((y,), [(slope,) for slope in k], np.True_), h, where)
    np.testing.assert_allclose(mine[0], curve.evaluate(where * h), rtol=1e-13)


def test_a_row_of_small_systems_is_the_reference_solution_member_by_member():
    rho = np.array([0.0, 1.0, 5.0, 13.0, 21.0])  # not a whole number of rows
    start = (np.ones(5), np.zeros(5), np.zeros(5))
    run = jax.jit(field_kernel(lorenz_field, 1.0, tolerance=1e-9, block=4))
    y, steps = run(start, (rho,))
    for i, one in enumerate(rho):
        exact = solve_ivp(
            lambda t, y, one=one: lorenz_field(t, y, (one,)), (0, 1), [1.0, 0, 0], method="DOP853", rtol=1e-12, atol=1e-13
        )
        np.testing.assert_allclose([part[i] for part in y], exact.y[:, -1], rtol=1e-6, atol=1e-9)
    assert len(set(steps.tolist())) > 2
    mates, _ = run(start, (np.array([0.0, np.nan, 500.0, 13.0, 21.0]),))
    assert all(
        np.array_equal(a[[0, 3, 4]], b[[0, 3, 4]]) for a, b in zip(map(np.asarray, y), map(np.asarray, mates), strict=True)
    )


def primitives(jaxpr, loop: str = "") -> set[str]:
    """The names of all primitives, those of inner functions included; those inside a loop after `loop `."""
    names = set()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        names.add(loop + name)
        inner = "loop " if name in ("while", "scan", "pallas_call") else loop
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: isinstance(leaf, Jaxpr | ClosedJaxpr)):
            if isinstance(value, Jaxpr | ClosedJaxpr):
                names |= primitives(value if isinstance(value, Jaxpr) else value.jaxpr, inner)
    return names


VERBS = {
    "flow": lambda problem, start: dyn.flow(problem, start, dyn.Rates.equal(1.0), TS, method="general"),
    "descent": lambda problem, start: dyn.descent(problem, start, dyn.Rates.equal(0.1), 20, every=10, method="general"),
    "kernel_flow": lambda problem, start: kernel_flow(problem, start, dyn.Rates.equal(1.0), TS),
    "kernel_descent": lambda problem, start: kernel_descent(problem, start, dyn.Rates.equal(0.1), 20, every=10),
}


@pytest.mark.parametrize("name", VERBS)
def test_no_loop_calls_back_to_the_host(name):
    """Diffrax checks its arguments once, before its loop, by a callback that runs where one fails; else there is none."""
    start = jax.tree.map(lambda leaf: leaf[0], SMALL.starts())
    names = primitives(jax.make_jaxpr(lambda start: VERBS[name](SMALL.problem(), start))(start).jaxpr)
    calls = {one for one in names if "callback" in one or "infeed" in one or "outfeed" in one}
    assert any(one.startswith("loop ") for one in names)
    assert calls <= ({"pure_callback"} if name == "flow" else set())


def exported(function, *args, platforms=("cuda",)) -> str:
    """The program for platforms that are not at hand."""
    safe = [jax.export.DisabledSafetyCheck.custom_call(TRITON)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)
        if not hasattr(jax.sharding, "AbstractDevice"):
            return jax.export.export(jax.jit(function), platforms=platforms, disabled_checks=safe)(*args).mlir_module()
        # later versions of JAX ask which GPU it is for
        gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
        axes = (jax.sharding.AxisType.Auto,)
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), axis_types=axes, abstract_device=gpu)):
            return jax.export.export(jax.jit(function), platforms=platforms, disabled_checks=safe)(*args).mlir_module()


TRITON = "__gpu$xla.gpu.triton"


def benchmark_size(dtype) -> tuple[dyn.LayerPeeled, dyn.Peeled]:
    """FLOW-S and GD-S: 4 classes of 5 samples, dim 16; three members."""
    problem = dyn.LayerPeeled.balanced(4, 5, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(5e-3, 5e-3))
    return problem, dyn.Peeled(*(jnp.zeros((3, *shape), dtype) for shape in ((20, 16), (4, 16), (4,))))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_kernels_lower_for_cuda(dtype):
    problem, starts = benchmark_size(dtype)
    rates = dyn.Rates(schedules.Cosine(0.1, horizon=50.0), schedules.Warmup(3.0, schedules.Constant(0.2)))

    def flow(start):
        return kernel_flow(problem, start, rates, jnp.linspace(2.0, 100.0, 50), rtol=1e-4, atol=1e-4).states

    def descent(start):
        return kernel_descent(problem, start, rates, 2000, every=40, momentum=0.9, nesterov=True).states

    for verb in (flow, descent) if dtype == jnp.float32 else (flow,):
        text = exported(jax.vmap(verb), starts)
        assert text.count(TRITON) == 1
        assert "callback" not in text
    wide = dyn.LayerPeeled.balanced(16, 1, loss=dyn.losses.SquaredError(), bias=True)
    start = dyn.Peeled(jnp.zeros((16, 16), dtype), jnp.zeros((16, 16), dtype))
    assert TRITON in exported(lambda start: kernel_descent(wide, start, rates, 10).states, start)
    rho = jnp.zeros(1000, dtype)
    for steps in (1000, None):
        assert TRITON in exported(
            lambda rho, steps=steps: field_kernel(lorenz_field, 1.0, steps=steps)((rho,) * 3, (rho,)), rho
        )


def test_the_other_paths_lower_for_cuda_and_tpu():
    problem, starts = benchmark_size(jnp.float32)
    linear, rates = dyn.LayerPeeled.balanced(4, 5, decay=dyn.Decay(5e-3, 5e-3)), dyn.Rates.equal(0.1)
    verbs = (
        lambda start: dyn.descent(problem, start, rates, 100, every=50, method="general").states,
        lambda start: dyn.exact.flow(linear, start, rates, jnp.linspace(0.0, 9.0, 4)).states,
    )
    for verb in verbs:
        text = exported(jax.vmap(verb), starts, platforms=("cuda", "tpu"))
        assert "callback" not in text and TRITON not in text


def refused(**changed):
    fields: dict[str, Any] = {"loss": dyn.losses.CrossEntropy(), **changed}
    return dyn.LayerPeeled((0, 1, 2), num_classes=3, **fields)


class Cubed(dyn.losses.Loss):
    def __call__(self, logits, label):
        return jnp.sum(logits**3)


REFUSED = {
    "normalize=True": refused(normalize=True),
    "kernel": refused(kernel=np.eye(3)),
    "feature_kernel": refused(feature_kernel=np.eye(2)),
    "bias='slaved'": refused(loss=dyn.losses.SquaredError(), bias="slaved"),
    "Cubed": refused(loss=Cubed()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_problem_that_does_not_fit_is_refused_by_name(what):
    start = dyn.Peeled(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match=what):
        kernel_flow(REFUSED[what], start, dyn.Rates.equal(1.0), TS)
    with pytest.raises(ValueError, match=what):
        kernel_descent(REFUSED[what], start, dyn.Rates.equal(1.0), 10)


def test_rates_sizes_and_options_that_do_not_fit_are_refused_by_name():
    problem, start = refused(), dyn.Peeled(np.ones((3, 2)), np.ones((3, 2)))
    piecewise = schedules.Piecewise([0.1, 0.2], [1.0])
    with pytest.raises(ValueError, match="rates.weights is a Piecewise"):
        kernel_descent(problem, start, dyn.Rates(0.1, piecewise), 10)
    with pytest.raises(ValueError, match="rescaled"):
        kernel_descent(problem, start, dyn.Rates(0.1, 0.1, rescaled=True), 10)
    with pytest.raises(ValueError, match="interpret must be"):
        kernel_descent(problem, start, dyn.Rates.equal(0.1), 10, interpret="yes")
    with pytest.raises(ValueError, match="fast memory.*dim 5000"):
        kernel_descent(problem, dyn.Peeled(np.ones((3, 5000)), np.ones((3, 5000))), dyn.Rates.equal(0.1), 10)
    with pytest.raises(ValueError, match="float32 or float64"):
        kernel_descent(problem, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float16), start), dyn.Rates.equal(0.1), 10)
    with pytest.raises(ValueError, match="max_steps"):
        kernel_flow(problem, start, dyn.Rates.equal(0.1), TS, max_steps=0)


def test_without_pallas_for_triton_the_kernel_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr("jax.experimental.pallas.triton", raising=False)
    start = dyn.Peeled(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="needs Pallas for Triton"):
        kernel_descent(refused(), start, dyn.Rates.equal(0.1), 10)


def test_without_a_gpu_the_benchmark_says_so():
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    said = ensemble_gpu()
    assert isinstance(said, str) and "GPU" in said


@pytest.mark.slow
def test_the_benchmark_runs_at_a_small_size():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*rounding may dominate")
        rows = races((8,), 8, repeats=1)
    assert len(rows) == 10
    assert all(row["error"] < 1e-4 for row in rows)
