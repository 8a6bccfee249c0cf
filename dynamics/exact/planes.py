"""Each sample of the spherical case seen from what pulls it: the plane it turns in."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dynamics.problems import LayerPeeled, Peeled
from dynamics.problems.sphere import anti_aligned

Samples = Float[Array, " samples"]
Weights = tuple[Array, Array, Array]
"""A sample is `x` times its start, `y` times its pull, `z` times its tangent; leading axis times."""


class Start(NamedTuple):
    """Where each sample starts, seen from its pull v (a row of B W).

    - `size`, `strength`: |h| and |v|; `pulled`: whether v is not zero.
    - `along`: <h, v>; `across`: squared norm of the part of h across v.
    - `near`: cos^2(theta/2) of the angle theta between h and v, to relative precision where h faces away.
    - `stays`: faces away to rounding, and no adjusted prototype turns it.
    - `eps`, `behind`, `tangent`: for adjusted prototypes, the epsilon (else None), which samples start inside the adjusted
      zone, and a unit tangent for those that face away to rounding (elsewhere zero).
    """

    features: Float[Array, "samples dim"]
    pull: Float[Array, "samples dim"]
    size: Samples
    strength: Samples
    pulled: Bool[Array, " samples"]
    along: Samples
    across: Samples
    near: Samples
    stays: Bool[Array, " samples"]
    eps: Float[Array, ""] | None
    behind: Bool[Array, " samples"]
    tangent: Float[Array, "samples dim"]

    @property
    def aim(self) -> Samples:
        """The strength; one where there is none."""
        return jnp.where(self.pulled, self.strength, 1.0)

    @property
    def alone(self) -> Bool[Array, " samples"]:
        """Which samples turn along the tangent of a rule."""
        return jnp.any(self.tangent != 0, axis=1)

    def place(self, weights: Weights) -> Float[Array, "samples dim"]:
        """The features of given weights."""
        x, y, z = (weight[:, None] for weight in weights)
        moved = x * self.features + y * self.pull
        return moved if self.eps is None else moved + z * self.tangent


def start_of(problem: LayerPeeled, state: Peeled) -> Start:
    """The start of every sample."""
    coupling = problem.label_coupling
    assert coupling is not None
    h, v, eps = state.features, coupling.pull_features(state.prototypes), problem.adjusted
    size, strength = _norms(h), _norms(v)
    pulled = strength > 0
    aim = v / jnp.where(pulled, strength, 1.0)[:, None]
    unit = h / size[:, None]
    across = h - jnp.sum(h * aim, axis=1)[:, None] * aim
    near, stays = jnp.sum((unit + aim) ** 2, axis=1) / 4, anti_aligned(h, v)
    if eps is not None:
        eps, stays = jnp.asarray(eps, h.dtype), jnp.zeros_like(stays)
    behind = jnp.zeros_like(pulled) if eps is None else pulled & (2 * near < eps) & ~stays
    # the axis least along h, as the simulated force chooses it
    axis = (jnp.arange(h.shape[1]) == jnp.argmin(jnp.abs(unit), axis=1)[:, None]).astype(h.dtype)
    axis = axis - jnp.sum(axis * unit, axis=1)[:, None] * unit
    length = _norms(axis)
    alone = behind & (jnp.sum(across**2, axis=1) <= (8 * jnp.finfo(h.dtype).eps * size) ** 2) & ~stays
    tangent = jnp.where(alone[:, None], axis / jnp.where(alone, length, 1.0)[:, None], 0.0)
    return Start(
        features=h,
        pull=v,
        size=size,
        strength=strength,
        pulled=pulled,
        along=jnp.sum(h * v, axis=1),
        across=jnp.sum(across**2, axis=1),
        near=near,
        stays=stays,
        eps=eps,
        behind=behind,
        tangent=tangent,
    )


def _norms(rows: Float[Array, "samples dim"]) -> Samples:
    """Norms of rows whose squares may leave the range of numbers; the gradient of a zero row is zero."""
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=1))
    some = scale > 0
    square = jnp.sum((rows / jnp.where(some, scale, 1.0)[:, None]) ** 2, axis=1)
    return jnp.where(some, scale * jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)
