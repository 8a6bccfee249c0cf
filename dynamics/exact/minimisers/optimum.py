"""What a family of global minima is, and the balance of two layers that decay."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamics import status
from dynamics.exact.closed_form import assume
from dynamics.problems import LayerPeeled, Peeled

Norms = tuple[Float[Array, ""], Float[Array, ""]]
"""Bounds on the norms of prototypes and of features."""


class Optimum(NamedTuple):
    """A global minimum: its value, one state that attains it, in any number of dimensions, and how many of those it needs.

    `state` lists its dimensions from the largest: those past `rank` are zero. `unique`: up to a rotation of feature space.
    `code`: the status as far as the family can tell, from `assume`.
    """

    value: Float[Array, ""]
    state: Peeled
    rank: int | Int[Array, ""]
    unique: bool | Bool[Array, ""]
    code: Int[Array, ""]


class Family(NamedTuple):
    """Problems whose global minima are known. A new one is these two functions and a row in `minimiser.FAMILIES`.

    - `obstacles(problem, norms)`: why it does not apply, by types and static fields only; empty where it does.
    - `solve(problem, norms, dim)`: the `Optimum`.
    """

    name: str
    obstacles: Callable[[Any, Norms | None], list[str]]
    solve: Callable[[LayerPeeled, Norms | None, int], Optimum]


def common_obstacles(problem, norms: Norms | None, loss: type, *, bounded: bool, balanced: bool) -> list[str]:
    """What rules out a family of that loss (`Loss`: any linear one), with norms that are bounded or that decay."""
    if not isinstance(problem, LayerPeeled):
        return [f"the problem is a {type(problem).__name__}, not a LayerPeeled"]
    reasons = []
    if not isinstance(problem.loss, loss):
        reasons.append(f"the loss is {type(problem.loss).__name__}")
    if bounded and norms is None:
        reasons.append("norms are not given")
    if not bounded and norms is not None:
        reasons.append("norms are given")
    if problem.anchored:
        reasons.append("prototypes are anchored: what is left depends on where they are")
    if problem.normalize:
        reasons.append("the loss sees normalised features")
    if problem.kernel is not None or problem.feature_kernel is not None:
        reasons.append("a kernel moves the features: the motion does not end where the objective is least")
    if balanced and not is_balanced(problem):
        reasons.append("classes differ in size")
    return reasons


def is_balanced(problem: LayerPeeled) -> bool:
    """Whether all classes have as many samples."""
    return np.unique(problem.data.sizes).size == 1


def is_weighted(problem: LayerPeeled) -> bool:
    """Whether samples have different weights."""
    return bool(np.any(problem.data.weights != 1))


def zero_sum_basis(classes: int, dtype) -> Float[Array, "classes rank"]:
    """Orthonormal columns that span the vectors of sum zero, rank = classes - 1; rows are the vertices of a simplex."""
    j = np.arange(1, classes)
    helmert = np.triu(np.ones((classes, classes - 1)))
    helmert[j, j - 1] = -j
    return jnp.asarray(helmert / np.sqrt(j * (j + 1.0)), dtype)


def root(x: Array) -> Array:
    """The square root; its gradient at zero is zero."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


class TwoDecays(NamedTuple):
    r"""What the decays of two layers do to their product Z: $\min (\lambda_1|H|^2 + \lambda_2|W|^2)/2 = \mu |Z|_*$.

    - `pressure`: $\mu = \sqrt{\lambda_1\lambda_2}$.
    - `tilt`: features over prototypes at the optimum, $(\lambda_2/\lambda_1)^{1/2}$.
    - `code`: outside of the assumptions unless both decay.
    """

    pressure: Float[Array, ""]
    tilt: Float[Array, ""]
    code: Int[Array, ""]


def two_decays(problem: LayerPeeled, why: str) -> TwoDecays:
    """Those of the problem; `why` there is no minimiser where one is zero."""
    first, second = jnp.asarray(problem.decay.features), jnp.asarray(problem.decay.prototypes)
    both = (first > 0) & (second > 0)
    code = assume(both, lambda: f"decay of features and of prototypes must both be > 0, got {first} and {second}: {why}")
    first, second = jnp.where(both, first, 1.0), jnp.where(both, second, 1.0)
    return TwoDecays(jnp.sqrt(first) * jnp.sqrt(second), jnp.sqrt(second) / jnp.sqrt(first), code)


def split(
    values: Float[Array, " rank"], left: Float[Array, "classes rank"], right: Float[Array, "samples rank"], tilt, biases
) -> Peeled:
    r"""The state whose logits have these singular values and vectors, features and prototypes in balance.

    $WW^T = U S U^T/\mathrm{tilt}$ and $HH^T = \mathrm{tilt}\; V S V^T$ (N. Srebro, J. Rennie, T. Jaakkola, 2005).
    """
    sizes = root(values)
    return Peeled(jnp.sqrt(tilt) * right * sizes, left * sizes / jnp.sqrt(tilt), biases)


def worst(*codes: Int[Array, ""]) -> Int[Array, ""]:
    """The first code that is not ok."""
    code = codes[-1]
    for earlier in reversed(codes[:-1]):
        code = jnp.where(earlier == status.OK, code, earlier)
    return code


def without_decay(problem: LayerPeeled) -> Int[Array, ""]:
    """The condition that bounded norms replace decay."""
    decays = jnp.stack([jnp.asarray(x) for x in (problem.decay.features, problem.decay.prototypes, problem.decay.biases)])
    return assume(jnp.all(decays == 0), lambda: f"norms are bounded instead of decaying: every decay must be 0, got {decays}")
