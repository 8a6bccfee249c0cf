"""The direction of the weights converges, and the gradient turns to it, for smooth homogeneous networks."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.networks import FIRM, UNTIL, Runs, smooth, worst_of

SOURCE = "Z. Ji, M. Telgarsky (2020)"


def _pieces(runs: Runs) -> np.ndarray:
    """The way of the direction once separated: its length, of the last half and the last tenth of the log of the norm."""
    rows = []
    for member in range(len(runs.members)):
        counted = np.flatnonzero(runs.seen["level"][member] > 0)
        flat = np.concatenate([leaf[member, counted].reshape(len(counted), -1) for leaf in runs.states], axis=1)
        sizes = np.linalg.norm(flat, axis=1)
        steps = np.linalg.norm(np.diff(flat / sizes[:, None], axis=0), axis=1)
        place = np.log(sizes / sizes[0]) / np.log(sizes[-1] / sizes[0])
        length = np.interp([0.0, 0.5, 0.9, 1.0], place, np.append(0.0, np.cumsum(steps)))
        rows.append(length[-1] - length[:3])
    return np.array(rows)


def _direction(members: int) -> Measured:
    shares, numbers = {}, {}
    for name, runs in smooth(members).items():
        whole, half, tenth = _pieces(runs).T
        shares[name] = np.maximum(half / whole / 0.5, tenth / half / 0.2)
        numbers |= {f"{name}, {what}": float(np.median(x)) for what, x in (("way", whole), ("half", half), ("tenth", tenth))}
    return worst_of(shares, numbers)


def _gradient(members: int) -> Measured:
    ratios, numbers = {}, {}
    for name, runs in smooth(members).items():
        late = runs.at("misaligned", UNTIL)
        ratios[name] = late / runs.at("misaligned", 100.0)
        numbers[f"1 - beta of {name}, median"] = float(np.median(late))
    return worst_of(ratios, numbers)


_claim = functools.partial(
    Claim,
    source=SOURCE,
    assumptions=("exponential loss", "smooth homogeneous net: linear of 1 to 4 layers, or squared ReLU", *FIRM),
)

EXPERIMENT = Experiment(
    name="direction",
    family="homogeneous",
    summary="how far the direction of the weights still goes, and its angle to the gradient",
    claims=(
        _claim(
            name="align-direction",
            id="align.direction",
            statement="the way of the direction is finite: over the log of the norm its speed falls until log t = 1000",
            tolerance=1.0,
            check=_direction,
            limited_by="the residual is the last half of the way over 1/2 of it, or the last tenth over 1/5 of the last half",
        ),
        _claim(
            name="align-gradient",
            id="align.gradient",
            statement="1 - beta, of weights and minus gradient, falls between log t = 100 and 1000",
            tolerance=0.75,
            check=_gradient,
            finding="by a quarter or more in all but the slowest member, where it falls to 0.77 of its value",
            limited_by="the residual is the value at 1000 over that at 100",
        ),
    ),
)
