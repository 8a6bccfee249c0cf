"""Symmetries that every motion by formula must have, no reference needed: rotation, relabelling, linearity, clocks,
semigroup, replication of samples, duality of features and prototypes, reversal."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.exact.propagators import Decays, flow_propagator
from dynamics.losses import CrossEntropy, SquaredError, Unhinged
from tests import oracles

CLASSES, DIM = 4, 3
SEEDS = st.integers(0, 2**32 - 1)


class Numbers(NamedTuple):
    """What varies between runs: gamma, decays, features' rate over weights' rate, weights' rate in four spans of one step."""

    gamma: float
    decay: np.ndarray
    ratio: float
    levels: np.ndarray


class Start(NamedTuple):
    """Features, prototypes, biases of one sample a class."""

    h: np.ndarray
    w: np.ndarray
    b: np.ndarray


def anything(numbers, rng) -> Start:
    return Start(rng.normal(size=(CLASSES, DIM)), rng.normal(size=(CLASSES, DIM)), rng.normal(size=CLASSES))


def balanced(numbers, rng) -> Start:
    """W^T W = H^T H / s, otherwise generic, biases zero."""
    sides, (turn, _) = rng.normal(size=(CLASSES, DIM)), np.linalg.qr(rng.normal(size=(CLASSES, CLASSES)))
    return Start(np.sqrt(numbers.ratio) * sides, turn @ sides, np.zeros(CLASSES))


def simplex(rng) -> np.ndarray:
    """Unit rows at the angles of a simplex, in any orientation."""
    values, vectors = np.linalg.eigh(np.eye(CLASSES) - 1 / CLASSES)
    rows = vectors[:, values > 0.5] * np.sqrt(CLASSES / (CLASSES - 1))
    return rows @ np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]


def along_a_simplex(numbers, rng) -> Start:
    w = rng.uniform(0.5, 2.0) * simplex(rng)
    return Start(rng.uniform(-1, 1, size=(CLASSES, 1)) * w, w, np.zeros(CLASSES))


def two_scalars(numbers, rng) -> Start:
    frame = simplex(rng)
    return Start(rng.uniform(0.1, 1) * frame, rng.uniform(0.1, 1) * frame, np.zeros(CLASSES))


class Family(NamedTuple):
    """A closed form: fields of its problem, its starts, which decays it allows, and symmetries not all of them have."""

    fields: Callable[[Numbers], dict]
    start: Callable = anything
    decays: Callable = lambda numbers: numbers.decay
    descends: bool = True
    linear: bool = False
    dual: bool = False
    commutes: bool = True
    by_gram: bool = False


def no_decay(numbers):
    return 0.0 * numbers.decay


FAMILIES = {
    "modes": Family(lambda n: {"loss": Unhinged(n.gamma), "bias": True}, linear=True, dual=True),
    "anchored": Family(lambda n: {"loss": Unhinged(n.gamma), "anchored": True}, linear=True),
    "spherical": Family(lambda n: {"loss": Unhinged(n.gamma), "anchored": True, "normalize": True}, commutes=False),
    "anchored square": Family(lambda n: {"loss": SquaredError(), "anchored": True}),
    "square": Family(
        lambda n: {"loss": SquaredError()},
        balanced,
        lambda n: n.decay[1] * np.array([1 / n.ratio, 1.0, 0.0]),
        descends=False,
        dual=True,
        by_gram=True,
    ),
    "anchored cross-entropy": Family(
        lambda n: {"loss": CrossEntropy(), "anchored": True}, along_a_simplex, no_decay, descends=False
    ),
    "cross-entropy": Family(lambda n: {"loss": CrossEntropy()}, two_scalars, no_decay, descends=False),
}
FLOWS = [(name, "flow") for name in FAMILIES]
DESCENTS = [(name, "descent") for name, family in FAMILIES.items() if family.descends]
EVERY = pytest.mark.parametrize("name, verb", FLOWS + DESCENTS)


@functools.cache
def program(name: str, verb: str, per_class: int):
    """One compiled program: states at times (or after steps) 0, 2 and 4."""

    @jax.jit
    def run(numbers: Numbers, start: Start):
        problem = dyn.LayerPeeled.balanced(
            CLASSES, per_class, decay=dyn.Decay(*numbers.decay), **FAMILIES[name].fields(numbers)
        )
        schedule = dyn.schedules.Piecewise(numbers.levels, jnp.arange(1.0, 4.0))
        rates, state = dyn.Rates.proportional(schedule, numbers.ratio), dyn.Peeled(*start)
        if verb == "flow":
            moved = dyn.exact.flow(problem, state, rates, jnp.array([0.0, 2.0, 4.0]))
        else:
            moved = dyn.exact.descent(problem, state, rates, 4, every=2)
        return moved.states, moved.status

    return run


