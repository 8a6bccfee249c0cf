"""A batch whose stiffness has a heavy tail: one member in a hundred needs many times the steps of the others."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import dynamics as dyn
from benchmarks.race import Racer
from dynamics.ensemble.store import MemoryStore

DECAY = 5e-3
TOLERANCE = 1e-6


def heavy_tail(members: int = 2048, t_end: float = 5.0, lanes: int = 16) -> list[Racer]:
    """Cross-entropy flow, 1 % of members at a 1000-fold rate: C 4, N 5, p 16, t to 5, 10 states, tolerance 1e-6, float64."""
    problem = dyn.LayerPeeled.balanced(4, 5, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(DECAY, DECAY))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(members))
    starts = jax.vmap(lambda key: dyn.initial.gaussian(problem, dim=16, key=key, scale=0.3))(keys)
    rng = np.random.default_rng(0)
    rates = 10 ** rng.uniform(-0.3, 0.3, members)
    rates[rng.permutation(members)[: members // 100]] *= 1000
    ts, labels = jnp.linspace(t_end / 10, t_end, 10), jnp.asarray(problem.labels)

    def objective(parameters):
        features, prototypes = parameters
        losses = optax.softmax_cross_entropy_with_integer_labels(features @ prototypes.T, labels)
        return jnp.mean(losses) + 0.5 * DECAY * (jnp.sum(features**2) + jnp.sum(prototypes**2))

    @jax.jit
    @jax.vmap
    def plain(parameters, rate):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, rate: jax.tree.map(lambda g: -rate * g, jax.grad(objective)(y))),
            diffrax.Tsit5(),
            0.0,
            t_end,
            None,
            parameters,
            rate,
            saveat=diffrax.SaveAt(ts=ts),
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            max_steps=100_000,
            throw=False,
        )
        return solution.ys

    def product(tolerance):
        motion = dyn.segmented_flow(
            lambda member: (problem, member["start"], dyn.Rates.equal(member["rate"])),
            ts,
            rtol=tolerance,
            atol=tolerance,
            solver=diffrax.Tsit5(),
        )
        return dyn.ensemble.Ensemble(
            motion,
            {"start": starts, "rate": rates},
            chunk=members,
            lanes=lanes,
            keep=lambda moved: (moved.states.features, moved.states.prototypes),
        )

    def ours(ensemble):
        ensemble.ordered_as(np.argsort(-rates, kind="stable"))  # the stiffest first
        store = MemoryStore()
        ensemble.execute(store, progress=False)
        return store

    def states(ensemble, store):
        return ensemble.array(store, "values[0]"), ensemble.array(store, "values[1]")

    def error(values) -> float:
        worst = [np.sqrt(np.sum((a - b) ** 2, axis=(1, 2, 3))) for a, b in zip(values, reference, strict=True)]
        size = [np.sqrt(np.sum(b**2, axis=(1, 2, 3))) for b in reference]
        return float(max(np.max(a / b) for a, b in zip(worst, size, strict=True)))

    exact, mine = product(1e-10), product(TOLERANCE)
    reference = states(exact, ours(exact))
    store = ours(mine)
    assert np.all(mine.array(store, "status") == dyn.status.OK)
    steps, useful = mine.array(store, "steps"), mine.report(store).useful
    print(
        f"heavy-tail: {members} members, {np.median(steps):.0f} steps in the middle and {steps.max()} at most; useful "
        f"lane-steps: {steps.sum() / (members * steps.max()):.1%} side by side, {useful:.1%} in {lanes} lanes"
    )
    return [
        Racer("jit(vmap(diffeqsolve))", lambda: plain((starts.features, starts.prototypes), jnp.asarray(rates)), error),
        Racer("dynamics.ensemble, segmented_flow", lambda: states(mine, ours(mine)), error),
    ]
