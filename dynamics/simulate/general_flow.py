"""Gradient flow of one member by any solver of diffrax: the general way, the reference, and the one that differentiates."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from dynamics import state as tree
from dynamics.rates import Rates
from dynamics.simulate.prepared import Prepared, Run, ending, look, velocity
from dynamics.trajectory import blank


def general_flow(run: Prepared, observe, max_steps: int) -> Run:
    """Move one member; under `jax.vmap` every member keeps its own steps, and all wait for the last."""
    # the solver raises at times out of order
    times = jnp.where(run.valid, run.ts, jnp.arange(run.ts.shape[0], dtype=run.ts.dtype))

    def moved(t, y, args):
        motion = velocity(t, y, args)
        return tree.select(run.valid, motion, jax.tree.map(jnp.zeros_like, motion))

    def stop(t, y, args, **_):
        return ~(tree.norm(y) <= run.norm_cap)

    with jax.default_matmul_precision("highest"):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(moved),  # pyright: ignore[reportArgumentType]
            run.solver,
            t0=jnp.zeros((), times.dtype),
            t1=times[-1],
            dt0=None,
            y0=run.start,
            args=(run.problem, run.rates),
            saveat=diffrax.SaveAt(
                subs=[
                    diffrax.SubSaveAt(ts=times, fn=lambda t, y, args: look(run, observe, t, y)),
                    diffrax.SubSaveAt(t1=True, fn=lambda t, y, args: (t, y)),
                ]
            ),
            stepsize_controller=step_control(run.rates, times[-1], run.rtol, run.atol),
            event=diffrax.Event(stop),
            max_steps=max_steps,
            throw=False,
            adjoint=TrustedTimes(ts=times),
        )
    assert solution.ys is not None
    saved, (last_time, last_state) = solution.ys
    results = diffrax.RESULTS
    code = ending(
        run.valid,
        whole=solution.result == results.successful,
        out_of_steps=(solution.result == results.max_steps_reached) | (solution.result == results.max_steps_rejected),
        runaway=(solution.result == results.event_occurred) & tree.all_finite(last_state),
    )
    saved = _with_start(times, saved, look(run, observe, times[0], run.start))
    last_time = jnp.where(run.valid, last_time[0], 0.0)
    saved = blank((run.ts > last_time) | ~run.valid, saved)
    return Run(saved, code, jnp.where(run.valid, solution.stats["num_steps"], 0), last_time)


class TrustedTimes(diffrax.RecursiveCheckpointAdjoint):
    """Saves at times that are known to be in order.

    diffrax asks the host in every run whether save times are in order, and a program that calls the host is never kept on the
    disk. The times it has asked about are used nowhere here, and so it does not ask.
    """

    ts: Array | None = None

    def loop(self, *, saveat, **options):
        return super().loop(saveat=eqx.tree_at(lambda saveat: saveat.subs[0].ts, saveat, self.ts), **options)


def step_control(rates: Rates, t_end, rtol: float, atol: float):
    """Steps by the error of each, and to either side of every jump of the rates."""
    controller = diffrax.PIDController(rtol=rtol, atol=atol, dtmin=jnp.finfo(t_end.dtype).eps * 1e-3 * t_end)
    jumps = rates.jumps()
    return diffrax.ClipStepSizeController(controller, jump_ts=jumps.astype(t_end.dtype)) if jumps.shape[0] else controller


def _with_start(ts, saved: PyTree, at_start: PyTree) -> PyTree:
    """The start at t = 0 where the first step, not being finite, spoiled it; elsewhere what was saved, with its derivative."""

    def one(values, first):
        spoiled = (ts == 0) & ~jnp.all(jnp.isfinite(values).reshape(ts.shape[0], -1), axis=1)
        return jnp.where(spoiled.reshape(-1, *(1,) * first.ndim), first, values)

    return jax.tree.map(one, saved, at_start)
