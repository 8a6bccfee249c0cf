"""The fourth-order Magnus step for rates whose ratio changes, and its extrapolation: orders of convergence."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured, measured_order
from experiments.registry import Experiment
from experiments.shared.dense import deviation
from experiments.shared.instances import SIZES, Draw, draws, sigmas
from experiments.shared.oracles import column
from experiments.shared.pairs import Pair, pairs

SOURCE = (
    "S. Blanes, F. Casas, J. A. Oteo, J. Ros, The Magnus expansion and some of its applications (2009), Section 5, for "
    "the generators of On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 4"
)
SIZE = SIZES[0]
PIECES = (4, 8, 16, 32, 64, 128)


def _magnus(draw: Draw, pair: Pair, sigma, pieces: int) -> np.ndarray:
    """The propagator at END by the fourth-order Magnus step at two Gauss points, `pieces` steps between kinks."""
    kinks = pair.kinks()
    h = np.repeat(np.diff(kinks, axis=1) / pieces, pieces, axis=1)
    middle = np.cumsum(h, axis=1) - h / 2
    nodes = [middle + sign * 3**0.5 / 6 * h for sign in (-1, 1)]

    def at(t):
        one, two, coupling = pair.features(t), pair.weights(t), sigma[:, None]
        entries = -draw.decay[:, :1] * one, coupling * one, coupling * two, -draw.decay[:, 1:2] * two
        return np.stack(entries, axis=-1).reshape(*t.shape, 2, 2)

    early, late = (at(t) for t in nodes)
    omega = column(h / 2) * (early + late) - column(3**0.5 / 12 * h**2) * (early @ late - late @ early)
    mean = np.trace(omega, axis1=-2, axis2=-1) / 2
    free = omega - column(mean) * np.eye(2)
    root = np.sqrt(-np.linalg.det(free).astype(complex))
    sinhc = np.where(np.abs(root) < 1e-8, 1.0, np.sinh(root) / np.where(root == 0, 1, root))
    factors = column(np.exp(mean)) * (column(np.cosh(root)) * np.eye(2) + column(sinhc) * free).real
    return functools.reduce(lambda phi, k: factors[:, k] @ phi, range(h.shape[1]), np.eye(2))


@functools.cache
def _products(members: int) -> tuple[np.ndarray, ...]:
    draw = draws(SIZE, members)
    pair, sigma = pairs(draw), sigmas(draw, SIZE)[0]
    return tuple(_magnus(draw, pair, sigma, pieces) for pieces in PIECES)


def _orders(members: int, richardson: bool) -> Measured:
    """Of the worst error over members, against the finest product, extrapolated."""
    found = list(_products(members))
    better = [(16 * fine - coarse) / 15 for coarse, fine in zip(found[:-1], found[1:], strict=True)]
    tried = (better[:-1] if richardson else found)[1:4]
    errors = [float(deviation(phi, better[-1]).max()) for phi in tried]
    order = measured_order(0.5 ** np.arange(3), errors, floor=1e-13)
    return Measured(abs(order - (6 if richardson else 4)), members, "worst error over members", {"order": order})


_claim = functools.partial(
    Claim, id="beyond.nonproportional", source=SOURCE, assumptions=("steps end at every jump and kink of the rates",)
)

EXPERIMENT = Experiment(
    name="magnus",
    family="beyond",
    summary="orders of the Magnus step",
    claims=(
        _claim(
            name="magnus-order",
            statement="the Magnus step at two Gauss points has order 4",
            tolerance=0.02,
            check=functools.partial(_orders, richardson=False),
        ),
        _claim(
            name="magnus-richardson",
            statement="(16 P_n - P_{n/2})/15 has order 6",
            tolerance=0.15,
            check=functools.partial(_orders, richardson=True),
        ),
    ),
)
