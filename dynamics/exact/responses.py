r"""A single quantity under a constant pull and decay, $x' = \eta(f - \lambda x)$: $x = a\,x_0 + c f$ with two scalars."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamics import validate
from dynamics.exact.products import products, times_power
from dynamics.schedules import Schedule, decaying_clock

LANES = 512

Response = tuple[Float[Array, " times"], Float[Array, " times"]]


def flow_response(decay, clock: Float[Array, " times"]) -> Response:
    r"""$a = e^{-\lambda\zeta}$ and $c = (1 - e^{-\lambda\zeta})/\lambda$, smooth at $\lambda = 0$."""
    return jnp.exp(-decay * clock), decaying_clock(decay, clock)


def descent_response(decay, rate: Schedule, steps: int, every: int, dt, momentum, nesterov: bool) -> Response:
    """a and c at iterates 0, every, ..., steps of gradient descent, with heavy-ball or Nesterov momentum."""
    plain = validate.is_concrete(momentum) and float(momentum) == 0

    def step(column, speed, decay):
        x, one = column[:2]
        force = one - decay * x
        velocity = force if plain else momentum * column[2] + force
        move = momentum * velocity + force if nesterov else velocity
        return (x + speed * move, one) if plain else (x + speed * move, one, velocity)

    constant = jnp.asarray(decay, jnp.result_type(dt))
    paths, powers = products(step, lambda k: dt * rate(k * dt), constant, 2 if plain else 3, steps, every, LANES)
    return times_power(paths[:, 0, 0], powers), times_power(paths[:, 0, 1], powers)
