"""ENSEMBLE-GPU: one kernel a trajectory against vmap(diffrax) on a GPU, and both against the ceilings of that GPU.

FLOW-S and GD-S at 8 192, 131 072 and 1 048 576 members, final states and, where they fit, fifty; Lorenz at 8 388 608 members,
t in [0, 1], 1000 fixed steps and adaptive at 1e-8, x(0) = (1, 0, 0), sigma 10, beta 8/3, rho from 0 to 21: the public
comparison of GPU solvers (Utkarsh et al., CMAME 419, 2024, 116591; arXiv 2304.06835). All in float32.
"""

import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import dynamics as dyn
from dynamics.simulate.kernel import kernel_descent, kernel_flow, pallas, placed
from dynamics.simulate.kernel_step import Parts, Stepper, taken

CLASSES, PER_CLASS, DIM, DECAY = 4, 5, 16, 5e-3
T_END, TOLERANCE = 100.0, 1e-6
GD_STEPS = 2000
MEMBERS, LORENZ_MEMBERS = (8192, 131_072, 1_048_576), 8_388_608
LORENZ = {"sigma": 10.0, "beta": 8 / 3, "rho": 21.0}
CHECKED = 40
"""Members held against SciPy's DOP853 at 1e-12, spread evenly over the batch."""

FORCE_FLOPS = 6 * DIM * CLASSES**2 * PER_CLASS
STATE = DIM * CLASSES * (PER_CLASS + 1)
FLOW_STEP_FLOPS, GD_STEP_FLOPS = 6 * FORCE_FLOPS + 65 * STATE, FORCE_FLOPS + 4 * STATE


def ensemble_gpu() -> dict | str:
    """The measured table with device, versions and ceilings; without a GPU, the reason why there is none."""
    if jax.default_backend() != "gpu":
        return f"ENSEMBLE-GPU needs a GPU; jax {jax.__version__} runs on {jax.default_backend()}"
    with jax.default_matmul_precision("highest"):
        return {
            "device": jax.devices()[0].device_kind,
            "versions": {name: version(name) for name in ("jax", "jaxlib", "diffrax")},
            "precision": "float32, matrix products at the highest",
            "ceilings": ceilings(),
            "rows": races(MEMBERS, LORENZ_MEMBERS),
        }


def ceilings(size: int = 1 << 28, side: int = 8192) -> dict[str, float]:
    """Bytes a second of a copy and flops a second of a matrix product, float32 at the highest precision."""
    x, a = jnp.zeros(size, jnp.float32), jnp.ones((side, side), jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    product = jax.jit(lambda a: jnp.dot(a, a, precision=jax.lax.Precision.HIGHEST))
    times = alternating({"copy": lambda: copy(x), "product": lambda: product(a)})
    return {"bytes_per_s": 2 * x.nbytes / times["copy"][0], "flops_per_s": 2 * side**3 / times["product"][0]}


def races(members: tuple[int, ...], lorenz_members: int, repeats: int = 5) -> list[dict]:
    """One row a workload, size and racer: median seconds, spread, error, flops and bytes a second, ratio to the first."""
    rows = []
    for many in members:
        rows += flow_s(many, np.array([T_END]), repeats)
        if 50 * STATE * 4 * many < 12e9:
            rows += flow_s(many, np.linspace(T_END / 50, T_END, 50), repeats)
        rows += gd_s(many, repeats)
    return rows + lorenz(lorenz_members, repeats)


def flow_s(members: int, ts: np.ndarray, repeats: int) -> list[dict]:
    """Cross-entropy flow, C 4, N 5, p 16, scale 0.3, decay 5e-3, tolerance 1e-6."""
    problem, starts = _small(members)
    rates, ts = dyn.Rates.equal(1.0), np.asarray(ts, np.float32)

    def kernel(start):
        moved = kernel_flow(problem, start, rates, ts, rtol=TOLERANCE, atol=TOLERANCE)
        return (moved.states.features, moved.states.prototypes), moved.stats["steps"]

    def peer(start):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: _motion(*y)),  # pyright: ignore[reportArgumentType]
            diffrax.Tsit5(),
            *_single(0.0, T_END),
            None,
            (start.features, start.prototypes),
            saveat=diffrax.SaveAt(ts=ts),
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            max_steps=100_000,
            throw=False,
        )
        return solution.ys, solution.stats["num_steps"]

    def truth(start):
        y = np.concatenate([np.ravel(start.features), np.ravel(start.prototypes)]).astype(float)
        path = solve_ivp(_flat_motion, (0, T_END), y, method="DOP853", rtol=1e-12, atol=1e-14, t_eval=ts.astype(float))
        return path.y.T

    racers = {"vmap(diffrax)": jax.jit(jax.vmap(peer)), "kernel": jax.jit(jax.vmap(kernel))}
    return _race(f"FLOW-S, {ts.size} states", racers, (starts,), members, repeats, truth, FLOW_STEP_FLOPS)


