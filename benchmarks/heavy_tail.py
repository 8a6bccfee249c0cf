"""HEAVY-TAIL: a batch in which one member in a hundred needs many times the steps of the others."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from benchmarks import members as of
from benchmarks import reference
from benchmarks.flow_small import LADDER
from benchmarks.peers import version
from benchmarks.race import Contest, Racer, begun, error_of, loosest
from dynamics.ensemble import Ensemble
from dynamics.ensemble.store import MemoryStore

ERROR_IS = "largest absolute error over checked members, times and entries against DOP853 at 1e-12"


def build(quick: bool = False, members: int | None = None) -> Contest:
    """One member in a hundred at a 1000-fold rate; the product refills its lanes."""
    count, t_end, lanes = members or (200 if quick else 2048), 5.0, 16
    problem, ts = of.cross_entropy(4, 5), jnp.linspace(t_end / 10, t_end, 10)
    starts = of.starts(problem, 16, count, 0.3)
    rng = np.random.default_rng(0)
    rates = 10 ** rng.uniform(-0.3, 0.3, count)
    rates[rng.permutation(count)[: count // 100]] *= 1000
    start, on_device, rows = (starts.features, starts.prototypes), jnp.asarray(rates), of.checked(count, rates)
    force = reference.cross_entropy_force(problem.labels, 4, of.DECAY)
    some = of.picked(start, rows)
    solved = [  # a constant rate is a scale of time
        reference.flow(force, one, rate * np.asarray(ts)) for *one, rate in zip(*some, rates[np.asarray(rows)], strict=True)
    ]
    truth = tuple(np.stack(part) for part in zip(*solved, strict=True))

    def error(saved) -> float:
        return reference.largest_difference(of.picked(saved, rows), truth)

    objective = of.plain_objective(problem.labels)

    @jax.jit
    @jax.vmap
    def plain(parameters, rate):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, rate: jax.tree.map(lambda g: -rate * g, jax.grad(objective)(y))),
            diffrax.Tsit5(),
            0.0,
            t_end,
            None,
            parameters,
            rate,
            saveat=diffrax.SaveAt(ts=ts),
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6),
            max_steps=100_000,
            throw=False,
        ).ys

    def refilled(tolerance: float) -> tuple[Ensemble, Racer]:
        motion = dyn.segmented_flow(
            lambda member: (problem, member["start"], dyn.Rates.equal(member["rate"])), ts, rtol=tolerance, atol=tolerance
        )
        many = Ensemble(
            motion,
            {"start": starts, "rate": rates},
            chunk=count,
            lanes=lanes,
            keep=lambda moved: (moved.states.features, moved.states.prototypes),
        )
        many.ordered_as(np.argsort(-rates, kind="stable"))  # the stiffest first

        def run():
            store = MemoryStore()
            many.execute(store, progress=False)
            return many.array(store, "values[0]"), many.array(store, "values[1]")

        note = f"{lanes} lanes, results on the host"
        name = "dynamics.ensemble, segmented_flow"
        return many, Racer(name, run, error, version("jax"), "1 device", tolerance, note=note)

    def batched(tolerance: float) -> Racer:
        @jax.jit
        @jax.vmap
        def motion(start, rate):
            states = dyn.flow(problem, start, dyn.Rates.equal(rate), ts, rtol=tolerance, atol=tolerance).states
            return states.features, states.prototypes

        return Racer("dynamics.flow", lambda: motion(starts, on_device), error, version("jax"), tolerance=tolerance)

    base = begun(Racer("diffrax, vmap", lambda: plain(start, on_device), error, version("diffrax"), tolerance=1e-6))
    limit = error_of(base)
    products = [loosest(at, LADDER[1:], limit) for at in (batched, lambda tolerance: refilled(tolerance)[1])]
    many, store = refilled(1e-6)[0], MemoryStore()
    many.execute(store, progress=False)
    steps = many.array(store, "steps")
    settings = {
        "members": count,
        "checked": len(rows),
        "steps of a member": [int(steps.min()), float(np.median(steps)), int(steps.max())],
        "useful steps side by side": float(steps.sum() / (count * steps.max())),
        "useful steps in refilled lanes": many.report(store).useful,
    }
    return Contest([base, *products], limit, ERROR_IS, settings)
