"""Flow without decay: the clocks alone decide where it is; its loss, its biases, and what it keeps."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import clock, deviation, size_of, stacked
from experiments.shared.instances import (
    SIMULATED,
    TIMES,
    Size,
    class_sides,
    common_part,
    draws,
    sigmas,
    simulated,
    undecayed,
    worst_of,
)

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 2"


@functools.cache
def _moved(size: Size, members: int):
    """The draws, and the simulated flow of each."""
    draw = undecayed(draws(size, members))
    return draw, simulated(draw, size)


def _clock_alone(size: Size, members: int):
    """The end of the simulation with the rate of each member replaced by its mean over time."""
    draw, moved = _moved(size, members)
    mean = clock(draw, TIMES[-1:])[:, 0] / TIMES[-1]
    even = simulated(draw._replace(rate=mean, floor=mean), size).states
    ends = stacked(even.features[:, -1], even.prototypes[:, -1])
    return deviation(ends, stacked(moved.states.features[:, -1], moved.states.prototypes[:, -1]))


def _mean_mode(size: Size, members: int):
    """The best gamma, simulated: how far the common parts move, relative to the state at that time."""
    draw = _moved(size, members)[0]._replace(gamma=np.full(members, 1 / (size.classes - 1)))
    states = simulated(draw, size).states
    common = np.concatenate([common_part(class_sides(states.features, size)), common_part(states.prototypes)], axis=-2)
    return np.max(size_of(common - common[:, :1]) / size_of(stacked(states.features, states.prototypes)), axis=1)


def _loss(size: Size, members: int):
    """The loss of simulated states, sample by sample, against its form in two couplings; relative to the logits."""
    draw, moved = _moved(size, members)
    features, prototypes, biases = moved.states.features, moved.states.prototypes, moved.states.biases
    logits = np.einsum("mtip,mtcp->mtic", features, prototypes) + biases[:, :, None]
    labels = np.repeat(np.arange(size.classes), size.per_class)
    own = np.take_along_axis(logits, labels[None, None, :, None], axis=-1)[..., 0]
    loss = np.mean(-own + draw.gamma[:, None, None] * (logits.sum(axis=-1) - own), axis=-1)
    g, w = class_sides(features, size), prototypes
    sigma1, sigma2, drift = (x[:, None] for x in sigmas(draw, size))
    inner = lambda x, y: np.sum(x * y, axis=(-2, -1))
    zero_sum = sigma1 * inner(w - common_part(w), g - common_part(g))
    common = sigma2 * inner(common_part(w), common_part(g))
    gap = loss + zero_sum + common + drift * biases.sum(axis=-1)
    return np.max(np.abs(gap) / np.abs(logits).max(axis=(-2, -1)), axis=1)


def _invariant(size: Size, members: int):
    """H^T H/s - W^T W along the simulation: its change over the size of its two terms."""
    draw, moved = _moved(size, members)
    gram = lambda x: x.swapaxes(-1, -2) @ x
    of_features = gram(moved.states.features) / draw.ratio[:, None, None, None]
    of_prototypes = gram(moved.states.prototypes)
    balance = of_features - of_prototypes
    return np.max(size_of(balance - balance[:, :1]) / (size_of(of_features) + size_of(of_prototypes)), axis=1)


def _biases(size: Size, members: int):
    draw, moved = _moved(size, members)
    drift = sigmas(draw, size)[2][:, None, None] * clock(draw, TIMES)[..., None]
    return deviation(moved.states.biases, draw.biases[:, None] + drift, axes=1).max(axis=1)


_claim = functools.partial(Claim, id="unhinged.unconstrained", source=SOURCE)
_BALANCED = ("balanced classes", "no decay", "constant ratio of rates")

EXPERIMENT = Experiment(
    name="unconstrained-path",
    family="unhinged",
    summary="loss, biases and conserved quantities along the flow without decay",
    claims=(
        _claim(
            name="unconstrained-clock",
            statement="schedules of equal integral lead to the same point",
            assumptions=_BALANCED,
            tolerance=1e-9,
            check=functools.partial(worst_of, _clock_alone, sizes=SIMULATED),
        ),
        _claim(
            name="unconstrained-mean-mode",
            statement="gamma = 1/(C-1): the means over classes of features and prototypes stay",
            assumptions=(*_BALANCED, "gamma = 1/(C-1)"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _mean_mode, sizes=SIMULATED),
        ),
        _claim(
            name="unconstrained-loss",
            statement="L = -sigma1 <W Pi, G Pi> - sigma2 <W J, G J> - kappa 1^T b along the path",
            assumptions=("balanced classes", "no decay"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _loss, sizes=SIMULATED),
        ),
        _claim(
            name="unconstrained-invariant",
            statement="H H^T/s - W W^T is constant",
            assumptions=_BALANCED,
            tolerance=1e-7,
            check=functools.partial(worst_of, _invariant, sizes=SIMULATED),
        ),
        _claim(
            name="unconstrained-biases",
            statement="b = b0 + kappa zeta2 1",
            assumptions=("balanced classes", "no decay"),
            tolerance=1e-7,
            check=functools.partial(worst_of, _biases, sizes=SIMULATED),
        ),
    ),
)