def gd_s(members: int, repeats: int) -> list[dict]:
    """Cross-entropy descent, 2000 steps, a rate 10^U(-1.5, -0.3) a member; final states."""
    problem, starts = _small(members)
    etas = jnp.asarray(10 ** np.random.default_rng(2).uniform(-1.5, -0.3, members), jnp.float32)

    def kernel(start, eta):
        moved = kernel_descent(problem, start, dyn.Rates.equal(eta), GD_STEPS, every=GD_STEPS)
        return (moved.states.features[1:], moved.states.prototypes[1:]), moved.stats["steps"]

    def peer(start, eta):
        def step(_, y):
            return tuple(a + eta * b for a, b in zip(y, _motion(*y), strict=True))

        y = jax.lax.fori_loop(0, GD_STEPS, step, (start.features, start.prototypes))
        return tuple(part[None] for part in y), jnp.asarray(GD_STEPS)

    def truth(start, eta):
        y = np.concatenate([np.ravel(start.features), np.ravel(start.prototypes)]).astype(float)
        for _ in range(GD_STEPS):
            y = y + float(eta) * _flat_motion(0.0, y)
        return y[None]

    racers = {"vmap(plain loop)": jax.jit(jax.vmap(peer)), "kernel": jax.jit(jax.vmap(kernel))}
    return _race("GD-S, final states", racers, (starts, etas), members, repeats, truth, GD_STEP_FLOPS)


def lorenz(members: int, repeats: int) -> list[dict]:
    """Lorenz, 1000 fixed steps and adaptive at 1e-8."""
    rho = jnp.linspace(0.0, LORENZ["rho"], members, dtype=jnp.float32)
    start = (jnp.ones_like(rho), jnp.zeros_like(rho), jnp.zeros_like(rho))
    rows = []
    for name, steps in (("Lorenz, 1000 fixed steps", 1000), ("Lorenz, adaptive 1e-8", None)):
        moved = field_kernel(lorenz_field, 1.0, steps=steps, tolerance=1e-8)

        def peer(rho, steps=steps):
            control = diffrax.ConstantStepSize() if steps else diffrax.PIDController(rtol=1e-8, atol=1e-8)
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, y, args: jnp.stack(lorenz_field(t, tuple(y), (rho,)))),  # pyright: ignore[reportArgumentType]
                diffrax.Tsit5(),
                *_single(0.0, 1.0, 1e-3),
                jnp.asarray([1.0, 0.0, 0.0], jnp.float32),
                stepsize_controller=control,
                max_steps=100_000,
                throw=False,
            )
            return solution.ys, solution.stats["num_steps"]

        def kernel(rho, moved=moved):
            parts, steps = moved(start, (rho,))
            return jnp.stack(parts, axis=-1)[:, None], steps

        def truth(rho):
            def motion(t, y):
                return np.array(lorenz_field(t, y, (float(rho),)))

            return solve_ivp(motion, (0, 1), [1.0, 0.0, 0.0], method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1][None]

        racers = {"vmap(diffrax)": jax.jit(jax.vmap(peer)), "kernel": jax.jit(kernel)}
        rows += _race(name, racers, (rho,), members, repeats, truth, step_flops=6 * 9 + 65 * 3)
    return rows


