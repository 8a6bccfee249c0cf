"""LOCKSTEP: of FLOW-S-SPREAD, the steps that were done over those that members needed. The same on every machine."""

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from benchmarks import members as of
from benchmarks.peers import diffrax_flows
from benchmarks.race import Counts
from dynamics.ensemble import Ensemble
from dynamics.ensemble.store import MemoryStore
from dynamics.simulate.flow import steps_in_lanes


def build(quick: bool = False, members: int | None = None) -> Counts:
    """The counts of the base, of `dynamics.flow` under vmap, and of `dynamics.ensemble` with lanes that are refilled."""
    count = members or (64 if quick else 1024)
    problem, ts = of.cross_entropy(4, 5), jnp.linspace(2.0, 100.0, 50)
    starts = of.starts(problem, 16, count, of.scales(count))
    steps = diffrax_flows.step_counts(of.plain_objective(problem.labels), ts, 1e-6)((starts.features, starts.prototypes))
    steps = np.asarray(steps)
    values = {"diffrax, vmap": count * float(steps.max()) / float(steps.sum())}

    done, held = jax.jit(lambda starts: steps_in_lanes(problem, starts, dyn.Rates.equal(1.0), ts, rtol=1e-6, atol=1e-6))(starts)
    values["dynamics.flow"] = float(held.sum()) / float(done.sum())
    motion = dyn.segmented_flow(lambda start: (problem, start, dyn.Rates.equal(1.0)), ts, rtol=1e-6, atol=1e-6)
    refilled = Ensemble(motion, starts, chunk=count, lanes=16, keep=None, cost=problem.stiffness)
    store = MemoryStore()
    refilled.execute(store, progress=False)
    values["dynamics.ensemble, segmented_flow"] = 1 / refilled.report(store).useful
    facts = {
        "members": count,
        "tolerance": 1e-6,
        "steps of a member": [int(steps.min()), float(steps.mean()), int(steps.max())],
    }
    return Counts(values, facts)
