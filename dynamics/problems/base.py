"""What is trained: the interface that the simulated verbs ask for."""

import abc

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from dynamics.rates import Rates


class Problem(eqx.Module):
    """A training problem on states of one pytree type. The simulated verbs know nothing else of it."""

    @abc.abstractmethod
    def objective(self, state: PyTree) -> Float[Array, ""]:
        """What is minimised."""

    @abc.abstractmethod
    def force(self, state: PyTree) -> PyTree:
        """The direction of motion at unit rates: minus the gradient (preconditioned where the problem says so)."""

    @abc.abstractmethod
    def pace(self, motion: PyTree, state: PyTree, rates: Rates, t) -> PyTree:
        """`motion` with each part multiplied by its learning rate at time `t`; zero for the parts that stay."""

    @abc.abstractmethod
    def check(self, state: PyTree) -> PyTree:
        """The state with arrays of one dtype; raises `ValueError` on the host where it does not fit the problem."""

    @abc.abstractmethod
    def valid(self) -> Bool[Array, ""]:
        """Whether the hyper-parameters are finite and in range, traced or not."""


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
