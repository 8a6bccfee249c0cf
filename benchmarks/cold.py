"""How long a new process takes to its first result: `python -m benchmarks.cold [REPEATS]`.

The workload is that of FLOW-S with 64 members: cross-entropy, C 4, N 5, p 16, decay 5e-3, scale 0.3, t to 100, 50 states,
tolerance 1e-6, float64, seed 0. Every run is a process of its own, in rotation; imports are timed apart. The compile caches
and the saved program are there before: of the second process and of all that follow.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MEMBERS, CLASSES, PER_CLASS, DIM, SCALE, DECAY = 64, 4, 5, 16, 0.3, 5e-3
TIMES, TOLERANCE = np.linspace(2.0, 100.0, 50), 1e-6
CHECKED = 8
"""Members whose states are held against SciPy's DOP853 at 1e-12."""

RACERS = {
    "diffrax_vmap": "jit(vmap(diffeqsolve)), default settings",
    "diffrax_vmap cached": "the same with a warm compile cache and EQX_ON_ERROR=nan",
    "dynamics": "jit(vmap(dynamics.flow)), no cache: the very first process",
    "dynamics cached": "the same after enable_compile_cache(), warm",
    "dynamics saved": "load_program of what ahead_of_time(...).save wrote",
}
PARTS = ("trace", "lower", "compile", "load", "run")


def cold(repeats: int) -> dict:
    """Seconds to the first result of every racer, in fresh processes, the first racer being the base.

    **Returns:** a dictionary for JSON: `racers`, a list of `name`, `seconds` (one a run, imports excluded), `parts` (median
    seconds of tracing, lowering, compiling or reading the cache, loading and running), `import` (median seconds), `error`
    (the largest of `CHECKED` members at any time, against SciPy) and `note`; and `same`: no error is above that of the base
    by more than a tenth.
    """
    from benchmarks import reference  # here, so that the processes start without SciPy

    with tempfile.TemporaryDirectory(prefix="dynamics-cold-") as folder:
        for name in RACERS:  # fills the caches and writes the program
            if "cached" in name or "saved" in name:
                _process(name, folder, first=True)
        runs = {name: [] for name in RACERS}
        for _ in range(repeats):
            for name in RACERS:
                runs[name].append(_process(name, folder))
        force = reference.cross_entropy_force(np.repeat(np.arange(CLASSES), PER_CLASS), CLASSES, DECAY)
        checked = tuple(part[:CHECKED] for part in starts())
        truth = np.concatenate(reference.flows(force, checked, TIMES, key=("cold",)), axis=2)
        states = {name: np.load(Path(folder) / f"{_file(name)}.npy") for name in RACERS}
    errors = {name: reference.largest_difference([found], [truth]) for name, found in states.items()}
    racers = [
        {
            "name": name,
            "seconds": [run["seconds"] for run in found],
            "parts": {part: float(np.median([run[part] for run in found])) for part in PARTS if part in found[0]},
            "import": float(np.median([run["import"] for run in found])),
            "error": errors[name],
            "note": RACERS[name],
        }
        for name, found in runs.items()
    ]
    base = racers[0]["error"]
    return {"workload": "COLD", "racers": racers, "same": all(racer["error"] <= 1.1 * base for racer in racers)}


def table(found: dict) -> str:
    """Ratios of the medians to the base (above 1: faster), seconds with quartiles, the parts, errors."""
    base = float(np.median(found["racers"][0]["seconds"]))
    lines = [f"COLD: first result of {MEMBERS} members in a fresh process"]
    for racer in found["racers"]:
        low, middle, high = np.quantile(racer["seconds"], [0.25, 0.5, 0.75])
        parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in racer["parts"].items())
        lines.append(
            f"  {racer['name']:<20} {base / middle:>6.2f}x  {middle:.3f} s ({low:.3f}-{high:.3f}): {parts}; import "
            f"{racer['import']:.2f}; error {racer['error']:.1e}"
        )
    return "\n".join(lines)


def _file(name: str) -> str:
    return name.replace(" ", "-")


