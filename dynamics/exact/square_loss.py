"""Both layers free under the square loss, from a balanced start: a matrix Riccati flow in closed form."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dynamics import validate
from dynamics.exact.closed_form import ClosedForm, Motion, NoClosedForm, assume
from dynamics.exact.conditions import plain_obstacles, rounding
from dynamics.exact.riccati import Riccati, Rows, advanced, nodes
from dynamics.losses import SquaredError
from dynamics.problems import LayerPeeled, Peeled
from dynamics.rates import Rates

PANELS = 512
"""Steps of the factor where their number cannot depend on values."""
REACH = 4.0 * PANELS
"""The longest clock in units of the fastest growth rate."""


def obstacles(problem, rates: Rates) -> list[str]:
    """Why the Riccati flow does not apply, by types and static fields."""
    reasons = plain_obstacles(problem, rates, SquaredError)
    if isinstance(problem, LayerPeeled):
        if problem.anchored:
            reasons.append("the prototypes are anchored")
        if problem.bias is True:
            reasons.append("biases trained at their own rate have no closed form (bias='slaved' does)")
        if problem.data.static_weights is not None:
            reasons.append("samples are weighted")
    if isinstance(rates, Rates) and not rates.constant_ratio:
        reasons.append("the rates have no constant ratio")
    return reasons


class Basis(NamedTuple):
    """Singular vectors of the targets (centred where biases are slaved), in coordinates of classes on the right side.

    A column of `right` stands for the samples' vector with entry right[c]/sqrt(n_c) for a sample of class c; None is the
    identity. `unseen` are left vectors of singular value zero.
    """

    left: np.ndarray | None
    values: np.ndarray
    right: np.ndarray | None
    unseen: np.ndarray

    def split(self, prototypes, sides):
        """The three parts of prototypes and class sides (root n_c times class means): along `left`, `right`, `unseen`."""
        along = [x if part is None else part.T @ x for part, x in ((self.left, prototypes), (self.right, sides))]
        return *along, self.unseen.T @ prototypes

    def join(self, w, h, hidden):
        """Prototypes and class sides of three parts."""
        prototypes, sides = (x if part is None else part @ x for part, x in ((self.left, w), (self.right, h)))
        return prototypes if self.unseen.shape[1] == 0 else prototypes + self.unseen @ hidden, sides


def basis_of(problem: LayerPeeled) -> Basis:
    """On the host: class sizes are static."""
    sizes = problem.data.sizes
    root = np.sqrt(sizes)
    if problem.bias != "slaved":
        return Basis(None, root, None, np.zeros((sizes.size, 0)))
    share = root / np.sqrt(sizes.sum())
    left, values, right = np.linalg.svd(root[:, None] * (np.eye(sizes.size) - np.outer(share, share)))
    return Basis(left[:, :-1], values[:-1], right[:-1].T, left[:, -1:])


class Start(NamedTuple):
    """The flow that a start is on: in `Riccati` form, with what is needed to put states together.

    Prototypes and features over sqrt(ratio) are the two halves of Q; `within`, the deviations of features from their class
    means over sqrt(ratio); `fastest`, the largest growth rate; `code`, the status by the conditions on values.
    """

    riccati: Riccati
    factor: Rows
    basis: Basis
    turn: tuple[Float[Array, " planes"], Float[Array, " planes"]]
    within: Float[Array, "samples dim"]
    ratio: Float[Array, ""]
    fastest: Float[Array, ""]
    code: Int[Array, ""]


def start_of(problem: LayerPeeled, state: Peeled, rates: Rates) -> Start:
    """Splits a start; raises `NoClosedForm` (traced: a code) unless it is balanced and the decays allow it."""
    dtype, dim = state.features.dtype, state.features.shape[1]
    data, kappa = problem.data, 1 / problem.num_samples
    ratio, decay, code = _rates_and_decay(problem, rates, dtype)
    root = jnp.sqrt(ratio)
    features, prototypes, allowed = _seen(problem, state, dtype)
    features = features / root
    means = data.class_means(features)
    within, sides = features - data.spread(means), jnp.sqrt(jnp.asarray(data.sizes, dtype))[:, None] * means
    metric, of_sides = within.T @ within, sides.T @ sides
    imbalance, balanced = _imbalance(prototypes.T @ prototypes, metric + of_sides, decay)

    basis: Basis = jax.tree.map(lambda part: np.asarray(part, dtype), basis_of(problem))
    pull, skew = kappa * root * basis.values, 0.5 * kappa * ratio * imbalance
    speed, angle = jnp.sqrt(pull**2 + skew**2), 0.5 * jnp.arctan2(pull, jnp.broadcast_to(skew, pull.shape))
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    w, h, hidden = basis.split(prototypes, sides)
    rows = cosine[:, None] * w + sine[:, None] * h, cosine[:, None] * h - sine[:, None] * w, hidden
    factor = jnp.concatenate([*rows, jnp.eye(dim, dtype=dtype)])
    grown = jnp.concatenate([speed, -speed, jnp.full(basis.unseen.shape[1], skew), jnp.full(dim, -skew)]) - decay
    riccati = Riccati(kappa * ratio, grown, metric)
    fastest = jnp.maximum(jnp.max(speed) - decay, 0.0)
    code = jnp.maximum(jnp.maximum(code, allowed), balanced)
    return Start(riccati, factor, basis, (cosine, sine), within, ratio, fastest, code)


def _rates_and_decay(problem: LayerPeeled, rates: Rates, dtype):
    """The ratio of rates, the common decay rate of both layers, and whether they allow the formula."""
    ratio, decay = jnp.asarray(rates.ratio(), dtype), problem.decay
    moves = (ratio > 0) & jnp.isfinite(ratio)
    code = assume(moves, lambda: f"both layers must move, but the features' rate is {float(ratio):g} times the weights'")
    ratio = jnp.where(moves, ratio, 1.0)
    fades = jnp.asarray(decay.prototypes, dtype), ratio * decay.features
    same = assume(
        jnp.abs(fades[0] - fades[1]) <= rounding(dtype) * (fades[0] + fades[1]),
        lambda: (
            "rate times decay must be the same for features and prototypes, but that of the features is "
            f"{float(fades[1]):g} and that of the prototypes {float(fades[0]):g} per unit of the weights' clock; "
            "dynamics.flow takes any decay"
        ),
    )
    return ratio, fades[0], jnp.maximum(code, same)


def _seen(problem: LayerPeeled, state: Peeled, dtype):
    """Features and prototypes that the formula moves, and whether biases and the features' mean allow it."""
    if problem.bias != "slaved":
        code = assume(
            jnp.all(state.biases == 0),
            lambda: (
                f"biases that stay must be zero, the largest is {float(jnp.max(jnp.abs(state.biases))):g}; "
                "bias='slaved' lets them follow"
            ),
        )
        return state.features, state.prototypes, code
    decay = jnp.asarray(problem.decay.biases)
    code = assume(decay == 0, lambda: f"slaved biases must not decay, got decay.biases = {float(decay):g}")
    mean = jnp.mean(state.features, axis=0)
    size = jnp.max(jnp.abs(state.features))
    centred = assume(
        jnp.max(jnp.abs(mean)) <= rounding(dtype) * size,
        lambda: (
            f"with slaved biases the mean of the features must be zero, it is {float(jnp.max(jnp.abs(mean)) / size):.1e} of "
            "their size: subtract it, the loss and all that is centred move alike without it (Gram matrices with it are not "
            "determined)"
        ),
    )
    return state.features - mean, state.prototypes, jnp.maximum(code, centred)


