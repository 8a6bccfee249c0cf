"""What every reduction answers, and what observables may look at while the motion stays reduced."""

import abc
from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array

from dynamics.problems import LayerPeeled, Peeled


class Reduction(eqx.Module):
    """A smaller problem whose motion, lifted, is that of the full one under the same rates, steps and momentum.

    **Arguments:**

    - `full`: the problem that was reduced.
    - `problem`: the reduced problem.
    - `state`: the reduced start.
    """

    full: LayerPeeled
    problem: LayerPeeled
    state: Peeled

    @abc.abstractmethod
    def lift(self, state: Peeled, kept: float | Array = 1.0) -> Peeled:
        """The full state for one reduced state; `kept` multiplies within-class deviations (their decay so far)."""

    @abc.abstractmethod
    def see(self, state: Peeled, kept: float | Array = 1.0) -> tuple[LayerPeeled, Peeled]:
        """The full problem and all its samples, in as few coordinates of feature space as hold them.

        Enough for whatever looks at features and prototypes only through their inner products: norms, logits, margins, Gram
        matrices, singular values.
        """


def stays(observe: dict | None) -> bool:
    """Whether all that is asked for is declared rotation-invariant, so that no state need be lifted."""
    return observe is not None and all(getattr(function, "rotation_invariant", False) for function in observe.values())


def view(reduction: Reduction, observe: dict | None) -> Callable[..., tuple[LayerPeeled, Peeled]]:
    """The function (reduced state, kept) to (problem, state) that `observe` should look through."""
    if stays(observe):
        return reduction.see
    return lambda state, kept=1.0: (reduction.full, reduction.lift(state, kept))


def checked(problem: LayerPeeled, state: Peeled) -> Peeled:
    """The start, once it fits a layer-peeled problem."""
    if not isinstance(problem, LayerPeeled):
        raise ValueError(f"problem must be a dynamics.LayerPeeled to be reduced, got {type(problem).__name__}")
    return problem.check(state)
