"""Small cross-entropy flows: FLOW-S, FLOW-S-SPREAD, FLOW-S-OBS, FLOW-S-TIGHT."""

from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from benchmarks import members as of
from benchmarks import reference
from benchmarks.peers import blas_threads, diffrax_flows, missing, scipy_flows, torch_flows, version
from benchmarks.race import Contest, Racer, Skipped, begun, devices, error_of, loosest
from dynamics.ensemble import Dealt

LADDER = (2e-6, 1.4e-6, 1e-6, 8.5e-7, 7e-7, 5e-7, 3.5e-7, 2e-7, 1e-7)
"""The product takes the loosest that is as accurate as the base at 1e-6."""
GENERAL_LADDER = (1e-6, 5e-7, 2e-7)
OBSERVED_GATE = 1e-5
"""Of FLOW-S-OBS, for all: peers take 1e-6, or the loosest below it that is within it."""
TIGHT_LADDER = (2e-10, 1e-10, 5e-11, 2e-11, 1e-11, 5e-12, 2e-12, 1e-12)


class Setting(NamedTuple):
    """What is moved, and the truth of the members that are checked."""

    problem: dyn.LayerPeeled
    starts: dyn.Peeled
    ts: jax.Array
    rows: tuple[int, ...]
    truth: tuple[np.ndarray, np.ndarray]
    force: Callable
    objective: Callable

    @property
    def parameters(self):
        """Features and prototypes of all members."""
        return self.starts.features, self.starts.prototypes

    @property
    def count(self) -> int:
        """The number of members."""
        return self.starts.features.shape[0]

    def error(self, saved) -> float:
        """The largest absolute error of the checked members among all."""
        return reference.largest_difference(of.picked(saved, self.rows), self.truth)

    def facts(self, tolerance: float, **more) -> dict:
        """What goes into the record."""
        return {"members": self.count, "checked": len(self.rows), "tolerance of peers": tolerance, **more}


ERROR_IS = "largest absolute error over checked members, times and entries of features and prototypes against DOP853 at 1e-12"


def setting(count: int, scale, sizes=None) -> Setting:
    """FLOW-S with so many members; `sizes`: their scales, where the largest are to be checked."""
    problem, ts = of.cross_entropy(4, 5), jnp.linspace(2.0, 100.0, 50)
    starts, rows = of.starts(problem, 16, count, scale), of.checked(count, sizes)
    force = reference.cross_entropy_force(problem.labels, 4, of.DECAY)
    truth = reference.flows(force, of.picked((starts.features, starts.prototypes), rows), np.asarray(ts), ("flow-s",))
    return Setting(problem, starts, ts, rows, truth, force, of.plain_objective(problem.labels))


def moved_by(made: Setting, tolerance: float, method: str = "auto", observe: dict | None = None, solver=None) -> Callable:
    """The product's verb over members."""
    return jax.jit(jax.vmap(_one(made, tolerance, method, observe, solver)))


def _one(made: Setting, tolerance, method: str, observe: dict | None, solver) -> Callable:
    options = {"rtol": tolerance, "atol": tolerance, "observe": observe, "method": method, "solver": solver}

    def one(start):
        moved = dyn.flow(made.problem, start, dyn.Rates.equal(1.0), made.ts, **options)
        return (moved.states.features, moved.states.prototypes) if observe is None else moved.observed

    return one


def product(
    made: Setting, limit: float, ladder=LADDER, method: str = "auto", observe: dict | None = None, judge=None, solver=None
) -> Racer:
    """`dynamics.flow` under jit and vmap at the loosest tolerance within the limit."""
    judge = reference.largest_difference if judge is None else judge
    some = jax.tree.map(lambda leaf: leaf[np.asarray(made.rows)], made.starts)

    def at(tolerance: float) -> Racer:
        motion = moved_by(made, tolerance, method, observe, solver)
        name = "dynamics.flow" if method == "auto" else f"dynamics.flow, method={method!r}"
        name = name if solver is None else f"{name}, {type(solver).__name__}"
        return Racer(
            name,
            lambda: motion(made.starts),
            lambda saved: judge(of.picked(saved, made.rows), made.truth),
            version("jax"),
            tolerance=tolerance,
        )

    def trial(tolerance: float) -> float:
        return judge(jax.device_get(moved_by(made, tolerance, method, observe, solver)(some)), made.truth)

    # side by side with the stiffest, all members are slow: those that are checked tell the error
    return loosest(at, ladder, limit, trial if method == "general" else None)