def _imbalance(of_prototypes, of_features, decay):
    """delta of W^T W - H^T H/s = delta I, and whether it is such a multiple (with decay: zero)."""
    dim = of_prototypes.shape[0]
    gap = of_prototypes - of_features
    delta = jnp.trace(gap) / dim
    size = jnp.trace(of_prototypes) + jnp.trace(of_features)
    off = jnp.sqrt(jnp.sum((gap - delta * jnp.eye(dim, dtype=gap.dtype)) ** 2))
    slack = rounding(gap.dtype) * size
    code = assume(
        off <= slack,
        lambda: (
            "the start is unbalanced: W^T W - H^T H/s (s, the ratio of the features' rate to the weights') must be a "
            f"multiple of the identity, but is off the nearest one, {float(delta):.6g}, by {float(off):.3g}, "
            f"{float(off / size):.1e} of its two terms, where {rounding(gap.dtype):.1e} passes as rounding; "
            "dynamics.initial.balanced draws balanced starts, dynamics.flow takes any"
        ),
    )
    even = assume(
        (decay == 0) | (jnp.abs(delta) <= slack),
        lambda: (
            f"with decay, W^T W - H^T H/s must be zero, but it is {float(delta):.6g} times the identity, "
            f"{float(jnp.abs(delta) / size):.1e} of its two terms; dynamics.flow takes any"
        ),
    )
    return jnp.where(decay == 0, delta, 0.0), jnp.maximum(code, even)


