"""Late (stochastic) descent at a constant rate: an Euler scheme of the direction whose steps shrink by themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from dynamics.simulate.step_rules import ConstantRate
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.iterates import (
    MOST,
    TARGETS,
    Iterates,
    capped,
    clusters,
    descended,
    first_weights,
    margins_and_pulls,
    unravelled,
)

SOURCE = "S. Schechtman, N. Schreuder (2025); the constants derived here"
RATE = 0.1
"""Of the sum over samples: 0.5 of the mean."""
STEPS, EVERY = 60_000, 500
LATE = 4
"""Kept iterates before this one, the 2000th, are early."""
BATCHES = (None, 1)


@functools.cache
def run(members: int, batch_size: int | None) -> Iterates:
    """60 000 steps from every start."""
    return descended(first_weights(members), ConstantRate(RATE), STEPS, EVERY, batch_size)


@functools.cache
def deep(members: int) -> Iterates:
    """From losses below 1e-800: one sample a step at a constant rate of e^-1 over the loss times the squared force.

    Rates from there on overshoot: the logarithm of the loss changes by rate times loss times the squared force in a step.
    """
    begin = capped(members, 10.0)
    rates = ConstantRate(log_rate=jnp.asarray(-begin.log_loss[:, -1] - np.log(begin.pull[:, -1]) - 1))
    return descended(unravelled(begin.weights[:, -1]), rates, 20_000, 200, 1)


def _number(members: int) -> int:
    return min(members, MOST)


@functools.cache
def _one_step(members: int, batch_size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the late iterates, and those one step on; (members, times, entries)."""
    rows, problem = run(members, batch_size).weights[:, LATE:], clusters()

    def one(flat, key):
        given = {} if batch_size is None else {"batch_size": batch_size, "key": key}
        moved = dyn.steepest_descent(problem, unravelled(flat), ConstantRate(RATE), 1, **given)
        return jnp.concatenate([leaf[-1].ravel() for leaf in moved.states])

    keys = jax.random.split(jax.random.key(74), rows.shape[:2])
    return rows, np.asarray(jax.jit(jax.vmap(jax.vmap(one)))(rows, keys))


def _euler(members: int, batch_size: int | None) -> Measured:
    """How far one step is from the Euler step of the direction, over the square of its length; 1e-15 is rounding.

    With u and v of norm one and at most one, (u + h v)/|u + h v| is off u + h (v - <v, u> u) by h^2 times
    |<v, u> w + |w|^2 u/2| to leading order, w = v - <v, u> u, which is at most 1/sqrt 3. On unit inputs gradients of margins
    are at most the weights in norm.
    """
    rows, after = _one_step(_number(members), batch_size)
    size = np.linalg.norm(rows, axis=-1, keepdims=True)
    margins, pulls = margins_and_pulls(rows)
    if batch_size is None:
        seen = np.ones_like(margins)
    else:  # inputs are unit vectors: a sample moves its own column
        moved = np.abs(unravelled(after - rows)[0]).sum(axis=-2)
        seen = np.moveaxis(moved > 0, -1, 0) * TARGETS.size
    losses = seen * np.exp(-margins)
    total = losses.sum(axis=0)
    share = np.divide(losses, total, out=np.zeros_like(losses), where=total > 0)
    pull = np.einsum("smt,smte->mte", share, pulls) / size
    u, step = rows / size, (RATE * total)[..., None]
    expected = u + step * (pull - np.sum(pull * u, axis=-1, keepdims=True) * u)
    off = np.linalg.norm(after / np.linalg.norm(after, axis=-1, keepdims=True) - expected, axis=-1)
    # a sample of so small a loss that no weight changes has no step
    square = np.where(total > 0, step[..., 0], np.inf) ** 2
    kept = run(_number(members), batch_size).separated
    constants = np.maximum(off - 1e-15, 0)[kept] / square[kept]
    return Measured.worst(constants, {"median": float(np.median(constants)), "left out, not separated": float(np.sum(~kept))})


def _slow_steps(members: int) -> Measured:
    """The drift of rate times loss times k log k from the 20 000th iterate on, full batch."""
    moved = run(_number(members), None)
    k, rows = moved.steps[1:], moved.log_loss[moved.separated, 1:]
    slow = RATE * np.exp(rows) * k * np.log(k)
    last = slow[:, k >= 20_000]
    numbers = {"smallest at the end": float(last[:, -1].min()), "largest at the end": float(last[:, -1].max())}
    return Measured.worst(last.max(axis=1) / last.min(axis=1) - 1, numbers)


def _quasistatic(members: int) -> Measured:
    """Rate times loss times k |g|^2 against one, at the last iterate."""
    moved = run(_number(members), None)
    values = (RATE * moved.steps * np.exp(moved.log_loss) * moved.pull)[moved.separated]
    numbers = {f"median at k = {moved.steps[at]}": float(np.median(values[:, at])) for at in (LATE, 20, -1)}
    return Measured.worst(np.abs(values[:, -1] - 1), numbers)


def _grows(members: int, batch_size: int | None) -> Measured:
    """The early margin over the last one."""
    moved = run(_number(members), batch_size)
    margin = moved.margin[moved.separated]
    numbers = {f"median at k = {moved.steps[at]}": float(np.median(margin[:, at])) for at in (LATE, -1)}
    return Measured.worst(margin[:, LATE] / margin[:, -1], numbers)


