"""One function of a member with two ways to compute it: a fast one for many members, and a general one that differentiates."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


def batched_by(batch: Callable) -> Callable:
    """A function of one member that moves whole batches by `batch`, under `jax.vmap` and under `jax.vmap` of `jax.vmap`.

    **Arguments:**

    - `batch`: (has_axis, *args) to results with a leading axis; `has_axis` is a tuple of pytrees of booleans like `args`: the
      leaves that have a leading axis. At least one has.
    """

    def rule_for(has_axis):
        """The function of a batch, and what a further `vmap` makes of it: one longer batch."""

        @custom_vmap
        def many(*args):
            return batch(has_axis, *args)

        @many.def_vmap
        def more(size, batched, *args):
            inner = next(
                leaf.shape[1 if outer else 0]
                for leaf, flag, outer in zip(*map(jax.tree.leaves, (args, has_axis, tuple(batched))), strict=True)
                if flag
            )

            def merged(leaf, flag, outer):
                if not (flag or outer):
                    return leaf
                leaf = leaf if outer else jnp.broadcast_to(leaf, (size, *leaf.shape))
                leaf = leaf if flag else jnp.broadcast_to(leaf[:, None], (size, inner, *leaf.shape[1:]))
                return leaf.reshape(size * inner, *leaf.shape[2:])

            either = jax.tree.map(lambda flag, outer: flag or outer, has_axis, tuple(batched))
            results = rule_for(either)(*jax.tree.map(merged, args, has_axis, tuple(batched)))
            results = jax.tree.map(lambda leaf: leaf.reshape(size, inner, *leaf.shape[1:]), results)
            return results, jax.tree.map(lambda _: True, results)

        return many

    @custom_vmap
    def one(*args):
        results = batch(jax.tree.map(lambda _: True, args), *jax.tree.map(lambda leaf: leaf[None], args))
        return jax.tree.map(lambda leaf: leaf[0], results)

    @one.def_vmap
    def several(size, batched, *args):
        del size
        results = rule_for(tuple(batched))(*args)
        return results, jax.tree.map(lambda _: True, results)

    return one


def differentiated_by(general: Callable, fast: Callable) -> Callable:
    """`fast`, with the reverse-mode derivatives of `general`; both of the same arguments and results."""

    @jax.custom_vjp
    def function(*args):
        return fast(*args)

    function.defvjp(lambda *args: jax.vjp(general, *args), lambda pullback, cotangents: pullback(cotangents))
    return function
