"""Classes of different sizes: the same modes, found by a singular value decomposition of one C x C matrix."""

import functools

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.dense import clock, deviation, size_of, stacked
from experiments.shared.descents import STEPS, random_rates, rates_of
from experiments.shared.imbalanced import ClassSizes, drawn, moved, problem_of, pull_of
from experiments.shared.instances import TIMES, Draw
from experiments.shared.oracles import (
    column,
    dense_motion,
    descend,
    generator,
    labels_of,
    mode_exponential,
    mode_exponents,
    sides_of,
    stack,
)

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 4, for any class sizes"
SIZES = ((1, 2, 4), (3, 3, 1, 1), (2, 2, 5))
LATE = (2, 5)  # indices into TIMES
FAR = 1e9


def _over_sizes(residuals, members: int) -> Measured:
    """The worst of `residuals(sizes, members)` over the class sizes."""
    found = {sizes: np.where(np.isnan(values := residuals(sizes, members)), np.inf, values) for sizes in SIZES}
    sizes, values = max(found.items(), key=lambda pair: pair[1].max())
    where = f"class sizes {sizes}, member {int(values.argmax())}"
    return Measured(float(values.max()), members * len(SIZES), where)


@functools.cache
def _moved(sizes: ClassSizes, members: int):
    draw = drawn(sizes, members)
    return draw, moved(draw, sizes, TIMES)


def _clocks(draw: Draw, k: int):
    weights = clock(draw, TIMES)[:, k]
    return draw.ratio * weights, weights


def _dense(sizes: ClassSizes, members: int, k: int):
    """By the whole generator."""
    draw = drawn(sizes, members)
    start = stacked(draw.features, draw.prototypes)
    return dense_motion(pull_of(draw, sizes), start, _clocks(draw, k), draw.decay.T[:2])


def _against_dense(sizes: ClassSizes, members: int):
    draw, found = _moved(sizes, members)
    states = column(np.exp(found.log_norms)) * found.directions
    return np.max([deviation(states[:, k], _dense(sizes, members, k)) for k in LATE], axis=0)


def _class_matrix(draw: Draw, sizes: ClassSizes):
    """K^T, (members, classes, classes): what class sides are pulled by, from the dense pull; and its U, sigma, V."""
    unit = (labels_of(sizes)[:, None] == np.arange(len(sizes))) / np.sqrt(sizes)
    right, sigma, left = np.linalg.svd(unit.T @ pull_of(draw, sizes))
    return left.swapaxes(1, 2), sigma, right


def _modes(sizes: ClassSizes, members: int):
    """Columns of G V and W U by the exponential of their singular value; deviations by their decay alone."""
    draw = drawn(sizes, members)
    left, sigma, right = _class_matrix(draw, sizes)
    g, w = sides_of(draw.features, sizes), draw.prototypes
    spread = lambda sides: (sides / np.sqrt(sizes)[:, None])[:, labels_of(sizes)]
    sides = np.stack([right.swapaxes(1, 2) @ g, left.swapaxes(1, 2) @ w], axis=2)
    worst = []
    for k in LATE:
        clocks = _clocks(draw, k)
        motion = mode_exponential(sigma, [x[:, None] for x in clocks], draw.decay.T[:2, :, None])
        after = motion @ sides
        kept = column(np.exp(-draw.decay[:, 0] * clocks[0]))
        features = spread(right @ after[:, :, 0]) + kept * (draw.features - spread(g))
        worst.append(deviation(stacked(features, left @ after[:, :, 1]), _dense(sizes, members, k)))
    return np.max(worst, axis=0)


def _biases(sizes: ClassSizes, members: int):
    """kappa_c = (1 + gamma) n_c/n - gamma."""
    draw, found = _moved(sizes, members)
    drift = (1 + draw.gamma[:, None]) * np.array(sizes) / sum(sizes) - draw.gamma[:, None]
    rest = (drift / draw.decay[:, 2:])[:, None]
    kept = np.exp(-draw.decay[:, 2:] * clock(draw, TIMES))[..., None]
    unit = size_of(draw.biases, 1) + size_of(rest[:, 0], 1)
    return size_of(found.biases - (rest + kept * (draw.biases[:, None] - rest)), 1).max(axis=1) / unit


def _descent(members: int) -> Measured:
    """Heavy ball by formula against a plain loop."""
    sizes = SIZES[0]
    draw = drawn(sizes, members)
    rates, momentum = random_rates(draw), 0.9 * draw.spare[:, 0]

    def one(member):
        draw, rates, momentum = member
        state = dyn.Peeled(draw.features, draw.prototypes, draw.biases)
        return dyn.exact.descent(problem_of(draw, sizes), state, rates_of(rates), STEPS, momentum=momentum).states

    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))((draw, rates, momentum)))
    looped = descend(pull_of(draw, sizes), draw, rates, draw.decay, momentum)
    errors = deviation(stack(found), stack(looped)).max(axis=1)
    return Measured(float(errors.max()), members, f"class sizes {sizes}, member {int(errors.argmax())}")


