r"""How far the iterates of a network move: step rules on the scaled force $g = -\nabla\mathcal{L}/\mathcal{L}$.

Every rule moves along the steepest direction of a norm, $\|g\|_\star\Delta(g)$ (g itself in the Euclidean norm), and says the
logarithm of its learning rate, which is the physical time of the step. A new rule is one class with `step`.
"""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import state as tree
from dynamics import validate
from dynamics.norms import Norm
from dynamics.problems import Network
from dynamics.schedules import Schedule, as_schedule


class Setting(NamedTuple):
    """What a rule steps in.

    - `seen`: number of a minibatch to the problem on its samples; the whole problem where there are no minibatches.
    - `per_epoch`: how many minibatches use every sample once.
    - `log_share`: the logarithm of samples over batch size, by which the loss of a minibatch stands for that of all.
    """

    problem: Network
    norm: Norm
    seen: Callable[[Array], Network]
    per_epoch: int
    log_share: float
    optimizer: Any

    def pull(self, batch, weights: PyTree) -> tuple[Float[Array, ""], PyTree]:
        """The logarithm of the loss, as a minibatch has it, and its scaled force."""
        problem = self.seen(batch)
        return problem.log_loss(weights) + self.log_share, problem.scaled_force(weights)


class Stepped(NamedTuple):
    """After a step: the logarithm of its learning rate, and whether no step at all can follow."""

    weights: PyTree
    memory: PyTree
    log_rate: Float[Array, ""]
    stuck: Bool[Array, ""]


class StepRule(eqx.Module):
    """How far to move in each iteration."""

    minibatches: ClassVar[Literal["", "step", "epoch"]] = ""
    """Whether it may see minibatches, drawn anew in every step, or so that an epoch uses every sample once. A step divided by
    the loss of its own minibatch weighs all samples alike, and what it tends to is no margin: such a rule sees all samples."""

    @abc.abstractmethod
    def step(self, setting: Setting, k: Int[Array, ""], weights: PyTree, memory: PyTree) -> Stepped:
        """Iteration k."""

    def init(self, setting: Setting, weights: PyTree) -> PyTree:
        """The memory that the first step finds."""
        return ()

    def valid(self) -> Bool[Array, ""]:
        """Whether its numbers are in range, traced or not."""
        return jnp.asarray(True)

    @property
    def permissive(self) -> str:
        """What to warn of where every step sees all samples, or nothing."""
        return ""


Number = float | Float[Array, ""]


class LossBased(StepRule):
    r"""$\theta \leftarrow \theta + \min(h, c/\|\theta\|^{2L-2})\,\|g\|_\star\Delta(g)$: a learning rate over the loss, so that
    the logarithm of the loss falls steadily; the cap follows the curvature of that logarithm.

    Without the cap a step may cross the whole landscape: the loss falls the faster and the margin is lost.

    **Arguments:**

    - `rate`: h > 0.
    - `cap`: c > 0, or None for no cap.

    **Reference:** K. Lyu, J. Li, Gradient descent maximizes the margin of homogeneous neural networks (2020), section 5 and
    appendix L; the cap in place of their acceptance rule.
    """

    rate: Number
    cap: Number | None

    def __check_init__(self):
        validate.positive("rate of LossBased", self.rate)
        if self.cap is not None:
            validate.positive("cap of LossBased", self.cap)

    def step(self, setting, k, weights, memory):
        log_loss, force = setting.pull(k, weights)
        size = self.rate
        if self.cap is not None:
            size = jnp.minimum(size, self.cap / setting.norm(weights) ** (2 * setting.problem.degree - 2))
        moved = along(weights, size, setting.norm.steepest(force))
        return Stepped(moved, memory, jnp.log(size) - log_loss, setting.norm.dual(force) == 0)

    def valid(self):
        return jnp.asarray(self.rate) > 0 if self.cap is None else (jnp.asarray(self.rate) > 0) & (jnp.asarray(self.cap) > 0)

    @property
    def permissive(self):
        return "LossBased without a cap loses the margin: give cap, 1.0 for example" if self.cap is None else ""


class Normalized(StepRule):
    r"""$\theta \leftarrow \theta + h_k\Delta(g)$: steps of a given length, whatever the loss.

    **Arguments:**

    - `schedule`: $h_k$, a number, a schedule (read at k) or a function of k, a float array.
    """

    schedule: Schedule | Callable

    def __init__(self, schedule):
        self.schedule = schedule if callable(schedule) else as_schedule(schedule)
        shape = jax.eval_shape(self.schedule, jnp.zeros(())).shape
        if shape != ():
            raise ValueError(f"schedule of Normalized must give a scalar at a given step, got shape {shape}")

    def init(self, setting, weights):
        return () if setting.optimizer is None else setting.optimizer.init(weights)

    def step(self, setting, k, weights, memory):
        log_loss, force = setting.pull(k, weights)
        dtype = log_loss.dtype
        size, dual = jnp.asarray(self.schedule(k.astype(dtype)), dtype), setting.norm.dual(force)
        if setting.optimizer is None:
            way = setting.norm.direction(force)
        else:
            way, memory = setting.optimizer.update(jax.tree.map(jnp.negative, force), memory, weights)
        stuck = dual == 0
        log_rate = jnp.where(stuck, -jnp.inf, jnp.log(size) - jnp.log(jnp.where(stuck, 1.0, dual)) - log_loss)
        return Stepped(along(weights, size, way), memory, log_rate, stuck)

    def valid(self):
        return self.schedule.valid() if isinstance(self.schedule, Schedule) else jnp.asarray(True)


