"""The rotation of feature space that the closed form of the square loss leaves open, by its own small linear ODE."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics import state as tree
from dynamics import status
from dynamics.exact.closed_form import NoClosedForm
from dynamics.exact.riccati import Riccati, Rows, advanced, gram
from dynamics.exact.square_loss import obstacles, panels_of, start_of
from dynamics.problems import LayerPeeled, Peeled
from dynamics.rates import Rates, check_rates
from dynamics.trajectory import check_times, good_times

STAGES = 6
PARTS = 2
"""Steps of the rotation in one of the factor's."""
EARLY = 2.0 ** np.arange(-20, 1.5, 0.5)
"""The first two steps are cut at these times: a large start is damped within a time of 1/(c |Q|^2)."""


def rotation(problem: LayerPeeled, state: Peeled, rates: Rates, ts) -> Float[Array, "times dim dim"]:
    r"""Orthogonal matrices R(t): features and prototypes of `exact.flow` times R(t) are those of the flow itself.

    In the gauge of `exact.flow`, $R' = \frac12(\mathrm{triu}\,S - \mathrm{tril}\,S)R$ with $S = cQ^\top Q$ known at every
    time; integrated by Gauss collocation of order 12, which keeps R orthogonal. The error is below 1e-12 in
    float64 and 5e-5 in float32 for clocks up to 1000 over the fastest growth rate.
    Arguments as in `exact.flow`; NaN where its status would not be ok.

    **Raises:** `NoClosedForm` where the square loss has none; `ValueError` for anything out of range before tracing.

    **Reference:** derived here.
    """
    check_rates(rates)
    reasons = obstacles(problem, rates)
    if reasons:
        raise NoClosedForm(f"the square loss from a balanced start does not apply: {'; '.join(reasons)}")
    state = problem.check(state)
    problem, rates = tree.cast((problem, rates), state.features.dtype)
    ts = check_times(ts, state.features.dtype)
    clock = rates.weights.integral(ts)
    with jax.default_matmul_precision("highest"):
        start = start_of(problem, state, rates)
        panels, h, within = panels_of(start, clock[-1])
        edges = np.concatenate([[0.0], EARLY, np.arange(3, PARTS * panels + 1)]).astype(clock.dtype)
        turned = _turned(start.riccati, start.factor, jnp.asarray(edges) * (h / PARTS), clock)
    valid = tree.all_finite(state) & good_times(ts) & rates.valid() & problem.valid()
    valid = valid & (start.code == status.OK) & (within == status.OK)
    return jnp.where(valid, turned, jnp.nan)


def _turned(riccati: Riccati, factor: Rows, edges: Float[Array, " nodes"], clock: Float[Array, " times"]):
    dim = factor.shape[1]
    first = factor, jnp.eye(dim, dtype=factor.dtype)

    def step(carry, h):
        factor, turn = carry
        carry = advanced(riccati, factor, h), _step(riccati, factor, h) @ turn
        return carry, carry

    _, path = jax.lax.scan(step, first, jnp.diff(edges))
    factors, turns = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, path)

    def at(t):
        index = jnp.clip(jnp.searchsorted(edges, t, side="right") - 1, 0, edges.shape[0] - 1)
        return _step(riccati, factors[index], t - edges[index]) @ turns[index]

    return jax.lax.map(at, clock)


def _collocation() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, weights and matrix of the Gauss method on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(STAGES)
    nodes = (nodes + 1) / 2
    power = np.arange(1, STAGES + 1)
    # integrals of the interpolating polynomials up to each node
    matrix = (nodes[:, None] ** power / power) @ np.linalg.inv(nodes[:, None] ** (power - 1))
    return nodes, weights / 2, matrix


NODES, WEIGHTS, MATRIX = _collocation()


def _step(riccati: Riccati, factor: Rows, h) -> Float[Array, "dim dim"]:
    """How far the gauge turns while the factor moves for a time `h`."""
    dim, dtype = factor.shape[1], factor.dtype

    def speed(node):
        moved = advanced(riccati, factor, node * h)
        pull = riccati.damping * gram(riccati, moved, jnp.ones_like(riccati.rates))
        return 0.5 * h * (jnp.triu(pull, 1) - jnp.tril(pull, -1))

    speeds = jax.vmap(speed)(jnp.asarray(NODES, dtype))
    # stages K_i = S_i (1 + sum_j a_ij K_j)
    system = -jnp.asarray(MATRIX, dtype)[:, None, :, None] * speeds[:, :, None, :]
    system = system.reshape(STAGES * dim, STAGES * dim) + jnp.eye(STAGES * dim, dtype=dtype)
    stages = jnp.linalg.solve(system, speeds.reshape(STAGES * dim, dim)).reshape(STAGES, dim, dim)
    return jnp.eye(dim, dtype=dtype) + jnp.tensordot(jnp.asarray(WEIGHTS, dtype), stages, 1)
