"""Gradient descent of any problem."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, PyTree

from dynamics import state as tree
from dynamics import status, validate
from dynamics.problems import LayerPeeled, Problem, check_minibatches
from dynamics.rates import Rates, check_rates
from dynamics.reduce import Reduction, choose, kept_in_descent, view
from dynamics.schedules import Constant, Scaled, Schedule
from dynamics.simulate.general_descent import Descending, general_descent
from dynamics.simulate.lane_descent import lane_descent, members_of
from dynamics.simulate.lanes_last import WRITTEN_OUT
from dynamics.simulate.minibatch import minibatches
from dynamics.simulate.paths import Closed, batched_by
from dynamics.simulate.prepared import Run, as_trajectory
from dynamics.trajectory import Trajectory, check_norm_cap, check_observe, check_steps, observe_state

METHODS = ("auto", "general", "kernel")


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
    method: Literal["auto", "general", "kernel"] = "auto",
    reduce: Literal["auto", "off"] = "auto",
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
    - `method`: "general" is one scan, and a batch moves as one under `jax.vmap`. "auto" moves the members of a batch side by
      side in the vector units of a CPU, or one after another where they are large; with minibatches or an optimizer it is
      "general". Its derivatives, forward and reverse, are those of "general". "kernel" makes one accelerator program of each
      member, see `dynamics.simulate.kernel`.
    - `reduce`: "auto" moves a smaller problem where that is exact and pays, see `dynamics.reduce.choose`; "off" never does.
      Only method "auto" reduces, only without minibatches and optimizer, and only where no derivative is taken.

    **Returns:** a `Trajectory` whose `ts` count iterations; after a stop its entries are NaN.

    **Raises:** `ValueError` on the host for anything out of range that is known before tracing.
    """
    validate.choice("method", method, METHODS)
    validate.choice("reduce", reduce, ("auto", "off"))
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
    if method == "kernel":
        from dynamics.simulate.kernel import kernel_descent  # Pallas is slow to import

        for name, value in (("optimizer", optimizer), ("batch_size", batch_size)):
            if value is not None:
                raise ValueError(f"{name} must be None with method='kernel', got {value!r}")
        options = {"every": every, "dt": dt, "momentum": momentum, "nesterov": nesterov, "observe": observe}
        return kernel_descent(problem, state, rates, steps, **options, norm_cap=norm_cap)
    counted = minibatches(problem.num_samples, batch_size, key, shuffle, dtype)
    cap = check_norm_cap(norm_cap, dtype)
    problem, rates, dt, momentum = tree.cast((problem, rates, dt, momentum), dtype)

    begins = problem.start_code(state)
    valid = tree.all_finite((state, dt, momentum)) & rates.valid() & problem.valid() & (begins != status.BAD_INPUT)
    valid = valid & (dt >= 0) & (momentum >= 0) & (momentum < 1)

    def rates_at(k):
        return rates.features(k * dt), rates.weights(k * dt)

    def descending(problem, start, look) -> Descending:
        def step(k, paces, x, memory):
            move = problem.force(x, counted(k))
            if optimizer is not None:
                move, memory = optimizer.update(jax.tree.map(jnp.negative, move), memory, x)
            elif not plain:
                force, memory = move, jax.tree.map(lambda v, f: momentum * v + f, memory, move)
                move = jax.tree.map(lambda v, f: momentum * v + f, memory, force) if nesterov else memory
            move = problem.pace(move, x, _held(rates, *paces), k * dt)
            return jax.tree.map(lambda a, b: a + dt * b, x, move), memory

        memory = optimizer.init(start) if optimizer is not None else jax.tree.map(jnp.zeros_like, () if plain else start)
        # traced numbers that these functions close over become arguments, to be batched and differentiated by
        zero = jnp.zeros((), jnp.int32)
        return Descending(
            look=Closed(look, zero, start),
            rates=Closed(rates_at, zero),
            step=Closed(step, zero, rates_at(zero), start, memory),
            start=start,
            memory=memory,
            valid=valid,
            norm_cap=cap,
            steps=steps,
            every=every,
            steady=_steady(rates.features) and _steady(rates.weights),
        )

    with jax.default_matmul_precision("highest"):
        run = descending(problem, state, lambda _, x: observe_state(observe, problem, problem.complete(x)))
        if method == "general" or batch_size is not None or optimizer is not None:
            moved = general_descent(run)
        else:
            small, lift = run, None
            if reduce == "auto" and isinstance(problem, LayerPeeled):
                # derivatives go the general way: a basis has none everywhere
                full, start, paces, pace, inertia = jax.tree.map(
                    lambda leaf: jax.lax.stop_gradient(leaf) if _is_traced(leaf) else leaf,
                    (problem, state, rates, dt, momentum),
                )
                alike = norm_cap is None and not rates.rescaled
                reduction = choose(full, start, observe=observe, alike=alike, forces=steps, saves=steps // every + 1)
                if reduction is not None:
                    kept = kept_in_descent(full, paces, steps, every, pace, inertia, nesterov)
                    small = descending(reduction.problem, reduction.state, _looking(reduction, kept, observe))
                    lift = (reduction, kept) if observe is None else None
            moved = _differentiated_by(lambda runs: general_descent(runs[0]), _fast_descent, (run, small, lift))
    return as_trajectory(every * jnp.arange(steps // every + 1), moved, observe, begins)


def _looking(reduction: Reduction, kept: Array, observe) -> Callable:
    """What is kept of a reduced state at a snapshot; states stay reduced until the end."""
    if observe is None:
        return lambda index, x: x
    seen = view(reduction, observe)

    def look(index, x):
        problem, state = seen(x, kept[index])
        return observe_state(observe, problem, problem.complete(state))

    return look


def _fast_descent(runs: tuple[Descending, Descending, tuple[Reduction, Array] | None]) -> Run:
    """The second of two equal runs; its states, where they are reduced, are lifted to those of the first."""
    full, run, lift = runs
    moved = _together(run)
    if lift is None:
        return moved
    reduction, kept = lift
    values = jax.vmap(lambda x, kept: reduction.full.complete(reduction.lift(x, kept)))(moved.values, kept)
    start = full.look(jnp.zeros((), jnp.int32), full.start)
    # the start is shown as it was given
    values = jax.tree.map(lambda leaf, first: leaf.at[0].set(jnp.where(jnp.isnan(leaf[0]), leaf[0], first)), values, start)
    return moved._replace(values=values)


def _together(run: Descending) -> Run:
    """Move a member; under `jax.vmap` all members together, on a CPU a few side by side or one after another."""
    arrays, static = eqx.partition(run, _is_traced)
    size = sum(leaf.size for leaf in jax.tree.leaves(run.start))
    # sums over more samples are not written out
    short = max(jax.tree.leaves(jax.tree.map(lambda leaf: max(leaf.shape[:-1], default=1), run.start))) <= WRITTEN_OUT

    def batch(has_axis, arrays) -> Run:
        (has_axis,) = has_axis
        members = members_of(arrays, has_axis)
        if jax.default_backend() == "cpu" and members > 1 and short and size <= LARGE:
            return lane_descent(arrays, static, has_axis, 16 if members > 8 else 8)
        axes = jax.tree.map(lambda flag: 0 if flag else None, has_axis)
        move = jax.vmap(lambda arrays: general_descent(eqx.combine(arrays, static)), (axes,))
        if jax.default_backend() != "cpu" or size <= MEDIUM:
            return move(arrays)
        once = jax.tree.map(lambda leaf, flag: leaf if flag else None, arrays, has_axis)

        def alone(member):
            return general_descent(eqx.combine(member, arrays, static))

        return jax.lax.map(alone, once)

    return batched_by(batch)(arrays) if jax.tree.leaves(arrays) else general_descent(run)


MEDIUM, LARGE = 1024, 4096
"""Numbers of a member up to which all move as one batch where they cannot move side by side, and up to which they do that.

How many times as fast as one batch under `jax.vmap`, in float64 (float32), on one core. 4 classes of 5 samples, by dimension:
side by side 2.1 at 16, 1.3 (2.1) at 32, 1.6 (1.5) at 64, 1.8 (1.5) at 128, 1.6 (1.5) at 256, 1.1 at 512; one after another
0.5 (0.4) at 32, 1.0 (0.5) at 64, 1.3 (0.9) at 128, 1.7 (1.7) at 256, 1.9 at 512. 10 classes of 10 samples, whose sums are long:
side by side 1.0 at 16 and 32, 1.1 at 110; one after another 1.3 at 16 and 32, 1.9 at 110. Eight members side by side gain less
than sixteen, and 24 or 32 no more.
"""


def _held(rates: Rates, features, weights) -> Rates:
    """The rates at one time."""
    return eqx.tree_at(lambda rates: (rates.features, rates.weights), rates, (Constant(features), Constant(weights)))


def _steady(schedule: Schedule) -> bool:
    """Whether a rate is known to be the same at all times."""
    return isinstance(schedule, Constant) or (isinstance(schedule, Scaled) and _steady(schedule.schedule))


def _is_traced(leaf) -> bool:
    return isinstance(leaf, jax.core.Tracer)


def _differentiated_by(reference: Callable, fast: Callable, given: PyTree) -> Run:
    """`fast(given)`, with the derivatives of `reference(given)`, forward and reverse."""
    arrays, static = eqx.partition(given, _is_traced)

    @jax.custom_jvp
    def function(arrays):
        return fast(eqx.combine(arrays, static))

    def rule(primals, tangents):
        leaves, structure = jax.tree.flatten(primals[0])
        ways = jax.tree.leaves(tangents[0], is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
        moving = [i for i, way in enumerate(ways) if not isinstance(way, SymbolicZero) and way.dtype != jax.dtypes.float0]

        def along(*values):
            changed = dict(zip(moving, values, strict=True))
            arrays = structure.unflatten([changed.get(i, leaf) for i, leaf in enumerate(leaves)])
            return reference(eqx.combine(arrays, static))

        return jax.jvp(along, tuple(leaves[i] for i in moving), tuple(ways[i] for i in moving))

    function.defjvp(rule, symbolic_zeros=True)
    return function(arrays)
