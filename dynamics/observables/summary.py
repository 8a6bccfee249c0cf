"""What inner products say of a state, so that observables at many times need no states.

An exact solution moves a few scalars; the inner products of the start do not move. An observable that follows from them says
how: `observable(..., from_summary=function of (problem, summary))`. Where that function returns None (decided by the type of
problem, never by values), the observable is taken from the state.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float


class Collapse(NamedTuple):
    """The geometry of features and prototypes of balanced classes without sample weights.

    - `features`, `prototypes`: coordinates, over an orthonormal basis that both share, of two parts, shape (2, 2): first what
      sums to zero over the classes, then what all classes have in common. The features' are root per_class times class means.
    - `within`: norm of the features' deviations from their class means.
    - `means`, `simplex`: coordinates of the Gram matrix of the centred class means, up to a factor, and of a simplex's of unit
      norm, over a common orthonormal basis, shape (4,).
    - `gram`: makes that Gram matrix, shape (classes, classes), up to the same factor.
    - `lengths`: makes the norms of the centred class means, shape (classes,), up to a factor.
    - `logits`: makes the logits with biases, one row a sample or, where every class has a single one, one a class.
    - `margin`: makes the smallest lead of a sample's own logit over another.
    """

    features: Float[Array, "2 2"]
    prototypes: Float[Array, "2 2"]
    within: Float[Array, ""]
    means: Float[Array, " 4"]
    simplex: Float[Array, " 4"]
    gram: Callable[[], Float[Array, "classes classes"]]
    lengths: Callable[[], Float[Array, " classes"]]
    logits: Callable[[], Float[Array, "samples classes"]]
    margin: Callable[[], Float[Array, ""]]


class Summary(NamedTuple):
    """One state: `loss` is the data part of the objective; `collapse` is None where classes differ."""

    feature_norm: Float[Array, ""]
    prototype_norm: Float[Array, ""]
    loss: Float[Array, ""]
    biases: Float[Array, " classes"]
    collapse: Collapse | None
