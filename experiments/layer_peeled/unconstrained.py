"""Flow without decay: the exact trajectory, its invariant, and the time it depends on."""

import jax.numpy as jnp

import dynamics as dyn
from dynamics.verify import Claim, Measured
from experiments.instances import HORIZON, instance, worst_over
from experiments.registry import Experiment

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 2"
TS = jnp.linspace(0.0, HORIZON, 6)


def _flow_gap(members: int) -> Measured:
    def one(key, size):
        problem, state, rates = instance(key, size, bias=True)
        moved = dyn.flow(problem, state, rates, TS, rtol=1e-10, atol=1e-10)
        return dyn.compare(moved, dyn.exact.flow(problem, state, rates, TS)).worst

    return worst_over(one, members)


EXPERIMENT = Experiment(
    name="unconstrained",
    family="unhinged",
    summary="exact gradient flow without decay",
    claims=(
        Claim(
            name="unconstrained-flow",
            id="unhinged.unconstrained",
            statement="H(t), W(t), b(t) are hyperbolic functions of sqrt(zeta1 zeta2) in two eigenspaces",
            source=SOURCE,
            assumptions=("balanced classes", "no decay", "constant ratio of rates"),
            tolerance=1e-7,
            check=_flow_gap,
        ),
    ),
)
