"""How much of a part that nothing pulls is left: within-class deviations under decay alone."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamics import state as tree
from dynamics.problems import LayerPeeled
from dynamics.rates import Rates


def kept_in_flow(problem: LayerPeeled, rates: Rates, ts: Float[Array, "*times"]) -> Float[Array, "*times"]:
    r"""The factor of within-class deviations at `ts`, $e^{-\lambda_1\zeta_1(t)}$, for rates that are not rescaled."""
    return jnp.exp(-problem.decay.features * rates.features.integral(ts))


def kept_in_descent(
    problem: LayerPeeled, rates: Rates, steps: int, every: int, dt=1.0, momentum=0.0, nesterov: bool = False
) -> Float[Array, " snapshots"]:
    r"""The factor of within-class deviations at iterates 0, every, ..., steps, for rates that are not rescaled.

    The recursion of the descent itself, for one number pulled by its decay: $v \leftarrow \mu v - \lambda_1 x$,
    $x \leftarrow x + dt\,\eta_1(k\,dt)\,v$ (Nesterov: by $\mu v - \lambda_1 x$ once more).
    """
    decay = problem.decay.features
    dtype = jnp.result_type(decay, dt, momentum, jax.eval_shape(rates.features, dt))
    dtype = jnp.promote_types(dtype, jnp.float32)
    decay, rates, dt, momentum = tree.cast((decay, rates, dt, momentum), dtype)

    def step(k, carry):
        x, velocity = carry
        velocity = momentum * velocity - decay * x
        move = momentum * velocity - decay * x if nesterov else velocity
        return x + dt * (rates.features(k * dt) * move), velocity

    def snapshot(carry, index):
        carry = jax.lax.fori_loop(0, every, lambda j, c: step(index * every + j, c), carry)
        return carry, carry[0]

    one = jnp.ones((), dtype)
    _, rest = jax.lax.scan(snapshot, (one, jnp.zeros_like(one)), jnp.arange(steps // every))
    return jnp.concatenate([one[None], rest])
