"""GD-S: small cross-entropy descents in float32 and float64."""

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from benchmarks import members as of
from benchmarks import reference
from benchmarks.peers import blas_threads, descents, missing, version
from benchmarks.race import Contest, Racer, Skipped, devices
from dynamics.ensemble import Dealt

TIMED = 20
"""Steps that loops are timed over."""
ERROR_IS = "largest error over checked members, snapshots and entries, relative to the snapshot's largest entry, against a \
NumPy loop in float64"


def single(quick: bool = False, members: int | None = None) -> Contest:
    """GD-S in float32."""
    return _build(quick, members, np.float32, 1e-5)


def double(quick: bool = False, members: int | None = None) -> Contest:
    """GD-S in float64."""
    return _build(quick, members, np.float64, 1e-12)


def _build(quick: bool, members: int | None, dtype, limit: float) -> Contest:
    count, steps, snapshots = members or (64 if quick else 1024), 400 if quick else 2000, 50
    every = steps // snapshots
    problem = of.cross_entropy(4, 5)
    starts = of.starts(problem, 16, count, 0.3, dtype)
    parameters, rates = (starts.features, starts.prototypes), of.rates(count).astype(dtype)
    force = reference.cross_entropy_force(problem.labels, 4, of.DECAY)
    rows = of.checked(count)
    some = tuple(part.astype(np.float64) for part in of.picked(parameters, rows))
    truth = reference.descents(force, some, rates[np.asarray(rows)].astype(np.float64), steps, every)
    on_device = jnp.asarray(rates)

    def error(saved) -> float:
        return reference.relative_difference(of.picked(saved, rows), truth, 2)

    def error_of_states(states) -> float:
        return error(jax.tree.map(lambda leaf: leaf[:, 1:], (states.features, states.prototypes)))

    def one(start, rate):
        return dyn.descent(problem, start, dyn.Rates.equal(rate), steps, every=every).states

    peer, mine = descents.optax_scan(of.plain_objective(problem.labels), steps, every), jax.jit(jax.vmap(one))
    host = jax.device_get(parameters)
    loops = {"NumPy matmul, a loop": (descents.numpy_loop(force, host, rates, TIMED), version("numpy"), blas_threads())}
    skipped, reason = [], missing("torch")
    if reason is None:
        torch = descents.torch_bmm(problem.labels, 4, of.DECAY, host, rates, TIMED)
        loops["PyTorch bmm by hand"] = (torch, version("torch"), "1 thread")
    else:
        skipped.append(Skipped("PyTorch bmm by hand", reason))
    after = reference.descents(force, some, rates[np.asarray(rows)].astype(np.float64), TIMED, TIMED)

    def error_of_loop(state) -> float:
        return reference.relative_difference(of.picked(state, rows), tuple(part[:, 0] for part in after), 1)

    racers = [
        Racer("optax, scan under vmap", lambda: peer(parameters, on_device), error, version("optax")),
        *(
            Racer(
                name, run, error_of_loop, library, threads, times=steps / TIMED,
                note=f"timed and judged over {TIMED} of {steps} steps",
            )
            for name, (run, library, threads) in loops.items()
        ),
        Racer("dynamics.descent", lambda: mine(starts, on_device), error_of_states, version("jax")),
        _dealt(one, starts, on_device, error_of_states),
    ]  # fmt: skip
    settings = {
        "members": count,
        "checked": len(rows),
        "steps": steps,
        "snapshots": snapshots,
        "precision": np.dtype(dtype).name,
    }
    return Contest(racers, limit, ERROR_IS, settings, skipped)


def _dealt(one, starts, rates, error) -> Racer:
    """The same on all devices at once."""
    many = Dealt(lambda member: one(member["start"], member["rate"]), {"start": starts, "rate": rates})
    return Racer("dynamics.ensemble.Dealt", many, lambda values: error(many.gathered(values)), version("jax"), devices(many))