def dealt(made: Setting, fast: Racer, observe: dict | None = None, judge=None, solver=None, reuse: bool = False) -> Racer:
    """The same on all devices at once, at the same tolerance."""
    judge = reference.largest_difference if judge is None else judge
    one = _one(made, fast.tolerance, "auto", observe, solver)
    many = Dealt(one, made.starts, cost=lambda start: made.problem.stiffness(start), reuse=reuse)

    def error(values) -> float:
        return judge(of.picked(many.gathered(values), made.rows), made.truth)

    name, note = "dynamics.ensemble.Dealt", "into the memory of the result before" if reuse else ""
    name = f"{name}, reuse" if reuse else name
    return Racer(name, many, error, version("jax"), devices(many), fast.tolerance, note=note)


def diffrax_peer(name: str, motion: Callable, made: Setting, tolerance: float) -> Racer:
    """A diffrax peer that moves all members."""
    return Racer(name, lambda: motion(made.parameters), made.error, version("diffrax"), tolerance=tolerance)


def loop_peer(name: str, loop: Callable, made: Setting, tolerance: float, timed: int, library: str, threads: str) -> Racer:
    """A peer that is timed on the first `timed` members and judged on those that are checked."""
    timed = min(timed, made.count)
    some = of.picked(made.parameters, range(timed))
    checked = of.picked(made.parameters, made.rows)
    return Racer(
        name,
        lambda: loop(some),
        lambda _: reference.largest_difference(loop(checked), made.truth),
        library,
        threads,
        tolerance,
        made.count / timed,
        f"timed on {timed} of {made.count} members" if timed < made.count else "",
    )


def torch_peers(made: Setting, tolerance: float, timed: int) -> tuple[list[Racer], list[Skipped]]:
    """torchdiffeq and torchode, those that can be imported."""
    racers, skipped = [], []
    for name, package, make in (
        ("torchdiffeq dopri5, one shared step", "torchdiffeq", torch_flows.torchdiffeq_shared),
        ("torchode Tsit5", "torchode", torch_flows.torchode_each),
    ):
        reason = missing("torch", package)
        if reason is not None:
            skipped.append(Skipped(name, reason))
            continue
        loop = make(made.problem.labels, 4, of.DECAY, made.ts, tolerance)
        racers.append(loop_peer(name, loop, made, tolerance, timed, version(package, "torch"), "1 thread"))
    return racers, skipped


def scipy_peers(made: Setting, tolerance: float, timed: int) -> list[Racer]:
    """SciPy's two explicit pairs in a loop over members."""
    return [
        loop_peer(
            f"SciPy {method}, a loop",
            scipy_flows.loop(made.force, made.ts, tolerance, method),
            made,
            tolerance,
            timed,
            version("scipy", "numpy"),
            blas_threads(),
        )
        for method in ("RK45", "DOP853")
    ]


def _races(made: Setting, timed: int, timed_torch: int) -> Contest:
    """All peers at 1e-6 and the product at the base's error."""
    base = begun(diffrax_peer("diffrax, vmap", diffrax_flows.vmapped(made.objective, made.ts, 1e-6), made, 1e-6))
    limit = error_of(base)
    torches, skipped = torch_peers(made, 1e-6, timed_torch)
    fast = product(made, limit)
    assert fast.tolerance is not None
    racers = [
        base,
        diffrax_peer("diffrax, one shared step", diffrax_flows.shared(made.objective, made.ts, 1e-6), made, 1e-6),
        diffrax_peer("diffrax, sorted chunks of 16", diffrax_flows.sorted_chunks(made.objective, made.ts, 1e-6), made, 1e-6),
        *scipy_peers(made, 1e-6, timed),
        *torches,
        product(made, limit, GENERAL_LADDER, "general"),
        fast,
        dealt(made, fast),
        dealt(made, fast, reuse=True),
    ]
    return Contest(racers, limit, ERROR_IS, made.facts(1e-6), skipped)


