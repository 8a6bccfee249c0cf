"""Rates whose ratio changes: generators at different times do not commute, and 2x2 systems are integrated instead."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from dynamics.losses.base import SymmetricCoupling
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.dense import deviation, size_of, stacked
from experiments.shared.instances import SIZES, Draw, class_sides, draws, sigmas, spread, worst_of
from experiments.shared.oracles import balanced_pull, column, dense_motion, generator, integrate, stack
from experiments.shared.pairs import END, Pair, pairs

SOURCE = (
    "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 4, for rates that are not proportional; "
    "S. Blanes, F. Casas, J. A. Oteo, J. Ros, The Magnus expansion and some of its applications (2009), Section 5"
)
SIZE = SIZES[0]
TS = np.linspace(0.0, END, 6)
HOST, FAST = 9, 30.0  # members solved one by one on the host, also with all rates times FAST


@functools.cache
def _drawn(members: int) -> tuple[Draw, Pair]:
    draw = draws(SIZE, members)
    return draw, pairs(draw)


def _problem(draw: Draw, sign=1.0) -> dyn.LayerPeeled:
    """The unhinged loss times a sign: minus is every singular value's sign changed."""
    drift = 1 + draw.gamma - draw.gamma * SIZE.classes
    coupling = SymmetricCoupling(sign * (1 + draw.gamma), sign * draw.gamma, sign * drift)
    fields = {"loss": dyn.losses.Linear(coupling), "decay": dyn.Decay(*draw.decay), "bias": True}
    return dyn.LayerPeeled.balanced(SIZE.classes, SIZE.per_class, **fields)


ZERO_SUM, COMMON = np.array([1.0, -1.0, 0.0]) / 2**0.5, np.ones(3) / 3**0.5
_EACH = np.eye(4)
PROBE = (
    spread(np.outer(ZERO_SUM, _EACH[0]) + np.outer(COMMON, _EACH[2]), SIZE),
    np.outer(ZERO_SUM, _EACH[1]) + np.outer(COMMON, _EACH[3]),
)
"""A start that shows the columns of two propagators: of sigma1 in its first two coordinates, sigma2 in the others."""


@functools.cache
def _program():
    def one(draw, pair, sign, speed):
        beside = lambda drawn, probe: jnp.concatenate([drawn, probe], axis=1)
        state = dyn.Peeled(beside(draw.features, PROBE[0]), beside(draw.prototypes, PROBE[1]), draw.biases)
        return dyn.exact.flow(_problem(draw, sign), state, pair.schedules(speed), TS)

    return jax.jit(jax.vmap(one, in_axes=(0, 0, None, None)))


@functools.cache
def _by_formula(members: int, sign: float = 1.0, speed: float = 1.0) -> dyn.Trajectory:
    """The draw's motion in the first coordinates, the probe's in the last four."""
    return jax.tree.map(np.asarray, _program()(*_drawn(members), sign, speed))


def _states(moved: dyn.Trajectory) -> np.ndarray:
    """Features over prototypes of the draw."""
    return stack(moved.states)[..., : SIZE.dim]


def _propagators(moved: dyn.Trajectory) -> np.ndarray:
    """Those of sigma1 and sigma2, (2, members, times, 2, 2)."""
    features, prototypes = (part[..., SIZE.dim :] for part in (moved.states.features, moved.states.prototypes))
    sides = class_sides(features, SIZE), prototypes
    along = lambda unit: np.stack([np.einsum("c,mtcp->mtp", unit, side) for side in sides], axis=-2)
    return np.stack([along(ZERO_SUM)[..., :2], along(COMMON)[..., 2:]])


@functools.cache
def _simulated(members: int) -> dyn.Trajectory:
    def one(draw, pair):
        state = dyn.Peeled(draw.features, draw.prototypes, draw.biases)
        return dyn.flow(_problem(draw), state, pair.schedules(1.0), TS, rtol=1e-10, atol=1e-10)

    return jax.jit(jax.vmap(one))(*_drawn(members))


@functools.cache
def _solved(members: int, speed: float) -> np.ndarray:
    """The first HOST members by DOP853, (HOST, times, samples + classes, dim)."""
    draw, pair = _drawn(members)
    pull = balanced_pull(draw, SIZE)
    states = []
    for k in range(min(HOST, members)):
        own = Pair(*(x[k : k + 1] for x in pair))
        rates = lambda t, own=own: [speed * rate(np.array([[t]]))[0, 0] for rate in (own.features, own.weights)]
        velocity = lambda t, z, k=k, rates=rates: generator(pull[k], rates(t), draw.decay[k, :2]) @ z
        start = np.concatenate([draw.features[k], draw.prototypes[k]])
        states.append([start, *integrate(velocity, start, TS[1:], own.kinks()[0])])
    return np.array(states)


def _against_ode(members: int) -> Measured:
    errors = deviation(_states(_by_formula(members))[:HOST], _solved(members, 1.0))
    return Measured(float(errors.max()), len(errors), f"member {int(errors.max(axis=1).argmax())}")


def _estimate(members: int) -> Measured:
    """Errors over the estimate, which the reference's own error of 1e-11 is added to; all rates times FAST."""
    moved = _by_formula(members, speed=FAST)
    errors = deviation(_states(moved)[:HOST], _solved(members, FAST)).max(axis=1)
    estimate = moved.stats["error_estimate"][:HOST]
    ratio = errors / (estimate + 1e-11)
    return Measured(float(ratio.max()), HOST, f"member {int(ratio.argmax())}", {"largest estimate": float(estimate.max())})


def _against_flow(size, members: int):
    return deviation(stack(_simulated(members).states), _states(_by_formula(members))).max(axis=1)


