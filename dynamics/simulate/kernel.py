"""Both verbs as one accelerator kernel: a program runs the whole loop of one member in fast memory.

Nothing waits for anything: a member takes its own steps and leaves when it is done, and there is one launch for all. The
kernels are written in Pallas and compiled by its Triton backend for CUDA; anywhere else they are interpreted, as slow as a
loop over members: there, take another method. They have no derivatives.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from dynamics import state as tree
from dynamics import status, validate
from dynamics.problems import Peeled, Problem
from dynamics.rates import Rates, check_rates
from dynamics.simulate import kernel_peeled as peeled
from dynamics.simulate.kernel_peeled import Layout
from dynamics.simulate.kernel_step import SOLVER, Moving, Parts, Stepper, chosen, within
from dynamics.simulate.prepared import Run, as_trajectory, ending, prepare
from dynamics.trajectory import Trajectory, blank, check_norm_cap, check_observe, check_steps, observe_state

FIRST_STEP = 0.01
"""The step that diffrax tries first where it is left to choose."""

FLOW_COPIES, DESCENT_COPIES = 11, 4
"""States that a step holds at once: both ends, seven stages and two for what is computed; iterate, velocity, both ends."""


def kernel_flow(
    problem: Problem,
    state: PyTree,
    rates: Rates,
    ts,
    *,
    observe: dict | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 100_000,
    norm_cap=None,
    interpret: bool | None = None,
) -> Trajectory:
    """`dynamics.flow` by Tsit5, as one kernel; `jax.vmap` turns members into programs.

    Steps, statuses and trajectory are those of the general method with `solver=diffrax.Tsit5()`, up to rounding; in float32
    time carries what rounding leaves out, so that it never stands still. Observables are computed from the states after
    the kernel.

    **Arguments:**

    - `problem`: a `LayerPeeled` without kernels, not normalised, biases trained or not; its loss `CrossEntropy`,
      `SquaredError` or linear in the logits.
    - `rates`: computed from numbers alone: no `Piecewise`, no `FromOptax`, not rescaled.
    - `state`, `ts`, `observe`, `rtol`, `atol`, `max_steps`, `norm_cap`: as in `dynamics.flow`.
    - `interpret`: True runs it as ordinary array code, False compiles it, None compiles it on CUDA alone.

    **Raises:** `ValueError` on the host for what it cannot move, for a problem too large for fast memory, and where this
    version of JAX has no Pallas for Triton.
    """
    max_steps = validate.whole("max_steps", max_steps, 1)
    run = prepare(problem, state, rates, ts, observe, rtol, atol, SOLVER, norm_cap)
    layout = peeled.layout(run.problem, run.start, run.rates, FLOW_COPIES)
    dtype, saves = run.ts.dtype, run.ts.shape[0]
    times = jnp.where(run.valid, run.ts, jnp.arange(saves, dtype=dtype))
    jumps = run.rates.jumps().astype(dtype)
    own, read = peeled.numbers(run.problem, run.rates, dtype)  # pyright: ignore[reportArgumentType]
    numbers = [run.rtol, run.atol, run.norm_cap, run.valid, times[-1], *own]

    def kernel(refs, given, keep: Callable, ends, t_ends):
        rtol, atol, norm_cap, valid, t_end, *own = (refs["numbers"][i] for i in range(len(numbers)))
        decays, pair, rates = read(own)
        start, motion, norm = _member(layout, given, decays, pair)

        def velocity(t, y: Parts) -> Parts:
            eta = (rates.features(t), rates.weights(t), rates.weights(t))
            return tuple(eta[part] * force for part, force in zip(layout.moving, motion(y), strict=True))

        stepper = Stepper(velocity, _total, layout.count, t_end, rtol, atol, refs["jumps"][...] if jumps.shape[0] else None)

        def due(index, moving: Moving):
            return (index < saves) & ((refs["ts"][jnp.minimum(index, saves - 1)] - moving.t) - moving.late <= 0)

        def step(carry):
            old, saved, _ = carry
            new, tried = stepper.attempt(old)

            def save(counted):
                index, _ = counted
                keep(index, within(tried, old.h, ((refs["ts"][index] - old.t) - old.late) / old.h))
                return index + 1, due(index + 1, new)

            saved, _ = jax.lax.while_loop(lambda counted: counted[1], save, (saved, tried.kept & due(saved, new)))
            return new, saved, (norm(new.y) <= norm_cap) & stepper.ahead(new) & (new.steps < max_steps)

        at_start = refs["ts"][0] == 0
        pallas()[0].when(at_start)(lambda: keep(jnp.zeros((), jnp.int32), start))
        going = (norm(start) <= norm_cap) & (valid > 0) & (t_end > 0)
        carry = (stepper.at_rest(start, FIRST_STEP), at_start.astype(jnp.int32), going)
        end, saved, _ = jax.lax.while_loop(lambda carry: carry[2], step, carry)
        ends[0] = end.steps
        ends[1] = (norm(end.y) <= norm_cap).astype(jnp.int32)
        ends[2] = _total(tuple((~(jnp.abs(part) < jnp.inf)).astype(jnp.int32) for part in end.y)).astype(jnp.int32)
        ends[3] = stepper.ahead(end).astype(jnp.int32)
        ends[4] = saved
        t_ends[0] = end.t

    refs = {"numbers": _stacked(numbers, dtype), "ts": times, **({"jumps": _filled(jumps)} if jumps.shape[0] else {})}
    saved, ends, t_end = _run(kernel, layout, run.problem, run.start, refs, saves, interpret)
    sound, short = ends[1] > 0, ends[3] > 0
    code = ending(run.valid, whole=sound & ~short, out_of_steps=sound & short, runaway=~sound & (ends[2] == 0))
    last = jnp.where(run.valid, t_end, 0.0)
    values = blank((jnp.arange(saves) >= ends[4]) | ~run.valid, _observed(layout, run.problem, run.start, saved, observe))
    return as_trajectory(run.ts, Run(values, code, jnp.where(run.valid, ends[0], 0), last), observe, run.begins)


def kernel_descent(
    problem: Problem,
    state: PyTree,
    rates: Rates,
    steps: int,
    *,
    every: int = 1,
    dt=1.0,
    momentum=0.0,
    nesterov: bool = False,
    observe: dict | None = None,
    norm_cap=None,
    interpret: bool | None = None,
) -> Trajectory:
    """`dynamics.descent` of all samples, as one kernel; `jax.vmap` turns members into programs.

    Iterates, statuses and trajectory are those of the general method, up to rounding. Observables are computed from the
    snapshots after the kernel.

    **Arguments:**

    - `problem`, `rates`, `interpret`: as in `kernel_flow`.
    - `state`, `steps`, `every`, `dt`, `momentum`, `nesterov`, `observe`, `norm_cap`: as in `dynamics.descent`.

    **Raises:** `ValueError` as `kernel_flow` does.
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"problem must be a dynamics problem, got {type(problem).__name__}")
    state = problem.check(state)
    dtype = jnp.result_type(*jax.tree.leaves(state))
    check_rates(rates)
    steps, every = check_steps(steps, every, dt, momentum, nesterov)
    check_observe(observe)
    plain = validate.is_concrete(momentum) and float(momentum) == 0
    if nesterov and plain:
        raise ValueError("nesterov=True needs momentum > 0")
    norm_cap = check_norm_cap(norm_cap, dtype)
    problem, rates, dt, momentum = tree.cast((problem, rates, dt, momentum), dtype)
    layout = peeled.layout(problem, state, rates, DESCENT_COPIES)  # pyright: ignore[reportArgumentType]
    begins = problem.start_code(state)
    valid = tree.all_finite((state, dt, momentum)) & rates.valid() & problem.valid() & (begins != status.BAD_INPUT)
    valid = valid & (dt >= 0) & (momentum >= 0) & (momentum < 1)
    own, read = peeled.numbers(problem, rates, dtype)  # pyright: ignore[reportArgumentType]
    numbers = [dt, momentum, norm_cap, valid, *own]
    saves = steps // every + 1

    def kernel(refs, given, keep: Callable, ends, t_ends):
        dt, momentum, norm_cap, valid, *own = (refs["numbers"][i] for i in range(len(numbers)))
        decays, pair, rates = read(own)
        start, motion, norm = _member(layout, given, decays, pair)

        def step(carry):
            x, velocity, _, k, until, _ = carry
            move = motion(x)
            if not plain:
                velocity = tuple(momentum * v + f for v, f in zip(velocity, move, strict=True))
                ahead = tuple(momentum * v + f for v, f in zip(velocity, move, strict=True))
                move = ahead if nesterov else velocity
            t = k.astype(dt.dtype) * dt
            eta = (rates.features(t), rates.weights(t), rates.weights(t))
            moved = tuple(a + dt * (eta[part] * b) for part, a, b in zip(layout.moving, x, move, strict=True))
            size = norm(moved)
            going = size <= norm_cap
            k = k + going.astype(jnp.int32)
            return chosen(going, moved, x), velocity, size, k, until, going & (k < until)

        def snapshot(carry):
            index, (x, velocity, size, k, until, _), _ = carry
            until = until + every
            inner = jax.lax.while_loop(lambda c: c[5], step, (x, velocity, size, k, until, k < until))
            keep(index, inner[0])
            return index + 1, inner, (inner[2] <= norm_cap) & (index + 1 < saves)

        at_rest = () if plain else tuple(jnp.zeros_like(part) for part in start)
        zero, one, size = jnp.zeros((), jnp.int32), jnp.ones((), jnp.int32), norm(start)
        going = (valid > 0) & (size <= norm_cap)
        keep(zero, start)
        carry = (one, (start, at_rest, size, zero, zero, going), going & (saves > 1))
        _, end, _ = jax.lax.while_loop(lambda carry: carry[2], snapshot, carry)
        ends[0] = end[3]
        t_ends[0] = end[2]

    refs = {"numbers": _stacked(numbers, dtype)}
    saved, ends, size = _run(kernel, layout, problem, state, refs, saves, interpret)
    code = jnp.where(size <= norm_cap, status.OK, jnp.where(jnp.isnan(size), status.NON_FINITE, status.NORM_CAP))
    code = jnp.where(valid, code, status.BAD_INPUT).astype(jnp.int32)
    count = jnp.where(valid, ends[0], 0)
    ts = every * jnp.arange(saves)
    gone = (ts > count) | ~valid | ~(tree.norm(state) <= norm_cap)
    values = blank(gone, _observed(layout, problem, state, saved, observe))
    return as_trajectory(ts, Run(values, code, count, count), observe, begins)