def equal_scales(quick: bool = False, members: int | None = None) -> Contest:
    """FLOW-S."""
    count = members or (64 if quick else 1024)
    return _races(setting(count, 0.3), timed=64, timed_torch=count)


def spread_scales(quick: bool = False, members: int | None = None) -> Contest:
    """FLOW-S-SPREAD. Peers in lockstep are timed on few members: by how much they suffer depends on the largest of those."""
    count = members or (64 if quick else 1024)
    sizes = of.scales(count)
    return _races(setting(count, sizes, sizes), timed=256, timed_torch=128)


def observed(quick: bool = False, members: int | None = None) -> Contest:
    """FLOW-S-OBS: the base saves states, as the observables of its user come after."""
    made = setting(members or (64 if quick else 1024), 0.3)
    labels = made.problem.labels

    def seen(states) -> dict:
        return reference.observed(*states, labels, of.DECAY, "cross-entropy")

    truth = seen(made.truth)
    made = made._replace(truth=truth)

    def error_of_states(saved) -> float:
        return reference.relative_over_times(seen(of.picked(saved, made.rows)), truth)

    functions = reference.library_observables()
    judge = reference.relative_over_times

    def see(parameters):
        return {name: f(made.problem, dyn.Peeled(*parameters)) for name, f in functions.items()}

    def error_of_values(found) -> float:
        return judge(of.picked(found, made.rows), truth)

    def peer(name: str, error, see=None) -> Racer:
        def at(tolerance: float) -> Racer:
            motion = diffrax_flows.vmapped(made.objective, made.ts, tolerance, see=see)
            return Racer(name, lambda: motion(made.parameters), error, version("diffrax"), tolerance=tolerance)

        return loosest(at, GENERAL_LADDER, OBSERVED_GATE)

    base = begun(peer("diffrax, vmap, states", error_of_states))
    assert base.tolerance is not None
    limit = min(OBSERVED_GATE, error_of(base))
    fast = product(made, limit, observe=functions, judge=judge)
    racers = [
        base,
        peer("diffrax, vmap, observables", error_of_values, see),
        product(made, limit, GENERAL_LADDER, "general", observe=functions, judge=judge),
        fast,
        dealt(made, fast, functions, judge),
        dealt(made, fast, functions, judge, reuse=True),
    ]
    meaning = "largest error over checked members, times and observables, relative to the observable's largest size in time"
    return Contest(racers, limit, meaning, made.facts(base.tolerance, observables=list(functions)))


def tight(quick: bool = False, members: int | None = None) -> Contest:
    """FLOW-S-TIGHT: the gate is the error of the better of two bases."""
    made = setting(members or (16 if quick else 64), 0.3)
    pairs = {"Tsit5": diffrax.Tsit5(), "Dopri8": diffrax.Dopri8()}
    peers = [
        begun(
            diffrax_peer(f"diffrax, vmap, {name}", diffrax_flows.vmapped(made.objective, made.ts, 1e-10, solver), made, 1e-10)
        )
        for name, solver in pairs.items()
    ]
    limit = min(map(error_of, peers))
    usual = product(made, limit, TIGHT_LADDER)
    fifth = product(made, limit, TIGHT_LADDER, solver=diffrax.Tsit5())
    assert fifth.tolerance is not None
    racers = [
        *peers,
        *scipy_peers(made, 1e-10, 16)[1:],
        product(made, limit, TIGHT_LADDER, "general"),
        usual._replace(name="dynamics.flow, Dopri8 (by itself)"),
        fifth,
        dealt(made, fifth, solver=diffrax.Tsit5()),
    ]
    return Contest(racers, limit, ERROR_IS, made.facts(1e-10))