def _aligns(members: int, batch_size: int | None) -> Measured:
    """The last misalignment over the early one."""
    moved = run(_number(members), batch_size)
    off = moved.misalignment[moved.separated]
    numbers = {f"median at k = {moved.steps[at]}": float(np.median(off[:, at])) for at in (LATE, -1)}
    return Measured.worst(off[:, -1] / off[:, LATE], numbers)


@functools.cache
def _flowed(members: int) -> dict[int | None, np.ndarray]:
    """The flow from the early iterates of both kinds to the norms of the last ones, in one call; (members, entries)."""
    ends = [run(members, size).weights[:, (LATE, -1)] for size in BATCHES]
    pairs = np.concatenate(ends)
    sizes, problem = np.linalg.norm(pairs, axis=-1), clusters()

    def one(flat, grown):
        path = dyn.flow(problem, unravelled(flat), dyn.Rates.equal(1.0), grown[None], clock=dyn.clocks.LogRadius())
        return jnp.concatenate([leaf[-1].ravel() for leaf in path.states])

    last = np.asarray(jax.jit(jax.vmap(one))(pairs[:, 0], np.log(sizes[:, 1] / sizes[:, 0])))
    return dict(zip(BATCHES, np.split(last, len(BATCHES)), strict=True))


def _as_the_flow(members: int, batch_size: int | None) -> Measured:
    """Distance of the directions of iterates and flow at the last norm, over the way the direction turned."""
    moved = run(_number(members), batch_size)
    kept = moved.separated
    flowed, early, last = _flowed(_number(members))[batch_size][kept], moved.weights[kept, LATE], moved.weights[kept, -1]
    flowed, early, last = (rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (flowed, early, last))
    apart, way = np.linalg.norm(flowed - last, axis=-1), np.linalg.norm(last - early, axis=-1)
    return Measured.worst(apart / way, {"largest distance": float(apart.max()), "median": float(np.median(apart / way))})


def _stays(members: int) -> Measured:
    """The largest change of the normalised margin in 20 000 stochastic steps near a loss of 1e-800."""
    moved = deep(_number(members))
    kept = moved.margin[:, 0] > 0
    margin, fall = moved.margin[kept], moved.log_loss[kept, 0] - moved.log_loss[kept, -1]
    numbers = {
        "median log of the loss at the end": float(np.median(moved.log_loss[kept, -1])),
        "smallest fall of it": float(fall.min()),
        "median misalignment": float(np.median(moved.misalignment[kept, -1])),
    }
    return Measured.worst(np.abs(margin - margin[:, :1]), numbers)


_claim = functools.partial(Claim, source=SOURCE)
_SETTING = (
    "two layers of 20 ReLU units, five orthonormal inputs",
    "exponential loss, constant rate 0.5 of the mean",
    "iterates 2000 to 60 000 of 64 starts that separate",
)
_NAMES = {None: ("full", "all samples"), 1: ("single", "one sample a step")}

EXPERIMENT = Experiment(
    name="late-descent",
    family="homogeneous",
    summary="the direction under late (stochastic) descent at a constant rate",
    claims=(
        *(
            _claim(
                name=f"late-descent-euler-{_NAMES[size][0]}",
                id="sgd.euler",
                statement=f"{_NAMES[size][1]}: off the Euler step of the direction by at most h^2/sqrt 3, h = rate times loss",
                assumptions=(*_SETTING, "one step from every 500th iterate"),
                tolerance=0.58,
                check=functools.partial(_euler, batch_size=size),
            )
            for size in BATCHES
        ),
        _claim(
            name="late-descent-slow-steps",
            id="sgd.euler",
            statement="all samples: the step h times k log k stays, so the steps add up like log log k (drift from k = 2e4)",
            assumptions=_SETTING,
            tolerance=0.05,
            check=_slow_steps,
        ),
        _claim(
            name="late-descent-quasistatic",
            id="sgd.euler",
            statement="all samples: h k |g|^2 tends to one, g the scaled force",
            assumptions=_SETTING,
            tolerance=0.2,
            check=_quasistatic,
            limited_by="the logarithm of the loss, 10 at the end",
        ),
        *(
            _claim(
                name=f"late-descent-margin-{_NAMES[size][0]}",
                id="sgd.limit",
                statement=f"{_NAMES[size][1]}: the normalised margin grows (residual: early over last)",
                assumptions=_SETTING,
                tolerance=1.0,
                check=functools.partial(_grows, batch_size=size),
            )
            for size in BATCHES
        ),
        *(
            _claim(
                name=f"late-descent-aligns-{_NAMES[size][0]}",
                id="sgd.limit",
                statement=f"{_NAMES[size][1]}: the misalignment of weights and force falls (residual: last over early)",
                assumptions=_SETTING,
                tolerance=1.0,
                check=functools.partial(_aligns, batch_size=size),
            )
            for size in BATCHES
        ),
        *(
            _claim(
                name=f"late-descent-flow-{_NAMES[size][0]}",
                id="sgd.limit",
                statement=f"{_NAMES[size][1]}: at the same norm, iterates and flow have one direction (over the way it turned)",
                assumptions=_SETTING,
                tolerance=tolerance,
                check=functools.partial(_as_the_flow, batch_size=size),
            )
            for size, tolerance in zip(BATCHES, (1e-3, 0.05), strict=True)
        ),
        _claim(
            name="late-descent-deep",
            id="sgd.limit",
            statement="one sample a step at a constant rate, at losses below 1e-800: the normalised margin stays",
            assumptions=(_SETTING[0], "20 000 steps", "64 starts that separate"),
            tolerance=1e-3,
            check=_stays,
        ),
    ),
)
