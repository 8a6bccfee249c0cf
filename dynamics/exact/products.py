r"""Products of the steps of a descent, many stretches of time at once.

The steps of a small linear recurrence are one after the other, but the product over one stretch of time does not wait for
that over another: lanes of consecutive steps are multiplied out side by side, in the last axis, and then put end to end.
Each product carries a whole power of two, so that neither growth nor decay leaves the range of numbers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

STRETCH = 64  # steps a lane takes at least, where there are as many
RESCALE = 8  # steps between two looks at the size of a product; a step may grow by 2^15 in float32
FEW = 4  # up to as many recurrences are written out one by one: their arrays are then as plain as those of the coefficients

Column = tuple[Float[Array, "*shape lanes"], ...]
"""The quantities at some step of each lane that one quantity at its beginning leads to."""


def products(
    step: Callable[[Column, PyTree, PyTree], Column],
    coefficients: Callable[[Int[Array, " lanes"]], PyTree],
    constants: PyTree,
    width: int,
    steps: int,
    every: int,
    lanes: int,
) -> tuple[Float[Array, "times width width *shape"], Float[Array, "times *shape"]]:
    """The products of steps 0..k-1 of recurrences of `width` quantities, at k = 0, every, ..., steps.

    Returned as matrices (row: quantity after, column: before) and the powers of two that multiply them.

    **Arguments:**

    - `step(column, c, constants)`: one step of a linear recurrence, elementwise; `c` are the coefficients of the step.
    - `coefficients(k)`: the coefficients of steps k, arrays of the shape of k.
    - `constants`: what tells the recurrences apart, arrays of one shape (*shape); all see the same coefficients.
    - `lanes`: how many stretches go side by side at most.
    """
    leaves = jax.tree.leaves(constants)
    shape, dtype, size = leaves[0].shape, leaves[0].dtype, leaves[0].size
    outputs = steps // every
    unit = jnp.eye(width, dtype=dtype).reshape(width, width, *(1,) * len(shape))
    begin = jnp.broadcast_to(unit, (width, width, *shape)), jnp.zeros(shape, dtype)
    if outputs == 0:
        return begin[0][None], begin[1][None]

    # a lane is several outputs (together) or a part of one (length); a round is all lanes once
    length = min((d for d in range(1, every + 1) if every % d == 0 and d >= STRETCH), default=every)
    together = min(-(-STRETCH // every), outputs)
    parts = every // length
    wide = max(1, min(lanes // parts, -(-outputs // together)))
    lanes = wide * parts if parts <= lanes else max(d for d in range(1, lanes + 1) if parts % d == 0)

    # the recurrences one by one, or all in one
    apart = size <= FEW
    if apart:
        cells = [jax.tree.map(lambda x, i=i: x.reshape(-1)[i], constants) for i in range(size)]
    else:
        cells = [jax.tree.map(lambda x: x[..., None], constants)]
    cell_shape = (lanes,) if apart else (*shape, lanes)

    def gathered(parts: list[Array]) -> Float[Array, "*shape lanes"]:
        return jnp.stack(parts).reshape(*shape, lanes)

    def round_(carry, first):
        """Lanes from step `first` on: the products up to their ends, and of lanes of several outputs up to each of these."""
        begins = first + together * length * jnp.arange(lanes)

        def at(j):
            # steps past the end are those of lanes that are thrown away
            k = jnp.minimum(begins + j, steps - 1)
            return jax.tree.map(lambda c: jnp.broadcast_to(c, k.shape), coefficients(k))

        def advance(j, carry):
            columns, powers, now = carry
            # coefficients are carried one step ahead: else each place that uses them would compute them again
            later = at(j + 1)
            columns = [[step(c, now, cell) for c in cs] for cell, cs in zip(cells, columns, strict=True)]
            columns, powers = jax.lax.cond(j % RESCALE == RESCALE - 1, _all_rescaled, lambda *x: x, columns, powers)
            return columns, powers, later

        def stretch(carry, number):
            columns, powers, now = jax.lax.fori_loop(0, length, lambda j, x: advance(number * length + j, x), carry)
            columns, powers = _all_rescaled(columns, powers)
            rows = [[gathered([cell[j][i] for cell in columns]) for j in range(width)] for i in range(width)]
            product = jnp.stack([jnp.stack(row) for row in rows])
            return (columns, powers, now), (product, gathered(powers))

        one, zero = jnp.ones(cell_shape, dtype), jnp.zeros(cell_shape, dtype)
        columns = [[tuple(one if i == j else zero for i in range(width)) for j in range(width)] for _ in cells]
        _, (local, powers) = jax.lax.scan(stretch, (columns, [zero] * len(cells), at(0)), jnp.arange(together))

        def join(carry, last):
            """The product at the beginning of a lane; on to that at its end."""
            return _rescaled(_matmul(last[0], carry[0]), carry[1] + last[1]), carry

        ends = jnp.moveaxis(local[-1], -1, 0), jnp.moveaxis(powers[-1], -1, 0)
        carry, starts = jax.lax.scan(join, carry, ends)
        starts, start_powers = (jnp.moveaxis(x, 0, -1) for x in starts)
        whole = jax.vmap(_matmul, (0, None))(local, starts), powers + start_powers
        return carry, tuple(jnp.moveaxis(x, -1, 0) for x in whole)  # (lanes, together, ...)

    if parts > lanes:

        def output(carry, number):
            firsts = number * every + lanes * length * jnp.arange(parts // lanes)
            carry, _ = jax.lax.scan(lambda x, first: (round_(x, first)[0], None), carry, firsts)
            return carry, carry

        _, path = jax.lax.scan(output, begin, jnp.arange(outputs))
    else:
        in_round = wide * together
        _, path = jax.lax.scan(round_, begin, jnp.arange(-(-outputs // in_round)) * (in_round * every))
        # (rounds, lanes, together, ...): of an output in parts the last one
        path = jax.tree.map(lambda x: x[:, parts - 1 :: parts].reshape(-1, *x.shape[3:])[:outputs], path)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begin, path)


def times_power(x: Array, power: Array) -> Array:
    """x times two to a whole power, in two halves: each may leave the range of numbers where the result does not."""
    half = jnp.floor(power / 2)
    return x * _two_to(half) * _two_to(power - half)


def _matmul(last: Float[Array, "row k *rest"], first: Float[Array, "k column *rest"]) -> Float[Array, "row column *rest"]:
    """`last` after `first`: many small matrices, sums written out."""
    return sum((last[:, k, None] * first[None, k] for k in range(1, first.shape[0])), last[:, 0, None] * first[None, 0])


def _all_rescaled(columns: list, powers: list[Array]) -> tuple[list, list[Array]]:
    """Each recurrence over its own size."""
    pairs = [_rescaled(cell, power) for cell, power in zip(columns, powers, strict=True)]
    return [cell for cell, _ in pairs], [power for _, power in pairs]


def _rescaled(product: PyTree, power: Array) -> tuple[PyTree, Array]:
    """A product over its size to a power of two: dividing by it rounds nothing."""
    leaves = jax.tree.leaves(product)
    axes = tuple(range(leaves[0].ndim - power.ndim))
    size = jax.lax.stop_gradient(functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x), axis=axes) for x in leaves]))
    more = _exponent(size)
    factor = _two_to(-more)
    return jax.tree.map(lambda x: x * factor, product), power + more


def _exponent(size: Array) -> Array:
    """The exponent of the leading bit, 0 for 0, infinity and NaN."""
    form = jnp.finfo(size.dtype)
    offset = 1 - int(form.minexp)
    bits = jax.lax.bitcast_convert_type(size, jnp.dtype(f"int{form.bits}"))
    power = jnp.minimum((bits >> form.nmant) - offset, offset - 1).astype(size.dtype)
    return jnp.where((size > 0) & jnp.isfinite(size), power, 0.0)


def _two_to(power: Array) -> Array:
    """Two to a whole power, from its bits (a compiled exp2 rounds); 0 and infinity past the range of numbers."""
    form = jnp.finfo(power.dtype)
    offset = 1 - int(form.minexp)
    bits = (jnp.clip(power, -offset, offset + 1).astype(jnp.dtype(f"int{form.bits}")) + offset) << form.nmant
    return jax.lax.bitcast_convert_type(bits, power.dtype)