def _member(layout: Layout, given: dict, decays, pair) -> tuple[Parts, Callable, Callable]:
    """Inside a kernel: the moving parts at the start, their motion at unit rates, and the norm of the whole state."""
    whole = tuple(given[name] for name in peeled.NAMES)
    force = peeled.force(layout, given, decays, pair)
    resting = tuple(part for i, part in enumerate(whole) if i not in layout.moving)

    def motion(parts: Parts) -> Parts:
        moving = dict(zip(layout.moving, parts, strict=True))
        forces = force(*(moving.get(i, part) for i, part in enumerate(whole)))
        return tuple(forces[i] for i in layout.moving)

    def norm(parts: Parts):
        return jnp.sqrt(_total(tuple(jnp.square(part) for part in (*parts, *resting))))

    return tuple(whole[i] for i in layout.moving), motion, norm


def _total(parts: Parts) -> Array:
    """The sum of all numbers of one member."""
    return functools.reduce(jnp.add, [jnp.sum(part) for part in parts])


def _run(kernel: Callable, layout: Layout, problem, start: Peeled, refs: dict[str, Array], saves: int, interpret):
    """What the kernel kept of the moving parts, (saves, ...) each, its whole numbers (5,) and its one real number.

    `kernel` is called inside with: the `refs`; the loaded, padded arrays of the problem and of the start; a function
    (index, moving parts) that keeps them; and where its two kinds of numbers go.
    """
    pl, triton = pallas()
    dtype = start.features.dtype
    loaded = {name: getattr(start, name) for name in peeled.NAMES} | peeled.constants(problem, layout, dtype)
    padded = {name: layout.shape(i, padded=True) for i, name in enumerate(peeled.NAMES)} | peeled.constant_shapes(layout)
    names = [*refs, *loaded]
    operands = [*refs.values(), *loaded.values()]
    kept = [(saves, *layout.shape(i)) for i in layout.moving]

    def fetch(name: str, ref):
        mask = _inside(loaded[name].shape, padded[name])
        empty = -1 if name == peeled.LABEL else 0
        return ref[...] if mask is None else triton.load(ref, mask=mask, other=empty)

    def body(*all_refs):
        found = dict(zip(names, all_refs, strict=False))
        *outs, ends, reals = all_refs[len(names) :]
        given = {name: fetch(name, found[name]) for name in loaded}

        def keep(index, parts: Parts):
            index = index.astype(jnp.result_type(int))  # of one kind with the other indices, or interpretation fails
            for i, out, part in zip(layout.moving, outs, parts, strict=True):
                triton.store(out.at[index], part, mask=_inside(layout.shape(i), layout.shape(i, padded=True)))

        kernel({name: found[name] for name in refs}, given, keep, ends, reals)

    def whole(shape: Sequence[int]):
        return pl.BlockSpec(tuple(shape), lambda: (0,) * len(shape))

    def call(*operands, interpret: bool):
        return pl.pallas_call(
            body,
            out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape in kept]
            + [jax.ShapeDtypeStruct((5,), jnp.int32), jax.ShapeDtypeStruct((1,), dtype)],
            in_specs=[whole(array.shape) for array in refs.values()] + [whole(padded[name]) for name in loaded],
            out_specs=[whole((saves, *layout.shape(i, padded=True))) for i in layout.moving] + [whole((5,)), whole((1,))],
            compiler_params=triton.CompilerParams(num_warps=layout.warps, num_stages=1),
            interpret=interpret,
            name=kernel.__qualname__.split(".")[0],
        )(*operands)

    *saved, ends, reals = placed(call, interpret, *operands)
    return saved, ends, reals[0]


