"""Class means and prototypes move on their own: a system of C columns, whatever the number of samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import clock, deviation, size_of
from experiments.shared.descents import STEPS, descended, problem_of, random_rates, rates_of
from experiments.shared.instances import (
    SIZES,
    TIMES,
    Draw,
    Size,
    class_sides,
    common_part,
    draws,
    instance,
    sigmas,
    simulated,
    spread,
    worst_of,
)
from experiments.shared.oracles import column, dense_motion, descend, mode_exponential, stack

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Lemma 9"
SIZE = SIZES[0]


@functools.cache
def _moved(size: Size, members: int):
    """The draws, and the simulated flow of all samples."""
    draw = draws(size, members)
    return draw, simulated(draw, size).states


@functools.cache
def _stepped(size: Size, members: int):
    """The draws, rates, momentum, and the simulated heavy ball of all samples."""
    draw = draws(size, members)
    rates, momentum = random_rates(draw), 0.9 * draw.spare[:, 0]
    return draw, rates, momentum, descended(draw, size, rates, momentum, "heavy ball").simulated


def _split(features, size: Size):
    """Class sides G, and deviations D from the class means."""
    g = class_sides(features, size)
    return g, features - spread(g, size)


def _worst(found, expected):
    return deviation(found, expected).max(axis=1)


def _reduced_flow(size: Size, members: int):
    draw, states = _moved(size, members)

    def one(member):
        problem, state, rates = instance(member, size, decay=True)
        means = dyn.reduce.class_means(problem, state)
        moved = dyn.flow(means.problem, means.state, rates, TIMES, rtol=1e-10, atol=1e-10)
        kept = jnp.exp(-problem.decay.features * rates.features.integral(TIMES))
        return jax.vmap(lambda state, kept: means.lift(state, kept))(moved.states, kept)

    return _worst(stack(dyn.ensemble.run(one, draw, progress=False).values), stack(states))


def _reduced_descent(size: Size, members: int):
    draw, rates, momentum, states = _stepped(size, members)
    factors = _deviation_factors(draw, rates, momentum)

    def one(member):
        draw, rates, momentum, factors = member
        state = dyn.Peeled(draw.features, draw.prototypes, draw.biases)
        means = dyn.reduce.class_means(problem_of(draw, size), state)
        moved = dyn.descent(means.problem, means.state, rates_of(rates), STEPS, momentum=momentum)
        return jax.vmap(means.lift)(moved.states, factors)

    lifted = dyn.ensemble.run(one, (draw, rates, momentum, factors), progress=False).values
    return _worst(stack(lifted), stack(states))


def _deviation_factors(draw: Draw, rates, momentum):
    """The scalar recursion of what nothing pulls: v <- mu v - lambda1 x, x <- x + rate v."""
    x, v = np.ones(draw.rate.shape), 0.0
    factors = [x]
    for k in range(rates.shape[-1]):
        v = momentum * v - draw.decay[:, 0] * x
        x = x + rates[:, 0, k] * v
        factors.append(x)
    return np.stack(factors, axis=1)


def _class_pull(draw: Draw, size: Size):
    """K of class sides, from its definition."""
    gamma = column(draw.gamma)
    return ((1 + gamma) * np.eye(size.classes) - gamma) / (size.classes * size.per_class**0.5)


def _closed_flow(size: Size, members: int):
    """G and W of the simulated flow against a generator of 2C rows, by its eigenvectors."""
    draw, states = _moved(size, members)
    start = np.concatenate([class_sides(draw.features, size), draw.prototypes], axis=1)
    found = np.concatenate([class_sides(states.features, size), states.prototypes], axis=2)
    clocks = clock(draw, TIMES)[:, 1:]
    moved = dense_motion(
        _class_pull(draw, size)[:, None], start[:, None], (draw.ratio[:, None] * clocks, clocks), draw.decay.T[:2, :, None]
    )
    return _worst(found[:, 1:], moved)


def _closed_descent(size: Size, members: int):
    """G and W of the descent against a plain loop over a problem of one sample a class, its pull over root N."""
    draw, rates, momentum, states = _stepped(size, members)
    means = draw._replace(features=class_sides(draw.features, size))
    found = np.concatenate([class_sides(states.features, size), states.prototypes], axis=2)
    return _worst(found, stack(descend(_class_pull(draw, size), means, rates, draw.decay, momentum)))


def _deviations_flow(size: Size, members: int):
    draw, states = _moved(size, members)
    left = np.exp(-draw.decay[:, :1] * draw.ratio[:, None] * clock(draw, TIMES))
    d0 = _split(draw.features, size)[1]
    return (size_of(_split(states.features, size)[1] - column(left) * d0[:, None]) / size_of(stack(states))).max(axis=1)


def _deviations_descent(size: Size, members: int):
    draw, rates, momentum, states = _stepped(size, members)
    left = _deviation_factors(draw, rates, momentum)
    d0 = _split(draw.features, size)[1]
    return (size_of(_split(states.features, size)[1] - column(left) * d0[:, None]) / size_of(stack(states))).max(axis=1)


def _norms(size: Size, members: int):
    _, states = _moved(size, members)
    g, d = _split(states.features, size)
    whole = size_of(states.features) ** 2
    return (np.abs(size_of(g) ** 2 + size_of(d) ** 2 - whole) / whole).max(axis=1)


def _seven_numbers(size: Size, members: int):
    """Norms, loss and distance from the start, of the simulated flow, from seven inner products of the start."""
    draw, states = _moved(size, members)
    g, d = _split(draw.features, size)
    w = draw.prototypes
    left = np.exp(-draw.decay[:, :1] * draw.ratio[:, None] * clock(draw, TIMES))
    clocks = draw.ratio[:, None] * clock(draw, TIMES), clock(draw, TIMES)
    decays = draw.decay[:, :1], draw.decay[:, 1:2]
    *couplings, drift = sigmas(draw, size)
    numbers = {"features": size_of(d)[:, None] ** 2 * left**2, "prototypes": 0.0, "loss": 0.0}
    numbers["distance"] = size_of(d)[:, None] ** 2 * (1 - left) ** 2
    for sigma, part in zip(couplings, (lambda x: x - common_part(x), common_part), strict=True):
        sides = np.stack([part(g), part(w)], axis=1)
        products = np.einsum("midp,mjdp->mij", sides, sides)[:, None]
        motion = mode_exponential(sigma[:, None], clocks, decays)
        after = motion @ products @ np.swapaxes(motion, -1, -2)
        numbers["features"] += after[..., 0, 0]
        numbers["prototypes"] += after[..., 1, 1]
        numbers["loss"] -= sigma[:, None] * after[..., 0, 1]
        change = motion - np.eye(2)
        numbers["distance"] += np.trace(change @ products @ np.swapaxes(change, -1, -2), axis1=-2, axis2=-1)
    start = np.concatenate([draw.features, w], axis=1)[:, None]
    logits = states.features @ np.swapaxes(states.prototypes, -1, -2)
    own = np.repeat(np.eye(size.classes, dtype=bool), size.per_class, axis=0)
    measured = {
        "features": size_of(states.features) ** 2,
        "prototypes": size_of(states.prototypes) ** 2,
        "loss": (logits * np.where(own, -1.0, draw.gamma[:, None, None, None])).sum(axis=(2, 3)) / own.shape[0],
        "distance": size_of(stack(states) - start) ** 2,
    }
    unit = size_of(stack(states)) ** 2  # the loss has zeros, the distance starts at one
    return np.max([np.abs(numbers[key] - measured[key]) / unit for key in numbers], axis=(0, 2))


_claim = functools.partial(
    Claim, id="beyond.classmean", source=SOURCE, assumptions=("balanced classes", "loss linear in the logits")
)
_one_size = functools.partial(functools.partial, worst_of, sizes=(SIZE,))

EXPERIMENT = Experiment(
    name="classmean",
    family="beyond",
    summary="class means and prototypes are a closed system, independent of the number of samples",
    claims=(
        _claim(
            name="classmean-reduced-flow",
            statement="simulated flow of all samples = lifted flow of one class side a class, deviations decayed",
            tolerance=1e-7,
            check=_one_size(_reduced_flow),
        ),
        _claim(
            name="classmean-reduced-descent",
            statement="heavy-ball descent of all samples at any rates = lifted descent of one class side a class",
            tolerance=3e-14,
            check=_one_size(_reduced_descent),
        ),
        _claim(
            name="classmean-closed-flow",
            statement="G' = eta1 (W K - lambda1 G), W' = eta2 (G K^T - lambda2 W), where N enters as K ~ 1/sqrt(N) alone",
            tolerance=1e-7,
            check=_one_size(_closed_flow),
        ),
        _claim(
            name="classmean-closed-descent",
            statement="the same system of C columns, stepped, is what (G, W) do under heavy ball at any rates",
            tolerance=3e-14,
            check=_one_size(_closed_descent),
        ),
        _claim(
            name="classmean-deviations-flow",
            statement="deviations only decay: D = e^{-lambda1 zeta1} D0, along the flow",
            tolerance=3e-8,
            check=_one_size(_deviations_flow),
        ),
        _claim(
            name="classmean-deviations-descent",
            statement="deviations obey the recursion of sigma = 0, under heavy ball",
            tolerance=5e-15,
            check=_one_size(_deviations_descent),
        ),
        _claim(
            name="classmean-norms",
            statement="|H|^2 = |G|^2 + |D|^2",
            tolerance=5e-15,
            check=_one_size(_norms),
        ),
        _claim(
            name="classmean-seven-numbers",
            statement="seven inner products of the start give norms, loss and distance from the start for all time",
            tolerance=1e-7,
            check=_one_size(_seven_numbers),
        ),
    ),
)
