r"""Squared error with anchored prototypes: every sample relaxes on its own, along the singular vectors of the prototypes.

Features stay $h = \kappa h_0 + W^T y$ with $\kappa$ their decay and y in the space of logits,
$y' = -(v_i/n)(W W^T y + \kappa W h_0 + b - e_y) - \lambda y$: nothing divides by an eigenvalue of $W W^T$, zero or not.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics import state as tree
from dynamics.exact.closed_form import ClosedForm, Motion, NoClosedForm
from dynamics.exact.conditions import plain_obstacles
from dynamics.exact.limit import Limit
from dynamics.exact.spectral import act
from dynamics.losses import SquaredError
from dynamics.problems import LayerPeeled, Peeled
from dynamics.rates import Rates
from dynamics.schedules import decaying_clock


def obstacles(problem, rates: Rates) -> list[str]:
    """Why it does not apply."""
    reasons = plain_obstacles(problem, rates, SquaredError)
    if isinstance(problem, LayerPeeled) and not problem.anchored:
        reasons.append("the prototypes are free")
    return reasons


class _Singular(NamedTuple):
    """W = left[:, :k] diag(sizes) right^T, k = min(classes, dim), and the eigenvalues of W W^T; all taken as constants."""

    left: Float[Array, "classes classes"]
    sizes: Float[Array, " k"]
    right: Float[Array, "dim k"]
    strengths: Float[Array, " classes"]


class _Modes(NamedTuple):
    """The prototypes taken apart; the different weights v/n of samples, and which is whose."""

    singular: _Singular
    shares: Float[Array, "groups 1"]
    group: np.ndarray


def _modes(problem: LayerPeeled, prototypes: Float[Array, "classes dim"]) -> _Modes:
    classes, dim = prototypes.shape
    # derivatives in W go another way, see `_pulled`: those of singular vectors do not exist where values are equal
    left, sizes, right = jnp.linalg.svd(jax.lax.stop_gradient(prototypes), full_matrices=dim < classes)
    # what is zero but for rounding must stay zero however long it is integrated
    sizes = jnp.where(sizes > max(classes, dim) * jnp.finfo(sizes.dtype).eps * sizes[0], sizes, 0.0)
    strengths = jnp.concatenate([sizes**2, jnp.zeros((classes - sizes.size,), sizes.dtype)])
    shares, group = np.unique(problem.data.weights / problem.num_samples, return_inverse=True)
    return _Modes(_Singular(left, sizes, right.T, strengths), jnp.asarray(shares, sizes.dtype)[:, None], group)


@jax.custom_jvp
def _pulled(singular: _Singular, prototypes, features, wanted, to_start, to_target):
    """W^T (f(W W^T) W h + g(W W^T) c) for rows h of `features` and c of `wanted`, along the singular vectors.

    `to_start` and `to_target` are pairs of the values and slopes of f and g at the eigenvalues. The derivative is that of
    the form above, which the singular vectors of zero, of no consequence to the value, are a part of.
    """
    left, sizes, right, strengths = singular
    k = sizes.size
    along = (features @ right) * (to_start[0][:, :k] * strengths[:k]) + (wanted @ left[:, :k]) * (to_target[0][:, :k] * sizes)
    return along @ right.T


@_pulled.defjvp
def _derivative(primals, tangents):
    def through_logits(singular, prototypes, features, wanted, to_start, to_target):
        function = functools.partial(act, prototypes @ prototypes.T, singular.left, singular.strengths)
        return (function(*to_start, features @ prototypes.T) + function(*to_target, wanted)) @ prototypes

    return _pulled(*primals), jax.jvp(through_logits, primals, tangents)[1]


def _place(problem: LayerPeeled, state: Peeled, modes: _Modes, respond=lambda responses: responses):
    """`respond(scalars)`: what is kept of h_0; the responses of y to W h_0 and to b - e_y, with slopes in the eigenvalue."""
    targets = jnp.asarray(problem.labels[:, None] == np.arange(problem.num_classes), state.features.dtype)

    def place(scalars):
        kept, *responses = respond(scalars)
        responses = jax.tree.map(lambda x: x[modes.group] if x.shape[0] > 1 else x, responses)
        pulled = _pulled(modes.singular, state.prototypes, state.features, state.biases - targets, *responses)
        features = kept * state.features - modes.shares[modes.group] * pulled
        return Peeled(features, state.prototypes, state.biases), jnp.zeros_like(kept)

    return place


def flow(problem: LayerPeeled, state: Peeled, rates: Rates, ts) -> Motion:
    r"""$\kappa = e^{-\lambda\zeta}$; y responds by $\kappa(1 - e^{-x\zeta})/x$ to $W h_0$ and by $(1 - e^{-\mu\zeta})/\mu$ to
    $b - e_y$, $x = v_i g/n$ of an eigenvalue g of $W W^T$, $\mu = x + \lambda$. Any rates, class sizes and sample weights.

    **Reference:** derived here.
    """
    modes, decay = _modes(problem, state.prototypes), problem.decay.features

    def respond(clock):
        kept = jnp.exp(-decay * clock)
        to_start = lambda g: kept * decaying_clock(modes.shares * g, clock)
        to_target = lambda g: decaying_clock(modes.shares * g + decay, clock)
        return kept, _with_slope(to_start, modes.singular.strengths), _with_slope(to_target, modes.singular.strengths)

    return Motion(rates.features.integral(ts), _place(problem, state, modes, respond))


def _with_slope(response, strengths):
    """A response and its derivative in the eigenvalue, (groups, classes) each."""
    return jax.jvp(response, (strengths,), (jnp.ones_like(strengths),))


def descent(problem: LayerPeeled, state: Peeled, rates: Rates, steps, every, dt, momentum, nesterov) -> Motion:
    """The same responses by the recursion of a step, for each eigenvalue, with momentum."""
    modes, decay, rate = _modes(problem, state.prototypes), problem.decay.features, rates.features

    def responses(strengths):
        stiff = modes.shares * strengths

        def step(k, carry):
            (kept, start, target), velocity = carry
            force = (-decay * kept, kept - (stiff + decay) * start, 1 - (stiff + decay) * target)
            velocity = tuple(momentum * v + f for v, f in zip(velocity, force, strict=True))
            move = tuple(momentum * v + f for v, f in zip(velocity, force, strict=True)) if nesterov else velocity
            eta = dt * rate(k * dt)
            return (kept + eta * move[0], start + eta * move[1], target + eta * move[2]), velocity

        def snapshot(carry, index):
            carry = jax.lax.fori_loop(0, every, lambda j, c: step(index * every + j, c), carry)
            return carry, carry[0]

        begin = (jnp.ones((), stiff.dtype), jnp.zeros_like(stiff), jnp.zeros_like(stiff))
        still = jax.tree.map(jnp.zeros_like, begin)
        _, path = jax.lax.scan(snapshot, (begin, still), jnp.arange(steps // every))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begin, path)

    values, slopes = _with_slope(responses, modes.singular.strengths)
    return Motion((values[0], *zip(values[1:], slopes[1:], strict=True)), _place(problem, state, modes))


def limit(problem: LayerPeeled, state: Peeled, rates: Rates) -> Limit:
    r"""Features converge: to ridge regression of the labels on the prototypes; without decay, to the fit nearest to the start.

    The rate is the slowest $\mu$ of a component that moves, per unit of the features' clock; `constants["log_norm"]` is that
    of the limit. NaN where decay takes everything to zero.
    """
    modes, dtype = _modes(problem, state.prototypes), state.features.dtype
    decay = jnp.asarray(problem.decay.features, dtype)
    kept = jnp.where(decay > 0, jnp.zeros((), dtype), 1.0)
    reached = (modes.singular.strengths > 0) & (modes.shares > 0)

    def settled(g):
        stiff = jnp.where(reached, modes.shares * g, 1.0)
        return jnp.where(reached, kept / stiff, 0.0), jnp.where(reached, 1 / (stiff + decay), 0.0)

    responses = _with_slope(settled, modes.singular.strengths)
    with jax.default_matmul_precision("highest"):
        features = _place(problem, state, modes)((kept, *zip(*responses, strict=True)))[0].features
    size = tree.norm((features, state.prototypes))
    slowest = jnp.min(jnp.where(reached, modes.shares * modes.singular.strengths + decay, jnp.inf))
    # with decay, what the prototypes do not reach fades at the decay itself
    rank = jnp.sum(jnp.any(reached, axis=0))
    beside = (rank < state.features.shape[1]) | jnp.any(modes.shares == 0)
    slowest = jnp.where((decay > 0) & beside, decay, slowest)
    return Limit(
        Peeled(features / size, state.prototypes / size, state.biases),
        jnp.zeros_like(size),
        jnp.where(jnp.isfinite(slowest), slowest, 0.0),
        {"log_norm": jnp.log(size)},
    )


def max_step(problem, rates, momentum, nesterov):
    """Not of the problem alone."""
    raise NoClosedForm(
        "the largest stable step of the anchored squared error depends on the prototypes, which are part of the state: without "
        "momentum it is 2/((v g/samples + decay.features) * peak rate), v the largest sample weight and g the largest "
        "eigenvalue of W W^T"
    )


ANCHORED_SQUARE = ClosedForm("squared error, anchored prototypes", obstacles, flow, descent, limit, max_step)
