"""Gradient descent of one member in plain JAX: the general way, the reference, and the one that differentiates."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import state as tree
from dynamics import status
from dynamics.simulate.prepared import Run
from dynamics.trajectory import blank


class Descending(NamedTuple):
    """A checked descent of one member.

    - `look`: (snapshot, state) to what is kept of it; snapshot 0 is the start.
    - `rates`: k to the rates (features, weights) of step k; `steady` where they are the same for all k.
    - `step`: (k, rates, state, memory) to state and memory after step k.
    - `start`, `memory`: what the first step finds. A member that is not `valid` makes none.
    - `steps`, `every`: static numbers.
    """

    look: Callable
    rates: Callable
    step: Callable
    start: PyTree
    memory: PyTree
    valid: Bool[Array, ""]
    norm_cap: Float[Array, ""]
    steps: int
    every: int
    steady: bool


def judge(size: Float[Array, "*lanes"], norm_cap) -> Int[Array, "*lanes"]:
    """The status of a state of this norm: NaN where the state is, infinite only past any cap."""
    code = jnp.where(size <= norm_cap, status.OK, status.NORM_CAP)
    return jnp.where(jnp.isnan(size), status.NON_FINITE, code).astype(jnp.int32)


def general_descent(run: Descending) -> Run:
    """One scan: every step judged as it is made, a stopped member stays where it is."""

    def step(k, carry):
        x, memory, code, count = carry
        moved, memory = run.step(k, run.rates(k), x, memory)
        code = jnp.where(code == status.OK, judge(tree.norm(moved), run.norm_cap), code)
        going = code == status.OK
        return tree.select(going, moved, x), memory, code, count + going

    def snapshot(carry, index):
        begin = (index - 1) * run.every
        carry = jax.lax.fori_loop(0, run.every, lambda j, carry: step(begin + jnp.asarray(j, jnp.int32), carry), carry)
        return carry, (run.look(index, carry[0]), carry[2] == status.OK)

    code = jnp.where(run.valid, judge(tree.norm(run.start), run.norm_cap), status.BAD_INPUT).astype(jnp.int32)
    zero = jnp.zeros((), jnp.int32)
    first = (run.look(zero, run.start), code == status.OK)
    carry = (run.start, run.memory, code, zero)
    carry, rest = jax.lax.scan(snapshot, carry, jnp.arange(1, run.steps // run.every + 1, dtype=jnp.int32))
    saved, going = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
    return Run(blank(~going, saved), carry[2], carry[3], carry[3])
