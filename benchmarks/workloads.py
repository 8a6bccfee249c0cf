"""Workloads: what is moved, by whom, and how wrong each is."""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import dynamics as dyn
from benchmarks.heavy_tail import heavy_tail
from benchmarks.race import Racer


def _cross_entropy(classes: int, per_class: int, decay: float) -> dyn.LayerPeeled:
    return dyn.LayerPeeled.balanced(classes, per_class, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(decay, decay))


def _starts(problem: dyn.LayerPeeled, dim: int, members: int, scale: float) -> dyn.Peeled:
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(members))
    return jax.vmap(lambda key: dyn.initial.gaussian(problem, dim=dim, key=key, scale=scale))(keys)


def _plain_objective(labels: np.ndarray, decay: float) -> Callable:
    """The objective as a user would write it, without the library."""

    def objective(parameters):
        features, prototypes = parameters
        losses = optax.softmax_cross_entropy_with_integer_labels(features @ prototypes.T, jnp.asarray(labels))
        return jnp.mean(losses) + 0.5 * decay * (jnp.sum(features**2) + jnp.sum(prototypes**2))

    return objective


def _gap(result, reference) -> float:
    return float(
        jnp.sqrt(sum(jnp.sum((a - b) ** 2) for a, b in zip(result, reference, strict=True)))
        / jnp.sqrt(sum(jnp.sum(b**2) for b in reference))
    )


def flow_s(members: int = 256) -> list[Racer]:
    """Cross-entropy flow: C 4, N 5, p 16, scale 0.3, decay 5e-3, t to 100, 50 states, tolerance 1e-6, float64."""
    problem, ts = _cross_entropy(4, 5, 5e-3), jnp.linspace(2.0, 100.0, 50)
    starts = _starts(problem, 16, members, 0.3)
    gradient = jax.grad(_plain_objective(problem.labels, 5e-3))

    def plain(parameters):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: jax.tree.map(jnp.negative, gradient(y))),
            diffrax.Tsit5(),
            0.0,
            100.0,
            None,
            parameters,
            saveat=diffrax.SaveAt(ts=ts),
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6),
            throw=False,
        )
        return solution.ys

    def product(tolerance):
        def one(start):
            moved = dyn.flow(problem, start, dyn.Rates.equal(1.0), ts, rtol=tolerance, atol=tolerance, solver=diffrax.Tsit5())
            return moved.states.features, moved.states.prototypes

        return jax.jit(jax.vmap(one))

    reference = jax.block_until_ready(product(1e-11)(starts))
    peer, mine = jax.jit(jax.vmap(plain)), product(1e-6)
    parameters = (starts.features, starts.prototypes)
    return [
        Racer("vmap(diffrax Tsit5)", lambda: peer(parameters), lambda out: _gap(out, reference)),
        Racer("dynamics.flow", lambda: mine(starts), lambda out: _gap(out, reference)),
    ]


def gd_s(members: int = 256) -> list[Racer]:
    """Cross-entropy descent: C 4, N 5, p 16, 400 steps, 50 snapshots, a rate a member, float64."""
    problem, steps, every = _cross_entropy(4, 5, 5e-3), 400, 8
    starts = _starts(problem, 16, members, 0.3)
    rates = jnp.asarray(10 ** np.random.default_rng(2).uniform(-1.5, -0.3, members))
    gradient = jax.grad(_plain_objective(problem.labels, 5e-3))

    def plain(parameters, rate):
        optimiser = optax.sgd(rate)

        def step(carry, _):
            parameters, memory = carry
            updates, memory = optimiser.update(gradient(parameters), memory)
            return (optax.apply_updates(parameters, updates), memory), None

        def snapshot(carry, _):
            carry, _ = jax.lax.scan(step, carry, None, length=every)
            return carry, carry[0]

        return jax.lax.scan(snapshot, (parameters, optimiser.init(parameters)), None, length=steps // every)[1]

    def one(start, rate):
        moved = dyn.descent(problem, start, dyn.Rates.equal(rate), steps, every=every)
        return moved.states.features[1:], moved.states.prototypes[1:]

    peer, mine = jax.jit(jax.vmap(plain)), jax.jit(jax.vmap(one))
    parameters = (starts.features, starts.prototypes)
    reference = peer(parameters, rates)
    return [
        Racer("vmap(optax.sgd) in a scan", lambda: peer(parameters, rates), lambda out: _gap(out, reference)),
        Racer("dynamics.descent", lambda: mine(starts, rates), lambda out: _gap(out, reference)),
    ]


def unhinged_paper(steps: int = 5000) -> list[Racer]:
    """Unhinged descent at p 512, C 100, N 10, float64, rate 0.05, 10 class-mean states: iterates against the formula."""
    full = dyn.LayerPeeled.balanced(100, 10, loss=dyn.losses.Unhinged())
    start = dyn.initial.gaussian(full, dim=512, key=jax.random.key(0), scale=(1.0, (2 / 512) ** 0.5))
    reduced = dyn.reduce.class_means(full, start)
    rates, every = dyn.Rates.equal(0.05), steps // 10
    coupling = (1 + 1 / 99) * jnp.eye(100) - 1 / 99
    coupling = coupling / (100 * 10**0.5)

    @jax.jit
    def plain(g, w):
        def step(carry, _):
            g, w = carry
            return (g + 0.05 * coupling @ w, w + 0.05 * coupling @ g), None

        def snapshot(carry, _):
            carry, _ = jax.lax.scan(step, carry, None, length=every)
            return carry, carry

        return jax.lax.scan(snapshot, (g, w), None, length=10)[1]

    def run(verb):
        @jax.jit
        def moved(problem, state):
            path = verb(problem, state, rates, steps, every=every).states
            return path.features[1:], path.prototypes[1:]

        return lambda: moved(reduced.problem, reduced.state)

    begin = (reduced.state.features, reduced.state.prototypes)
    reference = plain(*begin)
    return [
        Racer("lax.scan of dense class means", lambda: plain(*begin), lambda out: _gap(out, reference)),
        Racer("dynamics.descent", run(dyn.descent), lambda out: _gap(out, reference)),
        Racer("dynamics.exact.descent", run(dyn.exact.descent), lambda out: _gap(out, reference)),
    ]


WORKLOADS: dict[str, Callable[[], list[Racer]]] = {
    "flow-s": flow_s,
    "gd-s": gd_s,
    "unhinged-paper": unhinged_paper,
    "heavy-tail": heavy_tail,
}
