"""WORK-PRECISION: error against time for every solver on FLOW-S."""

import time
from typing import Any

import diffrax
import jax
import numpy as np

from benchmarks import flow_small as small
from benchmarks.peers import diffrax_flows, missing
from benchmarks.race import Curves, Racer

TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)


def build(quick: bool = False, members: int | None = None) -> Curves:
    """Median seconds of three alternating runs a member, and errors, at every tolerance."""
    made = small.setting(members or (32 if quick else 256), 0.3)
    tolerances = TOLERANCES[::3] if quick else TOLERANCES
    curves: dict[str, list[dict[str, Any]]] = {}
    for tolerance in tolerances:
        racers = _racers(made, tolerance)
        errors = [racer.error(jax.block_until_ready(racer.run())) for racer in racers]
        seconds = np.empty((3, len(racers)))
        for row in seconds:
            for place, racer in enumerate(racers):
                begin = time.perf_counter()
                jax.block_until_ready(racer.run())
                row[place] = racer.times * (time.perf_counter() - begin) / made.count
        for racer, error, each in zip(racers, errors, np.median(seconds, axis=0), strict=True):
            point = {"tolerance": tolerance, "error": error, "seconds_per_member": float(each)}
            curves.setdefault(racer.name, []).append(point)
    skipped = {name: reason for name in ("torchdiffeq", "torchode") if (reason := missing("torch", name))}
    return Curves({"curves": curves, "skipped": skipped}, made.facts(tolerances[-1]) | {"tolerances": list(tolerances)})


def _racers(made: small.Setting, tolerance: float) -> list[Racer]:
    def peer(name: str, solver=None) -> Racer:
        motion = diffrax_flows.vmapped(made.objective, made.ts, tolerance, solver)
        return small.diffrax_peer(name, motion, made, tolerance)

    shared = diffrax_flows.shared(made.objective, made.ts, tolerance)
    torches, _ = small.torch_peers(made, tolerance, 64)
    fast = small.product(made, np.inf, (tolerance,))
    return [
        peer("diffrax, vmap, Tsit5"),
        peer("diffrax, vmap, Dopri8", diffrax.Dopri8()),
        small.diffrax_peer("diffrax, one shared step", shared, made, tolerance),
        *small.scipy_peers(made, tolerance, 16),
        *torches,
        fast,
        small.dealt(made, fast),
    ]
