"""Stochastic descent: exact mean and second moment over all minibatches, and what shuffling once an epoch changes."""

import functools
import itertools
from pathlib import Path

import jax
import numpy as np

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim, Measured, measured_order
from experiments.registry import Experiment
from experiments.shared.dense import deviation, size_of, stacked
from experiments.shared.instances import Draw, Size, draws, instance, worst_of
from experiments.shared.oracles import balanced_pull

SOURCE = "linear recursion of the moments of sampled sums (derived here), for the model of JMLR 24 (2023), Theorem 2"
STEPS, RUNS = 3, 10_000
SMALL = (Size(2, 2, 3), Size(3, 1, 2), Size(2, 1, 1))
"""Small enough to follow every sequence of batches."""
LARGE = Size(3, 4, 2)
SAMPLED = (1, 3, 6)
ONE = slice(1, 2)
"""The draw whose descents are simulated many times."""


def _batches(size: Size, batch_size: int) -> np.ndarray:
    """n/m for the samples of each possible batch, (batches, samples)."""
    samples = size.classes * size.per_class
    chosen = [np.isin(np.arange(samples), batch) for batch in itertools.combinations(range(samples), batch_size)]
    return np.array(chosen) * samples / batch_size


def _moved(z, pull, rates, decay) -> np.ndarray:
    """One step of features over prototypes under a coupling; leading axes broadcast."""
    samples = pull.shape[-2]
    h, w = z[..., :samples, :], z[..., samples:, :]
    (e1, e2), (d1, d2) = (np.expand_dims(x, (-1, -2)) for x in rates), (np.expand_dims(x, (-1, -2)) for x in decay)
    return stacked(h + e1 * (pull @ w - d1 * h), w + e2 * (np.swapaxes(pull, -1, -2) @ h - d2 * w))


def _rates(draw: Draw, steps: int) -> np.ndarray:
    """Rates of features and of weights at every step, (steps, 2, members), as the library's schedules give them."""
    k = np.minimum(np.arange(steps) / 10, 1)[:, None]
    weights = draw.floor + (draw.rate - draw.floor) * (1 + np.cos(np.pi * k)) / 2
    return np.stack([draw.ratio * weights, weights], axis=1)


def _every_sequence(draw: Draw, size: Size, batch_size: int):
    """Mean of Z and of Z Z^T after STEPS steps over every sequence of batches, (members, rows, ...)."""
    batches = _batches(size, batch_size)
    pulls = batches[:, None, :, None] * balanced_pull(draw, size)  # (batches, members, samples, classes)
    z = stacked(draw.features, draw.prototypes)[None]
    decay = draw.decay[:, :2].T[:, None]
    for rates in _rates(draw, STEPS):
        z = np.concatenate([_moved(z, pull, rates[:, None], decay) for pull in pulls])
    return z.mean(axis=0), np.mean(z @ np.swapaxes(z, -1, -2), axis=0)


@functools.cache
def _program(size: Size, steps: int, every: int, batch_size: int):
    def one(draw):
        moved = dyn.exact.descent(*instance(draw, size, decay=True), steps, every=every, batch_size=batch_size)
        return moved.states, moved.second_moment

    return jax.jit(jax.vmap(one))


def _by_formula(draw: Draw, size: Size, batch_size: int, steps=STEPS, every=STEPS):
    """Mean of Z, and E[Z Z^T], (members, times, rows, ...)."""
    states, second = _program(size, steps, every, batch_size)(draw)
    return stacked(np.asarray(states.features), np.asarray(states.prototypes)), np.asarray(second)


