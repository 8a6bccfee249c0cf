"""Few members side by side, many after one another: a finished one makes room for the next."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from dynamics.segmented import Segmented

WIDTH = 8
"""Lanes come in multiples of it: the vector loops of a CPU then have no remainder, in which numbers round otherwise."""


def run_in_lanes(motion: Segmented, rows: PyTree, keys, count, lanes: int) -> tuple[Any, Int[Array, ""]]:
    """The ends of the first `count` rows, `lanes` of them moving side by side; to be traced inside one jit.

    A member's numbers do not depend, by one bit, on its neighbours, its lane or the order of the rows.

    **Arguments:**

    - `motion`: of one member.
    - `rows`: a pytree with leading axis (chunk,); members are started in this order, so the longest should come first.
    - `keys`: (chunk,) random keys, or None where `motion` asks for none.
    - `count`: how many rows are members; the others are never started and the values in their rows mean nothing.
    - `lanes`: members side by side, rounded up to a multiple of 8.

    **Returns:** the values, leading axis (chunk,), and the lane-steps executed: `lanes` times the steps in lockstep.
    """
    given = (rows,) if keys is None else (rows, keys)
    size = jax.tree.leaves(rows)[0].shape[0]
    lanes = -(-min(lanes, size) // WIDTH) * WIDTH
    count = jnp.minimum(count, size)
    begin, advance, done, steps, end = (jax.vmap(part) for part in motion)
    carry = jax.eval_shape(lambda: begin(*jax.tree.map(lambda leaf: leaf[:lanes], given)))
    values = jax.eval_shape(end, carry)
    nobody = size

    def blank(leading):
        return lambda leaf: jnp.zeros((*leading, *leaf.shape[1:]), leaf.dtype)

    def refill(carry, row, following):
        """The next rows into the lanes that are free; at first also into those that have none, as copies of the last."""
        free = row == nobody
        wanted = following + jnp.cumsum(free) - 1
        taken = free & (wanted < count)
        fresh = begin(*jax.tree.map(lambda leaf: leaf[jnp.clip(wanted, 0, count - 1)], given))
        into = taken | (following == 0)
        carry = jax.tree.map(lambda new, old: jnp.where(into.reshape(lanes, *(1,) * (new.ndim - 1)), new, old), fresh, carry)
        return carry, jnp.where(taken, wanted, row), following + jnp.sum(taken)

    def until_one_is_done(carry, row):
        def further(counted):
            carry, steps_before, work = counted
            carry = advance(carry)
            steps_now = steps(carry)
            return carry, steps_now, work + lanes * jnp.max(steps_now - steps_before)

        carry, _, work = jax.lax.while_loop(
            lambda counted: ~jnp.any(done(counted[0]) & (row != nobody)), further, (carry, steps(carry), jnp.zeros((), int))
        )
        return carry, work

    def round_(loop):
        carry, row, following, values, work = loop
        carry, row, following = refill(carry, row, following)
        carry, more = until_one_is_done(carry, row)
        finished = done(carry) & (row != nobody)
        target = jnp.where(finished, row, nobody)
        values = jax.tree.map(lambda all, new: all.at[target].set(new, mode="drop"), values, end(carry))
        return carry, jnp.where(finished, nobody, row), following, values, work + more

    loop = (
        jax.tree.map(blank((lanes,)), carry),
        jnp.full(lanes, nobody),
        jnp.zeros((), int),
        jax.tree.map(blank((size,)), values),
        jnp.zeros((), int),
    )
    _, _, _, values, work = jax.lax.while_loop(lambda loop: (loop[2] < count) | jnp.any(loop[1] != nobody), round_, loop)
    return values, work
