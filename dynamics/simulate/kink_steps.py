"""Steps of fixed size for nets whose pre-activations slide along kinks, where a controlled error halts steps."""

from collections.abc import Callable
from typing import ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from dynamics import state as tree

LONGEST = 0.01
"""The longest step of the polar clock."""


class RungeKutta4(diffrax.AbstractERK):
    """The classical method of order four."""

    tableau: ClassVar[diffrax.ButcherTableau] = diffrax.ButcherTableau(
        c=np.array([0.5, 0.5, 1.0]),
        b_sol=np.array([1.0, 2.0, 2.0, 1.0]) / 6,
        b_error=np.zeros(4),
        a_lower=(np.array([0.5]), np.array([0.0, 0.5]), np.array([0.0, 0.0, 1.0])),
    )
    interpolation_cls: ClassVar[Callable] = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


class KinkSteps(diffrax.AbstractStepSizeController):
    r"""Steps of $\min(0.01, c/|\theta|^L)$, an end where nothing moves; what is moved is (weights, ...)."""

    c: float
    degree: float

    def wrap(self, direction):
        return self

    def _length(self, y):
        return jnp.minimum(LONGEST, self.c / tree.norm(y[0]) ** self.degree)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return t0 + self._length(y0), None

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        still = tree.norm(jax.tree.map(jnp.subtract, y1_candidate[0], y0[0])) == 0
        result = diffrax.RESULTS.where(still, diffrax.RESULTS.dt_min_reached, diffrax.RESULTS.successful)
        return True, t1, t1 + self._length(y1_candidate), False, None, result
