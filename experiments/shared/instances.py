"""Random instances that the claims are checked on, and the loop over them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

import dynamics as dyn
from dynamics.state import norm
from dynamics.verify import Measured

HORIZON = 10.0
"""Cosine schedules end here; claims about trajectories look at times up to about this."""

TIMES = np.linspace(0.0, HORIZON, 6)
"""Where trajectories are looked at."""

CHUNK = 512
"""Members in one call of a compiled program."""


class Size(NamedTuple):
    """Classes, samples per class, dimension of feature space."""

    classes: int
    per_class: int
    dim: int


SIZES = (Size(3, 2, 4), Size(2, 3, 2), Size(5, 2, 3))
"""Small sizes: generic, two classes, and fewer dimensions than a simplex needs."""

SIMULATED = SIZES[1:]
"""Those that claims on the solver are checked on: its programs take the longest to compile."""


Leaf = Any  # NumPy on the host, a tracer inside a program


class Draw(NamedTuple):
    """The random numbers of one member; arrays of a whole ensemble have a leading axis.

    - `gamma`: a third each 0, the optimum 1/(C-1), uniform in (0, 2/(C-2)), where the limit theorems hold (C = 2: (0, 2)).
    - `ratio`: features' rate over weights' rate, log-uniform in [0.1, 10].
    - `rate`, `floor`: weights' rate, log-uniform in [0.1, 1]; half the members keep it, half anneal it to a tenth.
    - `decay`: of features, prototypes and biases, unequal, uniform in (0, 0.3).
    - `features`, `prototypes`, `biases`: standard normal.
    - `spare`: uniform numbers in (0, 1) for whatever else a claim draws, shape (16,).
    """

    gamma: Leaf
    ratio: Leaf
    rate: Leaf
    floor: Leaf
    decay: Leaf
    features: Leaf
    prototypes: Leaf
    biases: Leaf
    spare: Leaf


@functools.cache
def draws(size: Size, members: int, seed: int = 0) -> Draw:
    """The random numbers of `members` members, drawn on the host: no claim compiles a generator of its own."""
    rng = np.random.default_rng([seed, *size])
    classes, per_class, dim = size
    top = 2 / (classes - 2) if classes > 2 else 2.0
    kind = rng.integers(0, 3, members)
    rate = 10 ** rng.uniform(-1, 0, members)
    return Draw(
        gamma=np.select([kind == 0, kind == 1], [0.0, 1 / (classes - 1)], rng.uniform(0, 0.95 * top, members)),
        ratio=10 ** rng.uniform(-1, 1, members),
        rate=rate,
        floor=np.where(rng.integers(0, 2, members) == 0, rate, 0.1 * rate),
        decay=rng.uniform(0, 0.3, (members, 3)),
        features=rng.normal(size=(members, classes * per_class, dim)),
        prototypes=rng.normal(size=(members, classes, dim)),
        biases=rng.normal(size=(members, classes)),
        spare=rng.uniform(size=(members, 16)),
    )


def undecayed(draw: Draw) -> Draw:
    """The same draws without decay."""
    return draw._replace(decay=np.zeros_like(draw.decay))


def admissible(draw: Draw, size: Size) -> Draw:
    """The same draws with gamma inside the range (0, 2/(C-2)) of the limit theorems: 0 is replaced."""
    top = 2 / (size.classes - 2) if size.classes > 2 else 2.0
    inside = top * (0.05 + 0.9 * draw.spare[:, 0])
    return draw._replace(gamma=np.where(draw.gamma == 0, inside, draw.gamma))


class Kernels(NamedTuple):
    """Random kernels across samples and across feature coordinates, (members, k, k); half of them singular."""

    across_samples: np.ndarray
    across_features: np.ndarray


@functools.cache
def kernels(size: Size, members: int) -> Kernels:
    """Those of `members` members."""
    rng = np.random.default_rng([3, *size])

    def one(k):
        roots = rng.normal(size=(members, k, k)) / k**0.5
        roots[: members // 2, :, -1:] = 0.0
        return roots @ roots.swapaxes(1, 2)

    return Kernels(one(size.classes * size.per_class), one(size.dim))


class Instance(NamedTuple):
    """A problem, a start and rates."""

    problem: dyn.LayerPeeled
    state: dyn.Peeled
    rates: dyn.Rates


def instance(draw: Draw, size: Size, *, decay: bool = False, **fields) -> Instance:
    """The balanced instance of a draw: unhinged loss, proportional rates, no decay unless asked.

    Further fields are those of `LayerPeeled`; `loss` replaces the unhinged loss.
    """
    fields.setdefault("loss", dyn.losses.Unhinged(draw.gamma))
    fields.setdefault("decay", dyn.Decay(*draw.decay) if decay else dyn.Decay())
    problem = dyn.LayerPeeled.balanced(size.classes, size.per_class, **fields)
    # a cosine that ends where it starts is a constant rate: both kinds are one compiled program
    schedule = dyn.schedules.Cosine(draw.rate, HORIZON, draw.floor)
    rates = dyn.Rates.proportional(schedule, draw.ratio)
    return Instance(problem, dyn.Peeled(draw.features, draw.prototypes, draw.biases), rates)


def relative(x, y):
    """The norm of x - y over the norm of y, over all leaves together."""
    return norm(jax.tree.map(jnp.subtract, x, y)) / norm(y)


def worst_over(one: Callable, members: int, *, sizes: Sequence[Size] = SIZES, seed: int = 0, chunk: int = 1024) -> Measured:
    """The largest residual of `one(draw, size)` over the draws of every size; at least `members` in all.

    A residual that is not a number is the worst there is.
    """

    def residuals(size, share):
        call = functools.partial(one, size=size)
        return dyn.ensemble.run(call, draws(size, share, seed), chunk=chunk, progress=False).values

    return worst_of(residuals, members, sizes=sizes)


def _named(size: Size) -> str:
    return f"C={size.classes} N={size.per_class} p={size.dim}"


def worst_of(residuals: Callable, members: int, *, sizes: Sequence[Any] = SIZES, named: Callable = _named) -> Measured:
    """The largest of `residuals(size, share)`, one a member of a size; at least `members` in all.

    Whatever tells kinds of instances apart may stand for sizes, `named` says how to print one. A residual that is not a
    number is the worst there is.
    """
    share = -(-members // len(sizes))
    found = []
    for size in sizes:
        values = np.asarray(residuals(size, share))
        if values.shape != (share,):
            raise ValueError(f"residuals must have shape ({share},), one for each member, got {values.shape}")
        found.append(np.where(np.isfinite(values), values, np.inf))
    size, values = max(zip(sizes, found, strict=True), key=lambda pair: pair[1].max())
    where = f"{named(size)}, member {int(values.argmax())}"
    return Measured(float(values.max()), share * len(sizes), where, {"median": float(np.median(np.concatenate(found)))})


# The library's answers for all members of a draw: one compiled program for each size, whatever the numbers.


def simulated(draw: Draw, size: Size, ts: ArrayLike = TIMES) -> dyn.Trajectory:
    """The flow with biases by the adaptive solver, at tolerance 1e-10."""
    return _run(_simulated, draw, size, ts)


def by_formula(draw: Draw, size: Size, ts: ArrayLike = TIMES, *, scaled: bool = False) -> dyn.Trajectory:
    """The flow with biases by formula; `ts` of shape (times,), or (members, times): times of their own."""
    return _run(_by_scaled_formula if scaled else _by_formula, draw, size, ts)


def limits(draw: Draw, size: Size) -> dyn.exact.Limit:
    """What the flow with biases tends to."""
    return _run(_limit, draw, size, TIMES)


def _simulated(draw, size, ts):
    return dyn.flow(*instance(draw, size, decay=True, bias=True), ts, rtol=1e-10, atol=1e-10)


def _by_formula(draw, size, ts):
    return dyn.exact.flow(*instance(draw, size, decay=True, bias=True), ts)


def _by_scaled_formula(draw, size, ts):
    return dyn.exact.flow(*instance(draw, size, decay=True, bias=True), ts, scaled=True)


def _limit(draw, size, ts):
    return dyn.exact.limit(*instance(draw, size, decay=True, bias=True))


@functools.cache
def _program(one: Callable, size: Size):
    return jax.jit(jax.vmap(lambda draw, ts: one(draw, size, ts)))


def _run(one: Callable, draw: Draw, size: Size, ts: ArrayLike):
    """In chunks of one size, padded with the first member: claims with other numbers of members share the program."""
    members = draw.gamma.shape[0]
    inputs = draw, np.broadcast_to(np.asarray(ts, float), (members, np.shape(ts)[-1]))
    pieces = []
    for begin in range(0, members, CHUNK):
        index = np.arange(begin, begin + CHUNK)
        index = np.where(index < members, index, begin)
        pieces.append(_program(one, size)(*jax.tree.map(lambda x, index=index: x[index], inputs)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:members], *pieces)


# The paper's notation, on host arrays with leading axes of members.


def sigmas(draw: Draw, size: Size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coupling of the zero-sum directions, of the common direction (signed), and the drift of each bias."""
    gamma, classes, root = draw.gamma, size.classes, size.per_class**0.5
    common = 1 + gamma - gamma * classes
    return (1 + gamma) / (classes * root), common / (classes * root), common / classes


def class_sides(features, size: Size) -> np.ndarray:
    """Root N times the class means, (..., classes, dim)."""
    by_class = np.reshape(features, (*np.shape(features)[:-2], size.classes, size.per_class, size.dim))
    return by_class.sum(axis=-2) / size.per_class**0.5


def spread(sides, size: Size) -> np.ndarray:
    """Features without deviations from their class means that have these class sides, (..., samples, dim)."""
    return np.repeat(sides, size.per_class, axis=-2) / size.per_class**0.5


def common_part(sides) -> np.ndarray:
    """The mean over classes, for every class, (..., classes, dim)."""
    return np.broadcast_to(sides.mean(axis=-2, keepdims=True), sides.shape)
