"""GD-L: descents in more directions of feature space than the start spans, and from collapsed features."""

import jax
import jax.numpy as jnp

import dynamics as dyn
from benchmarks import members as of
from benchmarks import reference
from benchmarks.descent_small import ERROR_IS
from benchmarks.peers import descents, version
from benchmarks.race import Contest, Racer

CHECKED = 2


def spread_features(quick: bool = False, members: int | None = None) -> Contest:
    """Gaussian features: they span samples + classes directions."""
    return _build(quick, members, collapsed=False)


def collapsed_features(quick: bool = False, members: int | None = None) -> Contest:
    """Features equal within classes: one feature a class says all."""
    return _build(quick, members, collapsed=True)


def _build(quick: bool, members: int | None, collapsed: bool) -> Contest:
    count, steps, snapshots = members or (2 if quick else 8), 100 if quick else 2000, 50
    every, problem = steps // snapshots, of.cross_entropy(10, 10)
    starts = of.starts(problem, 512, count, 0.1)
    if collapsed:
        alike = jax.vmap(lambda features: features[:: problem.num_samples // problem.num_classes])(starts.features)
        starts = dyn.Peeled(jnp.repeat(alike, 10, axis=1), starts.prototypes, starts.biases)
    parameters, rates = (starts.features, starts.prototypes), of.rates(count)
    rows = tuple(range(min(count, CHECKED)))
    force = reference.cross_entropy_force(problem.labels, 10, of.DECAY)
    truth = reference.descents(force, of.picked(parameters, rows), rates[: len(rows)], steps, every)
    on_device = jnp.asarray(rates)

    def error(saved) -> float:
        return reference.relative_difference(of.picked(saved, rows), truth, 2)

    def reduction(start):
        if not collapsed:
            return dyn.reduce.span(problem, start)
        small = dyn.reduce.collapsed(problem, start)
        return dyn.reduce.spanned(small)

    def whole(start, rate):
        return dyn.descent(problem, start, dyn.Rates.equal(rate), steps, every=every).states

    def staying(start, rate):
        small = reduction(start)
        return dyn.descent(small.problem, small.state, dyn.Rates.equal(rate), steps, every=every).states

    @jax.jit
    @jax.vmap
    def lift(start, saved):
        full = jax.vmap(reduction(start).lift)(saved)
        return full.features, full.prototypes

    def error_lifted(saved) -> float:
        few = jax.tree.map(lambda leaf: leaf[: len(rows)], (starts, saved))
        return error(jax.tree.map(lambda leaf: leaf[:, 1:], lift(*few)))

    peer = descents.optax_scan(of.plain_objective(problem.labels), steps, every)
    full, small = jax.jit(jax.vmap(whole)), jax.jit(jax.vmap(staying))
    racers = [
        Racer("optax, scan under vmap", lambda: peer(parameters, on_device), error, version("optax")),
        Racer(
            "dynamics.descent, all states",
            lambda: full(starts, on_device),
            lambda saved: error((saved.features[:, 1:], saved.prototypes[:, 1:])),
            version("jax"),
        ),
        Racer(
            "dynamics.descent of the span" + (" of class means" if collapsed else ""),
            lambda: small(starts, on_device),
            error_lifted,
            version("jax"),
            note="states in coordinates of the span of the start",
        ),
    ]
    settings = {"members": count, "checked": len(rows), "steps": steps, "snapshots": snapshots}
    return Contest(racers, 1e-12, ERROR_IS, settings)
