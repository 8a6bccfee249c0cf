"""Symmetries that the flow by formula must have, no reference needed."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np

import dynamics as dyn
from dynamics.schedules import Cosine
from tests import oracles

CLASSES, DIM = 4, 3
SEEDS = st.integers(0, 2**32 - 1)


def flow(per_class: int):
    """One compiled program: a balanced problem from (gamma, decay, rates, start) at two times."""

    @jax.jit
    def run(gamma, decay, rates, features, prototypes, biases, ts):
        loss = dyn.losses.Unhinged(gamma)
        problem = dyn.LayerPeeled.balanced(CLASSES, per_class, loss=loss, decay=dyn.Decay(*decay), bias=True)
        schedule = Cosine(rates[1], 2.0, rates[2])
        both = dyn.Rates.proportional(schedule, rates[0])
        return dyn.exact.flow(problem, dyn.Peeled(features, prototypes, biases), both, ts).states

    return run


FLOW, DOUBLED = flow(1), flow(2)


def draw(seed: int):
    """gamma, decay, (ratio, rate, floor), features, prototypes, biases, two times."""
    rng = np.random.default_rng(seed)
    decay = rng.uniform(0, 0.5, 3) * rng.integers(0, 2)
    rate = 10 ** rng.uniform(-1, 0.5)
    rates = np.array([10 ** rng.uniform(-1, 1), rate, rate * rng.uniform(0, 1)])
    start = rng.normal(size=(CLASSES, DIM)), rng.normal(size=(CLASSES, DIM)), rng.normal(size=CLASSES)
    return rng.choice([0.0, 1 / 3, 0.7, 1.0, 1.4]), decay, rates, *start, np.sort(rng.uniform(0.1, 5.0, 2)), rng


def close(x, truth, tolerance=1e-12):
    """Every part agrees, relative to the part's largest norm."""
    for a, b in zip(x, truth, strict=True):
        gap = np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)
        hypothesis.note(gap)
        assert gap <= tolerance


def parts(states):
    return tuple(np.asarray(part) for part in jax.tree.leaves(states))


@hypothesis.given(SEEDS)
def test_rotation(seed):
    gamma, decay, rates, h, w, b, ts, rng = draw(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    turned = FLOW(gamma, decay, rates, h @ turn, w @ turn, b, ts)
    moved_h, moved_w, moved_b = parts(FLOW(gamma, decay, rates, h, w, b, ts))
    close(parts(turned), (moved_h @ turn, moved_w @ turn, moved_b))


@hypothesis.given(SEEDS)
def test_relabelling(seed):
    gamma, decay, rates, h, w, b, ts, rng = draw(seed)
    order = rng.permutation(CLASSES)
    renamed = FLOW(gamma, decay, rates, h[order], w[order], b[order], ts)
    close(parts(renamed), tuple(part[:, order] for part in parts(FLOW(gamma, decay, rates, h, w, b, ts))))


@hypothesis.given(SEEDS)
def test_linearity(seed):
    gamma, decay, rates, h, w, b, ts, rng = draw(seed)
    other_h, other_w = rng.normal(size=h.shape), rng.normal(size=w.shape)
    c, d = rng.normal(size=2)
    one, two = (parts(FLOW(gamma, decay, rates, *start, b, ts))[:2] for start in ((h, w), (other_h, other_w)))
    sum_of_both = parts(FLOW(gamma, decay, rates, c * h + d * other_h, c * w + d * other_w, b, ts))[:2]
    close(sum_of_both, tuple(c * x + d * y for x, y in zip(one, two, strict=True)), 1e-11)


@hypothesis.given(SEEDS)
def test_only_the_clock_matters(seed):
    gamma, decay, (ratio, rate, _), h, w, b, ts, _ = draw(seed)
    # from time 2 on the annealed rates have spent half as much as a constant rate in half the time
    ts = np.array([2.0, 2.0 + ts[1]])
    annealed = FLOW(gamma, decay, np.array([ratio, rate, 0.0]), h, w, b, ts)
    constant = FLOW(gamma, decay, np.array([ratio, rate, rate]), h, w, b, np.array([1.0, 1.5]))
    close(tuple(part[0] for part in parts(annealed)), tuple(part[0] for part in parts(constant)))
    close(tuple(part[1] for part in parts(annealed)), tuple(part[0] for part in parts(annealed)))


@hypothesis.given(SEEDS)
def test_semigroup(seed):
    gamma, decay, (ratio, rate, _), h, w, b, ts, _ = draw(seed)
    rates = np.array([ratio, rate, rate])
    whole = parts(FLOW(gamma, decay, rates, h, w, b, ts))
    first = (part[0] for part in whole)
    rest = parts(FLOW(gamma, decay, rates, *first, np.array([ts[1] - ts[0], 6.0])))
    close(tuple(part[0] for part in rest), tuple(part[1] for part in whole))


@hypothesis.given(SEEDS)
def test_replication(seed):
    gamma, decay, rates, h, w, b, ts, _ = draw(seed)
    moved_h, moved_w, moved_b = parts(FLOW(gamma, decay, rates, h, w, b, ts))
    twice_the_rate, half_the_decay = rates * np.array([2.0, 1.0, 1.0]), decay * np.array([0.5, 1.0, 1.0])
    doubled = parts(DOUBLED(gamma, half_the_decay, twice_the_rate, np.repeat(h, 2, axis=0), w, b, ts))
    close(doubled, (np.repeat(moved_h, 2, axis=1), moved_w, moved_b))


@hypothesis.given(SEEDS)
def test_duality_of_one_sample_a_class(seed):
    gamma, decay, (ratio, rate, floor), h, w, b, ts, _ = draw(seed)
    moved_h, moved_w, _ = parts(FLOW(gamma, decay, np.array([ratio, rate, floor]), h, w, b, ts))
    swapped = np.array([1 / ratio, ratio * rate, ratio * floor])
    dual_w, dual_h, _ = parts(FLOW(gamma, decay[[1, 0, 2]], swapped, w, h, b, ts))
    close((dual_h, dual_w), (moved_h, moved_w))


def test_the_compared_states_move():
    gamma, decay, rates, h, w, b, ts, _ = draw(1)
    states = parts(FLOW(gamma, decay, rates, h, w, b, ts))
    assert all(oracles.relative(part[1], begin) > 0.01 for part, begin in zip(states, (h, w, b), strict=True))