def _clocks(members: int):
    """Of features and of weights, (members, times) each."""
    _, pair = _drawn(members)
    return (np.stack(clocks, axis=1) for clocks in zip(*(pair.clocks(t) for t in TS), strict=True))


def _determinant(size, members: int):
    """Over the squared size of the propagator: a determinant is a small difference of what grows."""
    draw, _ = _drawn(members)
    zeta1, zeta2 = _clocks(members)
    expected = np.exp(-draw.decay[:, :1] * zeta1 - draw.decay[:, 1:2] * zeta2)
    phi = _propagators(_by_formula(members))
    return (np.abs(np.linalg.det(phi) - expected) / size_of(phi) ** 2).max(axis=(0, 2))


def _signs(size, members: int):
    phi = _propagators(_by_formula(members))
    flip = np.array([[1, -1], [-1, 1]])
    return deviation(_propagators(_by_formula(members, -1.0)), flip * phi).max(axis=(0, 2))


def _uncoupled(size, members: int):
    """Deviations from class means, and biases, from the clocks alone."""
    draw, _ = _drawn(members)
    states, (zeta1, zeta2) = _by_formula(members).states, _clocks(members)
    deviate = lambda features: features - spread(class_sides(features, SIZE), SIZE)
    kept = np.exp(-draw.decay[:, :1] * zeta1)
    apart = size_of(deviate(states.features[..., : SIZE.dim]) - column(kept) * deviate(draw.features)[:, None])
    rest = (sigmas(draw, SIZE)[2] / draw.decay[:, 2])[:, None, None]
    biases = rest + np.exp(-draw.decay[:, 2:] * zeta2)[..., None] * (draw.biases[:, None] - rest)
    unit = size_of(draw.biases, 1)[:, None] + size_of(rest + 0 * biases, 1)
    relative = apart / size_of(_states(_by_formula(members))), size_of(states.biases - biases, 1) / unit
    return np.maximum(*relative).max(axis=1)


def _wrong(members: int) -> Measured:
    """The residual is 0.1 % over the median error of the exponential of the integrated generator."""
    draw, pair = _drawn(members)
    pull = balanced_pull(draw, SIZE)
    averaged = dense_motion(pull, stacked(draw.features, draw.prototypes), pair.clocks(END), draw.decay.T[:2])
    errors = deviation(averaged, _states(_by_formula(members))[:, -1])
    numbers = {"median error": float(np.median(errors)), "largest error": float(errors.max())}
    return Measured(1e-3 / float(np.median(errors)), members, "at the last time", numbers)


def _commutator(size, members: int):
    """Without decay, of the dense generators at two times: its diagonal blocks, which sigma^2 is the square of."""
    draw, pair = _drawn(members)
    pull = balanced_pull(draw, SIZE)
    none = np.zeros((2, members))
    times = [(END * draw.spare[:, k])[:, None] for k in (9, 10)]
    (a1, a2), (b1, b2) = [(pair.features(t)[:, 0], pair.weights(t)[:, 0]) for t in times]
    early, late = (generator(pull, rates, none) for rates in ((a1, a2), (b1, b2)))
    transposed = np.swapaxes(pull, 1, 2)
    zero = np.zeros_like(pull)
    signed = np.block([[pull @ transposed, zero], [np.swapaxes(zero, 1, 2), -transposed @ pull]])
    found = early @ late - late @ early
    return size_of(found - column(a1 * b2 - b1 * a2) * signed) / (size_of(early) * size_of(late))


_claim = functools.partial(Claim, id="beyond.nonproportional", source=SOURCE, assumptions=("balanced classes", "any two rates"))
_check = functools.partial(functools.partial, worst_of, sizes=(SIZE,))

EXPERIMENT = Experiment(
    name="nonproportional",
    family="beyond",
    summary="rates whose ratio changes over time",
    claims=(
        _claim(
            name="nonproportional-ode",
            statement="two propagators, one scalar and the clocks give the whole motion: formula = DOP853 at rtol 1e-12",
            tolerance=1e-11,
            check=_against_ode,
        ),
        _claim(
            name="nonproportional-flow",
            statement="simulated flow = formula, for cosines, steps and warm-ups",
            tolerance=1e-7,
            check=_check(_against_flow),
        ),
        _claim(
            name="nonproportional-determinant",
            statement="det Phi = exp(-lambda1 zeta1 - lambda2 zeta2)",
            tolerance=1e-12,
            check=_check(_determinant),
        ),
        _claim(
            name="nonproportional-sign",
            statement="Phi(-sigma) = diag(1, -1) Phi(sigma) diag(1, -1)",
            tolerance=1e-14,
            check=_check(_signs),
        ),
        _claim(
            name="nonproportional-uncoupled",
            statement="deviations decay by zeta1, biases relax by zeta2, whatever the ratio does",
            tolerance=1e-13,
            check=_check(_uncoupled),
        ),
        _claim(
            name="nonproportional-commutator",
            statement="[A(t), A(t')] = sigma^2 (eta1(t) eta2(t') - eta1(t') eta2(t)) diag(1, -1) without decay",
            tolerance=1e-15,
            check=_check(_commutator),
        ),
        _claim(
            name="nonproportional-integrated",
            statement="the exponential of the integrated generator is wrong, by 0.1 % or more in half the members",
            tolerance=1.0,
            check=_wrong,
        ),
        _claim(
            name="nonproportional-estimate",
            statement="the stated error estimate bounds the error (residual: their ratio; all rates times 30)",
            tolerance=1.0,
            check=_estimate,
        ),
    ),
)
