"""The unhinged loss: linear in the logits, its matrix form and gradients, and the margins it stands for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import coupling, deviation, size_of
from experiments.shared.instances import Size, draws, instance, sigmas, worst_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Section 3"


@functools.cache
def _library(size: Size, members: int):
    """Objective, gradient by automatic differentiation, force; both of the data alone also with other parts changed."""

    def one(draw):
        problem, state, _ = instance(draw, size, decay=True, bias=True)
        bare = instance(draw, size, bias=True).problem
        shifted = dyn.Peeled(state.features, state.prototypes, state.biases + 3.0)
        moved = dyn.Peeled(2.0 * state.features, 1.0 - state.prototypes, state.biases)
        grads = [jax.grad(bare.data_loss)(x) for x in (state, shifted, moved)]
        forces = [bare.force(x) for x in (state, shifted, moved)]
        return problem.objective(state), jax.grad(problem.objective)(state), problem.force(state), (grads, forces)

    return dyn.ensemble.run(one, draws(size, members), progress=False).values


def _from_definition(gamma, logits, labels):
    """-z_y + gamma sum of the other logits; logits (members, samples, classes)."""
    own = np.take_along_axis(logits, labels[None, :, None], axis=-1)[..., 0]
    others = sum(np.where(labels == c, 0.0, logits[..., c]) for c in range(logits.shape[-1]))
    return -own + gamma[:, None] * others


def _matrix_form(size: Size, members: int):
    """The library's objective and the matrix form, both against the definition; relative to the largest logit."""
    draw = draws(size, members)
    h, w, b = draw.features, draw.prototypes, draw.biases
    logits = np.einsum("mip,mcp->mic", h, w) + b[:, None]
    labels = np.repeat(np.arange(size.classes), size.per_class)
    squares = np.stack([size_of(h), size_of(w), size_of(b, 1)], axis=1) ** 2
    penalty = 0.5 * np.sum(draw.decay * squares, axis=1)
    defined = _from_definition(draw.gamma, logits, labels).mean(axis=1) + penalty
    matrix = -np.einsum("mci,mcp,mip->m", coupling(draw, size), w, h) - sigmas(draw, size)[2] * b.sum(axis=1) + penalty
    gaps = np.abs([matrix - defined, _library(size, members)[0] - defined]).max(axis=0)
    return gaps / (np.abs(logits).max(axis=(1, 2)) + penalty)


def _gradients(size: Size, members: int):
    """The formulas against automatic differentiation, and against the library's force."""
    draw = draws(size, members)
    h, w, b, decay = draw.features, draw.prototypes, draw.biases, draw.decay
    pull, drift = coupling(draw, size), sigmas(draw, size)[2]
    formula = (
        -pull.swapaxes(1, 2) @ w + decay[:, :1, None] * h,
        -pull @ h + decay[:, 1:2, None] * w,
        -drift[:, None] + decay[:, 2:] * b,
    )
    flat = lambda parts: np.concatenate([np.reshape(part, (members, -1)) for part in parts], axis=1)
    _, gradient, force, _ = _library(size, members)
    gaps = [deviation(sign * flat(jax.tree.leaves(x)), flat(formula), axes=1) for x, sign in ((gradient, 1), (force, -1))]
    return np.max(gaps, axis=0)


def _apart(size: Size, members: int):
    """Largest change of the pull on features and prototypes as biases change, and on biases as the others do."""
    worst = np.zeros(members)
    for here, shifted, moved in _library(size, members)[3]:
        gaps = (here.features - shifted.features, here.prototypes - shifted.prototypes, here.biases - moved.biases)
        worst = np.max([worst, *(np.abs(gap).reshape(members, -1).max(axis=1) for gap in gaps)], axis=0)
    return worst


@functools.cache
def _best_gamma(size: Size, members: int):
    """Logits, labels, and the library's loss of each sample at the best gamma."""
    draw = draws(size, members)
    labels = np.repeat(np.arange(size.classes), size.per_class)
    scale = 10 ** (2 * draw.spare[:, :1, None])  # logits from order one to hundreds
    logits = scale * (np.einsum("mip,mcp->mic", draw.features, draw.prototypes) + draw.biases[:, None])
    one = lambda z: jax.vmap(dyn.losses.Unhinged())(z, jnp.asarray(labels))
    margins = np.take_along_axis(logits, labels[None, :, None], axis=-1) - logits
    return logits, labels, margins, dyn.ensemble.run(one, logits, progress=False).values


def _average_margin(size: Size, members: int):
    logits, _, margins, loss = _best_gamma(size, members)
    average = margins.sum(axis=-1) / (size.classes - 1)  # the margin to the own logit is zero
    return np.max(np.abs(loss + average), axis=1) / np.abs(logits).max(axis=(1, 2))


def _worst_margin(size: Size, members: int):
    """How far the loss exceeds minus the sample margin; zero or rounding."""
    logits, labels, margins, loss = _best_gamma(size, members)
    own = np.arange(size.classes) == labels[:, None]
    sample = np.where(own, np.inf, margins).min(axis=-1)
    return np.max(np.maximum(loss + sample, 0.0), axis=1) / np.abs(logits).max(axis=(1, 2))


_claim = functools.partial(Claim, id="unhinged.loss", source=SOURCE)

EXPERIMENT = Experiment(
    name="loss",
    family="unhinged",
    summary="the unhinged loss, its matrix form and gradients, and margins",
    claims=(
        _claim(
            name="loss-matrix",
            statement="mean loss + decay = -<M, W^T H> - kappa 1^T b + decay",
            assumptions=("balanced classes",),
            tolerance=5e-15,
            check=functools.partial(worst_of, _matrix_form),
        ),
        _claim(
            name="loss-gradients",
            statement="dL/dH = -W M + lambda1 H, dL/dW = -H M^T + lambda2 W, dL/db = -kappa 1 + lambda b",
            assumptions=("balanced classes",),
            tolerance=5e-15,
            check=functools.partial(worst_of, _gradients),
        ),
        _claim(
            name="loss-apart",
            statement="features and prototypes never see the biases, nor biases them",
            assumptions=("any loss linear in the logits",),
            tolerance=0.0,
            check=functools.partial(worst_of, _apart),
        ),
        _claim(
            name="loss-average-margin",
            statement="gamma = 1/(C-1): the loss is minus the average margin",
            assumptions=("gamma = 1/(C-1)",),
            tolerance=5e-15,
            check=functools.partial(worst_of, _average_margin),
        ),
        _claim(
            name="loss-worst-margin",
            statement="gamma = 1/(C-1): the loss is at most minus the sample margin z_y - max z_j",
            assumptions=("gamma = 1/(C-1)",),
            tolerance=1e-15,
            check=functools.partial(worst_of, _worst_margin),
        ),
    ),
)
