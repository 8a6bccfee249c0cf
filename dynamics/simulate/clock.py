r"""Clocks of a network's gradient flow: parameters of its curve other than time, for times such as $e^{1000}$.

With $E = -\log\mathcal{L}$ and $g = \nabla E$, a clock $\sigma$ is a speed s: $d\theta/d\sigma = s\,g$ and
$dE/d\sigma = s\,|g|^2$. Physical time follows from the linear $y = \mathcal{L}\,t$, $dy/d\sigma = s\,(1 - |g|^2 y)$, as
$\log t = E + \log y$. All clocks trace the same curve.
"""

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dynamics import state as tree
from dynamics import validate
from dynamics.problems import Network
from dynamics.trajectory import Trajectory


class At(NamedTuple):
    r"""What a speed is made of at a state: E, $|g|^2$, the norm of the weights, $\langle g, \theta\rangle$, the rate."""

    log_inverse_loss: Float[Array, ""]
    pull: Float[Array, ""]
    radius: Float[Array, ""]
    outward: Float[Array, ""]
    rate: Float[Array, ""]


class Clock(abc.ABC):
    """A parameter of the curve, 0 at the start. A new one is one class with a `speed`.

    `inner` and `value` are there for clocks that are better integrated in another variable: it, and back again.
    """

    after_separation: ClassVar[bool] = False
    r"""Whether it runs only where every sample is classified correctly and $\langle g, \theta\rangle > 0$."""

    @abc.abstractmethod
    def speed(self, at: At) -> Float[Array, ""]:
        r"""s of $d\theta/d\sigma = s\,g$."""

    def inner(self, value: Float[Array, "..."], begin: At) -> Float[Array, "..."]:
        """The variable of integration at a value of the clock, from a start `begin`."""
        return value

    def value(self, inner: Float[Array, "..."], begin: At) -> Float[Array, "..."]:
        """The value of the clock at the variable of integration."""
        return inner


@dataclasses.dataclass(frozen=True)
class Plain(Clock):
    """Physical time, as without a clock; good to log t of about 15."""

    def speed(self, at):
        return at.rate * jnp.exp(-at.log_inverse_loss)


@dataclasses.dataclass(frozen=True)
class Loss(Clock):
    r"""$\tau = \int\mathcal{L}\,dt$ at unit rate, $d\theta/d\tau = g$. It ends at a finite value for degrees above 2."""

    def speed(self, at):
        return jnp.ones_like(at.pull)


@dataclasses.dataclass(frozen=True)
class ArcLength(Clock):
    r"""The length of the path of the weights, $d\theta/d\sigma = g/|g|$."""

    def speed(self, at):
        return at.pull**-0.5


@dataclasses.dataclass(frozen=True)
class LogRadius(Clock):
    r"""The logarithm of the norm of the weights over that of the start; it needs separated samples."""

    after_separation: ClassVar[bool] = True

    def speed(self, at):
        return at.radius**2 / at.outward


@dataclasses.dataclass(frozen=True)
class LogLoss(Clock):
    r"""By how much the logarithm of the loss has fallen, $d\theta/dE = g/|g|^2$, integrated in $\mathrm{asinh}\,E$.

    The usual clock of smooth nets. It ends where the loss stops falling, as at a sample that no unit reaches.
    """

    def speed(self, at):
        return 1 / at.pull

    def inner(self, value, begin):
        return jnp.arcsinh(begin.log_inverse_loss + value)

    def value(self, inner, begin):
        return jnp.sinh(inner) - begin.log_inverse_loss


@dataclasses.dataclass(frozen=True)
class Polar(Clock):
    r"""The length of the path of (log |weights|, direction), $d\theta/d\sigma = |\theta|\,g/|g|$.

    The usual clock of nets with kinks, whose pre-activations slide along zero and hold up steps of a controlled error. There
    it takes steps of fixed size, classical Runge-Kutta of order four, of $\min(0.01, c/|\theta|^L)$.

    **Arguments:**

    - `step`: c; None is 0.4 for nets with kinks, and steps of a controlled error for others.
    """

    step: float | None = None

    def __post_init__(self):
        if self.step is not None:
            validate.positive("step", self.step)

    def speed(self, at):
        return at.radius * at.pull**-0.5


@dataclasses.dataclass(frozen=True)
class LogTime:
    """A physical time by its logarithm."""

    value: float

    def __post_init__(self):
        if not isinstance(self.value, int | float | np.integer | np.floating) or isinstance(self.value, bool):
            raise ValueError(f"value must be a Python number, the logarithm of a time, got {self.value!r}")
        validate.finite("value", self.value)


class Unseparated(NamedTuple):
    """Members with misclassified samples: their numbers, how many samples of each, and which, in one array each."""

    members: np.ndarray
    counts: np.ndarray
    samples: list[np.ndarray]


def unseparated(problem: Network, moved: Trajectory) -> Unseparated:
    """The members that misclassify a sample at the last state that a trajectory holds of them.

    **Arguments:**

    - `problem`: on the data of every member.
    - `moved`: with its states; of one member, number 0, or of a batch with one leading axis.

    **Raises:** `ValueError` without states, or with more leading axes.
    """
    if moved.states is None:
        raise ValueError("moved must have its states; with observe=... watch the margins instead")
    lead = jnp.ndim(moved.status)
    if lead > 1:
        raise ValueError(
            f"moved must be of one member or one leading axis of members, got status of shape {moved.status.shape}"
        )
    states = moved.states if lead else jax.tree.map(lambda leaf: leaf[None], moved.states)
    wrong = np.asarray(jax.vmap(lambda states: _misclassified(problem, states))(states))
    counts = wrong.sum(axis=1)
    members = np.flatnonzero(counts)
    return Unseparated(members, counts[members], [np.flatnonzero(wrong[member]) for member in members])


def _misclassified(problem: Network, states: PyTree):
    """Of one member, which samples are on the wrong side at the last finite of its states."""
    finite = jax.vmap(tree.all_finite)(states)
    last = finite.shape[0] - 1 - jnp.argmax(finite[::-1])
    margins = problem.margins(jax.tree.map(lambda leaf: leaf[last], states))
    return ~(margins > 0) & jnp.any(finite)
