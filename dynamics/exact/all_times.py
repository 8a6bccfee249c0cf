r"""All times of a motion of the modes at once: states in one pass, observables from inner products of the start.

At every time each mode is $(a\,g + b\,w,\ c\,g + d\,w)$ with four scalars and the g, w of the start. States are therefore sums
of a few fixed arrays, and whatever does not change under rotations is a function of the scalars and of fixed inner products.
Norms and differences of directions are taken from coordinates over an orthonormal basis, so that nothing cancels that does
not cancel in the states; Gram matrices and logits from products of $g + w$ and $g - w$, which are close to the growing and to
the fading direction: their error relative to a state is rounding times the square of how much larger the parts are than
their sum.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics.exact.closed_form import AllTimes
from dynamics.exact.modes import GroupBasis, Modes, class_weights
from dynamics.exact.propagators import Propagator
from dynamics.observables import Collapse, Summary
from dynamics.problems import LayerPeeled, Peeled

Parts = tuple[Array, Array, Array]


def all_times(problem: LayerPeeled, state: Peeled, modes: Modes, parts: Parts, drift: Array) -> AllTimes | None:
    """Known where the modes are those of groups of classes, without kernels."""
    basis = modes.basis
    if not isinstance(basis, GroupBasis) or modes.rotation is not None:
        return None

    def biases(responses):
        kept, pulled = responses
        if not problem.bias:
            return jnp.broadcast_to(state.biases, (*kept.shape, *state.biases.shape))
        return kept[..., None] * state.biases + pulled[..., None] * drift

    return AllTimes(
        log_scale=lambda scalars: scalars[0].log_scale,
        largest=lambda scalars: _largest(modes, parts, scalars[0]),
        biases=lambda scalars: biases(scalars[1]),
        states=lambda scalars, factor: _states(basis, modes, parts, scalars[0], factor),
        summary=_summary(problem, state, basis, modes, parts, biases),
    )


def _of_mode(modes: Modes, x: Float[Array, "*times blocks"], which: slice) -> Float[Array, "*times modes"]:
    """The scalars of some modes from those of their blocks; one number where they all share one block."""
    block = modes.block.values[which]
    return x[..., block[0], None] if np.all(block == block[0]) else x[..., block]


def _states(basis: GroupBasis, modes: Modes, parts: Parts, p: Propagator, factor: Float[Array, " times"]):
    """Features and prototypes at all times: every entry is written once, from arrays that stay in a cache."""
    g, w, rest = parts
    data, group, classes = basis.data, basis.group.values, basis.data.num_classes
    gg, gw, wg, ww = (factor[:, None] * x for x in (p.gg, p.gw, p.wg, p.ww))
    free, means = slice(0, classes), slice(classes, None)
    root = jnp.asarray(basis.root_sizes, g.dtype)[:, None]
    labels = slice(None) if np.array_equal(data.labels, np.arange(classes)) else data.labels
    scale = jnp.asarray(data.weights / class_weights(data)[data.labels], g.dtype)[:, None]

    def side(a, b, rotation, rows, scale):
        """a g + b w, by class or by sample."""
        a_free, b_free = _of_mode(modes, a, free), _of_mode(modes, b, free)
        if a_free.shape[1] > 1:
            a_free, b_free = a_free[:, rows], b_free[:, rows]
        common = a[:, modes.block.values[means], None] * g[means] + b[:, modes.block.values[means], None] * w[means]
        common = (common if len(root) == 1 else rotation @ common) / root
        common = common if len(root) == 1 else common[:, group[rows]]
        found = a_free[..., None] * (scale * g[free][rows]) + b_free[..., None] * (scale * w[free][rows])
        return found + scale * common

    features = side(gg, gw, basis.right, labels, scale)
    if modes.has_rest:
        features = features + gg[:, -1, None, None] * rest
    return features, side(wg, ww, basis.left, slice(None), jnp.ones((classes, 1), g.dtype))


def _largest(modes: Modes, parts: Parts, p: Propagator) -> Float[Array, " times"]:
    """No entry of features or prototypes is larger (by a few times the largest), over exp(log_scale)."""
    g, w, rest = jax.lax.stop_gradient(parts)
    block = modes.block.values
    sizes = [jax.ops.segment_max(jnp.max(jnp.abs(x), axis=1), block, p.gg.shape[-1] - 1) for x in (g, w)]
    of_g, of_w = (jnp.where(x > 0, x, 0.0) for x in sizes)  # of a block without modes: minus infinity
    gg, gw, wg, ww = (jnp.abs(x[:, :-1]) for x in jax.lax.stop_gradient((p.gg, p.gw, p.wg, p.ww)))
    left = jnp.abs(jax.lax.stop_gradient(p.gg[:, -1])) * jnp.max(jnp.abs(rest)) if modes.has_rest else 0.0
    features, prototypes = jnp.sum(gg * of_g + gw * of_w, axis=1), jnp.sum(wg * of_g + ww * of_w, axis=1)
    return jnp.maximum(features + left, prototypes)


def _summary(problem: LayerPeeled, state: Peeled, basis: GroupBasis, modes: Modes, parts: Parts, biases):
    """A function from the scalars of one time, over a factor of features and prototypes, to a `Summary`."""
    g, w, rest = parts
    coupling = problem.label_coupling
    assert coupling is not None
    drift = coupling.pull_biases(g.dtype)
    block, blocks = modes.block.values, modes.up.shape[0] - 1
    # each block's g and w over an orthonormal pair: g = (along, 0), w = (beside, across)
    along = _root(jax.ops.segment_sum(jnp.sum(g * g, axis=1), block, blocks))
    safe = jnp.where(along > 0, along, 1.0)
    beside = jax.ops.segment_sum(jnp.sum(g * w, axis=1), block, blocks) / safe
    across = w - ((beside / safe)[block])[:, None] * g
    across = _root(jax.ops.segment_sum(jnp.sum(across**2, axis=1), block, blocks))
    within = _root(jnp.sum(rest**2)) if modes.has_rest else jnp.zeros((), g.dtype)
    one_group = len(basis.root_sizes) == 1 and basis.data.static_weights is None
    geometry = _geometry(basis, modes, parts, state.biases) if one_group else None

    def summary(scalars: Any, factor) -> Summary:
        p, responses = scalars
        gg, gw, wg, ww = (factor * x[:-1] for x in (p.gg, p.gw, p.wg, p.ww))
        features = jnp.stack([gg * along + gw * beside, gw * across], axis=1)
        prototypes = jnp.stack([wg * along + ww * beside, ww * across], axis=1)
        kept = factor * p.gg[-1]
        shown = biases(responses)
        loss = -jnp.sum(modes.down[:-1, None] * features * prototypes) - jnp.sum(drift * shown)
        collapse = None
        if geometry is not None:
            # trained or not, the biases of balanced classes drift alike
            kept_biases = responses[0] if problem.bias else jnp.ones_like(kept)
            of_blocks = (gg, gw, wg, ww, kept)
            collapse = geometry(of_blocks, features, prototypes, jnp.abs(kept) * within, shown, kept_biases)
        size = jnp.concatenate([features.ravel(), (kept * within)[None]])
        return Summary(_root(jnp.sum(size**2)), _root(jnp.sum(prototypes**2)), loss, shown, collapse)

    return summary


def _geometry(basis: GroupBasis, modes: Modes, parts: Parts, biases: Array):
    """A function from the scalars of one time to a `Collapse`, for one group of classes."""
    g, w, rest = parts
    data, classes = basis.data, basis.data.num_classes
    root_classes, root_each = classes**0.5, (data.labels.size / classes) ** 0.5
    plus, minus = g + w, g - w
    (p, p_mean), (q, q_mean) = (plus[:-1], plus[-1]), (minus[:-1], minus[-1])
    pp, pq, qq = p @ p.T, p @ q.T, q @ q.T
    even = (jnp.eye(classes, dtype=g.dtype) - 1 / classes) / (classes - 1) ** 0.5
    flat = _triangle(jnp.stack([x.ravel() for x in (even, pp, pq + pq.T, qq)]))
    own_p, own_pq, own_qq = _pairwise(p, q)
    common = jnp.stack([p_mean, q_mean]) / root_classes
    to_common = p @ common.T, q @ common.T  # (classes, 2)
    of_common = common @ common.T
    rest_p, rest_q, rest_common = rest @ p.T, rest @ q.T, rest @ common.T

    def leads():
        """What tells logits of one sample apart, the own less each other: (blocks, leads of a block, terms)."""
        along = [x[:, k] for k in range(2) for x in to_common]
        by_class = [x / root_each for x in (pp, pq, pq.T, qq, *along)] + [biases]
        by_class = [jnp.broadcast_to(x, (classes, classes)) for x in by_class]
        terms = [data.spread(x) for x in by_class] + [rest_p, rest_q] if modes.has_rest else by_class
        labels = data.labels if modes.has_rest else np.arange(classes)
        others = np.arange(classes - 1) + (np.arange(classes - 1) >= labels[:, None])
        rows = np.arange(labels.size)[:, None]
        found = jnp.stack([x[rows, labels[:, None]] - x[rows, others] for x in terms], axis=-1)
        few = max(d for d in range(1, max(1024 // classes, 1) + 1) if labels.size % d == 0)
        return found.reshape(labels.size // few, few * (classes - 1), len(terms))

    def geometry(scalars, features, prototypes, within, shown, kept_biases) -> Collapse:
        gg, gw, wg, ww, kept = scalars
        # over g + w and g - w, of the part that sums to zero and of the common one
        (a, a_common), (b, b_common) = 0.5 * (gg + gw), 0.5 * (gg - gw)
        (c, c_common), (d, d_common) = 0.5 * (wg + ww), 0.5 * (wg - ww)
        # what knows no scale is taken over the larger of the two: no square leaves the range of numbers
        size = jnp.maximum(jnp.abs(a), jnp.abs(b))
        size = jax.lax.stop_gradient(jnp.where(size > 0, size, 1.0))
        u, v = a / size, b / size
        means_common, own_common = jnp.stack([a_common, b_common]), jnp.stack([c_common, d_common])

        def logits():
            found = a * c * pp + a * d * pq + b * c * pq.T + b * d * qq
            found = found + (a * to_common[0] @ own_common + b * to_common[1] @ own_common)[:, None]
            found = found + c * to_common[0] @ means_common + d * to_common[1] @ means_common
            found = (found + means_common @ of_common @ own_common) / root_each
            if modes.has_rest:
                found = data.spread(found) + kept * (c * rest_p + d * rest_q + (rest_common @ own_common)[:, None])
            return found + shown

        def margin():
            # times are the last axis of a matrix product: many of them at once, a cache of leads after the other
            terms = [a * c, a * d, b * c, b * d, *(x * y for y in means_common for x in (c, d)), kept_biases]
            terms = jnp.stack(terms + [kept * c, kept * d] if modes.has_rest else terms)
            smallest, _ = jax.lax.scan(
                lambda least, lead: (jnp.minimum(least, jnp.min(lead @ terms)), None), jnp.full((), jnp.inf, g.dtype), leads()
            )
            return smallest

        return Collapse(
            features,
            prototypes,
            within,
            jnp.stack([u * u, u * v, v * v]) @ flat[1:],
            flat[0],
            gram=lambda: u * u * pp + u * v * (pq + pq.T) + v * v * qq,
            lengths=lambda: _root((u * own_p + v * own_pq) ** 2 + (v * own_qq) ** 2),
            logits=logits,
            margin=margin,
        )

    return geometry


def _root(square: Array) -> Array:
    """The square root, with a zero gradient at zero."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _pairwise(p: Float[Array, "rows dim"], q: Float[Array, "rows dim"]):
    """Rows of p and q over an orthonormal pair of each: p = (along, 0), q = (beside, across)."""
    along = _root(jnp.sum(p * p, axis=1))
    safe = jnp.where(along > 0, along, 1.0)
    beside = jnp.sum(p * q, axis=1) / safe
    return along, beside, _root(jnp.sum((q - (beside / safe)[:, None] * p) ** 2, axis=1))


def _triangle(rows: Float[Array, "rows size"]) -> Float[Array, "rows rows"]:
    """Coordinates of the rows over an orthonormal basis, by modified Gram-Schmidt: row k ends at coordinate k."""
    found, left = [], rows
    for k in range(rows.shape[0]):
        length = _root(jnp.sum(left[k] ** 2))
        unit = left[k] / jnp.where(length > 0, length, 1.0)
        along = jnp.where(jnp.arange(rows.shape[0]) >= k, left @ unit, 0.0)
        along = along.at[k].set(length)
        found.append(along)
        left = left - along[:, None] * unit
    return jnp.stack(found, axis=1)
