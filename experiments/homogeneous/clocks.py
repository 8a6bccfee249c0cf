"""All clocks of a network's flow trace one curve, and tell one time on it."""

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from scipy.integrate import solve_ivp

import dynamics as dyn
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.networks import FIRM, RATES, separable, worst_of

NET = dyn.nets.deep_linear((4, 4))
SHAPES = ((4, 3), (4, 4), (4,))
SIZES = [int(np.prod(shape)) for shape in SHAPES]
BEFORE = 100.0
"""When the starts of the comparison are taken: by then every sample is on its side."""
TIMES = np.array([1.0, 10.0, 1e2, 1e3, 1e4])
SOME = 16
END = dyn.LogTime(float(np.log(TIMES[-1])))
CLOCKS = {
    "loss": (dyn.clocks.Loss(), np.array([1e3])),
    "log of the norm": (dyn.clocks.LogRadius(), np.array([1e2])),
    "log of the loss": (dyn.clocks.LogLoss(), np.array([1e2])),
    "polar": (dyn.clocks.Polar(), np.array([1e2])),
}


def _parts(flat: np.ndarray) -> tuple:
    """The layers of flattened weights, (..., size)."""
    pieces = np.split(flat, np.cumsum(SIZES)[:-1], axis=-1)
    return tuple(piece.reshape(*flat.shape[:-1], *shape) for piece, shape in zip(pieces, SHAPES, strict=True))


@functools.cache
def _reference(members: int) -> tuple[np.ndarray, np.ndarray]:
    """Flattened weights of all members at the start, and at `TIMES` after it, by SciPy's integrator of order 8."""
    data = separable(members)
    first = np.random.default_rng(99).normal(size=(members, sum(SIZES))) * 0.3
    signed = data.targets[..., None] * data.inputs

    def force(_, y):
        a, b, c = _parts(y.reshape(members, -1))
        predictor = np.einsum("mi,mij,mjd->md", c, b, a)
        pull = np.einsum("mn,mnd->md", np.exp(-np.einsum("mnd,md->mn", signed, predictor)), signed)
        below, above = np.einsum("mij,md,mjd->mi", b, pull, a), np.einsum("mi,mij->mj", c, b)
        inner = np.einsum("mi,md,mjd->mij", c, pull, a)
        parts = above[:, :, None] * pull[:, None, :], inner, below
        return np.concatenate([part.reshape(members, -1) for part in parts], axis=1).ravel()

    times = np.append(0.0, TIMES) + BEFORE
    with np.errstate(over="ignore"):  # of steps that are tried and refused
        done = solve_ivp(force, (0.0, times[-1]), first.ravel(), "DOP853", times, rtol=1e-12, atol=1e-13)
    states = np.moveaxis(done.y.reshape(members, -1, times.size), -1, 1)
    return states[:, 0], states[:, 1:]


def _followed(members: int, clock, values) -> tuple[np.ndarray, np.ndarray]:
    """Flattened weights and the logarithm of time at the end of a clock."""
    data, (start, _) = separable(members), _reference(members)

    def one(inputs, targets, state):
        problem = dyn.Network(NET, inputs, targets)
        moved = dyn.flow(problem, state, RATES, values, clock=clock, until=END, rtol=1e-10, max_steps=20000)
        return moved.states, moved.log_t

    states, log_t = jax.jit(jax.vmap(one))(data.inputs, data.targets, _parts(start))
    flat = np.concatenate([np.reshape(leaf, (members, len(values), -1)) for leaf in states], axis=2)
    return flat, np.asarray(log_t)


def _equivalence(members: int) -> Measured:
    members = min(members, SOME)
    expected = _reference(members)[1]

    def off(clock, values) -> np.ndarray:
        found, log_t = _followed(members, clock, values)
        compared = expected[:, -len(values) :]
        apart = np.linalg.norm(found - compared, axis=2) / np.linalg.norm(compared, axis=2)
        return np.maximum(apart, np.abs(log_t - np.log(TIMES[-len(values) :])))

    with ThreadPoolExecutor(2) as pool:  # most of the time is the compiler's, on one core each
        return worst_of(dict(zip(CLOCKS, pool.map(lambda row: off(*row), CLOCKS.values()), strict=True)))


EXPERIMENT = Experiment(
    name="clocks",
    family="homogeneous",
    summary="loss, log of the norm, log of the loss and polar length as clocks of one curve",
    claims=(
        Claim(
            name="clock-equivalence",
            id="clock.equivalence",
            statement="four clocks give the weights of an independent integration in time, up to t = 1e4, and that time",
            source="derived here",
            assumptions=("exponential loss", "linear net of 3 layers, 3-4-4-1", *FIRM),
            tolerance=1e-8,
            check=_equivalence,
            limited_by="the integrators, at a tolerance of 1e-10 a step",
        ),
    ),
)