def _batch_size(size: Size) -> int:
    return max(1, size.classes * size.per_class // 2)


def _mean(size: Size, members: int):
    draw = draws(size, members)
    return deviation(_by_formula(draw, size, _batch_size(size))[0][:, -1], _every_sequence(draw, size, _batch_size(size))[0])


def _second(size: Size, members: int):
    draw = draws(size, members)
    return deviation(_by_formula(draw, size, _batch_size(size))[1][:, -1], _every_sequence(draw, size, _batch_size(size))[1])


def _one_step_variance(size: Size, members: int):
    """After one step E|Z - E Z|^2 = (n - m)/(m (n - 1)) (n sum |f_i|^2 - |sum f_i|^2), f_i what sample i moves alone."""
    draw, m, n = draws(size, members), _batch_size(size), size.classes * size.per_class
    mean, second = _by_formula(draw, size, m, 1, 1)
    found = np.trace(second[:, 1], axis1=1, axis2=2) - size_of(mean[:, 1]) ** 2
    z, pull = stacked(draw.features, draw.prototypes), balanced_pull(draw, size)
    rates, still = _rates(draw, 1)[0], np.zeros((2, members))
    alone = [_moved(z, pull * (np.arange(n) == i)[:, None], rates, still) - z for i in range(n)]
    spread = n * sum(size_of(f) ** 2 for f in alone) - size_of(sum(alone)) ** 2
    expected = (n - m) / (m * (n - 1)) * spread
    return np.abs(found - expected) / np.trace(second[:, 1], axis1=1, axis2=2)


@functools.cache
def _runs(batch_size: int, steps: int = 20):
    """RUNS runs of one draw, features over prototypes (runs, steps + 1, rows, dim)."""
    where = instance(jax.tree.map(lambda x: x[0], _sampled()), LARGE, decay=True)
    run = jax.jit(jax.vmap(lambda key: dyn.descent(*where, steps, batch_size=batch_size, key=key).states))
    states = run(jax.random.split(jax.random.key(batch_size), RUNS))
    return stacked(np.asarray(states.features), np.asarray(states.prototypes))


def _sampled() -> Draw:
    return jax.tree.map(lambda x: x[ONE], draws(LARGE, 8))


def _scores(samples, expected) -> np.ndarray:
    """How many standard errors the mean over the leading axis is off."""
    error = samples.std(axis=0) / len(samples) ** 0.5
    return np.abs(samples.mean(axis=0) - expected) / np.where(error > 0, error, 1.0)


def _monte_carlo(members: int) -> Measured:
    """Every entry of the mean and of the second moment after 20 steps, three sizes of batch."""
    worst, entries = {}, 0
    for batch_size in SAMPLED:
        mean, second = _by_formula(_sampled(), LARGE, batch_size, 20, 1)
        z = _runs(batch_size)[:, -1]
        scores = _scores(z, mean[0, -1]), _scores(z @ np.swapaxes(z, 1, 2), second[0, -1])
        worst[f"batches of {batch_size}"] = float(max(score.max() for score in scores))
        entries += sum(score.size for score in scores)
    return Measured(max(worst.values()), RUNS, f"{entries} entries of mean and second moment", worst)


ETAS = np.array([0.1, 0.03, 0.01, 3e-3, 1e-3])


def _epoch(draw: Draw, size: Size, eta: float):
    """Z after one epoch of single samples in every order, (orders, members, rows, dim), and after as many full steps."""
    n, start = size.classes * size.per_class, stacked(draw.features, draw.prototypes)
    pull, orders = balanced_pull(draw, size), np.array(list(itertools.permutations(range(n))))
    rates, decay = eta * np.stack([draw.ratio, np.ones_like(draw.ratio)]), draw.decay[:, :2].T
    shuffled, z = np.broadcast_to(start, (len(orders), *start.shape)), start
    for place in orders.T:
        seen = n * (place[:, None] == np.arange(n))
        shuffled = _moved(shuffled, seen[:, None, :, None] * pull, rates[:, None], decay[:, None])
        z = _moved(z, pull, rates, decay)
    return shuffled, z


def _epoch_gaps(size: Size, members: int) -> np.ndarray:
    """How far the mean over all orders is from descent, (etas, members)."""
    epochs = (_epoch(draws(size, members), size, eta) for eta in ETAS)
    return np.array([deviation(shuffled.mean(axis=0), z) for shuffled, z in epochs])


def _simulated_epochs(members: int) -> Measured:
    """RUNS simulated epochs against the mean over all orders, and against descent, which they must not agree with."""
    size = SMALL[0]
    draw = jax.tree.map(lambda x: x[:1], draws(size, 8))
    problem, state, _ = instance(jax.tree.map(lambda x: x[0], draw), size, decay=True)
    rates, n = dyn.Rates(0.8 * draw.ratio[0], 0.8), size.classes * size.per_class
    run = jax.jit(jax.vmap(lambda key: dyn.descent(problem, state, rates, n, batch_size=1, key=key, shuffle="epoch").states))
    states = run(jax.random.split(jax.random.key(7), RUNS))
    z = stacked(np.asarray(states.features), np.asarray(states.prototypes))[:, -1]
    shuffled, full = _epoch(draw, size, 0.8)
    score = float(_scores(z, shuffled.mean(axis=0)[0]).max())
    apart = float(_scores(z, full[0]).max())
    return Measured(score if apart > 4 else np.inf, RUNS, "one epoch of 4 samples at rate 0.8", {"against descent": apart})


def _epoch_order(size: Size, members: int):
    gaps = _epoch_gaps(size, members)[2:]
    return [abs(measured_order(ETAS[2:], gap) - 2) for gap in gaps.T]


def _draw_page(folder: Path) -> list[Path]:
    page, axes = plotting.page(1, 3, title="Stochastic descent: 10 000 runs and the moments over all minibatches")
    steps, (left, middle, right) = np.arange(21), axes[0]
    plotting.label(left, "one coordinate: runs and their mean", "step", r"$W_{11}$")
    plotting.label(middle, "spread of the runs", "step", r"$\sqrt{E\|Z-EZ\|^2}$")
    for color, batch_size in zip(plotting.COLORS, SAMPLED, strict=False):
        mean, second = (x[0] for x in _by_formula(_sampled(), LARGE, batch_size, 20, 1))
        z, row = _runs(batch_size), LARGE.classes * LARGE.per_class
        plotting.band(steps, z[:, :, row, 0], ax=left, color=color)
        plotting.simulated(steps, z[:, :, row, 0].mean(axis=0), ax=left, color=color)
        plotting.theory(steps, mean[:, row, 0], ax=left, color=color)
        spread = np.sqrt(np.mean(size_of(z - z.mean(axis=0)) ** 2, axis=0))
        exact = np.sqrt(np.maximum(np.trace(second, axis1=1, axis2=2) - size_of(mean) ** 2, 0.0))
        plotting.simulated(steps, spread, ax=middle, color=color, label=f"batches of {batch_size} of 12")
        plotting.theory(steps, exact, ax=middle, color=color)
    plotting.label(right, "one epoch, shuffled, against descent", r"rate $\eta$", "relative gap of the mean", log=True)
    right.set_xscale("log")
    gaps = _epoch_gaps(SMALL[0], 64)
    right.fill_between(ETAS, *np.quantile(gaps, (0.05, 0.95), axis=1), color=plotting.COLORS[3], alpha=0.18, linewidth=0)
    plotting.simulated(ETAS, np.median(gaps, axis=1), ax=right, color=plotting.COLORS[3])
    plotting.theory(ETAS, np.median(gaps, axis=1)[-1] * (ETAS / ETAS[-1]) ** 2, ax=right, color=plotting.COLORS[3])
    right.annotate(r"$\propto\eta^2$", (ETAS[2], np.median(gaps[2])), xytext=(8, -14), textcoords="offset points")
    plotting.legend(page, middle, band="5-95 % of runs (left), of starts (right)")
    return plotting.save(page, folder, "stochastic")


_claim = functools.partial(Claim, id="beyond.sgd", source=SOURCE)
_LINEAR = ("loss linear in the logits", "batches drawn uniformly without replacement, anew at every step")

EXPERIMENT = Experiment(
    name="stochastic",
    family="beyond",
    summary="stochastic descent: exact mean and second moment, and the gap of epoch shuffling",
    claims=(
        _claim(
            name="stochastic-mean",
            statement="the mean iterate over every sequence of batches is that of full-batch descent",
            assumptions=(*_LINEAR, "any rates and decays"),
            tolerance=1e-13,
            check=functools.partial(worst_of, _mean, sizes=SMALL),
        ),
        _claim(
            name="stochastic-second-moment",
            statement="E[Z Z^T] over every sequence of batches obeys the recursion with "
            "mix(X) = (n/m)^2 (r2 X + (r1 - r2) diag X), r1 = m/n, r2 = m(m-1)/(n(n-1))",
            assumptions=(*_LINEAR, "any rates and decays"),
            tolerance=1e-13,
            check=functools.partial(worst_of, _second, sizes=SMALL),
        ),
        _claim(
            name="stochastic-one-step",
            statement="variance of one step = (n - m)/(m (n - 1)) (n sum |f_i|^2 - |sum f_i|^2), f_i the move by sample i",
            assumptions=_LINEAR,
            tolerance=1e-13,
            check=functools.partial(worst_of, _one_step_variance, sizes=SMALL),
        ),
        _claim(
            name="stochastic-monte-carlo",
            statement="10 000 simulated runs agree with mean and second moment (residual in standard errors)",
            assumptions=(*_LINEAR, "C=3, N=4, 20 steps, batches of 1, 3 and 6"),
            tolerance=4.0,
            check=_monte_carlo,
        ),
        _claim(
            name="stochastic-epochs",
            statement="samples shuffled once an epoch: the mean differs from descent by order eta^2 (residual: |order - 2|)",
            assumptions=("loss linear in the logits", "each sample once an epoch", "mean over every order"),
            tolerance=0.1,
            check=functools.partial(worst_of, _epoch_order, sizes=SMALL[:2]),
        ),
        _claim(
            name="stochastic-epochs-simulated",
            statement="10 000 simulated epochs agree with the mean over every order, and not with descent (standard errors)",
            assumptions=("loss linear in the logits", "C=2, N=2, batches of 1", "rate 0.8"),
            tolerance=4.0,
            check=_simulated_epochs,
        ),
    ),
    draw=_draw_page,
)
