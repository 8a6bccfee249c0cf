"""Flow without decay: the exact trajectory, in the two forms it can be written in, and its edge cases."""

import functools

import numpy as np

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import clock, coupling, dense, deviation, stacked
from experiments.shared.instances import (
    SIMULATED,
    SIZES,
    TIMES,
    Draw,
    Size,
    by_formula,
    class_sides,
    common_part,
    draws,
    sigmas,
    simulated,
    spread,
    undecayed,
    worst_of,
)

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 2"
LATE = (2, 5)  # indices into TIMES


def _draw(size: Size, members: int) -> Draw:
    return undecayed(draws(size, members))


def _clocks(draw: Draw, ts=TIMES):
    """The clocks of features and of weights, and the root of their product, shaped to multiply states over time."""
    weights = clock(draw, ts)[..., None, None]
    ratio = draw.ratio[:, None, None, None]
    return ratio * weights, weights, np.sqrt(ratio) * weights


def _against_formula(size: Size, members: int):
    draw = _draw(size, members)
    return dyn.compare(simulated(draw, size), by_formula(draw, size)).residuals.max(axis=-1)


@functools.cache
def _dense(size: Size, members: int):
    """States at the late times by the exponential of the dense generator."""
    draw = _draw(size, members)
    return {k: dense(draw, size, clock(draw, TIMES)[:, k]) for k in LATE}


def _against_expm(size: Size, members: int):
    draw = _draw(size, members)
    states = by_formula(draw, size).states
    found = stacked(states.features, states.prototypes)
    return np.max([deviation(found[:, k], z) for k, z in _dense(size, members).items()], axis=0)


def _projectors(size: Size, members: int):
    """The five projections of the start, each times a function of the clocks, as the theorem is printed."""
    draw = _draw(size, members)
    g, w = class_sides(draw.features, size), draw.prototypes
    worst = []
    for k in LATE:
        zeta1, zeta2, q = (x[:, 0] for x in _clocks(draw, TIMES[k : k + 1]))
        features, prototypes = draw.features - spread(g, size), 0.0
        for sigma, part in zip(sigmas(draw, size), (lambda x: x - common_part(x), common_part), strict=False):
            sigma = sigma[:, None, None]
            for sign in (1, -1):
                projected = part(sign * g + w) / 2
                alpha, beta = np.sinh(sign * sigma * q) / q, np.cosh(sigma * q)
                features = features + (alpha * zeta1 + beta) * spread(sign * projected, size)
                prototypes = prototypes + (alpha * zeta2 + beta) * projected
        worst.append(deviation(stacked(features, prototypes), _dense(size, members)[k]))
    return np.max(worst, axis=0)


def _class_means(size: Size, members: int):
    """Two 2x2 matrices acting on class means and prototypes; sinhc instead of a quotient that is 0/0 at the start."""
    draw = _draw(size, members)
    g, w = class_sides(draw.features, size), draw.prototypes
    worst = []
    for k in LATE:
        zeta1, zeta2, q = (x[:, 0] for x in _clocks(draw, TIMES[k : k + 1]))
        sides, prototypes = 0.0, 0.0
        for sigma, part in zip(sigmas(draw, size), (lambda x: x - common_part(x), common_part), strict=False):
            sigma = sigma[:, None, None]
            x = np.where(sigma == 0, 1.0, sigma * q)
            sinhc = np.where(sigma == 0, 1.0, np.sinh(x) / x)
            sides = sides + np.cosh(sigma * q) * part(g) + zeta1 * sinhc * sigma * part(w)
            prototypes = prototypes + zeta2 * sigma * sinhc * part(g) + np.cosh(sigma * q) * part(w)
        features = spread(sides, size) + draw.features - spread(g, size)
        worst.append(deviation(stacked(features, prototypes), _dense(size, members)[k]))
    return np.max(worst, axis=0)