def lorenz_field(t, y, parameters):
    """The Lorenz system."""
    (a, b, c), (rho,) = y, parameters
    return LORENZ["sigma"] * (b - a), a * (rho - c) - b, a * b - LORENZ["beta"] * c


def field_kernel(
    field: Callable,
    t_end: float,
    *,
    steps: int | None = None,
    tolerance: float = 1e-8,
    first_step: float = 1e-3,
    max_steps: int = 100_000,
    block: int = 256,
    interpret: bool | None = None,
) -> Callable:
    """One kernel that moves many members of a small system to `t_end` by Tsit5, a row of members to a program.

    Every member has its own time, step and error; one that has arrived waits, unchanged, for the last of its row.

    **Arguments:**

    - `field`: (t, components, parameters) to the velocities of the components; arithmetic on arrays of members.
    - `steps`: so many equal steps; None: adaptive, relative and absolute `tolerance`, beginning with `first_step`.
    - `block`: members in a row, a power of two.
    - `interpret`: True runs it as ordinary array code, False compiles it, None compiles it on CUDA alone.

    **Returns:** (components, parameters), tuples of arrays (members,), to (final components, steps (members,)).
    """

    def move(y: Parts, parameters: Parts):
        """The members of one row, inside the kernel."""
        end = jnp.full_like(y[0], t_end)

        def velocity(t, y):
            return field(t, y, parameters)

        if steps is not None:
            h = t_end / steps

            def step(i, carry):
                t = i.astype(end.dtype) * h
                y, stages = taken(lambda node, y: velocity(t + node * h, y), *carry, h)
                return y, stages[-1]

            y, _ = jax.lax.fori_loop(0, steps, step, (y, velocity(0.0, y)))
            return y, jnp.full_like(end, steps, jnp.int32)
        stepper = Stepper(velocity, lambda parts: sum(parts[1:], parts[0]), len(y), end, tolerance, tolerance)

        def on(moving):
            return stepper.ahead(moving) & (moving.steps < max_steps)

        moving = jax.lax.while_loop(
            lambda moving: jnp.max(on(moving).astype(jnp.int32)) > 0,
            lambda moving: stepper.attempt(moving, on(moving))[0],
            stepper.at_rest(y, first_step),
        )
        return moving.y, moving.steps

    def run(components: Parts, parameters: Parts):
        members, size = components[0].shape[0], len(components)
        rows = -(-members // block)
        operands = [jnp.pad(x, (0, rows * block - members), mode="edge") for x in (*components, *parameters)]

        def body(*refs):
            read = [ref[...] for ref in refs[: len(operands)]]
            y, count = move(tuple(read[:size]), tuple(read[size:]))
            for ref, value in zip(refs[len(operands) :], (*y, count), strict=True):
                ref[...] = value

        def call(*operands, interpret: bool):
            pl, triton = pallas()
            row = pl.BlockSpec((block,), lambda i: (i,))
            shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands[:size]]
            return pl.pallas_call(
                body,
                grid=(rows,),
                in_specs=[row] * len(operands),
                out_specs=[row] * (size + 1),
                out_shape=[*shapes, jax.ShapeDtypeStruct((rows * block,), jnp.int32)],
                compiler_params=triton.CompilerParams(num_warps=max(block // 32, 1), num_stages=1),
                interpret=interpret,
                name="field_kernel",
            )(*operands)

        *y, count = (x[:members] for x in placed(call, interpret, *operands))
        return tuple(y), count

    return run


def _single(*times: float) -> list[jax.Array]:
    """Times in float32: a Python number would promote the peer's state where 64-bit numbers are on."""
    return [jnp.asarray(t, jnp.float32) for t in times]


def alternating(racers: dict[str, Callable], repeats: int = 5) -> dict[str, tuple[float, float]]:
    """Median seconds and spread (largest over smallest) of each racer, one after the other in turn, compilation apart."""
    for racer in racers.values():
        jax.block_until_ready(racer())
    seconds: dict[str, list[float]] = {name: [] for name in racers}
    for _ in range(repeats):
        for name, racer in racers.items():
            begin = time.perf_counter()
            jax.block_until_ready(racer())
            seconds[name].append(time.perf_counter() - begin)
    return {name: (statistics.median(all_), max(all_) / min(all_)) for name, all_ in seconds.items()}


def _race(workload: str, racers: dict, args: tuple, members: int, repeats: int, truth: Callable, step_flops: int) -> list[dict]:
    """A row for each racer; one that does not fit into memory says so instead of a time."""
    found, rows = {}, []
    for name, racer in racers.items():
        begin = time.perf_counter()
        try:
            results, steps = jax.block_until_ready(racer(*args))
        except jax.errors.JaxRuntimeError as error:
            rows.append({"workload": workload, "members": members, "racer": name, "skipped": str(error).splitlines()[0]})
            continue
        found[name] = {
            "first_call_s": time.perf_counter() - begin,
            "steps": float(jnp.mean(steps)),
            "most_steps": int(jnp.max(steps)),
            "error": _error(results, args, members, truth),
            "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves((results, args))),
        }
        del results
    times = alternating({name: (lambda racer=racers[name]: racer(*args)) for name in found}, repeats)
    for name, row in found.items():
        seconds, spread = times[name]
        row |= {"workload": workload, "members": members, "racer": name, "seconds": seconds, "spread": spread}
        row["ratio"] = times[next(iter(times))][0] / seconds
        row["flops_per_s"] = row["steps"] * members * step_flops / seconds
        row["bytes_per_s"] = row.pop("bytes") / seconds
        rows.append(row)
    return rows


def _error(results, args: tuple, members: int, truth: Callable) -> float:
    """The largest relative error of the checked members at any time."""
    worst = 0.0
    for i in np.unique(np.linspace(0, members - 1, CHECKED).astype(int)):
        exact = truth(*jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), args))
        mine = [np.asarray(leaf[i], float).reshape(exact.shape[0], -1) for leaf in jax.tree.leaves(results)]
        gap = np.linalg.norm(np.concatenate(mine, axis=1) - exact, axis=1) / np.linalg.norm(exact, axis=1)
        worst = max(worst, float(np.max(gap)))
    return worst


