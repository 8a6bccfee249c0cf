"""Label couplings of all members: random ones, noisy and smoothed ones entry by entry, and the library's flows under them."""

import functools

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Measured
from experiments.shared.dense import size_of, stacked
from experiments.shared.imbalanced import drawn
from experiments.shared.oracles import column, dense_motion, labels_of

SIZES = (2, 2, 5)
CLOCKS = np.array([1.0, 3.0])  # of the weights, in units of one over the coupling's largest singular value


def worst_found(found: dict) -> Measured:
    """The largest of the arrays of residuals."""
    found = {where: np.where(np.isnan(values), np.inf, values) for where, values in found.items()}
    where, values = max(found.items(), key=lambda pair: pair[1].max())
    return Measured(float(values.max()), sum(x.size for x in found.values()), f"{where}, member {int(values.argmax())}")


def random_couplings(sizes, members: int, by_sample: bool) -> np.ndarray:
    """Rows of A: by label standard normal; by sample those of random soft labels under the unhinged loss."""
    rng, classes = np.random.default_rng([17, *sizes]), len(sizes)
    if not by_sample:
        return rng.normal(size=(members, classes, classes))
    soft = rng.dirichlet(np.ones(classes), (members, sum(sizes)))
    return (1 + drawn(sizes, members).gamma[:, None, None]) * soft - drawn(sizes, members).gamma[:, None, None]


def pull_of(coupling: np.ndarray, sizes) -> np.ndarray:
    """B: the row of each sample over their number, (members, samples, classes)."""
    rows = coupling if coupling.shape[1] == sum(sizes) else coupling[:, labels_of(sizes)]
    return rows / sum(sizes)


def unhinged_matrix(sizes, gamma) -> np.ndarray:
    """A of the unhinged loss, entry by entry."""
    return np.where(np.eye(len(sizes), dtype=bool), 1.0, -column(gamma))


@functools.cache
def flow_program(sizes, loss_of):
    """States at the clocks, for a rate of the weights of one over `unit`."""

    def one(draw, numbers, unit):
        problem = dyn.LayerPeeled(
            labels_of(sizes), num_classes=len(sizes), loss=loss_of(*numbers), decay=dyn.Decay(*draw.decay), bias=True
        )
        state = dyn.Peeled(draw.features, draw.prototypes, draw.biases)
        rates = dyn.Rates.proportional(dyn.schedules.Constant(1 / unit), draw.ratio)
        return dyn.exact.flow(problem, state, rates, CLOCKS).states

    return jax.jit(jax.vmap(one))


def dense_states(draw, pull, unit, factor=1.0) -> np.ndarray:
    """Z at the clocks times a factor, by all eigenvectors of the dense generator; negative ones turn the pull around."""
    pull, start = np.sign(column(factor)) * pull, stacked(draw.features, draw.prototypes)
    clocks = [np.abs(factor) * clock / unit for clock in CLOCKS]
    return np.stack([dense_motion(pull, start, (draw.ratio * x, x), draw.decay.T[:2]) for x in clocks], axis=1)


def noise_matrix(classes: int, rate) -> np.ndarray:
    """The chance of each given label (columns) for each true one (rows)."""
    own = np.eye(classes, dtype=bool)
    return np.where(own, 1 - column(rate), column(rate) / (classes - 1))


def smoothing_matrix(classes: int, epsilon) -> np.ndarray:
    return (1 - column(epsilon)) * np.eye(classes) + column(epsilon) / classes


def spectrum_residuals(members: int, mixing, factor_of) -> Measured:
    """Singular values of the dense coupling of mixed labels against (factor sigma1, |sigma2|) over sigma1; balanced classes."""

    def residuals(sizes):
        count = -(-members // 3)
        draw, classes, n = drawn(sizes, count), len(sizes), sizes[0]
        mixed = mixing(classes, draw.spare[:, 1]) @ unhinged_matrix(sizes, draw.gamma)
        found = np.linalg.svd(pull_of(mixed, sizes), compute_uv=False)
        first = np.abs(factor_of(classes, draw.spare[:, 1])) * (1 + draw.gamma)
        second = np.abs(1 + draw.gamma - draw.gamma * classes)
        expected = np.sort(np.stack([*[first] * (classes - 1), second], axis=1))[:, ::-1] / (classes * np.sqrt(n))
        return np.abs(found - expected).max(axis=1) * classes * np.sqrt(n) / (1 + draw.gamma)

    return worst_found({f"class sizes {sizes}": residuals(sizes) for sizes in ((3, 3), (2, 2, 2), (1, 1, 1, 1, 1))})


def loss_residuals(members: int, transform, mixing) -> Measured:
    """The library's mixed loss of each label against the mixture of losses, written out; generic and unhinged A."""

    def residuals(generic: bool, classes: int = 4):
        rng, count = np.random.default_rng(18), -(-members // 2)
        logits, numbers = rng.normal(size=(count, classes)), rng.uniform(size=(count, 2))
        matrix = rng.normal(size=(count, classes, classes)) if generic else unhinged_matrix([1] * classes, numbers[:, 1])

        def one(logits, numbers, matrix):
            loss = dyn.losses.Linear(matrix) if generic else dyn.losses.Unhinged(numbers[1])
            return jax.vmap(transform(loss, numbers[0], classes), (None, 0))(logits, np.arange(classes))

        found = jax.jit(jax.vmap(one))(logits, numbers, matrix)
        expected = -(mixing(classes, numbers[:, 0]) @ matrix @ logits[..., None])[..., 0]
        return size_of(found - expected, 1) / size_of(logits, 1)

    return worst_found({kind: residuals(kind == "any A") for kind in ("any A", "unhinged")})