def pallas() -> tuple[Any, Any]:
    """Pallas and its part for Triton, which is deprecated since JAX 0.11 and may go; `ValueError` where it is gone."""
    try:
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import triton
    except ImportError:
        found = f"jax {jax.__version__} has none"
        raise ValueError(f"method='kernel' needs Pallas for Triton, {found}; use method='general'") from None
    return pl, triton


def placed(call: Callable, interpret: bool | None, *operands) -> PyTree:
    """`call(*operands, interpret=...)` of a kernel: compiled or interpreted as asked; None is compiled on CUDA alone."""
    if interpret not in (None, True, False):
        raise ValueError(f"interpret must be None, True or False, got {interpret!r}")
    with jax.default_matmul_precision("highest"):
        if interpret is not None:
            return call(*operands, interpret=interpret)
        compiled, interpreted = (functools.partial(call, interpret=flag) for flag in (False, True))
        return jax.lax.platform_dependent(*operands, cuda=compiled, default=interpreted)


def _inside(shape: Sequence[int], padded: Sequence[int]):
    """Which entries of a padded array are its own; None where all are."""
    mask = None
    for axis, (size, whole) in enumerate(zip(shape, padded, strict=True)):
        if size < whole:
            own = jax.lax.broadcasted_iota(jnp.int32, tuple(padded), axis) < size
            mask = own if mask is None else mask & own
    return mask


def _observed(layout: Layout, problem, start: Peeled, saved: Sequence[Array], observe) -> PyTree:
    """What is asked for of the states, leading axis times; parts that rest are as they started."""
    moving = dict(zip(layout.moving, saved, strict=True))
    parts = [getattr(start, name) for name in peeled.NAMES]
    path = Peeled(*(moving.get(i, jnp.broadcast_to(part, (saved[0].shape[0], *part.shape))) for i, part in enumerate(parts)))
    return path if observe is None else jax.vmap(lambda state: observe_state(observe, problem, state))(path)


def _stacked(numbers: Sequence, dtype) -> Array:
    return jnp.stack([jnp.asarray(x, dtype) for x in numbers])


def _filled(jumps: Array) -> Array:
    """Times of jumps up to a power of two in number."""
    size = 1 << (jumps.shape[0] - 1).bit_length()
    return jnp.concatenate([jumps, jnp.full(size - jumps.shape[0], jnp.inf, jumps.dtype)])
