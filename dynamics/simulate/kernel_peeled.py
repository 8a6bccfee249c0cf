"""A layer-peeled problem inside an accelerator kernel: its arrays padded to powers of two, its force without a gather.

Rows and columns of padding hold zeros and carry no weight, so that they stay zero and count nowhere.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, Float

from dynamics.losses import CrossEntropy, SquaredError, SymmetricCoupling
from dynamics.problems import LayerPeeled, Peeled, Problem
from dynamics.rates import Rates

FAST_BYTES = 192 * 1024
"""Fast memory that one member may take: registers and shared memory of one multiprocessor hold 256 KB and more."""

NAMES = ("features", "prototypes", "biases")

WEIGHT, LABEL, COUPLING, DRIFT = "weight", "label", "coupling", "drift"


class Layout(NamedTuple):
    """What is static of a problem: its sizes, which parts move, and how its loss pulls.

    - `sizes`: samples, classes, dim; `padded`: the powers of two that they are padded to.
    - `moving`: indices of features (0), prototypes (1) and biases (2) that move.
    - `pull`: "cross_entropy", "squared_error", "symmetric" (a linear loss with a symmetric coupling) or "linear".
    """

    sizes: tuple[int, int, int]
    padded: tuple[int, int, int]
    moving: tuple[int, ...]
    pull: str

    def shape(self, part: int, padded: bool = False) -> tuple[int, ...]:
        """The shape of a part of the state."""
        samples, classes, dim = self.padded if padded else self.sizes
        return ((samples, dim), (classes, dim), (classes,))[part]

    @property
    def count(self) -> int:
        """Numbers in a state."""
        return sum(math.prod(self.shape(part)) for part in range(3))

    @property
    def warps(self) -> int:
        """Groups of 32 threads that share one member: some sixteen numbers of the largest product to a thread."""
        return min(max(_power_of_two(math.prod(self.padded) // 512), 1), 8)

    @property
    def wide(self) -> bool:
        """Whether products are matrix products of the hardware, which want 16 rows and columns at least."""
        return min(self.padded) >= 16


def layout(problem: Problem, state: Peeled, rates: Rates, copies: int) -> Layout:
    """The layout of a problem that a kernel can move; raises `ValueError` on the host, naming what it cannot.

    `copies`: how many states the method holds at once.
    """
    if not isinstance(problem, LayerPeeled):
        raise ValueError(f"method='kernel' moves a LayerPeeled problem, got {type(problem).__name__}; use method='general'")
    refused = {
        "normalize=True": problem.normalize,
        "kernel": problem.kernel is not None,
        "feature_kernel": problem.feature_kernel is not None,
        "bias='slaved'": problem.bias == "slaved",
        "rates.rescaled=True": rates.rescaled,
    }
    for what, given in refused.items():
        if given:
            raise ValueError(f"method='kernel' takes no {what}; use method='general'")
    dtype = state.features.dtype
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"method='kernel' takes states in float32 or float64, got {dtype}")
    _check_scalar_rates(rates, dtype)
    sizes = (problem.num_samples, problem.num_classes, state.features.shape[1])
    moving = (0,) if problem.anchored else (0, 1, 2) if problem.bias is True else (0, 1)
    found = Layout(sizes, tuple(map(_power_of_two, sizes)), moving, _pull_of(problem))  # pyright: ignore[reportArgumentType]
    numbers = copies * sum(math.prod(found.shape(part, padded=True)) for part in range(3))
    numbers += 0 if found.wide else math.prod(found.padded)
    if numbers * dtype.itemsize > FAST_BYTES:
        raise ValueError(
            f"method='kernel' holds a member in fast memory, {FAST_BYTES // 1024} KB; {sizes[0]} samples, {sizes[1]} classes "
            f"and dim {sizes[2]} in {dtype} take {numbers * dtype.itemsize // 1024} KB; reduce the problem "
            "or use method='general'"
        )
    return found


def _pull_of(problem: LayerPeeled) -> str:
    coupling = problem.loss.coupling(problem.num_classes)
    if coupling is not None:
        return "symmetric" if isinstance(coupling, SymmetricCoupling) else "linear"
    known = {CrossEntropy: "cross_entropy", SquaredError: "squared_error"}
    if type(problem.loss) not in known:
        raise ValueError(
            f"method='kernel' knows CrossEntropy, SquaredError and losses linear in the logits, got "
            f"{type(problem.loss).__name__}; use method='general'"
        )
    return known[type(problem.loss)]


def _check_scalar_rates(rates: Rates, dtype) -> None:
    """A kernel computes a rate from numbers alone: it cannot look it up in an array."""
    for name, schedule in (("features", rates.features), ("weights", rates.weights)):
        shaped = [np.shape(leaf) for leaf in jax.tree.leaves(schedule) if np.shape(leaf) != ()]
        traced = jax.make_jaxpr(lambda schedule, t: schedule(t))(schedule, jax.ShapeDtypeStruct((), dtype))
        if shaped or not _scalar(traced.jaxpr) or any(np.shape(const) != () for const in traced.consts):
            raise ValueError(
                f"method='kernel' computes rates from numbers, without arrays; rates.{name} is a "
                f"{type(schedule).__name__}: use Constant, Cosine, Exponential, Polynomial, Warmup or method='general'"
            )


def _scalar(jaxpr) -> bool:
    """Whether every value on the way is a single number."""
    for equation in jaxpr.eqns:
        if any(atom.aval.shape != () for atom in (*equation.invars, *equation.outvars)):
            return False
        inner = [value for value in equation.params.values() if isinstance(value, ClosedJaxpr)]
        if not all(_scalar(value.jaxpr) for value in inner):
            return False
    return True


def constants(problem: LayerPeeled, layout: Layout, dtype) -> dict[str, Array]:
    """The arrays that the force is made with: weights and labels of samples, and the coupling of a linear loss."""
    found = {
        WEIGHT: jnp.asarray(problem.data.weights / problem.num_samples, dtype),
        LABEL: jnp.asarray(problem.labels, jnp.int32),
    }
    coupling = problem.label_coupling
    if coupling is not None:
        found[DRIFT] = jnp.asarray(coupling.pull_biases(dtype), dtype)
        if layout.pull == "linear":
            found[COUPLING] = jnp.asarray(coupling.matrix(dtype), dtype)
    return found


def numbers(problem: LayerPeeled, rates: Rates, dtype) -> tuple[list, Callable]:
    """The numbers of problem and rates, and the function that reads them back: a list to (decays, coupling, rates)."""
    coupling = problem.loss.coupling(problem.num_classes)
    pair = (coupling.diagonal, coupling.drift) if isinstance(coupling, SymmetricCoupling) else ()
    leaves, tree = jax.tree.flatten(((problem.decay.features, problem.decay.prototypes, problem.decay.biases), pair, rates))
    return [jnp.asarray(leaf, dtype) for leaf in leaves], lambda read: jax.tree.unflatten(tree, read)


def constant_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The padded shapes of what `constants` may hold."""
    samples, classes, _ = layout.padded
    return {WEIGHT: (samples,), LABEL: (samples,), COUPLING: (samples, classes), DRIFT: (classes,)}


