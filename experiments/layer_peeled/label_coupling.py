"""Any coupling of labels and logits: soft labels, costs, label smoothing; losses that sum to zero over all labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.couplings import (
    CLOCKS,
    SIZES,
    dense_states,
    flow_program,
    loss_residuals,
    pull_of,
    random_couplings,
    smoothing_matrix,
    spectrum_residuals,
    worst_found,
)
from experiments.shared.dense import deviation, size_of
from experiments.shared.imbalanced import drawn
from experiments.shared.oracles import stack

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 4, for any linear loss"
KINDS = ((SIZES, False), ((3, 1), True))  # class sizes, and whether the coupling is by sample


@functools.cache
def _moved(sizes, members: int, by_sample: bool):
    draw, coupling = drawn(sizes, members), random_couplings(sizes, members, by_sample)
    draw = draw._replace(ratio=draw.ratio**0.5)
    unit = np.linalg.svd(pull_of(coupling, sizes), compute_uv=False)[:, 0]
    states = flow_program(sizes, dyn.losses.Linear)(draw, (coupling,), unit)
    return draw, coupling, unit, jax.tree.map(np.asarray, states)


def _against_dense(members: int) -> Measured:
    def residuals(sizes, by_sample):
        draw, coupling, unit, states = _moved(sizes, members, by_sample)
        return deviation(stack(states), dense_states(draw, pull_of(coupling, sizes), unit)).max(axis=1)

    return worst_found({f"class sizes {kind[0]}{', by sample' if kind[1] else ''}": residuals(*kind) for kind in KINDS})


def _bias_drift(members: int) -> Measured:
    """Biases relax to M 1_n over their decay."""

    def residuals(sizes, by_sample):
        draw, coupling, unit, states = _moved(sizes, members, by_sample)
        rest = (pull_of(coupling, sizes).sum(axis=1) / draw.decay[:, 2:])[:, None]
        kept = np.exp(-draw.decay[:, 2:] * CLOCKS / unit[:, None])[..., None]
        whole = size_of(draw.biases, 1) + size_of(rest[:, 0], 1)
        return size_of(states.biases - (rest + kept * (draw.biases[:, None] - rest)), 1).max(axis=1) / whole

    return worst_found({f"class sizes {kind[0]}": residuals(*kind) for kind in KINDS})


def _symmetric(members: int) -> Measured:
    """A random A whose losses over all labels sum to zero: the library's motion under noise, at the slowed clock."""
    classes, draw, coupling = len(SIZES), drawn(SIZES, members), random_couplings(SIZES, members, False)
    coupling = coupling - coupling.mean(axis=1, keepdims=True)
    rate, draw = draw.spare[:, 2], draw._replace(decay=np.zeros((members, 3)), ratio=draw.ratio**0.5)
    unit = np.linalg.svd(pull_of(coupling, SIZES), compute_uv=False)[:, 0]
    noisy = jax.vmap(lambda matrix, rate: dyn.losses.label_noise(dyn.losses.Linear(matrix), rate, classes).matrix)
    found = flow_program(SIZES, dyn.losses.Linear)(draw, (np.asarray(noisy(coupling, rate)),), unit)
    expected = dense_states(draw, pull_of(coupling, SIZES), unit, 1 - rate * classes / (classes - 1))
    return worst_found({f"class sizes {SIZES}": deviation(stack(found), expected).max(axis=1)})


def _sums(members: int) -> Measured:
    """The library's unhinged loss at its best gamma, summed over all labels; over the sum of |z|."""
    worst = {}
    for classes in (2, 3, 7):
        logits = np.random.default_rng(19).normal(size=(members, classes))
        of_labels = jax.vmap(jax.vmap(dyn.losses.Unhinged(), (None, 0)), (0, None))
        losses = np.asarray(of_labels(jnp.asarray(logits), jnp.arange(classes)))
        worst[f"C = {classes}"] = np.abs(np.sum(losses, axis=1)) / np.sum(np.abs(logits), axis=1)
    return worst_found(worst)


_claim = functools.partial(Claim, id="beyond.labelcoupling", source=SOURCE, assumptions=())
_ANY = ("any class sizes", "any A", "constant ratio of rates", "any decays")

EXPERIMENT = Experiment(
    name="label-coupling",
    family="beyond",
    summary="soft labels, costs, smoothing: any loss -<A_y, z>",
    claims=(
        _claim(
            name="coupling-dense",
            statement="any A, by label or by sample: formula by SVD = motion by all eigenvectors of the dense generator",
            assumptions=_ANY,
            tolerance=2e-14,
            check=_against_dense,
        ),
        _claim(
            name="coupling-bias",
            statement="biases drift by M 1_n",
            assumptions=_ANY,
            tolerance=1e-14,
            check=_bias_drift,
        ),
        _claim(
            name="smoothing-loss",
            statement="label_smoothing is (1-eps) loss(y) + eps/C sum_k loss(k)",
            tolerance=1e-14,
            check=functools.partial(loss_residuals, transform=dyn.losses.label_smoothing, mixing=smoothing_matrix),
        ),
        _claim(
            name="smoothing-sigma",
            statement="label smoothing: sigma1 -> (1-eps) sigma1, sigma2 unchanged",
            assumptions=("balanced classes", "unhinged loss"),
            tolerance=1e-14,
            check=functools.partial(spectrum_residuals, mixing=smoothing_matrix, factor_of=lambda classes, eps: 1 - eps),
        ),
        _claim(
            name="noise-slows-any-symmetric",
            statement="any A whose losses over all labels sum to zero: noise only slows the clock, by 1 - rho C/(C-1)",
            assumptions=("any class sizes", "no decay", "sum over labels of A_y = 0", "expected loss"),
            tolerance=2e-14,
            check=_symmetric,
        ),
        _claim(
            name="losses-sum-to-zero",
            statement="gamma = 1/(C-1): losses over all labels sum to zero",
            assumptions=("gamma = 1/(C-1)",),
            tolerance=1e-15,
            check=_sums,
        ),
    ),
)