def _small(members: int) -> tuple[dyn.LayerPeeled, dyn.Peeled]:
    problem = dyn.LayerPeeled.balanced(CLASSES, PER_CLASS, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(DECAY, DECAY))

    def start(i):
        key = jax.random.fold_in(jax.random.key(0), i)
        return dyn.initial.gaussian(problem, dim=DIM, key=key, scale=0.3, dtype=jnp.float32)

    return problem, jax.jit(jax.vmap(start))(jnp.arange(members))


def _motion(features, prototypes, softmax=jax.nn.softmax, xp=jnp):
    """Minus the gradient of the mean cross-entropy with decay, as a user would write it."""
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    pull = (xp.eye(CLASSES, dtype=features.dtype)[labels] - softmax(features @ prototypes.T)) / labels.size
    return pull @ prototypes - DECAY * features, pull.T @ features - DECAY * prototypes


def _flat_motion(t, y: np.ndarray) -> np.ndarray:
    def softmax(z):
        raised = np.exp(z - z.max(axis=1, keepdims=True))
        return raised / raised.sum(axis=1, keepdims=True)

    rows = y.reshape(-1, DIM)
    samples = CLASSES * PER_CLASS
    return np.concatenate([part.ravel() for part in _motion(rows[:samples], rows[samples:], softmax, np)])