def force(layout: Layout, given: dict[str, Array], decays, pair) -> Callable[..., tuple[Array, Array, Array]]:
    """The motion at unit rates of padded features, prototypes and biases, minus the gradient of the objective.

    **Arguments:**

    - `given`: the padded `constants`.
    - `decays`: of features, prototypes and biases; `pair`: diagonal and drift of a symmetric coupling, else empty.
    """
    samples, classes, _ = layout.padded
    column = jax.lax.broadcasted_iota(jnp.int32, (samples, classes), 1)
    own = given[LABEL][:, None] == column
    weight = given[WEIGHT][:, None]

    def pull(features, prototypes, biases):
        """Minus the gradient of the data part."""
        if layout.pull == "symmetric":
            shares = jnp.where(own, weight, 0.0)
            turned = _symmetric(layout, prototypes, *pair)
            by_class = _symmetric(layout, times(layout, shares, features, "sc,sd"), *pair)
            return times(layout, shares, turned, "sc,cd"), by_class, given[DRIFT]
        if layout.pull == "linear":
            slope, drift = given[COUPLING], given[DRIFT]
        else:
            logits = times(layout, features, prototypes, "sd,cd") + biases[None, :]
            slope = _slope(layout, logits, own, column) * -weight
            drift = jnp.sum(slope, axis=0)
        return times(layout, slope, prototypes, "sc,cd"), times(layout, slope, features, "sc,sd"), drift

    def motion(features, prototypes, biases):
        parts = (features, prototypes, biases)
        return tuple(a - decay * part for a, decay, part in zip(pull(*parts), decays, parts, strict=True))

    return motion  # pyright: ignore[reportReturnType]


def _slope(layout: Layout, logits, own, column) -> Float[Array, "samples classes"]:
    """The gradient of each sample's loss in its logits; that of cross-entropy as the loss itself writes it."""
    if layout.pull == "squared_error":
        return logits - own.astype(logits.dtype)
    real = column < layout.sizes[1]
    top = jnp.max(jnp.where(real, logits, -jnp.inf), axis=1)
    raised = jnp.where(real, jnp.exp(logits - top[:, None]), 0.0)
    wrong = jnp.where(own, 0.0, raised / jnp.sum(raised, axis=1)[:, None])
    return jnp.where(own, -jnp.sum(wrong, axis=1)[:, None], wrong)


def _symmetric(layout: Layout, rows: Float[Array, "classes dim"], diagonal, drift) -> Float[Array, "classes dim"]:
    """A symmetric coupling times `rows`, its mean mode apart, so that rounding does not feed it; padding stays zero."""
    mean = jnp.sum(rows, axis=0)[None, :] / layout.sizes[1]
    turned = diagonal * (rows - mean) + drift * mean
    real = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0) < layout.sizes[1]
    return jnp.where(real, turned, 0.0)


def times(layout: Layout, a: Array, b: Array, axes: str) -> Array:
    """The product of two matrices over the axis they share, axes named s (samples), c (classes), d (dim), in this order.

    Small ones are sums written out, since the hardware multiplies blocks of 16 at least.
    """
    left, right = axes.split(",")
    (summed,) = set(left) & set(right)
    if layout.wide:
        contract = (((left.index(summed),), (right.index(summed),)), ((), ()))
        return jax.lax.dot_general(a, b, contract, precision=jax.lax.Precision.HIGHEST)
    a, b = (
        jnp.expand_dims(x, next(i for i, axis in enumerate("scd") if axis not in axes)) for x, axes in ((a, left), (b, right))
    )
    return jnp.sum(a * b, axis="scd".index(summed))


def _power_of_two(x: int) -> int:
    return 1 << (x - 1).bit_length() if x > 1 else 1
