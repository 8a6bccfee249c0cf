"""The pair of learning-rate schedules of a run: one for the features, one for the weights."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dynamics.schedules import Constant, Scaled, Schedule, as_schedule


class Rates(eqx.Module):
    r"""Features move at `features`, prototypes and biases at `weights`; a number is a constant rate.

    **Arguments:**

    - `features`, `weights`: schedules $\eta_1(t)$, $\eta_2(t)$, per unit of time (flow) or per step (descent).
    - `rescaled`: a sample's step is also multiplied by the norm of its feature (the rescaled learning rate of the spherical
      case).

    Whether the ratio of the two rates is constant is known from how they were built: `Rates.equal`, `Rates.proportional`,
    or two constants.
    """

    features: Schedule
    weights: Schedule
    rescaled: bool = eqx.field(static=True, default=False)
    built: Literal["equal", "proportional", "constants", "free"] = eqx.field(static=True, default="free")

    def __init__(self, features, weights, rescaled: bool = False):
        if not isinstance(rescaled, bool):
            raise ValueError(f"rescaled must be True or False, got {rescaled!r}")
        self.features = as_schedule(features)
        self.weights = as_schedule(weights)
        self.rescaled = rescaled
        both_constant = isinstance(self.features, Constant) and isinstance(self.weights, Constant)
        self.built = "constants" if both_constant else "free"

    @classmethod
    def equal(cls, schedule, rescaled: bool = False) -> "Rates":
        """The same schedule for features and weights."""
        schedule = as_schedule(schedule)
        return _built("equal", cls(schedule, schedule, rescaled))

    @classmethod
    def proportional(cls, schedule, ratio, rescaled: bool = False) -> "Rates":
        """Features move at `ratio * schedule`, weights at `schedule`."""
        schedule = as_schedule(schedule)
        return _built("proportional", cls(Scaled(schedule, ratio), schedule, rescaled))

    @property
    def constant_ratio(self) -> bool:
        """Whether the features' rate is known to be a constant times the weights' rate."""
        return self.built != "free"

    def ratio(self) -> Float[Array, ""]:
        """The constant ratio s of the features' rate to the weights' rate."""
        if self.built == "equal":
            return jnp.ones(())
        if isinstance(self.features, Scaled) and self.built == "proportional":
            return jnp.asarray(self.features.factor)
        if isinstance(self.features, Constant) and isinstance(self.weights, Constant):
            return jnp.asarray(self.features.value) / self.weights.value
        raise ValueError("these rates have no constant ratio; build them with Rates.equal or Rates.proportional")

    def jumps(self) -> Float[Array, " jumps"]:
        """Times where either rate or its slope is discontinuous, sorted."""
        jumps = [self.features.jumps()] if self.constant_ratio else [self.features.jumps(), self.weights.jumps()]
        return jnp.sort(jnp.concatenate(jumps))

    def valid(self) -> Bool[Array, ""]:
        """Whether both schedules hold finite numbers in range, traced or not."""
        return self.features.valid() & self.weights.valid()


def _built(how: str, rates: Rates) -> Rates:
    object.__setattr__(rates, "built", how)
    return rates


def check_rates(rates) -> None:
    """Refuse what is not a `Rates` of scalar schedules."""
    if not isinstance(rates, Rates):
        raise ValueError(f"rates must be a dynamics.Rates, got {type(rates).__name__}")
    for name, schedule in (("features", rates.features), ("weights", rates.weights)):
        shape = jax.eval_shape(schedule, 0.0).shape
        if shape != ():
            raise ValueError(f"rates.{name} must be a scalar at a given time, got shape {shape}; batch it with jax.vmap")