def _process(name: str, folder: str, first: bool = False) -> dict:
    """One run in a process of its own."""
    ours = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE", "DYNAMICS_CACHE", "EQX_ON_ERROR", "JAX_ENABLE_X64")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    if name == "diffrax_vmap cached":
        environment["EQX_ON_ERROR"] = "nan"
    words = [sys.executable, "-m", "benchmarks.cold", "--racer", name, folder, *(["first"] if first else [])]
    root = Path(__file__).parents[1]
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def starts() -> tuple[np.ndarray, np.ndarray]:
    """Features (members, samples, dim) and prototypes (members, classes, dim)."""
    rng = np.random.default_rng(0)
    shapes = (MEMBERS, CLASSES * PER_CLASS, DIM), (MEMBERS, CLASSES, DIM)
    return SCALE * rng.standard_normal(shapes[0]), SCALE * rng.standard_normal(shapes[1])


# ---- what a process does ----


def _run(name: str, folder: str, first: bool) -> dict:
    """Import, then the clock: everything from a plain function to the states on the host's doorstep."""
    begin = time.perf_counter()
    build = _peer if name.startswith("diffrax") else _product
    make, arguments = build(name, folder, first)
    imported = time.perf_counter() - begin
    clock = time.perf_counter()
    program, seconds = make()
    ready = time.perf_counter()
    states = program(arguments)
    import jax

    states = jax.block_until_ready(states)
    end = time.perf_counter()
    np.save(Path(folder) / f"{_file(name)}.npy", np.concatenate([np.asarray(part)[:CHECKED] for part in states], axis=2))
    return {"import": imported, "seconds": end - clock, **seconds, "run": end - ready}


def _begun():
    """JAX in float64, its devices there."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.devices()
    return jax


def _staged(jax, function, arguments):
    """A jitted function compiled step by step, with the seconds of each, as its first call would."""
    clock = [time.perf_counter()]
    traced = jax.jit(function).trace(arguments)
    clock.append(time.perf_counter())
    lowered = traced.lower()
    clock.append(time.perf_counter())
    compiled = lowered.compile()
    clock.append(time.perf_counter())
    return compiled, dict(zip(PARTS, np.diff(clock).tolist(), strict=False))


def _peer(name: str, folder: str, first: bool):
    import diffrax
    import optax

    jax = _begun()
    jnp = jax.numpy
    if "cached" in name:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "peer"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    def make():
        labels, ts = jnp.repeat(jnp.arange(CLASSES), PER_CLASS), jnp.asarray(TIMES)

        def objective(parameters):
            features, prototypes = parameters
            losses = optax.softmax_cross_entropy_with_integer_labels(features @ prototypes.T, labels)
            return jnp.mean(losses) + 0.5 * DECAY * (jnp.sum(features**2) + jnp.sum(prototypes**2))

        def motion(t, y, args):
            return jax.tree.map(jnp.negative, jax.grad(objective)(y))

        def one(parameters):
            return diffrax.diffeqsolve(
                diffrax.ODETerm(motion),
                diffrax.Tsit5(),
                0.0,
                100.0,
                None,
                parameters,
                saveat=diffrax.SaveAt(ts=ts),
                stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            ).ys

        return _staged(jax, jax.vmap(one), starts())

    return make, starts()


def _product(name: str, folder: str, first: bool):
    import diffrax  # so that it counts as an import wherever the library asks for it

    import dynamics as dyn
    from dynamics.compile_cache import enable_compile_cache
    from dynamics.compiled import ahead_of_time, load_program

    jax = _begun()
    path = Path(folder) / "flow.program"
    features, prototypes = starts()
    arguments = dyn.Peeled(features, prototypes, np.zeros((MEMBERS, CLASSES)))
    if "cached" in name:
        enable_compile_cache(Path(folder) / "product")

    def moves():
        decay = dyn.Decay(DECAY, DECAY)
        problem = dyn.LayerPeeled.balanced(CLASSES, PER_CLASS, loss=dyn.losses.CrossEntropy(), decay=decay)
        rates, solver = dyn.Rates.equal(1.0), diffrax.Tsit5()

        def one(start):
            moved = dyn.flow(problem, start, rates, TIMES, rtol=TOLERANCE, atol=TOLERANCE, solver=solver)
            return moved.states.features, moved.states.prototypes

        return jax.vmap(one)

    def make():
        if "saved" not in name:
            return _staged(jax, moves(), arguments)
        if first:
            ahead_of_time(moves(), arguments).save(path)
        program = load_program(path)
        return program, program.seconds

    return make, arguments


if __name__ == "__main__":
    if sys.argv[1:2] == ["--racer"]:
        print(json.dumps(_run(sys.argv[2], sys.argv[3], "first" in sys.argv[4:])))
    else:
        print(table(cold(int(sys.argv[1]) if sys.argv[1:] else 5)))
