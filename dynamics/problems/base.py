"""What is trained: the interface that the simulated verbs ask for."""

import abc

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import state as tree
from dynamics import status, validate
from dynamics.rates import Rates


class Problem(eqx.Module):
    """A training problem on states of one pytree type. The simulated verbs know nothing else of it."""

    @abc.abstractmethod
    def objective(self, state: PyTree) -> Float[Array, ""]:
        """What is minimised."""

    @abc.abstractmethod
    def force(self, state: PyTree, counted: Float[Array, " samples"] | None = None) -> PyTree:
        """The direction of motion at unit rates: minus the gradient (preconditioned where the problem says so).

        `counted`, for minibatches, multiplies the loss of each sample.
        """

    @abc.abstractmethod
    def pace(self, motion: PyTree, state: PyTree, rates: Rates, t) -> PyTree:
        """`motion` with each part multiplied by its learning rate at time `t`; zero for the parts that stay."""

    @abc.abstractmethod
    def check(self, state: PyTree) -> PyTree:
        """The state with arrays of one dtype; raises `ValueError` on the host where it does not fit the problem."""

    @abc.abstractmethod
    def valid(self) -> Bool[Array, ""]:
        """Whether the hyper-parameters are finite and in range, traced or not."""

    @property
    @abc.abstractmethod
    def num_samples(self) -> int:
        """The number of samples, which minibatches are drawn from."""

    def stiffness(self, state: PyTree) -> Float[Array, ""]:
        """How fast the fastest part moves near a state, up to a factor; members that are moved together are sorted by it.

        Here the squared norm, which bounds the curvature of an objective of products of two parts.
        """
        return tree.norm(state) ** 2

    def complete(self, state: PyTree) -> PyTree:
        """The state as it is shown: parts that follow the others at once are filled in."""
        return state

    def start_code(self, state: PyTree) -> Int[Array, ""]:
        """The status of a start: `ok`, `bad_input`, or `fixed_point` where it cannot leave."""
        return jnp.asarray(status.OK, jnp.int32)


def check_minibatches(samples: int, batch_size: int | None, shuffle: str) -> None:
    """Refuse a minibatch that is empty or larger than the samples, and an unknown way of shuffling."""
    if shuffle not in ("step", "epoch"):
        raise ValueError(f"shuffle must be 'step' or 'epoch', got {shuffle!r}")
    if batch_size is not None and validate.whole("batch_size", batch_size, 1) > samples:
        raise ValueError(f"batch_size must be at most the number of samples, {samples}, got {batch_size}")


class StaticArray:
    """A concrete array that may be a static field: hashed and compared by its contents."""

    def __init__(self, values):
        self.values = np.array(values)
        self.values.setflags(write=False)
        self._key = (self.values.shape, self.values.dtype.str, self.values.tobytes())

    def __hash__(self):
        return hash(self._key)

    def __eq__(self, other):
        return isinstance(other, StaticArray) and self._key == other._key

    def __repr__(self):
        return f"StaticArray(shape={self.values.shape})"
