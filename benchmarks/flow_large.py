"""FLOW-L: more directions of feature space than the start spans."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from benchmarks import members as of
from benchmarks import reference
from benchmarks.flow_small import LADDER
from benchmarks.peers import diffrax_flows, version
from benchmarks.race import Contest, Racer, begun, error_of, loosest

SAME = 1e-12


def build(quick: bool = False, members: int | None = None) -> Contest:
    """The product's states stay reduced and are lifted where its error is measured."""
    count, dim = members or (2 if quick else 8), 512
    problem, ts = of.cross_entropy(10, 10), jnp.linspace(2.0, 100.0, 50)
    starts = of.starts(problem, dim, count, 0.1)
    parameters = (starts.features, starts.prototypes)
    rows = tuple(range(min(count, 4)))
    force = reference.cross_entropy_force(problem.labels, 10, of.DECAY)
    truth = reference.flows(force, of.picked(parameters, rows), np.asarray(ts), ("flow-l",))
    motion = diffrax_flows.vmapped(of.plain_objective(problem.labels), ts, 1e-6)

    def error(saved) -> float:
        return reference.largest_difference(of.picked(saved, rows), truth)

    base = begun(Racer("diffrax, vmap", lambda: motion(parameters), error, version("diffrax"), tolerance=1e-6))
    limit = error_of(base)
    lift = jax.jit(jax.vmap(_lifted(problem)))
    some = jax.tree.map(lambda leaf: leaf[: len(rows)], starts)

    def error_lifted(saved, begun=some) -> float:
        return reference.largest_difference(lift(begun, jax.tree.map(lambda leaf: leaf[: len(rows)], saved)), truth)

    def staying(tolerance: float):
        def one(start):
            small = dyn.reduce.span(problem, start)
            moved = dyn.flow(small.problem, small.state, dyn.Rates.equal(1.0), ts, rtol=tolerance, atol=tolerance)
            return moved.states

        return jax.jit(jax.vmap(one))

    def at(tolerance: float) -> Racer:
        motion = staying(tolerance)
        return Racer(
            "dynamics.flow of the span",
            lambda: motion(starts),
            error_lifted,
            version("jax"),
            tolerance=tolerance,
            note="states in coordinates of the span of the start",
        )

    def full_at(tolerance: float) -> Racer:
        motion = jax.jit(
            jax.vmap(lambda one: dyn.flow(problem, one, dyn.Rates.equal(1.0), ts, rtol=tolerance, atol=tolerance).states)
        )
        return Racer(
            "dynamics.flow, all states",
            lambda: motion(starts),
            lambda saved: error((saved.features, saved.prototypes)),
            version("jax"),
            tolerance=tolerance,
        )

    fast, full = loosest(at, LADDER, limit), loosest(full_at, LADDER, limit)
    same = lifted_difference(problem, jax.tree.map(lambda leaf: leaf[0], starts))
    # a reduced motion that is another motion is over any limit
    fast = fast if same <= SAME else fast._replace(error=lambda saved: np.inf, begun=None)
    racers = [base, full, fast]
    meaning = (
        f"largest absolute error of lifted states against DOP853 at 1e-12; infinite where fixed steps differ by {SAME:.0e}"
    )
    settings = {"members": count, "checked": len(rows), "tolerance of peers": 1e-6, "difference at fixed steps": same}
    return Contest(racers, limit, meaning, settings)


def _lifted(problem):
    """(start, saved reduced states) of a member to its full features and prototypes."""

    def lifted(start, saved):
        whole = jax.vmap(dyn.reduce.span(problem, start).lift)(saved)
        return whole.features, whole.prototypes

    return lifted


def lifted_difference(problem, start, t_end: float = 20.0, steps: int = 200) -> float:
    """How far reduced and full motion are apart at the end of as many fixed Tsit5 steps, relative to the largest entry."""

    @jax.jit
    def moved(problem, state):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: problem.force(y)),
            diffrax.Tsit5(),
            0.0,
            t_end,
            t_end / steps,
            state,
            stepsize_controller=diffrax.ConstantStepSize(),
            throw=False,
        ).ys

    small = dyn.reduce.span(problem, start)
    lifted, full = jax.vmap(small.lift)(moved(small.problem, small.state)), moved(problem, start)
    pairs = ((lifted.features, full.features), (lifted.prototypes, full.prototypes))
    return float(max(jnp.max(jnp.abs(a - b)) for a, b in pairs) / max(jnp.max(jnp.abs(b)) for _, b in pairs))
