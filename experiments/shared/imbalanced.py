"""Draws with classes of any sizes, and the library's flows of them: one compiled program for each kind of problem."""

import functools
from typing import NamedTuple

import jax
import numpy as np

import dynamics as dyn
from experiments.shared.instances import HORIZON, Draw, Size, draws
from experiments.shared.oracles import labels_of, pull_matrix, stack

DIM = 4

ClassSizes = tuple[int, ...]


def drawn(sizes: ClassSizes, members: int) -> Draw:
    """Random numbers for classes of these sizes."""
    samples, classes = sum(sizes), len(sizes)
    draw = draws(Size(classes, -(-samples // classes), DIM), members)
    return draw._replace(features=draw.features[:, :samples])


def weights_of(sizes: ClassSizes, power: float) -> np.ndarray:
    """Sample weights proportional to class size to a power, of mean one."""
    weights = np.asarray(sizes, float)[labels_of(sizes)] ** power
    return weights / weights.mean()


def pull_of(draw: Draw, sizes: ClassSizes, power: float = 0.0) -> np.ndarray:
    """Minus the gradient of the mean loss in the logits, (members, samples, classes)."""
    return pull_matrix(labels_of(sizes), draw.gamma, weights_of(sizes, power))


class Moved(NamedTuple):
    """Directions (members, times, samples + classes, dim) and logs of their norms; biases (members, times, classes)."""

    directions: np.ndarray
    log_norms: np.ndarray
    biases: np.ndarray


def moved(draw: Draw, sizes: ClassSizes, ts, power: float = 0.0) -> Moved:
    """The flow by formula at times (members, 6), samples weighted by class size to a power."""
    ts = np.broadcast_to(np.asarray(ts, float), (draw.rate.size, 6))
    found = _program(sizes, power)(draw, ts)
    return Moved(stack(found.states), np.asarray(found.log_scale), np.asarray(found.states.biases))


def problem_of(draw: Draw, sizes: ClassSizes, power: float = 0.0) -> dyn.LayerPeeled:
    """The problem of one draw, with decay and biases."""
    return dyn.LayerPeeled(
        labels_of(sizes),
        num_classes=len(sizes),
        loss=dyn.losses.Unhinged(draw.gamma),
        decay=dyn.Decay(*draw.decay),
        bias=True,
        sample_weights=weights_of(sizes, power) if power else None,
    )


@functools.cache
def _program(sizes: ClassSizes, power: float):
    def one(draw, ts):
        state = dyn.Peeled(draw.features, draw.prototypes, draw.biases)
        rates = dyn.Rates.proportional(dyn.schedules.Cosine(draw.rate, HORIZON, draw.floor), draw.ratio)
        return dyn.exact.flow(problem_of(draw, sizes, power), state, rates, ts, scaled=True)

    return jax.jit(jax.vmap(one))
