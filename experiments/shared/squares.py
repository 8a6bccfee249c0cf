"""The square loss with both layers free: balanced starts, the library's answers, and a vectorised integrator to judge them.

The oracles are NumPy on arrays (members, ...): Q has the prototypes over the features as rows, and only the gradient of the
mean of |z - e_y|^2/2 is used, neither modes nor eigenvectors.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import DOP853

import dynamics as dyn

SOURCE = "K. Fukumizu (1998); L. Braun, C. Domine, J. Fitzgerald, A. Saxe (2022); with unequal rates and decay derived here"
CLOCKS = np.array([0.0, 0.5, 2.0, 5.0, 10.0, 20.0])
"""Where trajectories are looked at, over the fastest growth rate without decay."""

CHUNK = 64
"""Members in one call of a compiled program."""
MOST = 256
"""Members that the integrator follows; claims on trajectories take no more."""


class Shape(NamedTuple):
    """Class sizes (labels sorted), the dimension of feature space, whether biases are slaved."""

    sizes: tuple[int, ...]
    dim: int
    slaved: bool = False

    @property
    def classes(self) -> int:
        return len(self.sizes)

    @property
    def labels(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @property
    def targets(self) -> np.ndarray:
        """One-hot (samples, classes); centred where biases are slaved."""
        targets = np.eye(self.classes)[self.labels]
        return targets - targets.mean(axis=0) if self.slaved else targets


SHAPES = (Shape((4, 4, 4), 1), Shape((1, 2, 4), 3), Shape((4, 4, 4), 5), Shape((3, 3), 2), Shape((4, 4, 4), 8))
"""Fewer dimensions than a simplex needs; imbalance; more dimensions than classes; two classes; the most dimensions."""
SLAVED = (Shape((1, 2, 4), 3, True), Shape((3, 3, 3), 4, True))


class Starts(NamedTuple):
    """Members on the leading axis: prototypes, features, s (features' rate over weights'), delta, rate times decay."""

    prototypes: np.ndarray
    features: np.ndarray
    ratio: np.ndarray
    imbalance: np.ndarray
    decay: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Q: prototypes over features."""
        return np.concatenate([self.prototypes, self.features], axis=1)


def transposed(x) -> np.ndarray:
    """The last two axes exchanged."""
    return np.swapaxes(x, -1, -2)


def gram(rows) -> np.ndarray:
    """All inner products of rows."""
    return rows @ transposed(rows)


def deviation(found, reference, axes=(-1, -2)) -> np.ndarray:
    """The largest entry of a difference, over the largest entry of the reference where that is above one."""
    return np.abs(found - reference).max(axis=axes) / np.maximum(np.abs(reference).max(axis=axes), 1.0)


@functools.cache
def starts(shape: Shape, members: int, seed: int = 0, kinds: tuple[int, ...] = (0, 1, 2, 3)) -> Starts:
    """Kinds in turn: 0 delta = 0; 1 delta = -1/2; 2 delta = 7/10 where feasible, else -7/10; 3 decay and delta = 0.

    Scale log-uniform in [.05, .4], s in [.1, 10]; decay up to 1.2 times the fastest growth rate. In one dimension kinds 0-2
    are independent normals: every start is balanced.
    """
    rng = np.random.default_rng([seed, shape.dim, *shape.sizes])
    classes, samples, dim = shape.classes, sum(shape.sizes), shape.dim
    kind = np.array(kinds)[np.arange(members) % len(kinds)]
    scale, ratio = 0.05 * 8 ** rng.uniform(size=(members, 1, 1)), 10 ** rng.uniform(-1, 1, members)
    delta = np.select([kind == 1, kind == 2], [-0.5, 0.7 if dim <= classes else -0.7], 0.0)
    left, values, right = np.linalg.svd(scale * rng.normal(size=(members, classes, dim)))
    rank = values.shape[1]
    features = rng.normal(size=(members, samples, dim))
    features -= features.mean(axis=1, keepdims=True) if shape.slaved else 0.0
    frame = np.linalg.qr(features)[0]
    squares = np.zeros((members, 1, dim))
    squares[:, 0, :rank] = values**2
    heavy = np.maximum(delta, 0)[:, None, None], np.maximum(-delta, 0)[:, None, None]
    prototypes = left[:, :, :rank] * np.sqrt(squares[..., :rank] + heavy[0]) @ right[:, :rank]
    features_balanced = np.sqrt(ratio)[:, None, None] * (frame * np.sqrt(squares + heavy[1]) @ right)
    decay = np.zeros(members)
    found = Starts(prototypes, features_balanced, ratio, delta, decay)
    decay = np.where(kind == 3, 1.2 * rng.uniform(size=members), 0.0) * fastest(shape, found)
    if dim == 1:
        features_balanced = np.where((kind == 3)[:, None, None], features_balanced, scale * features)
        delta = (prototypes**2).sum(axis=(1, 2)) - (features_balanced**2).sum(axis=(1, 2)) / ratio
        delta = np.where(kind == 3, 0.0, delta)
    return Starts(prototypes, features_balanced, ratio, delta, decay)


