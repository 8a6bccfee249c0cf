"""Gradient flows by diffrax: under vmap, with one shared step, and sorted into chunks."""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp


def solver_of(objective: Callable, ts, tolerance: float, solver=None, see: Callable | None = None) -> Callable:
    """Parameters to the saved states of one member; `see`: what is saved of a state instead."""
    gradient = jax.grad(objective)
    saveat = diffrax.SaveAt(ts=ts) if see is None else diffrax.SaveAt(ts=ts, fn=lambda t, y, args: see(y))

    def solve(parameters):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: jax.tree.map(jnp.negative, gradient(y))),
            diffrax.Tsit5() if solver is None else solver,
            0.0,
            ts[-1],
            None,
            parameters,
            saveat=saveat,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            max_steps=100_000,
            throw=False,
        )

    return solve


def vmapped(objective: Callable, ts, tolerance: float, solver=None, see: Callable | None = None) -> Callable:
    """Every member its own steps, all in lockstep."""
    solve = solver_of(objective, ts, tolerance, solver, see)
    return jax.jit(jax.vmap(lambda parameters: solve(parameters).ys))


def shared(objective: Callable, ts, tolerance: float) -> Callable:
    """One step size for the whole batch, by the root mean square of all errors; saved states have members first."""

    def total(parameters):
        return jnp.sum(jax.vmap(objective)(parameters))

    solve = solver_of(total, ts, tolerance)
    return jax.jit(lambda parameters: jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), solve(parameters).ys))


def sorted_chunks(objective: Callable, ts, tolerance: float, lanes: int = 16) -> Callable:
    """Members sorted by their squared norm, so many at a time."""
    solve = solver_of(objective, ts, tolerance)

    @jax.jit
    def moved(parameters):
        size = sum(jnp.sum(leaf**2, axis=(1, 2)) for leaf in parameters)
        order = jnp.argsort(size)
        saved = jax.lax.map(lambda one: solve(one).ys, jax.tree.map(lambda leaf: leaf[order], parameters), batch_size=lanes)
        back = jnp.argsort(order)
        return jax.tree.map(lambda leaf: leaf[back], saved)

    return moved


def step_counts(objective: Callable, ts, tolerance: float) -> Callable:
    """Steps of every member."""
    solve = solver_of(objective, ts, tolerance)
    return jax.jit(jax.vmap(lambda parameters: solve(parameters).stats["num_steps"]))
