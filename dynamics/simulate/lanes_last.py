"""A function of one member evaluated for several at once, members in the last axis.

`jax.vmap` puts members first and turns small products into batched dot calls. Here they lie in the last axis, the one a
processor's vector units run along, and small products are written out as sums: every operation then works on whole vectors,
whatever the sizes of a member are.
"""

import functools
import math
import operator
from collections import Counter
from typing import NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, PyTree

WRITTEN_OUT = 64
"""Sums of at most so many terms are written out; longer ones are left to XLA."""

STAGE = 20
"""Terms of one stage of a reduction."""

COSTLY = {"exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "sin", "cos", "tan", "erf", "pow"}
"""What is worth computing once and keeping rather than again in every operation that uses it."""

ELEMENTWISE = COSTLY | set(
    "add add_any sub mul div rem max min neg abs sign sqrt rsqrt cbrt square integer_pow floor ceil round eq ne lt le gt ge "
    "and or not xor is_finite select_n clamp convert_element_type stop_gradient nextafter copy real imag atan2 asin acos atan "
    "sinh cosh asinh acosh atanh erfc erf_inv lgamma digamma reduce_precision".split()
)

REDUCTIONS = {"reduce_sum": operator.add, "reduce_max": jnp.maximum, "reduce_min": jnp.minimum}

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}
CALLS |= {"checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def lanes_last(function, args: PyTree, has_lanes: PyTree, lanes: int) -> PyTree:
    """`function(*args)` of each lane, with the lanes as last axis of every result.

    **Arguments:**

    - `function`: of one member; its arguments and results are pytrees of arrays.
    - `args`: a tuple of its arguments, leaves with a last axis of `lanes` or without one.
    - `has_lanes`: a pytree of booleans like `args`: which leaves have that axis.
    - `lanes`: how many.

    Same numbers as `jax.vmap` up to the order of sums.
    """
    if lanes == 1:
        member = jax.tree.map(lambda leaf, flag: leaf[..., 0] if flag else leaf, args, has_lanes)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[..., None], function(*member))
    leaves, tree = jax.tree.flatten(args)
    flags = jax.tree.leaves(has_lanes)
    members = [
        jax.ShapeDtypeStruct(jnp.shape(leaf)[: jnp.ndim(leaf) - flag], jnp.result_type(leaf))
        for leaf, flag in zip(leaves, flags, strict=True)
    ]
    closed, shapes = jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(tree, flat)), return_shape=True)(*members)
    outs = _evaluate(closed.jaxpr, closed.consts, list(zip(leaves, flags, strict=True)), lanes)
    outs = [value if flag else _spread(value, lanes) for value, flag in outs]
    return jax.tree.unflatten(jax.tree.structure(shapes), outs)


def apart(function, *args):
    """`function(*args)` compiled by itself: XLA neither merges it with what is around it nor computes it twice.

    On a CPU, XLA merges a sum of products into every operation that reads it, and so computes it once for each; an
    `optimization_barrier` is gone by then, a call that must not be inlined is not.
    """

    def inlining(*args):
        with set_xla_metadata(inlineable="true"):  # what is called inside
            return function(*args)

    with set_xla_metadata(inlineable="false"):
        return jax.jit(inlining)(*args)


def row_sum(function, *arrays: Array) -> Array:
    """The sum over all axes but the last of an elementwise function of arrays, as a few written-out sums.

    The arrays have one shape, (..., lanes); the result is (lanes,).
    """
    rows = [array.reshape(-1, array.shape[-1]) for array in arrays]
    return apart(functools.partial(_staged, function, operator.add), *rows)


def norm(tree: PyTree) -> Array:
    """The Euclidean norm of all leaves, (..., lanes), together: (lanes,)."""
    return jnp.sqrt(sum(row_sum(jnp.square, leaf) for leaf in jax.tree.leaves(tree)))


class _Memory(NamedTuple):
    """What an evaluation knows of the values it made, by their identity: nothing is computed or stored twice."""

    made: dict  # operation and operands to results
    stored: dict  # values that lie in memory, or such copies of them
    turned: dict  # transposes to what they were made of: a product reads through them
    recipes: dict  # cheap elementwise results and broadcasts, used once, to these: a long reduction computes them as it reads


