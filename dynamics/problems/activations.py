"""Activations of a degree: sigma(c z) = c^k sigma(z) for c > 0, or close to it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamics import validate


@dataclasses.dataclass(frozen=True)
class Power:
    r"""$\max(z, 0)^k - s\max(-z, 0)^k$: ReLU, its powers, the leaky ReLU, and the identity.

    **Arguments:**

    - `power`: k >= 1.
    - `slope`: s, of the negative side; 1 with `power=1` is the identity.
    - `at_zero`: the derivative that is used at z = 0, where it is a choice: for power 1 any number from `slope` to 1; None is
      `slope`, so 0 for the ReLU.
    """

    power: int = 1
    slope: float = 0.0
    at_zero: float | None = None

    def __post_init__(self):
        validate.whole("power", self.power, 1)
        if self.power == 1 and not min(self.slope, 1.0) <= self.slope_at_zero <= max(self.slope, 1.0):
            raise ValueError(f"at_zero must lie between slope = {self.slope:g} and 1, got {self.slope_at_zero:g}")

    @property
    def slope_at_zero(self) -> float:
        """The derivative that is used at z = 0."""
        return self.slope if self.at_zero is None else self.at_zero

    @property
    def degree(self) -> int:
        """k."""
        return self.power

    def __call__(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        if self == IDENTITY:
            return z
        side = jnp.where(z > 0, 1.0, jnp.where(z < 0, self.slope, self.slope_at_zero)).astype(z.dtype)
        return side * (z if self.power == 1 else z * jnp.abs(z) ** (self.power - 1))


IDENTITY = Power(slope=1.0)
RELU = Power()


@dataclasses.dataclass(frozen=True)
class Softplus:
    r"""$\log(1 + e^z)$, of degree 1 up to $|\sigma'(z) z - \sigma(z)| \le \log 2$; its limit is the ReLU."""

    @property
    def degree(self) -> int:
        """1, nearly."""
        return 1

    @property
    def defect(self) -> float:
        """The bound on how far Euler's identity is off."""
        return math.log(2)

    def __call__(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.nn.softplus(z)