def moved(name: str, verb: str, numbers: Numbers, start: Start) -> Start:
    """States with a leading axis of times; the run must have ended well."""
    states, code = program(name, verb, start.h.shape[0] // CLASSES)(numbers, start)
    assert int(code) == 0
    return Start(*(np.asarray(part) for part in jax.tree.leaves(states)))


def draw(name: str, seed: int) -> tuple[Numbers, Start, np.random.Generator]:
    rng = np.random.default_rng(seed)
    decay = rng.uniform(0, 0.5, 3) * rng.integers(0, 2)
    numbers = Numbers(rng.choice([0.0, 1 / 3, 0.7, 1.0, 1.4]), decay, 10 ** rng.uniform(-1, 1), 10 ** rng.uniform(-1, 0, 4))
    numbers = numbers._replace(decay=FAMILIES[name].decays(numbers))
    return numbers, FAMILIES[name].start(numbers, rng), rng


def close(name: str, found: Start, truth: Start, tolerance=1e-12):
    """Both layers together agree, relative to their norm (Gram matrices where only those are determined); so do biases."""

    def seen(start: Start):
        rows = np.concatenate([start.h, start.w], axis=-2)
        return rows @ np.swapaxes(rows, -1, -2) if FAMILIES[name].by_gram else rows

    gap = np.linalg.norm(seen(found) - seen(truth)) / np.linalg.norm(seen(truth))
    hypothesis.note(gap)
    assert gap <= tolerance
    assert np.linalg.norm(found.b - truth.b) <= tolerance * (1 + np.linalg.norm(truth.b))


def at(start: Start, index) -> Start:
    return Start(*(part[index] for part in start))


@EVERY
@hypothesis.given(SEEDS)
def test_rotation(name, verb, seed):
    numbers, start, rng = draw(name, seed)
    turn, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    found = moved(name, verb, numbers, start._replace(h=start.h @ turn, w=start.w @ turn))
    plain = moved(name, verb, numbers, start)
    close(name, found, plain._replace(h=plain.h @ turn, w=plain.w @ turn))


@EVERY
@hypothesis.given(SEEDS)
def test_relabelling(name, verb, seed):
    numbers, start, rng = draw(name, seed)
    order = rng.permutation(CLASSES)
    close(name, moved(name, verb, numbers, at(start, order)), at(moved(name, verb, numbers, start), (slice(None), order)))


@pytest.mark.parametrize("name, verb", [pair for pair in FLOWS + DESCENTS if FAMILIES[pair[0]].linear])
@hypothesis.given(SEEDS)
def test_linearity(name, verb, seed):
    numbers, start, rng = draw(name, seed)
    other, (c, d) = FAMILIES[name].start(numbers, rng)._replace(b=start.b), rng.normal(size=2)
    mixed = start._replace(h=c * start.h + d * other.h, w=c * start.w + d * other.w)
    one, two = moved(name, verb, numbers, start), moved(name, verb, numbers, other)
    truth = one._replace(h=c * one.h + d * two.h, w=c * one.w + d * two.w)
    close(name, moved(name, verb, numbers, mixed), truth, 1e-11)


@pytest.mark.parametrize("name, verb", FLOWS + [pair for pair in DESCENTS if FAMILIES[pair[0]].commutes])
@hypothesis.given(SEEDS)
def test_order_of_the_rates_does_not_matter(name, verb, seed):
    """A flow knows its clocks alone; so does a descent whose steps commute."""
    numbers, start, rng = draw(name, seed)
    shuffled = numbers._replace(levels=numbers.levels[rng.permutation(4)])
    close(name, at(moved(name, verb, shuffled, start), 2), at(moved(name, verb, numbers, start), 2))


@EVERY
@hypothesis.given(SEEDS)
def test_semigroup(name, verb, seed):
    numbers, start, _ = draw(name, seed)
    whole = moved(name, verb, numbers, start)
    later = numbers._replace(levels=np.roll(numbers.levels, -2))
    close(name, at(moved(name, verb, later, at(whole, 1)), 1), at(whole, 2))


@EVERY
@hypothesis.given(SEEDS)
def test_replication(name, verb, seed):
    """Every sample twice, features at twice the rate and half the decay: each copy moves as the one did."""
    numbers, start, _ = draw(name, seed)
    twice = numbers._replace(ratio=2 * numbers.ratio, decay=numbers.decay * np.array([0.5, 1.0, 1.0]))
    found = moved(name, verb, twice, start._replace(h=np.repeat(start.h, 2, axis=0)))
    plain = moved(name, verb, numbers, start)
    close(name, found, plain._replace(h=np.repeat(plain.h, 2, axis=1)))


@pytest.mark.parametrize("name, verb", [pair for pair in FLOWS + DESCENTS if FAMILIES[pair[0]].dual])
@hypothesis.given(SEEDS)
def test_duality_of_one_sample_a_class(name, verb, seed):
    numbers, start, _ = draw(name, seed)
    plain = moved(name, verb, numbers, start)
    swapped = Numbers(numbers.gamma, numbers.decay[[1, 0, 2]], 1 / numbers.ratio, numbers.ratio * numbers.levels)
    found = moved(name, verb, swapped, start._replace(h=start.w, w=start.h))
    close(name, found._replace(h=found.w, w=found.h, b=plain.b), plain)


@hypothesis.given(SEEDS)
def test_reversal(seed):
    """Negative clocks undo the motion of the modes."""
    rng = np.random.default_rng(seed)
    sigma, (zg, zw), (dg, dw) = rng.uniform(-1, 1, 3), rng.uniform(0, 2, 2), rng.uniform(0, 1, 2)
    there, back = (flow_propagator(sigma, sigma, sigma**2, Decays(dg, dw), c * zg, c * zw) for c in (1.0, -1.0))
    a, b = (np.array([[p.gg, p.gw], [p.wg, p.ww]]) * np.exp(p.log_scale) for p in (there, back))
    np.testing.assert_allclose(np.einsum("ijk,jlk->kil", b, a), np.broadcast_to(np.eye(2), (3, 2, 2)), atol=1e-12)


@EVERY
def test_the_compared_states_move(name, verb):
    numbers, start, _ = draw(name, 1)
    states = moved(name, verb, numbers, start)
    assert oracles.relative(states.h[-1], start.h) > 0.01
    assert FAMILIES[name].fields(numbers).get("anchored") or oracles.relative(states.w[-1], start.w) > 0.01


@functools.cache
def beyond(per_class: int):
    """One compiled program: where the modes tend to, their largest stable step, and the minimum of squared error."""

    @jax.jit
    def run(numbers: Numbers, start: Start):
        decay = dyn.Decay(*numbers.decay)
        problem = dyn.LayerPeeled.balanced(CLASSES, per_class, loss=Unhinged(numbers.gamma), decay=decay)
        rates = dyn.Rates.proportional(numbers.levels[0], numbers.ratio)
        lowest = dyn.LayerPeeled.balanced(CLASSES, per_class, loss=SquaredError(), decay=dyn.Decay(*(numbers.decay + 1e-3)))
        best = dyn.exact.minimiser(lowest, dim=CLASSES)
        limit = dyn.exact.limit(problem, dyn.Peeled(*start), rates)
        return (limit.direction, limit.growth_exponent, limit.rate), dyn.exact.max_step(problem, rates), best

    return run


@hypothesis.given(SEEDS)
def test_limit_turns_and_is_relabelled_with_the_start(seed):
    numbers, start, rng = draw("modes", seed)
    (turn, _), order = np.linalg.qr(rng.normal(size=(DIM, DIM))), rng.permutation(CLASSES)
    (plain, *exponents), step, _ = beyond(1)(numbers, start)
    (turned, *others), same_step, _ = beyond(1)(numbers, start._replace(h=(start.h @ turn)[order], w=(start.w @ turn)[order]))
    np.testing.assert_allclose(turned.features, (plain.features @ turn)[order], atol=1e-12)
    np.testing.assert_allclose(turned.prototypes, (plain.prototypes @ turn)[order], atol=1e-12)
    assert exponents == others and step == same_step


@hypothesis.given(SEEDS)
def test_limit_forgets_how_far_the_motion_has_come(seed):
    numbers, start, _ = draw("modes", seed)
    later = at(moved("modes", "flow", numbers, start), 2)
    (first, *_), _, _ = beyond(1)(numbers, start)
    (second, *_), _, _ = beyond(1)(numbers, later)
    np.testing.assert_allclose(second.features, first.features, atol=1e-10)
    np.testing.assert_allclose(second.prototypes, first.prototypes, atol=1e-10)


@hypothesis.given(SEEDS)
def test_twice_the_samples_and_twice_the_rate(seed):
    """The largest step and the minimum know the features' rate and decay per copy; the step halves where rates double."""
    numbers, start, _ = draw("modes", seed)
    numbers = numbers._replace(decay=numbers.decay + 0.01)
    twice = numbers._replace(ratio=2 * numbers.ratio, decay=numbers.decay * np.array([0.5, 1.0, 1.0]))
    _, step, best = beyond(1)(numbers, start)
    _, copied, _ = beyond(2)(twice, start._replace(h=np.repeat(start.h, 2, axis=0)))
    _, halved, _ = beyond(1)(numbers._replace(levels=2 * numbers.levels), start)
    np.testing.assert_allclose(copied, step, rtol=1e-12)
    np.testing.assert_allclose(2 * halved, step, rtol=1e-12)
    # the minimum: half the decay of features (the offset of 1e-3 included) for twice as many
    offset = np.array([-0.5e-3, 0.0, 0.0])
    _, _, doubled = beyond(2)(twice._replace(decay=twice.decay + offset), start._replace(h=np.repeat(start.h, 2, axis=0)))
    np.testing.assert_allclose(doubled.value, best.value, rtol=1e-12)
    np.testing.assert_allclose(doubled.prototype_gram, best.prototype_gram, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(doubled.feature_gram[::2, ::2], best.feature_gram, rtol=1e-10, atol=1e-12)


@hypothesis.given(SEEDS)
def test_minimum_swaps_its_layers_with_their_decays(seed):
    numbers, start, _ = draw("modes", seed)
    _, _, best = beyond(1)(numbers, start)
    _, _, swapped = beyond(1)(numbers._replace(decay=numbers.decay[[1, 0, 2]]), start)
    np.testing.assert_allclose(swapped.value, best.value, rtol=1e-13)
    np.testing.assert_allclose(swapped.feature_gram, best.prototype_gram, atol=1e-12)