def _evaluate(jaxpr, consts, inputs, lanes, memory=None):
    """The outputs of a jaxpr, each with whether it has lanes."""
    known = dict(zip(jaxpr.constvars, ((const, False) for const in consts), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))
    if memory is None:
        memory = _Memory({}, {id(value): value for value, _ in known.values()}, {}, {})
    uses = Counter(atom for equation in jaxpr.eqns for atom in equation.invars if not isinstance(atom, jex.Literal))
    uses.update(atom for atom in jaxpr.outvars if not isinstance(atom, jex.Literal))
    last = _lead_out(jaxpr, uses)

    def read(atom):
        return (atom.val, False) if isinstance(atom, jex.Literal) else known[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        name = equation.primitive.name
        if name in CALLS:
            inner = equation.params[CALLS[name]]
            body, more = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            results = _evaluate(body, more, values, lanes, memory)
        else:
            key = _key(equation, values)
            if key not in memory.made:
                out = equation.outvars[0]
                results = _results(equation, values, lanes, memory, out in last, uses[out] == 1)
                memory.made[key] = (values, results)  # the operands stay alive, and so their identities
            results = memory.made[key][1]
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(equation, values, lanes, memory, leads_out, used_once) -> list:
    """The results of one operation, each with whether it has lanes."""
    name = equation.primitive.name
    if not any(flag for _, flag in values):
        return [(value, False) for value in _bind(equation, [value for value, _ in values])]
    if name == "dot_general" and _written_out(equation):
        sources = [memory.turned.get(id(value), (value, flag, None)) for value, flag in values]
        operands = [_stored(value, flag, memory) for value, flag, _ in sources]
        product = functools.partial(_product, equation, [flag for _, flag, _ in sources], [order for _, _, order in sources])
        out = product(*operands) if leads_out else apart(product, *operands)
        if not leads_out:
            memory.stored[id(out)] = out
        return [(out, True)]
    if name in REDUCTIONS:
        return [(_reduction(equation, values[0][0], lanes, memory), True)]
    results = _apply(equation, values, lanes)
    if name in COSTLY:
        memory.stored[id(results[0])] = results[0]
    elif used_once and (name in ELEMENTWISE or name == "broadcast_in_dim"):
        memory.recipes[id(results[0])] = (equation, values)
    if name == "transpose":
        memory.turned[id(results[0])] = (*values[0], equation.params["permutation"])
    return [(value, True) for value in results]


def _stored(value, flag, memory):
    """An operand of a product, which reads it many times: in memory, not as an expression."""
    if not flag:
        return value
    if id(value) not in memory.stored:
        memory.stored[id(value)] = apart(lambda value: value, value)
    return memory.stored[id(value)]


def _key(equation, values):
    """Equal for operations that give equal results."""
    operands = [
        (atom.aval, np.asarray(atom.val).tobytes()) if isinstance(atom, jex.Literal) else id(value)
        for atom, (value, _) in zip(equation.invars, values, strict=True)
    ]
    key = (equation.primitive, *sorted(equation.params.items()), *operands)
    try:
        hash(key)
    except TypeError:
        return object()  # like no other
    return key


def _lead_out(jaxpr, uses) -> set:
    """The values that reach an output through elementwise operations alone, each used nowhere else."""
    outs = {atom for atom in jaxpr.outvars if not isinstance(atom, jex.Literal) and uses[atom] == 1}
    for equation in reversed(jaxpr.eqns):
        if equation.primitive.name in ELEMENTWISE - COSTLY and equation.outvars[0] in outs:
            outs |= {atom for atom in equation.invars if not isinstance(atom, jex.Literal) and uses[atom] == 1}
    return outs


def _bind(equation, values):
    out = equation.primitive.bind(*values, **equation.params)
    return out if equation.primitive.multiple_results else [out]


def _apply(equation, values, lanes) -> list[Array]:
    """The results of one operation, at least one operand of which has lanes."""
    name, params = equation.primitive.name, equation.params
    shape = equation.outvars[0].aval.shape
    if name in ELEMENTWISE:
        values = [_aligned(value, flag, shape, lanes) for value, flag in values]
        bind = functools.partial(equation.primitive.bind, **params)
        return [apart(bind, *values) if name in COSTLY and shape else bind(*values)]
    (value, flag), *others = values
    if name == "broadcast_in_dim" and not others:
        return [jax.lax.broadcast_in_dim(value, (*shape, lanes), (*params["broadcast_dimensions"], len(shape)))]
    if name in ("reshape", "squeeze", "expand_dims") and params.get("dimensions") is None or name == "squeeze":
        return [value.reshape(*shape, lanes)]
    if name == "transpose":
        return [jnp.transpose(value, (*params["permutation"], len(shape)))]
    axes = [-1 if flag else None for _, flag in values]
    mapped = jax.vmap(lambda *member: _bind(equation, member), in_axes=axes, out_axes=-1, axis_size=lanes)
    return mapped(*(value for value, _ in values))


def _spread(value, lanes):
    """The same value in every lane."""
    return jnp.broadcast_to(jnp.asarray(value)[..., None], (*jnp.shape(value), lanes))


def _aligned(value, flag, shape, lanes):
    """An operand of an elementwise operation whose result has `shape` before the lanes; numbers without lanes may stay."""
    rank = jnp.ndim(value) - flag
    if rank == len(shape):
        return value if flag else _spread(value, lanes)
    return jnp.broadcast_to(value, (*shape, lanes)) if flag else value


def _written_out(equation) -> bool:
    (contract, _), _ = equation.params["dimension_numbers"]
    return math.prod(equation.invars[0].aval.shape[axis] for axis in contract) <= WRITTEN_OUT


def _product(equation, flags, orders, *operands) -> Array:
    """`dot_general` as a written-out sum over its contracted axes; an operand may still have to be transposed."""
    (contracts, batches), dtype = equation.params["dimension_numbers"], equation.params["preferred_element_type"]
    sides = []
    for value, flag, order, contract, batch in zip(operands, flags, orders, contracts, batches, strict=True):
        rank = jnp.ndim(value) - flag
        value = value if flag else jnp.asarray(value)[..., None]
        order = tuple(range(rank)) if order is None else order
        free = [axis for axis in range(rank) if axis not in contract and axis not in batch]
        value = jnp.transpose(value, (*(order[axis] for axis in (*contract, *batch, *free)), rank))
        terms = math.prod(value.shape[: len(contract)])
        sides.append((value.reshape(terms, *value.shape[len(contract) :]), len(batch), len(free)))
    (left, batched, left_free), (right, _, right_free) = sides
    left = left.reshape(*left.shape[: 1 + batched + left_free], *(1,) * right_free, left.shape[-1])
    right = right.reshape(*right.shape[: 1 + batched], *(1,) * left_free, *right.shape[1 + batched :])
    out = _total([a * b for a, b in zip(left, right, strict=True)], operator.add)
    return out if dtype is None else out.astype(dtype)


def _reduction(equation, value, lanes, memory) -> Array:
    """A reduction over axes, written out; a long one in stages, of elementwise operations computed as they are read."""
    axes, combine = equation.params["axes"], REDUCTIONS[equation.primitive.name]
    shape = equation.invars[0].aval.shape
    rest = tuple(axis for axis in range(len(shape)) if axis not in axes)

    def rows(value):
        """(rows, *rest, lanes), all of which may be 1."""
        value = jnp.transpose(value, (*axes, *rest, len(shape)))
        return value.reshape(-1, *value.shape[len(axes) :])

    if math.prod(shape[axis] for axis in axes) <= STAGE:
        return _total(list(rows(value)), combine)
    leaves = {}

    def collect(value, has_lanes):
        """What is read from memory, as rows."""
        cheap = id(value) not in memory.stored and value.shape[:-1] == shape
        recipe = memory.recipes.get(id(value)) if cheap else None
        if recipe is None:
            full = value if has_lanes else value[..., None]
        elif recipe[0].primitive.name in ELEMENTWISE:
            for operand, flag in recipe[1]:
                if jnp.ndim(operand) - flag == len(shape):
                    collect(operand, flag)
            return
        else:
            ((small, flag),) = recipe[1]
            kept = recipe[0].params["broadcast_dimensions"]
            sizes = [small.shape[kept.index(axis)] if axis in kept else 1 for axis in range(len(shape))]
            full = small.reshape(*sizes, lanes if flag else 1)
        if len({full.shape[axis] == 1 for axis in axes if shape[axis] > 1}) > 1:  # neither a row nor all of them
            full = jnp.broadcast_to(full, (*shape, full.shape[-1]))
        leaves[id(value)] = rows(full)

    collect(value, True)
    if all(leaf.shape[0] == 1 for leaf in leaves.values()):  # nothing tells how many rows there are
        leaves = {id(value): rows(value)}

    def expression(*parts):
        known = dict(zip(leaves, parts, strict=True))
        part = (max(part.shape[0] for part in parts), *(shape[axis] for axis in rest), lanes)

        def made(value, has_lanes):
            if jnp.ndim(value) - has_lanes < len(shape):
                return jnp.broadcast_to(value, part) if has_lanes else value
            if id(value) not in known:
                equation, operands = memory.recipes[id(value)]
                known[id(value)] = equation.primitive.bind(*(made(*operand) for operand in operands), **equation.params)
            return jnp.broadcast_to(known[id(value)], part)

        return made(value, True)

    return _staged(expression, combine, *leaves.values())


def _staged(function, combine, *rows) -> Array:
    """The combination over the first axis of an elementwise function, of arrays with that axis or 1 instead."""
    count = max(row.shape[0] for row in rows)
    if count <= STAGE:
        return _total(list(function(*rows)), combine)
    size, left = divmod(count, STAGE)

    def piece(rows, begin, end):
        return function(*(row[begin:end] if row.shape[0] == count else row for row in rows))

    def stage(*rows):
        total = _total([piece(rows, n * size, (n + 1) * size) for n in range(STAGE)], combine)
        return jnp.concatenate([total, piece(rows, STAGE * size, count)]) if left else total

    return _staged(lambda rows: rows, combine, apart(stage, *rows))


def _total(terms, combine) -> Array:
    return functools.reduce(combine, terms)