@functools.cache
def _far(sizes: ClassSizes, members: int):
    """The draws, their leading singular value, and the motion from FAR on, where the limit is reached."""
    draw = drawn(sizes, members)
    return draw, _class_matrix(draw, sizes), moved(draw, sizes, FAR * np.arange(1, 7))


def _self_dual(sizes: ClassSizes, members: int):
    """G = k W U V^T at the limit, k = (omega_2 + lambda2)/sigma of the leading mode."""
    draw, (left, sigma, right), found = _far(sizes, members)
    samples = sum(sizes)
    g, w = sides_of(found.directions[:, 0, :samples], sizes), found.directions[:, 0, samples:]
    omega = mode_exponents(sigma[:, 0], draw.ratio, draw.decay.T[:2])[1]
    factor = column((omega + draw.decay[:, 1]) / sigma[:, 0])
    return size_of(g - factor * right @ left.swapaxes(1, 2) @ w) / size_of(g)


def _growth(sizes: ClassSizes, members: int):
    """The growth of the log norm per clock against the top of the dense spectrum, made symmetric by the rates."""
    draw, _, found = _far(sizes, members)
    rates = np.sqrt(draw.ratio), np.ones(members)
    symmetric = generator(pull_of(draw, sizes), rates, (draw.decay[:, 0] * rates[0], draw.decay[:, 1]))
    samples = sum(sizes)
    symmetric[:, samples:, :samples] *= column(rates[0])
    top = np.linalg.eigvalsh(symmetric)[:, -1]
    measured = np.diff(found.log_norms)[:, -1] / (FAR * draw.floor)
    return np.abs(measured - top) / (np.abs(top) + draw.decay[:, 1])


def _sums(members: int) -> Measured:
    """Sums of the limit's prototypes over their norm, at gamma = 1/(C-1); the numbers give them at half of that.

    Two largest classes would lead with a difference of their own, which has no sum at any gamma.
    """
    sums = {1.0: [], 0.5: []}
    for sizes in SIZES:
        for factor, found in sums.items():
            draw = drawn(sizes, members)._replace(gamma=np.full(members, factor / (len(sizes) - 1)))
            w = moved(draw, sizes, FAR * np.arange(1, 7)).directions[:, 0, sum(sizes) :]
            if factor == 1 or sizes.count(max(sizes)) == 1:
                found.append(size_of(w.sum(axis=1), 1) / size_of(w))
    best, elsewhere = (np.concatenate(found) for found in sums.values())
    return Measured(float(best.max()), best.size, "gamma = 1/(C-1)", {"least at half of it": float(elsewhere.min())})


_claim = functools.partial(
    Claim, id="beyond.imbalance", source=SOURCE, assumptions=("any class sizes", "constant ratio of rates", "any decays")
)
_check = lambda residuals: functools.partial(_over_sizes, residuals)

EXPERIMENT = Experiment(
    name="imbalance",
    family="beyond",
    summary="the motion with classes of different sizes",
    claims=(
        _claim(
            name="imbalance-dense",
            statement="formula = motion by all eigenvectors of the dense generator",
            tolerance=2e-13,
            check=_check(_against_dense),
        ),
        _claim(
            name="imbalance-modes",
            statement="K = U Sigma V^T: columns of G V and W U move in pairs as balanced modes do, D only decays",
            tolerance=2e-13,
            check=_check(_modes),
        ),
        _claim(
            name="imbalance-biases",
            statement="biases relax to kappa_c/lambda, kappa_c = (1 + gamma) n_c/n - gamma",
            tolerance=1e-14,
            check=_check(_biases),
        ),
        _claim(
            name="imbalance-descent",
            statement="heavy ball at any rates: formula = a plain loop",
            assumptions=("any class sizes", "any rates, step by step", "any decays"),
            tolerance=2e-13,
            check=_descent,
        ),
        _claim(
            name="imbalance-self-dual",
            statement="self-duality survives as G = k W U V^T",
            tolerance=1e-13,
            check=_check(_self_dual),
        ),
        _claim(
            name="imbalance-growth",
            statement="the norm grows at the largest exponent of the dense generator",
            tolerance=1e-13,
            check=_check(_growth),
        ),
        _claim(
            name="imbalance-zero-sum",
            statement="prototypes tend to zero sum at gamma = 1/(C-1); at other gamma, with one largest class, they do not",
            tolerance=1e-14,
            check=_sums,
        ),
    ),
)