class ConstantRate(StepRule):
    r"""$\theta \leftarrow \theta - \eta\,\mathrm{steepest}(\nabla\mathcal{L})$ with one $\eta$: (stochastic) gradient descent.

    The step is $e^{\log\eta + \log\mathcal{L}}\|g\|_\star\Delta(g)$: with a rate given by its logarithm it is right where the
    loss and the rate are past the range of floating numbers.

    **Arguments:**

    - `rate`: $\eta > 0$, of the SUM over samples.
    - `log_rate`: its logarithm, in place of `rate`.
    """

    minibatches: ClassVar[Literal["", "step", "epoch"]] = "step"
    log_rate: Number

    def __init__(self, rate: Number | None = None, *, log_rate: Any = None):
        if (rate is None) == (log_rate is None):
            raise ValueError(f"give either rate or log_rate of ConstantRate, got {rate!r} and {log_rate!r}")
        if rate is None:
            validate.finite("log_rate of ConstantRate", log_rate)
            self.log_rate = log_rate
        else:
            validate.positive("rate of ConstantRate", rate)
            self.log_rate = jnp.log(jnp.asarray(rate, jnp.result_type(float, rate)))

    def step(self, setting, k, weights, memory):
        log_loss, force = setting.pull(k, weights)
        moved = along(weights, jnp.exp(self.log_rate + log_loss), setting.norm.steepest(force))
        # another minibatch may pull where this one does not
        stuck = (setting.norm.dual(force) == 0) & (setting.log_share == 0)
        return Stepped(moved, memory, jnp.asarray(self.log_rate, log_loss.dtype), stuck)

    def valid(self):
        return jnp.isfinite(jnp.asarray(self.log_rate))


class LossBasedEpochs(StepRule):
    r"""An iteration is an epoch at the learning rate $\alpha/\mathcal{L}$, the loss of all samples before it. It is accepted,
    and $\alpha$ grows by $2^{1/5}$, if the loss does not rise; else it is undone, and $\alpha$ shrinks by $2^{1/10}$.

    With minibatches an epoch uses every sample once. With steps of all samples, nothing keeps the steps small while the loss
    falls, and the margin is lost: use `LossBased` there.

    **Arguments:**

    - `rate`: $\alpha > 0$ of the first epoch; that of the paper is 0.1 log 10.

    **Reference:** K. Lyu, J. Li, Gradient descent maximizes the margin of homogeneous neural networks (2020), appendix L.
    """

    minibatches: ClassVar[Literal["", "step", "epoch"]] = "epoch"
    rate: Number = 0.1 * math.log(10)

    def __check_init__(self):
        validate.positive("rate of LossBasedEpochs", self.rate)

    def init(self, setting, weights):
        log_loss = setting.problem.log_loss(weights)
        return jnp.asarray(self.rate, log_loss.dtype), log_loss

    def step(self, setting, k, weights, memory):
        rate, before = memory

        def batch(j, carry):
            moved, stuck = carry
            log_loss, force = setting.pull(k * setting.per_epoch + j, moved)
            moved = along(moved, rate * jnp.exp(log_loss - before), setting.norm.steepest(force))
            return moved, stuck & (setting.norm.dual(force) == 0)

        moved, stuck = jax.lax.fori_loop(0, setting.per_epoch, batch, (weights, jnp.asarray(True)))
        after = setting.problem.log_loss(moved)
        accepted = (after <= before) & tree.all_finite(moved)
        log_rate = jnp.where(accepted, jnp.log(rate) - before + math.log(setting.per_epoch), -jnp.inf)
        memory = rate * jnp.where(accepted, 2 ** (1 / 5), 2 ** (-1 / 10)), jnp.where(accepted, after, before)
        return Stepped(tree.select(accepted, moved, weights), memory, log_rate, stuck)

    def valid(self):
        return jnp.asarray(self.rate) > 0

    @property
    def permissive(self):
        return "LossBasedEpochs with steps of all samples loses the margin: give batch_size, or use LossBased with a cap"


def along(weights: PyTree, size, way: PyTree) -> PyTree:
    """The weights moved by `size` times `way`."""
    return jax.tree.map(lambda x, v: x + size * v, weights, way)