def _near_start(size: Size, members: int):
    """At times of 1e-9: Z0 and its first derivative are enough there, both without a quotient of the clocks."""
    draw = _draw(size, members)
    ts = 1e-9 * np.arange(6)
    states = by_formula(draw, size, ts).states
    start, pull = stacked(draw.features, draw.prototypes), coupling(draw, size)
    force = stacked(draw.ratio[:, None, None] * pull.swapaxes(1, 2) @ draw.prototypes, pull @ draw.features)
    predicted = start[:, None] + (draw.rate[:, None] * ts)[..., None, None] * force[:, None]
    return deviation(stacked(states.features, states.prototypes), predicted).max(axis=1)


def _frozen_features(size: Size, members: int):
    """Features of rate zero."""
    draw = _draw(size, members)._replace(ratio=np.zeros(members))
    zeta = clock(draw, TIMES)[..., None, None]
    prototypes = draw.prototypes[:, None] + zeta * (coupling(draw, size) @ draw.features)[:, None]
    states = by_formula(draw, size).states
    still = np.abs(states.features - draw.features[:, None]).max(axis=(1, 2, 3))
    return np.maximum(still, deviation(states.prototypes, prototypes).max(axis=1))


def _frozen_prototypes(size: Size, members: int):
    """Weights of rate zero."""
    draw = _draw(size, members)

    def one(member):
        problem = dyn.LayerPeeled.balanced(size.classes, size.per_class, loss=dyn.losses.Unhinged(member.gamma))
        rates = dyn.Rates(features=member.rate, weights=0.0)
        moved = dyn.exact.flow(problem, dyn.Peeled(member.features, member.prototypes), rates, TIMES)
        return moved.states.features, moved.states.prototypes

    features, prototypes = dyn.ensemble.run(one, draw, progress=False).values
    zeta = (draw.rate[:, None] * TIMES)[..., None, None]
    expected = draw.features[:, None] + zeta * (coupling(draw, size).swapaxes(1, 2) @ draw.prototypes)[:, None]
    still = np.abs(prototypes - draw.prototypes[:, None]).max(axis=(1, 2, 3))
    return np.maximum(still, deviation(features, expected).max(axis=1))


_claim = functools.partial(Claim, id="unhinged.unconstrained", source=SOURCE)
_BALANCED = ("balanced classes", "no decay", "constant ratio of rates")

EXPERIMENT = Experiment(
    name="unconstrained",
    family="unhinged",
    summary="exact gradient flow without decay",
    claims=(
        _claim(
            name="unconstrained-flow",
            statement="simulated flow = formula, biases included",
            assumptions=_BALANCED,
            tolerance=1e-7,
            check=functools.partial(worst_of, _against_formula, sizes=SIMULATED),
        ),
        _claim(
            name="unconstrained-expm",
            statement="formula = exponential of the dense generator",
            assumptions=_BALANCED,
            tolerance=5e-12,
            check=functools.partial(worst_of, _against_expm),
        ),
        _claim(
            name="unconstrained-projectors",
            statement="H = sum (alpha zeta1 + beta) Pi Z0 + D0, W = sum (alpha zeta2 + beta) Pi Z0, as printed",
            assumptions=_BALANCED,
            tolerance=5e-12,
            check=functools.partial(worst_of, _projectors),
        ),
        _claim(
            name="unconstrained-class-means",
            statement="(G, W) -> [cosh, zeta1 sigma sinhc; zeta2 sigma sinhc, cosh] (G, W) for zero-sum and mean parts",
            assumptions=_BALANCED,
            tolerance=5e-12,
            check=functools.partial(worst_of, _class_means),
        ),
        _claim(
            name="unconstrained-start",
            statement="zeta -> 0: no 0/0, the formula leaves the start along the force",
            assumptions=_BALANCED,
            tolerance=1e-15,
            check=functools.partial(worst_of, _near_start),
        ),
        _claim(
            name="unconstrained-frozen-features",
            statement="zeta1 = 0: H stays, W = W0 + zeta2 H0 M^T",
            assumptions=("balanced classes", "no decay", "features of rate zero"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _frozen_features),
        ),
        _claim(
            name="unconstrained-frozen-prototypes",
            statement="zeta2 = 0: W stays, H = H0 + zeta1 W0 M",
            assumptions=("balanced classes", "no decay", "prototypes of rate zero"),
            tolerance=1e-14,
            check=functools.partial(worst_of, _frozen_prototypes, sizes=SIZES[:1]),
        ),
    ),
)
