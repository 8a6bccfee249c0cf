r"""A single quantity under a constant pull and decay, $x' = \eta(f - \lambda x)$: $x = a\,x_0 + c f$ with two scalars."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamics.schedules import Schedule, decaying_clock

Response = tuple[Float[Array, " times"], Float[Array, " times"]]


def flow_response(decay, clock: Float[Array, " times"]) -> Response:
    r"""$a = e^{-\lambda\zeta}$ and $c = (1 - e^{-\lambda\zeta})/\lambda$, smooth at $\lambda = 0$."""
    return jnp.exp(-decay * clock), decaying_clock(decay, clock)


def descent_response(decay, rate: Schedule, steps: int, every: int, dt, momentum, nesterov: bool) -> Response:
    """a and c at iterates 0, every, ..., steps of gradient descent, with heavy-ball or Nesterov momentum."""
    pulled = jnp.asarray([0.0, 1.0], jnp.result_type(dt))

    def step(k, carry):
        x, velocity = carry
        force = pulled - decay * x
        velocity = momentum * velocity + force
        move = momentum * velocity + force if nesterov else velocity
        return x + dt * rate(k * dt) * move, velocity

    def snapshot(carry, index):
        carry = jax.lax.fori_loop(0, every, lambda j, c: step(index * every + j, c), carry)
        return carry, carry[0]

    start = (1 - pulled, jnp.zeros_like(pulled))
    _, path = jax.lax.scan(snapshot, start, jnp.arange(steps // every))
    path = jnp.concatenate([start[0][None], path])
    return path[:, 0], path[:, 1]
