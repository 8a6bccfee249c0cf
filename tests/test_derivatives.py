"""First derivatives of the four verbs against central differences, and their finiteness at every special point."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.schedules import Constant, Cosine, Piecewise
from tests import cases, oracles
from tests.cases import Shape, balanced

BALANCED = Shape(balanced(3, 2), 2)
GROUPS = Shape((2, 0, 1, 0, 3, 0, 1), 2)  # sizes 3, 2, 1, 1
BY_LABEL = Shape((0, 2, 1, 0), 2, loss="by_label", kernel=True, feature_kernel=True)
ANCHORED = Shape((0, 2, 1, 0), 2, anchored=True)
STENCIL = {"central": ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))}
STENCIL["forward"] = ((0, -25 / 12), (1, 4.0), (2, -3.0), (3, 4 / 3), (4, -1 / 4))


def points(shape: Shape) -> dict[str, cases.Numbers]:
    """A generic point, and the points at which a printed formula divides by zero or a mode changes its kind."""
    x = cases.member(cases.numbers(shape, 1, 4, decay=True), 0)
    x["gamma"], x["rates"], x["ts"] = np.array(0.21), np.array([0.8, 0.5]), np.array([1.1, 12.0])
    x["cuts"], x["horizon"], x["momentum"] = np.array([0.6, 2.3]), np.array(7.07), np.array(0.6)
    optimum, still = 1 / (shape.classes - 1), np.zeros(3)
    critical = 1.21 / shape.classes / np.sqrt(shape.samples / shape.classes)
    return {
        "generic": x,
        "no decay": x | {"decay": still},
        "start": x | {"ts": np.array([0.0, 12.0])},
        "gamma 0": x | {"gamma": np.array(0.0)},
        "gamma 0, no decay": x | {"gamma": np.array(0.0), "decay": still},
        "optimum": x | {"gamma": np.array(optimum)},
        "optimum, no decay": x | {"gamma": np.array(optimum), "decay": still},
        # both sides of the mean mode decay alike: its discriminant is zero at all times
        "r = 0": x | {"gamma": np.array(optimum), "decay": np.array([0.25, 0.4, 0.1])},
        "critical decay": x | {"decay": np.full(3, critical)},
        "tie": x | {"gamma": np.array(2 / (shape.classes - 2)), "decay": still},
        "equal": x | {"rates": np.array([1.0, 0.5]), "decay": np.full(3, 0.1)},
        "equal, no decay": x | {"rates": np.array([1.0, 0.5]), "decay": still},
        "no rate": x | {"rates": np.zeros(2)},
        "features still": x | {"rates": np.array([0.0, 0.5])},
        "weights still": x | {"rates": np.array([0.8, 0.0]), "decay": still},
    }


def number(moved: dyn.Trajectory) -> jax.Array:
    """A generic linear functional of all states, plus the last log-norm of scaled ones."""
    flat, _ = jax.flatten_util.ravel_pytree(moved.states)
    total = jnp.sum(flat * jnp.asarray(np.random.default_rng(0).normal(size=flat.shape)))
    return total if moved.log_scale is None else total + jnp.sum(moved.log_scale)


def directions(x: cases.Numbers, fixed: tuple[str, ...]) -> list[tuple[str, str, cases.Numbers]]:
    """Every hyper-parameter by itself, a random direction of each part of the start; what is at its lower end moves up."""
    rng = np.random.default_rng(1)
    zero = {name: np.zeros_like(values) for name, values in x.items()}
    result = []
    for name, values in x.items():
        if name in fixed:
            continue
        if values.size > 3 or name == "biases":
            result.append((name, "central", zero | {name: rng.normal(size=values.shape)}))
            continue
        for i, value in enumerate(values.ravel()):
            unit = np.reshape(np.arange(values.size) == i, values.shape).astype(float)
            result.append((f"{name}[{i}]", "forward" if value == 0 else "central", zero | {name: unit}))
    return result


def worst_gap(one, at: dict[str, cases.Numbers], step: float, fixed: tuple[str, ...] = ()) -> float:
    """The largest relative gap between derivatives and fourth-order differences; NaN where one is not finite.

    `one` maps numbers to a scalar; everything runs in one compiled program.
    """
    ways = [(place, *way) for place, x in at.items() for way in directions(x, fixed)]
    shifted = [
        {name: at[place][name] + k * step * way[name] for name in way} for place, _, kind, way in ways for k, _ in STENCIL[kind]
    ]
    batch = [*at.values(), *shifted]
    batch = {name: np.stack([x[name] for x in batch]) for name in batch[0]}
    # a derivative is right or wrong as it is traced: cheap code generation will do
    run = jax.jit(jax.vmap(jax.value_and_grad(one)), compiler_options={"xla_backend_optimization_level": 0})
    values, gradients = run(batch)
    values, gradients = np.asarray(values), jax.tree.map(np.asarray, gradients)
    gaps, k = [], len(at)
    for place, _, kind, way in ways:
        slope = sum(np.sum(gradients[part][list(at).index(place)] * way[part]) for part in way)
        difference = sum(weight * values[k + j] for j, (_, weight) in enumerate(STENCIL[kind])) / step
        k += len(STENCIL[kind])
        gaps.append(abs(slope - difference) / max(abs(difference), 0.1))
    return oracles.worst(gaps)


FLOWS = {
    "balanced-scaled": (BALANCED, True),
    "groups-scaled": (GROUPS, True),
    "by-label": (BY_LABEL, False),
    "anchored": (ANCHORED, False),
}


def shown(shape: Shape) -> dict[str, cases.Numbers]:
    """All points; under a kernel and a generic coupling gamma is not there to be special."""
    return {k: v for k, v in points(shape).items() if shape.loss == "unhinged" or "gamma" not in k}


@pytest.mark.parametrize("name", FLOWS)
def test_exact_flow(name):
    shape, scaled = FLOWS[name]

    def one(x):
        rates = dyn.Rates.proportional(Constant(x["rates"][1]), x["rates"][0])
        return number(dyn.exact.flow(cases.problem(shape, x), cases.start(x), rates, x["ts"], scaled=scaled))

    unused = "cuts", "horizon", "momentum", "kernel", "feature_kernel"
    assert worst_gap(one, shown(shape), 1e-3, unused) <= 1e-6


@pytest.mark.slow
def test_exact_flow_between_jumps():
    def one(x):
        weights = Piecewise(x["rates"][1] * jnp.array([1.0, 0.2, 2.0]), x["cuts"])
        rates = dyn.Rates(Cosine(x["rates"][0], x["horizon"]), weights)
        return number(dyn.exact.flow(cases.problem(BALANCED, x), cases.start(x), rates, x["ts"]))

    kept = "generic", "start", "gamma 0, no decay", "r = 0", "critical decay", "equal, no decay", "no rate"
    assert worst_gap(one, {name: points(BALANCED)[name] for name in kept}, 1e-3, ("momentum",)) <= 1e-6


def test_exact_descent():
    def one(x):
        rates = dyn.Rates(Cosine(x["rates"][0], x["horizon"]), x["rates"][1])
        run = {"dt": x["ts"][1] / 40, "momentum": x["momentum"]}
        return number(dyn.exact.descent(cases.problem(GROUPS, x), cases.start(x), rates, 40, every=10, **run))

    assert worst_gap(one, points(GROUPS), 1e-3, ("cuts",)) <= 1e-6


def test_descent():
    def one(x):
        rates = dyn.Rates(Cosine(x["rates"][0], x["horizon"]), x["rates"][1])
        run = {"dt": x["ts"][1] / 40, "momentum": x["momentum"], "nesterov": True}
        return number(dyn.descent(cases.problem(BALANCED, x), cases.start(x), rates, 40, every=10, **run))

    assert worst_gap(one, points(BALANCED), 1e-3, ("cuts",)) <= 1e-6


def test_flow():
    def one(x):
        rates = dyn.Rates(Cosine(x["rates"][0], x["horizon"]), x["rates"][1])
        run = {"rtol": 1e-10, "atol": 1e-10}
        return number(dyn.flow(cases.problem(BALANCED, x), cases.start(x), rates, x["ts"], **run))

    kept = "generic", "start", "r = 0", "no rate"
    at = {name: points(BALANCED)[name] for name in kept}
    for x in at.values():
        x["ts"], x["horizon"] = x["ts"] / 3, x["horizon"] / 3
    assert worst_gap(one, at, 1e-2, ("cuts", "momentum")) <= 1e-6
