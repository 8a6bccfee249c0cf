"""Random separable data, random starts, and the runs of networks to log t = 1000 that several experiments look at."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Measured

MOST = 64
"""Members of an ensemble: each has its own data and its own start."""
UNTIL = 1000.0
DEPTHS = (1, 2, 3, 4)
RATES = dyn.Rates.equal(1.0)
FALLS = np.concatenate([np.linspace(0, 20, 81), np.geomspace(20.5, 1200, 320)])
"""Falls of the log-loss at which the runs are kept."""

obs = dyn.observables


class Runs(NamedTuple):
    """Flows of one net, a data set and a start each; leading axes (members, times), NaN after the end of a run.

    `seen` holds the observables by name, `states` the weights. `members` are the numbers of those that separated and came to
    the end, and all arrays are theirs; `asked` is how many there were.
    """

    net: dyn.nets.Net
    inputs: np.ndarray
    targets: np.ndarray
    clock: np.ndarray
    log_t: np.ndarray
    states: tuple
    seen: dict[str, np.ndarray]
    members: np.ndarray
    asked: int

    def first(self, log_t: float) -> np.ndarray:
        """Of each member the number of the first kept state at or after a time; refuses members that end before."""
        late = self.log_t >= log_t * (1 - 1e-9)
        if not late.any(axis=1).all():
            raise ValueError(f"log_t must be reached by every member, got {log_t:g}")
        return late.argmax(axis=1)

    def at(self, name: str, log_t: float) -> np.ndarray:
        """An observable at the first kept state at or after a time, (members, ...)."""
        return picked(self.seen[name], self.first(log_t))

    def state(self, log_t: float) -> tuple:
        """The weights at the first kept state at or after a time, leading axis members."""
        return tuple(picked(leaf, self.first(log_t)) for leaf in self.states)


def picked(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """One entry in time of each member, (members, ...)."""
    return values[np.arange(len(place)), place]


class Data(NamedTuple):
    """Data sets that a plane through zero separates, scaled to the largest margin 1, (members, samples, dim) and so on.

    `directions` are those of the largest margin, `multipliers` the shares of the samples in them, which sum to one.
    """

    inputs: np.ndarray
    targets: np.ndarray
    directions: np.ndarray
    multipliers: np.ndarray

    def spanning(self) -> np.ndarray:
        """Whether the support vectors span the inputs, for each member."""
        return (self.multipliers > 0).sum(axis=1) == self.inputs.shape[2]


FIRM = ("n = 10, d = 3; support vectors with shares above 0.03, the others 5 % beyond the margin", "random starts")
"""What `separable` takes for granted."""


@functools.cache
def separable(members: int) -> Data:
    """Ten normal points in three dimensions, off a random plane, targets by their side of it."""
    rng, rows = np.random.default_rng(71), []
    while len(rows) < members:
        plane, points = rng.normal(size=3), rng.normal(size=(200, 3))
        heights = points @ plane / np.linalg.norm(plane)
        kept = np.flatnonzero(np.abs(heights) > 0.3)[:10]
        inputs, targets = points[kept], np.sign(heights[kept])
        best = dyn.exact.max_margin(inputs, targets)
        inputs = inputs / best.margin
        support = best.multipliers > 0
        others = (targets[:, None] * inputs @ best.direction[:, None])[~support]
        if best.multipliers[support].min() > 0.03 and others.min() > 1.05:
            rows.append((inputs, targets, best.direction, best.multipliers))
    return Data(*(np.stack(column) for column in zip(*rows, strict=True)))


def squared_force(problem: dyn.Network, state) -> jax.Array:
    """The squared norm of g."""
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(problem.scaled_force(state)))  # pyright: ignore[reportReturnType]


BASIC: dict[str, Callable] = {
    "level": lambda problem, state: -problem.log_loss(state),
    "size": obs.weight_norm,
    "margin": obs.normalized_margin,
    "smoothed": obs.smoothed_margin,
    "misaligned": obs.gradient_misalignment,
    "gap": obs.gap_factor,
    "pull": squared_force,
}


def followed(net, inputs, targets, seed: int, clock_values, observe=None, *, until=UNTIL, ends=dyn.status.OK, **how) -> Runs:
    """The flows of one net from random starts, one for each data set, along the usual clock unless `how` has another.

    Kept are those that end with status `ends`, at the time `until` if there is one.
    """
    observe = BASIC | (observe or {})
    how = {"clock": "auto", "until": None if until is None else dyn.LogTime(until)} | how

    def one(inputs, targets, key):
        problem = dyn.Network(net, inputs, targets)
        moved = dyn.flow(problem, dyn.initial.weights(problem, key=key), RATES, clock_values, **how)
        look = lambda state: {name: observable(problem, state) for name, observable in observe.items()}
        return moved, jax.vmap(look)(moved.states)

    keys = jax.random.split(jax.random.key(seed), len(inputs))
    moved, seen = jax.jit(jax.vmap(one))(inputs, targets, keys)
    good = np.asarray(moved.status) == ends
    if until is not None:
        good &= np.nanmax(np.asarray(moved.log_t), axis=1) >= until * (1 - 1e-9)
    kept = np.flatnonzero(good)
    ran = (moved.ts, moved.log_t, moved.states, seen)
    ts, log_t, states, seen = jax.tree.map(lambda leaf: np.asarray(leaf)[kept], ran)
    return Runs(net, inputs[kept], targets[kept], ts, log_t, states, seen, kept, len(inputs))


def _linear(depth: int, members: int) -> Runs:
    more = {"rank_one": obs.rank_one_residual}
    if depth > 1:
        more |= {"balance": obs.layer_balance, "aligned": obs.layer_alignment}
    data = separable(members)
    net = dyn.nets.deep_linear((4,) * (depth - 1))
    return followed(net, data.inputs, data.targets, 72 + depth, FALLS, more)


def _powers(members: int) -> Runs:
    rng = np.random.default_rng(81)
    corners = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    inputs = np.tile(corners, (2, 1)) + 0.2 * rng.normal(size=(members, 8, 2))
    targets = np.sign(inputs[..., 0] * inputs[..., 1])
    net = dyn.nets.two_layer(32, power=2)
    return followed(net, inputs, targets, 82, FALLS, {"balance": obs.neuron_balance}, max_steps=5000)


POWERS = "L = 3, squared ReLU"


def name_of(depth: int) -> str:
    """The name of deep linear nets among `smooth`."""
    return f"L = {depth}, linear"


def smooth(members: int) -> dict[str, Runs]:
    """Runs of smooth homogeneous nets, by name.

    Linear nets of one to four layers, hidden ones of 4 units; and two layers of 32 units with squared ReLU on the signs of
    products of two coordinates.
    """
    return _smooth(min(members, MOST))


@functools.cache
def _smooth(members: int) -> dict[str, Runs]:
    jobs = {name_of(depth): functools.partial(_linear, depth) for depth in DEPTHS} | {POWERS: _powers}
    separable(members)
    with ThreadPoolExecutor(2) as pool:  # most of the time is the compiler's, on one core each
        return dict(zip(jobs, pool.map(lambda job: job(members), jobs.values()), strict=True))


def deep_linear(depth: int, members: int) -> Runs:
    """Of `smooth` the linear nets of so many layers."""
    return smooth(members)[name_of(depth)]


def limit_margin(depth: int) -> float:
    r"""The limit of the normalised margin of deep linear nets, $\gamma_{lin} L^{-L/2}$."""
    return depth ** (-depth / 2)


def worst_of(residuals: dict[str, np.ndarray], numbers: dict[str, float] | None = None) -> Measured:
    """The largest residual, each array with the leading axis members, and the net and member it is of."""
    found = {name: Measured.worst(values) for name, values in residuals.items()}
    where = max(found, key=lambda name: found[name].residual)
    members = sum(one.members for one in found.values())
    figures = {f"worst of {name}": one.residual for name, one in found.items()} if len(found) > 1 else {}
    return Measured(found[where].residual, members, f"{where}, {found[where].where}", figures | (numbers or {}))


def predictor(states: tuple) -> np.ndarray:
    """The product of the layers, (..., inputs)."""
    product = np.asarray(states[-1])
    for matrix in reversed(states[:-1]):
        product = np.einsum("...i,...ij->...j", product, matrix)
    return product


def leftover(depth: int, members: int) -> np.ndarray:
    r"""The limits of the squares of all but the largest singular value of each layer, (members, layers), from the balance.

    $W_l W_l^\top = W_{l+1}^\top W_{l+1} - D_l$, and the largest vectors of both sides align: with P the projector off them,
    $r_l = r_{l+1} - \mathrm{tr}(P D_l P)$ and $r_L = 0$. D is that of the start, the vectors are those at the end.
    """
    runs = deep_linear(depth, members)
    layers, ends = _matrices(leaf[:, 0] for leaf in runs.states), _matrices(runs.state(UNTIL))
    left = [np.zeros(len(runs.members))]
    for lower, upper, end in reversed(list(zip(layers[:-1], layers[1:], ends[:-1], strict=True))):
        kept = np.swapaxes(upper, 1, 2) @ upper - lower @ np.swapaxes(lower, 1, 2)
        along = np.linalg.svd(end)[0][:, :, 0]
        trace = np.trace(kept, axis1=1, axis2=2) - np.einsum("mi,mij,mj->m", along, kept, along)
        left.append(left[-1] - trace)
    return np.stack(left[::-1], axis=1)


def _matrices(leaves) -> list[np.ndarray]:
    """Layers of each member, (members, outputs, inputs), the last one with one output."""
    return [leaf if leaf.ndim == 3 else leaf[:, None, :] for leaf in leaves]


def on_grid(grid: np.ndarray, runs: Runs, values: np.ndarray) -> np.ndarray:
    """Values over (members, times) at common logarithms of time, by straight lines; NaN beyond the end."""
    rows = []
    for log_t, row in zip(runs.log_t, values, strict=True):
        known = np.isfinite(log_t)
        rows.append(np.interp(grid, log_t[known], row[known], left=np.nan, right=np.nan))
    return np.stack(rows)
