"""Descent with normalised features by formula: against loops over vectors, and against the simulated verb."""

import functools

import numpy as np

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.instances import Size, worst_of
from experiments.shared.spherical import SHAPES, SOURCE, answers, gap, iterates, pulls, spherical_draws
from experiments.shared.spherical_oracles import angle


def _distance_from_opposite(draw, size: Size) -> np.ndarray:
    """pi - theta_0, at most 1: how many digits the coordinates of a start that almost faces away carry."""
    return np.minimum(1.0, np.pi - angle(draw.features, pulls(draw, size)))[:, None]


def _against_loop(size: Size, members: int, rescaled: bool, nesterov: bool):
    draw = spherical_draws(size, members, rescaled, True)
    found = answers("descent", draw, size, rescaled, nesterov=nesterov)
    return gap(found, iterates(draw, size, rescaled, nesterov=nesterov), _distance_from_opposite(draw, size))


def _against_simulation(size: Size, members: int):
    draw = spherical_draws(size, members, False, True)
    found = answers("simulated descent", draw, size)
    return gap(found, answers("descent", draw, size), _distance_from_opposite(draw, size))


_claim = functools.partial(Claim, id="unhinged.spherical.gd", source=SOURCE)
_ANY = ("anchored prototypes, any W", "normalised features", "decay", "cosine and constant rates", "any momentum below 1")
_VARIANTS = (
    ("heavy-ball", False, False, "heavy ball"),
    ("nesterov", True, True, "rescaled rates, Nesterov"),
)

EXPERIMENT = Experiment(
    name="spherical-descent",
    family="spherical",
    summary="descent with normalised features by formula, with decay and momentum",
    claims=(
        *(
            _claim(
                name=f"spherical-descent-{name}",
                statement=f"{what}: a few numbers a sample give the iterates of the vectors (residual: times pi - theta_0)",
                assumptions=_ANY,
                tolerance=1e-13,
                check=functools.partial(
                    worst_of,
                    functools.partial(_against_loop, rescaled=rescaled, nesterov=nesterov),
                    sizes=SHAPES[int(not rescaled) :][:1],
                ),
            )
            for name, rescaled, nesterov, what in _VARIANTS
        ),
        _claim(
            name="spherical-descent-simulated",
            statement="simulated descent = formula (residual: times pi - theta_0)",
            assumptions=_ANY,
            tolerance=1e-13,
            check=functools.partial(worst_of, _against_simulation, sizes=SHAPES[1:]),
        ),
    ),
)
