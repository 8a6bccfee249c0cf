"""Gradient descents of many members, a few side by side in the last axis."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dynamics import status
from dynamics.simulate.general_descent import Descending, judge
from dynamics.simulate.lanes_last import apart, lanes_last, norm
from dynamics.simulate.prepared import Run
from dynamics.trajectory import floating

UNROLL = 2
"""Steps in the body of the loop: with two, a state goes to and fro between two places and is never copied."""


def lane_descent(arrays: Descending, static: Descending, has_axis: Descending, lanes: int) -> Run:
    """Move all members, `lanes` side by side.

    A member's numbers do not depend, by one bit, on its neighbours. One that has stopped moves on, unseen.

    **Arguments:**

    - `arrays`, `static`: a descent in two parts; the leaves of `arrays` marked in `has_axis` have a leading axis (members,).
    """
    members = members_of(arrays, has_axis)
    if members < lanes:  # filled up with copies of the last
        who = np.minimum(np.arange(lanes), members - 1)
        filled = jax.tree.map(lambda leaf, flag: leaf[who] if flag else leaf, arrays, has_axis)
        return jax.tree.map(lambda leaf: leaf[:members], lane_descent(filled, static, has_axis, lanes))

    def whole(name: str) -> PyTree:
        """A field with a row for every member."""
        parts, flags = getattr(arrays, name), getattr(has_axis, name)
        parts = jax.tree.map(lambda leaf, flag: leaf if flag else jnp.broadcast_to(leaf, (members, *leaf.shape)), parts, flags)
        rest = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (members, *jnp.shape(leaf))), getattr(static, name))
        return eqx.combine(parts, rest)

    starts, memories, valid, norm_cap = map(whole, ("start", "memory", "valid", "norm_cap"))
    functions = Descending._fields[:3]
    given, has_lanes = ({name: getattr(part, name) for name in functions} for part in (arrays, has_axis))
    static_functions = {name: getattr(static, name) for name in functions}

    def call(name: str):
        """A function of the run, of one member, with what it closes over as last argument."""
        return lambda *args: eqx.combine(args[-1], static_functions)[name](*args[:-1])

    def look(row, x, given):
        return floating(call("look")(row, x, given))

    zero = jnp.zeros((), jnp.int32)
    rows, chunks = static.steps // static.every + 1, -(-members // lanes)
    first = jax.tree.map(lambda leaf: leaf[0], starts)
    first_given = jax.tree.map(lambda leaf, flag: leaf[0] if flag else leaf, given, has_lanes)
    kept = jax.eval_shape(look, zero, first, first_given)

    def chunk(number, ends):
        values, codes, counts = ends
        # the last chunk begins earlier, with members that have moved already: they move again, to the same bit
        begin = jnp.minimum(number * lanes, members - lanes)

        def own(leaf):
            return jnp.moveaxis(jax.lax.dynamic_slice_in_dim(leaf, begin, lanes), 0, -1)

        x, memory, allowed, cap = jax.tree.map(own, (starts, memories, valid, norm_cap))
        mine = jax.tree.map(lambda leaf, flag: own(leaf) if flag else leaf, given, has_lanes)
        x_lanes, memory_lanes = jax.tree.map(lambda _: True, (x, memory))

        def rates_at(k, mine):
            return lanes_last(call("rates"), (k, mine), (False, has_lanes), lanes)

        def stepped(k, rates, x, memory, mine):
            flags = (False, (True, True), x_lanes, memory_lanes, has_lanes)
            return lanes_last(call("step"), (k, rates, x, memory, mine), flags, lanes)

        def judged(x, code, count, cap):
            code = jnp.where(code == status.OK, judge(norm(x), cap), code)
            return code, count + (code == status.OK)

        def moved(k, x, memory, code, count, steady, mine, cap):
            rates = steady if static.steady else apart(rates_at, k, mine)
            x, memory = apart(stepped, k, rates, x, memory, mine)
            return x, memory, *apart(judged, x, code, count, cap)

        def onwards(k, carry):
            return apart(moved, k, *carry, steady, mine, cap)

        def write(values, row, x, code):
            seen = lanes_last(look, (row, x, mine), (False, x_lanes, has_lanes), lanes)
            seen = jax.tree.map(lambda leaf: jnp.where(code == status.OK, leaf, jnp.nan), seen)
            seen = apart(lambda seen: jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0)[:, None], seen), seen)
            return jax.tree.map(
                lambda all, one: jax.lax.dynamic_update_slice(all, one, (begin, row, *(zero,) * (one.ndim - 2))), values, seen
            )

        def snapshot(row, carry):
            values, moving = carry
            k = (row - 1) * static.every
            for _ in range(static.every % UNROLL):
                moving, k = onwards(k, moving), k + 1

            def several(number, moving):
                for j in range(UNROLL):
                    moving = onwards(k + number * UNROLL + j, moving)
                return moving

            moving = jax.lax.fori_loop(zero, zero + static.every // UNROLL, several, moving)
            return write(values, row, moving[0], moving[2]), moving

        steady = rates_at(zero, mine)
        code = jnp.where(allowed, judge(norm(x), cap), status.BAD_INPUT).astype(jnp.int32)
        values = write(values, zero, x, code)
        moving = (x, memory, code, jnp.zeros(lanes, jnp.int32))
        values, (_, _, code, count) = jax.lax.fori_loop(zero + 1, zero + rows, snapshot, (values, moving))
        return values, *(jax.lax.dynamic_update_slice(all, one, (begin,)) for all, one in ((codes, code), (counts, count)))

    nothing = jax.tree.map(lambda leaf: jnp.zeros((members, rows, *leaf.shape), leaf.dtype), kept)
    zeros = jnp.zeros(members, jnp.int32)
    values, code, count = jax.lax.fori_loop(zero, zero + chunks, chunk, (nothing, zeros, zeros))
    return Run(values, code, count, count)


def members_of(arrays: PyTree, has_axis: PyTree) -> int:
    """How many members the marked leaves hold."""
    return next(leaf.shape[0] for leaf, flag in zip(*map(jax.tree.leaves, (arrays, has_axis)), strict=True) if flag)
