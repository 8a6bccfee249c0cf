"""One function of a member with two ways to compute it: a fast one for many members, and a general one that differentiates."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array


def batched_by(batch: Callable) -> Callable:
    """A function of one member that moves whole batches by `batch`, under `jax.vmap` and under `jax.vmap` of `jax.vmap`.

    **Arguments:**

    - `batch`: (has_axis, *args) to results with a leading axis; `has_axis` is a tuple of pytrees of booleans like `args`: the
      leaves that have a leading axis. At least one has.
    """

    def one(*args):
        leaves, tree = jax.tree.flatten(args)

        def rule_for(has_axis):
            """The function of a batch, and what a further `vmap` makes of it: one longer batch."""

            @custom_vmap
            def many(*leaves):
                return batch(jax.tree.unflatten(tree, has_axis), *jax.tree.unflatten(tree, leaves))

            @many.def_vmap
            def more(size, batched, *leaves):
                longer, flags, inner = _merged(leaves, has_axis, batched, size)
                results = rule_for(flags)(*longer)
                results = jax.tree.map(lambda leaf: leaf.reshape(size, inner, *leaf.shape[1:]), results)
                return results, jax.tree.map(lambda _: True, results)

            return many

        @custom_vmap
        def alone(*leaves):
            return _alone(batch, tree, leaves)

        @alone.def_vmap
        def several(size, batched, *leaves):
            del size
            results = rule_for(list(batched))(*leaves)
            return results, jax.tree.map(lambda _: True, results)

        return alone(*leaves)

    return one


def pushed_forward(batch: Callable) -> Callable:
    """`batched_by(batch)` with forward-mode derivatives, for which members move together too, each once for all directions."""

    @jax.custom_jvp
    def function(*args):
        return batched_by(batch)(*args)

    @function.defjvp
    def push(primals, tangents):
        leaves, tree = jax.tree.flatten(primals)
        smooth = [_smooth(leaf) for leaf in leaves]
        slopes = [slope for slope, flag in zip(jax.tree.leaves(tangents), smooth, strict=True) if flag]
        results, found = _pusher(batch, tree, smooth, None, 0)(leaves, slopes)
        found = iter(found)
        return results, jax.tree.map(lambda leaf: next(found) if _smooth(leaf) else _no_slope(leaf), results)

    return function


def differentiated_by(general: Callable, fast: Callable) -> Callable:
    """`fast`, with the reverse-mode derivatives of `general`; both of the same arguments and results."""

    @jax.custom_vjp
    def function(*args):
        return fast(*args)

    function.defvjp(lambda *args: jax.vjp(general, *args), lambda pullback, cotangents: pullback(cotangents))
    return function


class Closed(eqx.Module):
    """A function as what it computes; the arrays it closed over are leaves, batched and differentiated like any."""

    arrays: list[Array]
    jaxpr: Any = eqx.field(static=True)
    tree: Any = eqx.field(static=True)

    def __init__(self, function: Callable, *args):
        """Of arguments like `args`."""
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        self.arrays, self.jaxpr, self.tree = list(closed.consts), closed.jaxpr, jax.tree.structure(shapes)

    def __call__(self, *args):
        outs = jex.jaxpr_as_fun(jex.ClosedJaxpr(self.jaxpr, self.arrays))(*jax.tree.leaves(args))
        return jax.tree.unflatten(self.tree, [jnp.asarray(out) for out in outs])


def _pusher(batch, tree, smooth, has_axis, directions):
    """(leaves, slopes of the smooth ones) to results and the slopes of the smooth ones.

    Leaves have a leading axis of members where `has_axis` says so, None before there are any; slopes have as many leading axes
    as there are `directions`, and behind them that of members where their leaves have it.
    """

    @custom_vmap
    def pushed(leaves, slopes):
        def along(slopes):
            rest = iter(slopes)
            tangents = [next(rest) if flag else _no_slope(leaf) for leaf, flag in zip(leaves, smooth, strict=True)]
            results, moved = jax.jvp(lambda *leaves: compute(leaves), leaves, tangents)
            return results, [leaf for leaf in jax.tree.leaves(moved) if leaf.dtype != jax.dtypes.float0]

        def compute(leaves):
            if has_axis is None:
                return _alone(batch, tree, leaves)
            return batch(jax.tree.unflatten(tree, has_axis), *jax.tree.unflatten(tree, leaves))

        for _ in range(directions):
            along = jax.vmap(along, out_axes=(None, 0))
        return along(slopes)

    @pushed.def_vmap
    def more(size, batched, leaves, slopes):
        axes, slope_axes = batched
        if not any(axes):
            slopes = [x if flag else jnp.broadcast_to(x, (size, *x.shape)) for x, flag in zip(slopes, slope_axes, strict=True)]
            results, found = _pusher(batch, tree, smooth, has_axis, directions + 1)(leaves, slopes)
            return (results, found), (jax.tree.map(lambda _: False, results), [True] * len(found))

        rest = iter(zip(slopes, slope_axes, strict=True))
        pairs = [next(rest) if flag else (None, False) for flag in smooth]
        outer = [flag or other for flag, (_, other) in zip(axes, pairs, strict=True)]
        leaves = [_wide(x, flag, out, size) for x, flag, out in zip(leaves, axes, outer, strict=True)]
        # the axis of members stands behind those of directions
        slopes = [
            jnp.moveaxis(_wide(x, flag, out, size), 0, directions) if out else x
            for (x, flag), out in zip(pairs, outer, strict=True)
            if x is not None
        ]
        flags, inner = outer, None
        if has_axis is not None:
            lengths = zip(slopes, _of(has_axis, smooth), _of(outer, smooth), strict=True)
            leaves, flags, inner = _merged(leaves, has_axis, outer, size)
            slopes = [_join(x, has, out, size, inner, directions) for x, has, out in lengths]
        results, found = _pusher(batch, tree, smooth, flags, directions)(leaves, slopes)
        if inner is not None:
            results = jax.tree.map(lambda x: x.reshape(size, inner, *x.shape[1:]), results)
            found = [x.reshape(*x.shape[:directions], size, inner, *x.shape[directions + 1 :]) for x in found]
        found = [jnp.moveaxis(x, directions, 0) for x in found]
        return (results, found), jax.tree.map(lambda _: True, (results, found))

    return pushed


def _alone(batch, tree, leaves):
    """One member as a batch."""
    everything = jax.tree.unflatten(tree, [True] * len(leaves))
    results = batch(everything, *jax.tree.unflatten(tree, [leaf[None] for leaf in leaves]))
    return jax.tree.map(lambda leaf: leaf[0], results)


def _merged(leaves, has_axis, batched, size):
    """Leaves of a batch of batches as those of one long batch, which of them have its axis, and the length of the inner one."""
    flags = list(zip(has_axis, batched, strict=True))
    inner = next(leaf.shape[1 if outer else 0] for leaf, (flag, outer) in zip(leaves, flags, strict=True) if flag)
    longer = [_join(leaf, flag, outer, size, inner, 0) for leaf, (flag, outer) in zip(leaves, flags, strict=True)]
    return longer, [flag or outer for flag, outer in flags], inner


def _join(leaf, flag, outer, size, inner, place):
    """The outer axis, at `place`, and the inner one behind it as one; a missing one is made."""
    if not (flag or outer):
        return leaf
    leaf = leaf if outer else jnp.broadcast_to(jnp.expand_dims(leaf, place), (*leaf.shape[:place], size, *leaf.shape[place:]))
    if not flag:
        leaf = jnp.expand_dims(leaf, place + 1)
        leaf = jnp.broadcast_to(leaf, (*leaf.shape[: place + 1], inner, *leaf.shape[place + 2 :]))
    return leaf.reshape(*leaf.shape[:place], size * inner, *leaf.shape[place + 2 :])


def _of(flags, smooth):
    return [flag for flag, is_smooth in zip(flags, smooth, strict=True) if is_smooth]


def _wide(leaf, flag, wanted, size):
    return jnp.broadcast_to(leaf, (size, *leaf.shape)) if wanted and not flag else leaf


def _smooth(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _no_slope(leaf):
    return np.zeros(jnp.shape(leaf), jax.dtypes.float0)