def panels_of(start: Start, end: Float[Array, ""]) -> tuple[int, Float[Array, ""], Int[Array, ""]]:
    """How many equal steps of the factor lead to the clock `end` or past it, their length, and whether that is within reach."""
    end, fastest = jax.lax.stop_gradient((end, start.fastest))
    reach = fastest * end
    within = assume(
        reach <= REACH,
        lambda: (
            f"the last clock is {float(reach):.4g} over the fastest growth rate and the formula keeps its precision up to "
            f"{REACH:g}; by then the fitted modes have converged to all digits (exact.minimiser, or dynamics.flow)"
        ),
    )
    # powers of two: few compiled programs, whatever the times
    panels = 2 ** math.ceil(math.log2(max(float(reach), 1.0))) if validate.is_concrete(reach) else PANELS
    # not shorter than growth by e: every further step rounds once more
    least = jnp.where(fastest > 0, 1 / jnp.where(fastest > 0, fastest, 1.0), 0.0)
    return panels, jnp.maximum(end / panels, jnp.minimum(least, end)), within


def flow(problem: LayerPeeled, state: Peeled, rates: Rates, ts) -> Motion:
    r"""The flow from a balanced start, $W^\top W - H^\top H/s = \delta I$ (rows are vectors, s the ratio of the rates).

    Either without decay, any $\delta$ (for `dim` 1 every start is balanced); or with decay, the same for both layers once
    multiplied by the rates, and $\delta = 0$. With slaved biases the features must have mean zero (it then stays zero).
    States are one representative: true ones are its features and prototypes times `exact.rotation`.

    Errors relative to the larger of one and the Gram matrices, clocks up to 1000 over the fastest growth rate: 1e-12 in
    float64, 3e-6 in float32. Derivatives are those of the flow along balanced starts only: vary starts within them.

    **Reference:** K. Fukumizu (1998); L. Braun et al. (2022), with unequal rates, decay and singular F: derived here.
    """
    clock = rates.weights.integral(ts)
    with jax.default_matmul_precision("highest"):
        start = start_of(problem, state, rates)
        panels, h, within = panels_of(start, clock[-1])
        path = nodes(start.riccati, start.factor, jnp.broadcast_to(h, (panels,)))
    index = jnp.clip(jnp.floor(clock / jnp.where(h > 0, h, 1.0)), 0, panels - 1).astype(jnp.int32)
    place = functools.partial(_place, problem, state, start, path)
    return Motion((index, clock - index * h), place, None, jnp.maximum(start.code, within), "rotation")


def _place(problem: LayerPeeled, state: Peeled, start: Start, path: Float[Array, "nodes rows dim"], scalars):
    index, rest = scalars
    factor = advanced(start.riccati, path[index], rest)
    planes, unseen = start.basis.values.size, start.basis.unseen.shape[1]
    growing, fading, hidden, turned = jnp.split(factor, [planes, 2 * planes, 2 * planes + unseen])
    cosine, sine = (part[:, None] for part in start.turn)
    w, h = cosine * growing - sine * fading, sine * growing + cosine * fading
    sizes = jnp.sqrt(jnp.asarray(problem.data.sizes, w.dtype))[:, None]
    prototypes, sides = start.basis.join(w, h, hidden)
    features = problem.data.spread(jnp.asarray(sides / sizes)) + start.within @ turned
    moved = Peeled(jnp.sqrt(start.ratio) * features, prototypes, state.biases)
    return problem.complete(moved), jnp.zeros_like(rest)


def _none(what: str):
    def refuse(*_):
        raise NoClosedForm(what)

    return refuse


SQUARE_LOSS = ClosedForm(
    "both layers free under the square loss, from a balanced start",
    obstacles,
    flow,
    _none("the square loss couples all modes of a step of descent: only its flow has a closed form; use dynamics.descent"),
    _none(
        "the limit of the square loss depends on more of the start than a closed form keeps; use exact.flow at a late time, "
        "or exact.minimiser with decay"
    ),
    _none(
        "the largest step under the square loss depends on the point: where the targets are fitted it is 2 over the largest of "
        "exact.kernel_spectrum times 1/samples"
    ),
)
