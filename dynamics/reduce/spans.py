r"""The span of the start: a motion that turns with feature space never leaves it.

Forces on features and prototypes are combinations of their rows, with coefficients that depend on inner products only. With
orthonormal columns Q (dim, rank) whose span holds all rows of the start, $H = G Q^T$ and $W = V Q^T$ at all times, and (G, V)
obey the same problem in fewer coordinates. Biases do not turn.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics.problems import LayerPeeled, Peeled
from dynamics.reduce.base import Reduction, checked
from dynamics.reduce.basis import orthonormal, product
from dynamics.reduce.classes import ClassMeans, Collapsed


class Span(Reduction):
    """The same problem, its features and prototypes in coordinates of the span of the start.

    **Arguments:**

    - `full`, `problem`, `state`: as in `Reduction`; the two problems are one, it does not know the size of feature space. The
      reduced features have shape (samples, rank), the prototypes (classes, rank), rank = samples + classes.
    - `basis`: shape (dim, rank), its span holds every row of the start; columns are orthonormal, or zero beyond the rank.
    """

    basis: Float[Array, "dim rank"]

    def lift(self, state: Peeled, kept: float | Array = 1.0) -> Peeled:
        """The full state for a reduced one; `kept` has nothing to multiply, deviations lie in the span."""
        # one product for both: rows of a batch of saved states then make one large matrix
        rows = jnp.concatenate([state.features, state.prototypes])
        rows = product(rows, self.basis.T)
        count = state.features.shape[0]
        return Peeled(rows[:count], rows[count:], state.biases)

    def see(self, state: Peeled, kept: float | Array = 1.0) -> tuple[LayerPeeled, Peeled]:
        return self.full, state


class Composed(Reduction):
    """A reduction to one feature a class, then to the span of what is left.

    **Arguments:**

    - `full`, `problem`, `state`: as in `Reduction`; the reduced features and prototypes have shape (classes, 2 classes).
    - `first`: the reduction to one feature a class.
    - `then`: the span of its start.
    - `turned`: `first` in coordinates of feature space the leading ones of which are those of the span; None where all of
      feature space is needed.
    """

    first: Reduction
    then: Span
    turned: Reduction | None

    def lift(self, state: Peeled, kept: float | Array = 1.0) -> Peeled:
        """The full state for a reduced one; `kept` multiplies the deviations (their decay so far)."""
        return self.first.lift(self.then.lift(state), kept)

    def see(self, state: Peeled, kept: float | Array = 1.0) -> tuple[LayerPeeled, Peeled]:
        if self.turned is None:
            return self.first.see(self.then.lift(state), kept)
        return self.turned.see(_widened(state, self.turned.state.features.shape[1]), kept)


def span(problem: LayerPeeled, state: Peeled) -> Span:
    """Reduce a problem to the span of its start, for dim > samples + classes.

    Exact for flow and descent, minibatches included, with every loss of the logits, decay, momentum, rates (rescaled ones
    too), biases, sample weights and kernels between samples. Right for starts of any rank; a derivative with respect to the
    start needs full rank.

    **Raises:** `ValueError` where the span is all of feature space, for a feature kernel (it prefers axes), and for an
    adjusted prototype (its tangent is a coordinate axis where none is preferred).
    """
    state = checked(problem, state)
    refusal = no_span(problem, state.features.shape[1])
    if refusal is not None:
        raise ValueError(refusal)
    basis, (features, prototypes) = _coordinates(state.features, state.prototypes)
    return Span(problem, problem, Peeled(features, prototypes, state.biases), basis)


def spanned(first: ClassMeans | Collapsed) -> Composed:
    """A reduction to one feature a class, reduced further to the span of its start, for dim > 2 classes.

    **Raises:** `ValueError` as `span`.
    """
    problem, full = first.problem, first.full
    then = span(problem, first.state)
    if isinstance(first, Collapsed):
        return Composed(full, problem, then.state, first, then, Collapsed(full, problem, then.state))
    labels, rank = full.labels, then.basis.shape[1]
    # deviations sum to zero within a class: those of all samples but the last tell the last
    last = np.array([np.flatnonzero(labels == label)[-1] for label in range(full.num_classes)])
    others = np.setdiff1d(np.arange(labels.size), last)
    if first.deviations.shape[1] <= rank + others.size:
        return Composed(full, problem, then.state, first, then, None)
    _, (_, rows) = _coordinates(then.basis.T, first.deviations[others])
    rest = jnp.zeros((labels.size, rows.shape[1]), rows.dtype).at[others].set(rows)
    rest = rest.at[last].set(-full.data.class_sums(rest))
    turned = ClassMeans(full, problem, _widened(then.state, rows.shape[1]), rest)
    return Composed(full, problem, then.state, first, then, turned)


def no_span(problem: LayerPeeled, dim: int) -> str | None:
    """Why the span of a start cannot stand for feature space; None where it can."""
    if problem.feature_kernel is not None:
        return "feature_kernel must be None for the reduction to a span: it prefers axes of feature space"
    if problem.adjusted is not None:
        return "adjusted must be None for the reduction to a span: its tangent may be a coordinate axis"
    rows = problem.num_samples + problem.num_classes
    if dim <= rows:
        return f"features must have dim > samples + classes = {rows} for the reduction to a span, got {dim}"
    return None


def _coordinates(*parts: Array) -> tuple[Array, list[Array]]:
    """An orthonormal basis of the span of all rows, and the rows in it, those of each part apart."""
    rows = jnp.concatenate(parts)
    basis = orthonormal(rows).T
    coordinates = product(rows, basis)
    return basis, jnp.split(coordinates, np.cumsum([part.shape[0] for part in parts])[:-1])


def _widened(state: Peeled, dim: int) -> Peeled:
    """The state with zeros in further coordinates of feature space."""
    more = ((0, 0), (0, dim - state.features.shape[1]))
    return Peeled(jnp.pad(state.features, more), jnp.pad(state.prototypes, more), state.biases)