def fastest(shape: Shape, start: Starts) -> np.ndarray:
    """The largest growth rate without decay, (members,)."""
    samples = sum(shape.sizes)
    top = np.linalg.norm(shape.targets, 2)
    return np.sqrt(start.ratio * top**2 + (start.ratio * start.imbalance / 2) ** 2) / samples


def problem_of(shape: Shape, start: Starts) -> dyn.LayerPeeled:
    """The problem of one member."""
    of_features: Any = start.decay / start.ratio
    of_prototypes: Any = start.decay
    return dyn.LayerPeeled(
        shape.labels,
        num_classes=shape.classes,
        loss=dyn.losses.SquaredError(),
        decay=dyn.Decay(of_features, of_prototypes),
        bias="slaved" if shape.slaved else False,
    )


def member(shape: Shape, start: Starts) -> tuple[dyn.LayerPeeled, dyn.Peeled, dyn.Rates]:
    """Problem, state and rates of one member; time is the weights' clock."""
    rates = dyn.Rates.proportional(1.0, start.ratio)
    return problem_of(shape, start), dyn.Peeled(start.features, start.prototypes), rates


@functools.cache
def _program(shape: Shape):
    return jax.jit(jax.vmap(lambda start, ts: dyn.exact.flow(*member(shape, start), ts)))


def exact(shape: Shape, start: Starts, ts) -> dyn.Trajectory:
    """The library's motion by formula; `ts` (members, times). In chunks of one size: claims share the program."""
    members = len(start.ratio)
    pieces = []
    for begin in range(0, members, CHUNK):
        index = np.arange(begin, begin + CHUNK)
        index = np.where(index < members, index, begin)
        pieces.append(_program(shape)(Starts(*(x[index] for x in start)), ts[index]))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:members], *pieces)


def rows_of(moved: dyn.Trajectory) -> np.ndarray:
    """Q over time, (members, times, rows, dim)."""
    return np.concatenate([moved.states.prototypes, moved.states.features], axis=-2)


def pull(shape: Shape, start: Starts, rows, decays=None) -> np.ndarray:
    """dQ/dt from the gradient of the mean squared error and decays (of prototypes, of features), over members.

    `decays` None: the same rate times decay for both layers. Slaved biases are at their optimum.
    """
    samples, classes = sum(shape.sizes), shape.classes
    w, h = rows[:, :classes], rows[:, classes:]
    residual = np.eye(classes)[shape.labels] - h @ transposed(w)
    if shape.slaved:
        residual = residual - residual.mean(axis=1, keepdims=True)
    ratio = start.ratio[:, None, None]
    of_w, of_h = (start.decay, start.decay / start.ratio) if decays is None else decays
    dw = transposed(residual) @ h / samples - of_w[:, None, None] * w
    dh = residual @ w / samples - of_h[:, None, None] * h
    return np.concatenate([dw, ratio * dh], axis=1)


def integrated(velocity, rows, ts, tolerance: float = 1e-13) -> np.ndarray:
    """DOP853 on all members at once, each with its own times: `ts` (members, times), the same up to a factor a member.

    `velocity(rows)` is dQ/dt; returns (members, times, ...). The scale of a step's error is that of the members together.
    """
    last = ts[:, -1]
    pace = last.reshape(-1, *(1,) * (rows.ndim - 1))
    shares = ts[0] / last[0]
    solver = DOP853(
        lambda _, y: (pace * velocity(y.reshape(rows.shape))).ravel(), 0.0, rows.ravel(), 1.0, rtol=tolerance, atol=1e-15
    )
    found, waiting = [], list(shares)
    while waiting and waiting[0] <= 0.0:
        found.append(rows)
        waiting.pop(0)
    while waiting:
        solver.step()
        if solver.status == "failed":
            raise RuntimeError("the oracle's integrator failed")
        dense = None
        while waiting and waiting[0] <= solver.t + 1e-15:
            dense = solver.dense_output() if dense is None else dense
            found.append((solver.y if waiting[0] >= solver.t - 1e-15 else dense(waiting[0])).reshape(rows.shape))
            waiting.pop(0)
    return np.stack(found, axis=1)


def clocks(shape: Shape, start: Starts, shares: ArrayLike = CLOCKS) -> np.ndarray:
    """Times (members, times) at these clocks over the fastest growth rate."""
    return np.asarray(shares) / fastest(shape, start)[:, None]


@functools.cache
def flowed(shape: Shape, members: int) -> tuple[Starts, np.ndarray, dyn.Trajectory, np.ndarray]:
    """Starts, times, the library's motion, and Q by the integrator."""
    start = starts(shape, members)
    ts = clocks(shape, start)
    return start, ts, exact(shape, start, ts), integrated(lambda rows: pull(shape, start, rows), start.rows, ts)
