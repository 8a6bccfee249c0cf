"""Designing a learning-rate schedule by gradient: the flow knows its integral alone, descent its steps but not their order."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.instances import Draw, Size, draws
from experiments.shared.slopes import (
    PIECES,
    SIMULATED,
    Numbers,
    complex_slopes,
    dense_flow,
    gradients,
    gradients_at,
    looped_descent,
    numbers,
    targets,
)

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 4; derivatives derived here"
SIZE = Size(3, 2, 3)
STEPS, BUDGET, ITERATIONS = 12, 6.0, 200


def _flat(x: Numbers) -> np.ndarray:
    return np.concatenate([part.reshape(len(part), -1) for part in x], axis=1)


def _same_for_all(verb: str, members: int) -> Measured:
    """The spread of the derivatives in the pieces over the size of the whole gradient."""
    found = gradients(verb, min(members, SIMULATED) if verb == "flow" else members)
    return Measured.worst(np.ptp(found.pieces, axis=1) / np.linalg.norm(_flat(found), axis=1))


def _order(members: int) -> Measured:
    """Pieces shuffled: every gradient but that in the pieces stays, and that is shuffled likewise; relative."""
    x, order = numbers(members), np.random.default_rng(61).permuted(np.tile(np.arange(PIECES), (members, 1)), axis=1)
    shuffle = lambda y: y._replace(pieces=np.take_along_axis(y.pieces, order, axis=1))
    found, expected = gradients_at("descent", shuffle(x), targets(members)), shuffle(gradients("descent", members))
    return Measured.worst(np.linalg.norm(_flat(found) - _flat(expected), axis=1) / np.linalg.norm(_flat(expected), axis=1))


def _growth(steps, draw: Draw):
    """log |Z| after a descent by these steps, without decay, at gamma = 1/(C-1) and the ratio of the draw."""
    problem = dyn.LayerPeeled.balanced(SIZE.classes, SIZE.per_class)
    schedule = dyn.schedules.Piecewise(steps, np.arange(STEPS - 1) + 0.5)
    rates = dyn.Rates.proportional(schedule, draw.ratio)
    last = dyn.descent(problem, dyn.Peeled(draw.features, draw.prototypes), rates, STEPS, every=STEPS).states
    return 0.5 * jnp.log(jnp.sum(last.features[-1] ** 2) + jnp.sum(last.prototypes[-1] ** 2))


@functools.cache
def _design():
    """Steps along a gradient ascent on the growth, and the growth; gradients without their mean keep the sum of the steps."""
    optimiser = optax.chain(optax.centralize(), optax.sgd(4.0))

    def one(steps, draw):
        value = jax.value_and_grad(lambda steps: _growth(steps[0], draw))

        def step(carry, _):
            steps, memory = carry
            growth, slope = value(steps)
            update, memory = optimiser.update(-slope, memory)
            return (optax.apply_updates(steps, update), memory), (steps[0], growth)

        # one row: only the mean over all but the first axis is taken off
        return jax.lax.scan(step, (steps[None], optimiser.init(steps[None])), None, ITERATIONS)[1]

    return jax.jit(jax.vmap(one))


def _designed(members: int):
    draw, rng = draws(SIZE, members), np.random.default_rng(62)
    draw = draw._replace(ratio=np.ones(members))
    return [np.asarray(x) for x in _design()(BUDGET * rng.dirichlet(np.ones(STEPS), members), draw)]


def _even(members: int) -> Measured:
    """How far the last steps are from equal, relative; the numbers give the least gain of log |Z| on the way."""
    steps, growth = _designed(members)
    errors = np.abs(steps[:, -1] * STEPS / BUDGET - 1).max(axis=1)
    return Measured.worst(errors, {"least gain": float((growth[:, -1] - growth[:, 0]).min())})


CURVE_PIECES, CURVE_END = 12, 24.0


def _curves():
    """Four schedules of one budget, (4, pieces), times, and NC1 of flows under them: simulated, and by formula."""
    k = np.arange(CURVE_PIECES) / (CURVE_PIECES - 1)
    shapes = np.stack([np.ones_like(k), 1 + np.cos(np.pi * k), 0.15 + k, np.where(k < 0.35, 1.0, 0.12)])
    shapes *= 0.5 / shapes.mean(axis=1, keepdims=True)
    ts, draw = np.linspace(0.0, CURVE_END, 97), draws(Size(3, 4, 4), 1)

    @jax.jit
    @jax.vmap
    def both(pieces):
        schedule = dyn.schedules.Piecewise(pieces, CURVE_END / CURVE_PIECES * np.arange(1, CURVE_PIECES))
        state = dyn.Peeled(draw.features[0], draw.prototypes[0])
        run = dyn.LayerPeeled.balanced(3, 4), state, dyn.Rates.equal(schedule), ts
        watch = {"nc1": dyn.observables.nc1}
        moved, exact = dyn.flow(*run, observe=watch), dyn.exact.flow(*run, observe=watch)
        return moved.observed["nc1"], exact.observed["nc1"], schedule.integral(ts)

    return shapes, ts, *(np.asarray(x) for x in both(shapes))


def _draw(folder: Path) -> list[Path]:
    sheet, axes = plotting.page(2, 2, title="What a learning-rate schedule can and cannot do", panel=(4.6, 3.1))
    shapes, ts, moved, exact, zeta = _curves()
    names = "constant", "cosine", "rising", "step"
    plotting.label(axes[0, 0], "flow: four schedules of one budget", "$t$", "NC1", log=True)
    plotting.label(axes[0, 1], "one curve over the clock", r"$\zeta=\int\eta\,dt$", "NC1", log=True)
    for k, color in enumerate(plotting.COLORS[:4]):
        for panel, x in ((axes[0, 0], ts), (axes[0, 1], zeta[k])):
            plotting.simulated(x, moved[k], ax=panel, color=color, label=names[k])
            plotting.theory(x, exact[k], ax=panel, color=color)
    inset = axes[0, 1].inset_axes((0.08, 0.1, 0.42, 0.42))
    for shape, color in zip(shapes, plotting.COLORS, strict=False):
        inset.stairs(shape, np.linspace(0, CURVE_END, CURVE_PIECES + 1), color=color, linewidth=1.2, baseline=None)
    inset.set_title(r"schedules $\eta(t)$", fontsize=8.5, loc="center")
    inset.set(xticks=[], ylim=(0, None))
    inset.tick_params(labelsize=7)
    _draw_slopes(axes[1, 0])
    _draw_design(axes[1, 1])
    plotting.legend(sheet, axes[0, 0])
    return plotting.save(sheet, folder, "schedule-design")


def _draw_slopes(panel) -> None:
    """Derivatives in each piece over their mean, by complex steps of the dense motions, for a few members."""
    pieces = numbers(64).pieces
    rate = pieces / pieces.mean(axis=1, keepdims=True)
    plotting.label(
        panel, "what each piece of a schedule is worth", "rate of the piece over the mean", "derivative over the mean"
    )
    for motion, name, color in ((looped_descent, "descent", 1), (dense_flow, "flow", 0)):
        slopes = complex_slopes(motion, 64)[:, 4 : 4 + PIECES]
        mean = slopes.mean(axis=1, keepdims=True)
        clear = np.abs(mean[:, 0]) > 0.05
        style = {"color": plotting.COLORS[color], "markersize": 4, "alpha": 0.6, "label": name}
        panel.plot(rate[clear].ravel(), (slopes / mean)[clear].ravel(), "o", **style)
    panel.legend(fontsize=8.5, frameon=False)


def _draw_design(panel) -> None:
    steps, _ = _designed(64)
    plotting.label(panel, "descent, ascent on the growth: even steps", "step", "learning rate")
    for k, shade in zip((0, 2, 5, ITERATIONS - 1), ("#c6dbef", "#6baed6", "#2171b5", "#08306b"), strict=True):
        panel.stairs(steps[0, k], np.arange(STEPS + 1) - 0.5, baseline=None, color=shade, linewidth=1.8, label=f"iteration {k}")
    panel.axhline(BUDGET / STEPS, color=plotting.COLORS[1], linewidth=1.3, linestyle=(0, (4, 2)), label="budget over steps")
    panel.set_ylim(0, None)
    panel.legend(fontsize=8.5, frameon=False)


_claim = functools.partial(Claim, id="beyond.sensitivity", source=SOURCE)
_MOTION = ("balanced classes", "constant ratio of rates, four pieces of equal duration", "any decays")

EXPERIMENT = Experiment(
    name="schedule-design",
    family="beyond",
    summary="learning-rate schedules by gradient",
    claims=(
        _claim(
            name="schedule-flow",
            statement="simulated flow: the derivative in every piece of the schedule is the same, only zeta matters",
            assumptions=_MOTION,
            tolerance=1e-7,
            check=functools.partial(_same_for_all, "flow"),
        ),
        _claim(
            name="schedule-exact-flow",
            statement="the same through exact.flow",
            assumptions=_MOTION,
            tolerance=1e-14,
            check=functools.partial(_same_for_all, "exact.flow"),
        ),
        _claim(
            name="schedule-order",
            statement="descent: shuffled pieces have shuffled derivatives, and those in all else are the same",
            assumptions=_MOTION,
            tolerance=1e-13,
            check=_order,
        ),
        _claim(
            name="schedule-even-steps",
            statement="descent under a budget: ascent on log |Z| from random steps ends at equal ones",
            assumptions=("balanced classes", "equal rates", "gamma = 1/(C-1)", "no decay", f"{STEPS} steps, budget {BUDGET:g}"),
            tolerance=1e-6,
            check=_even,
        ),
    ),
    draw=_draw,
)
