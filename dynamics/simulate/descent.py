"""Gradient descent of any problem, one compiled scan."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dynamics import state as tree
from dynamics import status, validate
from dynamics.problems import Problem, check_minibatches
from dynamics.rates import Rates, check_rates
from dynamics.simulate.minibatch import minibatches
from dynamics.trajectory import Trajectory, blank, check_norm_cap, check_observe, check_steps, ended, observe_state


def descent(
    problem: Problem,
    state: PyTree,
    rates: Rates,
    steps: int,
    *,
    every: int = 1,
    dt=1.0,
    momentum=0.0,
    nesterov: bool = False,
    optimizer: Any = None,
    batch_size: int | None = None,
    key=None,
    shuffle: Literal["step", "epoch"] = "step",
    observe: dict | None = None,
    norm_cap=None,
) -> Trajectory:
    r"""Gradient descent, $x_{k+1} = x_k + dt\,\eta(k\,dt)\,\mathrm{force}(x_k)$, from `state`; with a batch size, stochastic.

    Takes one member; composes with `jax.jit`, `jax.vmap` and `jax.grad`.

    **Arguments:**

    - `problem`, `state`, `rates`: as in `dynamics.flow`.
    - `steps`: how many, >= 0; `every` divides it: iterates 0, every, 2 every, ..., steps are kept.
    - `dt`: multiplies every learning rate; the rate of step k is read at time `k * dt`.
    - `momentum`: in [0, 1). Heavy ball, `v <- momentum v + gradient`, `x <- x - dt eta v`, with v = 0 before the first step.
    - `nesterov`: moves by `gradient + momentum v` instead.
    - `optimizer`: an optax optimiser of unit rate, whose update is multiplied by `dt * eta(k dt)` of its part.
    - `batch_size`: None uses every sample in every step; a number, that many drawn without replacement, with `key`. Their mean
      loss replaces that of all samples; decay acts on everything in every step.
    - `shuffle`: "step", every step draws anew; "epoch", the samples are shuffled once an epoch and used up in order, each once
      (the batch size then divides their number).
    - `observe`, `norm_cap`: as in `dynamics.flow`.

    **Returns:** a `Trajectory` whose `ts` count iterations; after a stop its entries are NaN.

    **Raises:** `ValueError` on the host for anything out of range that is known before tracing.
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a dynamics problem, got {type(problem).__name__}")
    state = problem.check(state)
    dtype = jnp.result_type(*jax.tree.leaves(state))
    check_rates(rates)
    steps, every = check_steps(steps, every, dt, momentum, nesterov)
    check_observe(observe)
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"optimizer must be an optax optimiser, got {optimizer!r}")
    plain = validate.is_concrete(momentum) and float(momentum) == 0
    if optimizer is not None and not plain:
        raise ValueError(f"momentum must be 0 when an optimizer is given, got {momentum}")
    if nesterov and plain:
        raise ValueError("nesterov=True needs momentum > 0")
    check_minibatches(problem.num_samples, batch_size, shuffle)
    if batch_size is not None and shuffle == "epoch" and problem.num_samples % batch_size:
        raise ValueError(
            f"batch_size must divide the number of samples when shuffle='epoch', got {batch_size} of {problem.num_samples}"
        )
    if (batch_size is None) != (key is None):
        raise ValueError("key must be given together with batch_size: the minibatches are drawn with it")
    counted = minibatches(problem.num_samples, batch_size, key, shuffle, dtype)
    norm_cap = check_norm_cap(norm_cap, dtype)
    problem, rates, dt, momentum = tree.cast((problem, rates, dt, momentum), dtype)

    begins = problem.start_code(state)
    valid = tree.all_finite((state, dt, momentum)) & rates.valid() & problem.valid() & (begins != status.BAD_INPUT)
    valid = valid & (dt >= 0) & (momentum >= 0) & (momentum < 1)

    def motion(k, x, memory):
        """The direction of step k at unit rate, and the optimiser's memory after it."""
        force = problem.force(x, counted(k))
        if optimizer is not None:
            return optimizer.update(jax.tree.map(jnp.negative, force), memory, x)
        if plain:
            return force, memory
        velocity = jax.tree.map(lambda v, f: momentum * v + f, memory, force)
        if nesterov:
            return jax.tree.map(lambda v, f: momentum * v + f, velocity, force), velocity
        return velocity, velocity

    def step(k, carry):
        x, memory, code, count = carry
        move, memory = motion(k, x, memory)
        move = problem.pace(move, x, rates, k * dt)
        moved = jax.tree.map(lambda a, b: a + dt * b, x, move)
        code = jnp.where(code == status.OK, _judge(moved, norm_cap), code)
        going = code == status.OK
        return tree.select(going, moved, x), memory, code, count + going

    def snapshot(carry, index):
        carry = jax.lax.fori_loop(0, every, lambda j, c: step(index * every + j, c), carry)
        return carry, (observe_state(observe, problem, problem.complete(carry[0])), carry[2] == status.OK)

    memory = optimizer.init(state) if optimizer is not None else jax.tree.map(jnp.zeros_like, () if plain else state)
    code = jnp.where(valid, _judge(state, norm_cap), status.BAD_INPUT)
    with jax.default_matmul_precision("highest"):
        first = (observe_state(observe, problem, problem.complete(state)), code == status.OK)
        carry = (state, memory, code, jnp.zeros((), jnp.int32))
        carry, rest = jax.lax.scan(snapshot, carry, jnp.arange(steps // every))
    saved, going = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
    saved = blank(~going, saved)
    return Trajectory(
        ts=every * jnp.arange(steps // every + 1),
        states=saved if observe is None else None,
        observed={} if observe is None else saved,
        status=ended(carry[2], begins),
        stats={"steps": carry[3], "t_end": carry[3]},
    )


def _judge(x, norm_cap):
    """One pass over the state: its norm is NaN where the state is, and infinite only past any cap."""
    size = tree.norm(x)
    code = jnp.where(size <= norm_cap, status.OK, status.NORM_CAP)
    return jnp.where(jnp.isnan(size), status.NON_FINITE, code).astype(jnp.int32)
