"""H H^T/s - W W^T under any loss of the logits: an invariant of the flow, and what a step of descent does to it."""

import functools

import numpy as np
from jaxtyping import Array, Float

import dynamics as dyn
from dynamics.losses.base import Loss
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.dense import clock, size_of
from experiments.shared.descents import STEPS, descended, proportional_rates
from experiments.shared.imbalanced import drawn
from experiments.shared.instances import HORIZON, SIZES, TIMES, Draw, Size, draws, undecayed, worst_of
from experiments.shared.oracles import balanced_pull, column, labels_of

SOURCE = (
    "S. Du, W. Hu, J. Lee, Algorithmic Regularization in Learning Deep Homogeneous Models (2018), Theorem 2.2, "
    "for unequal rates and with decay"
)
CLASS_SIZES = (1, 2, 4)
LOSSES = ("unhinged", "cross-entropy", "squared error", "a sum of all three")


class Blend(Loss):
    """A weighted sum of the unhinged loss, cross-entropy and squared error: one program for each and for all."""

    weights: Float[Array, " 3"]
    gamma: Float[Array, ""]

    def __call__(self, logits, label):
        parts = dyn.losses.Unhinged(self.gamma), dyn.losses.CrossEntropy(), dyn.losses.SquaredError()
        return sum(weight * part(logits, label) for weight, part in zip(self.weights, parts, strict=True))


def _drawn(members: int) -> tuple[Draw, np.ndarray]:
    """Decays with s lambda1 = lambda2, none for a quarter of the members; weights of the losses, in turn."""
    draw = drawn(CLASS_SIZES, members)
    lam = np.where(draw.spare[:, 0] < 0.25, 0.0, draw.decay[:, 1])
    kind = np.arange(members) % 4
    weights = np.where((kind == 3)[:, None], 0.1 + draw.spare[:, 1:4], np.eye(4)[kind, :3])
    return draw._replace(decay=np.stack([lam / draw.ratio, lam, draw.decay[:, 2]], axis=1)), weights


@functools.cache
def _moved(members: int):
    """The balance over time (members, times, dim, dim), and the two terms' sizes together."""

    def one(member):
        draw, weights = member
        labels, decay = labels_of(CLASS_SIZES), dyn.Decay(*draw.decay)
        loss = Blend(weights, draw.gamma)
        problem = dyn.LayerPeeled(labels, num_classes=len(CLASS_SIZES), loss=loss, decay=decay, bias=True)
        rates = dyn.Rates.proportional(dyn.schedules.Cosine(draw.rate, HORIZON, draw.floor), draw.ratio)
        state = dyn.Peeled(draw.features, draw.prototypes, draw.biases)
        observe = {
            "balance": dyn.observables.balance(draw.ratio),
            "size": lambda _, x: (x.features**2).sum() / draw.ratio + (x.prototypes**2).sum(),
        }
        return dyn.flow(problem, state, rates, TIMES, rtol=1e-10, atol=1e-10, observe=observe)

    draw, weights = _drawn(members)
    return draw, dyn.ensemble.run(one, (draw, weights), progress=False).values.observed


def _balance(features, prototypes, ratio):
    """H^T H/s - W^T W, rows being vectors."""
    square = lambda x: np.swapaxes(x, -1, -2) @ x
    return square(features) / ratio - square(prototypes)


def _kept(members: int) -> Measured:
    """The worst over all losses; the numbers give each of them."""
    draw, observed = _moved(members)
    start = _balance(draw.features, draw.prototypes, column(draw.ratio))
    left = column(np.exp(-2 * draw.decay[:, 1:2] * clock(draw, TIMES)))
    errors = (size_of(observed["balance"] - left * start[:, None]) / observed["size"]).max(axis=1)
    errors = np.where(np.isnan(errors), np.inf, errors)
    numbers = {name: float(errors[k::4].max()) for k, name in enumerate(LOSSES[:members])}
    return Measured(float(errors.max()), members, f"member {int(errors.argmax())}", numbers)


def _broken(size: Size, members: int):
    """At every iterate, over the size of its two terms."""
    draw = undecayed(draws(size, members))
    rates = proportional_rates(draw)
    states = descended(draw, size, rates).simulated
    pull = balanced_pull(draw, size)[:, None]
    ratio = draw.ratio[:, None, None, None]
    found = _balance(states.features, states.prototypes, ratio)
    rise = ratio * _balance(pull @ states.prototypes, 0 * states.prototypes, 1.0)
    fall = _balance(np.swapaxes(pull, -1, -2) @ states.features, 0 * states.prototypes, 1.0)
    steps = column(rates[:, 1] ** 2) * (rise - fall)[:, :STEPS]
    expected = found[:, :1] + np.cumsum(steps, axis=1)
    whole = size_of(states.features) ** 2 / draw.ratio[:, None] + size_of(states.prototypes) ** 2
    return (size_of(found[:, 1:] - expected) / whole[:, 1:]).max(axis=1)


EXPERIMENT = Experiment(
    name="balance",
    family="beyond",
    summary="the invariant of two layers under any loss of the logits",
    claims=(
        Claim(
            name="balance-flow",
            id="beyond.balance",
            statement="H H^T/s - W W^T decays as e^{-2 lambda2 zeta2}, whatever the loss of the logits",
            source=SOURCE,
            assumptions=("any class sizes", "constant ratio of rates", "s lambda1 = lambda2", "simulated"),
            tolerance=5e-8,
            check=_kept,
        ),
        Claim(
            name="balance-descent",
            id="beyond.balance",
            statement="descent adds sum_k e2_k^2 (s W M M^T W^T - H M^T M H^T) to it",
            source=SOURCE,
            assumptions=("unhinged loss", "balanced classes", "constant ratio of rates", "no decay"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _broken, sizes=(SIZES[2],)),
        ),
    ),
)
