r"""Networks $f(\theta; x)$ of a declared degree L: $f(c\theta; x) = c^L f(\theta; x)$ for c > 0, or nearly so."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dynamics import validate
from dynamics.problems.activations import IDENTITY, RELU, Power, Softplus


class Net(abc.ABC):
    """A network of one input. A new one is a function and its degree, see `Function`.

    Networks are values: equal ones are compiled once. The output is one number, or a logit for every class.
    """

    @property
    @abc.abstractmethod
    def degree(self) -> float:
        """L."""

    @abc.abstractmethod
    def __call__(self, weights: PyTree, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The output at one input."""

    def init(self, key, input_shape: tuple[int, ...]) -> PyTree:
        """Random weights: independent normals of variance one over the number of inputs of a unit."""
        raise ValueError(f"{type(self).__name__} does not know the shapes of its weights; give the state")

    def defect(self, radius: float) -> tuple[float, ...]:
        r"""Of a nearly homogeneous network: $c_0, c_1, \ldots$ with
        $|\langle\nabla f, \theta\rangle - L f| \le \sum_i c_i \|\theta\|^i$ at every input of norm up to `radius`; empty for a
        homogeneous one."""
        return ()

    def limit(self) -> "Net":
        r"""The homogeneous network $\lim_{r\to\infty} f(r\theta; x)/r^L$."""
        return self

    @property
    def kinked(self) -> bool:
        """Whether activations have kinks, which flows can slide along; False for networks that do not say."""
        return False

    def preactivations(self, weights: PyTree, x: Float[Array, "..."]) -> list[Float[Array, "..."]]:
        """What enters the kinks of each layer, empty for networks without kinks, or that do not say."""
        return []

    def layers(self, weights: PyTree) -> list[Float[Array, "..."]]:
        """The matrices of the layers, the first one first; empty where there is no such thing."""
        return []


@dataclasses.dataclass(frozen=True)
class Function(Net):
    """Any function of (weights, input) with its degree.

    **Arguments:**

    - `function`: a JAX function; the weights are any pytree of arrays.
    - `of_degree`: L.
    - `bound`: of a nearly homogeneous one the numbers of `Net.defect`.
    - `limits_to`: the function that a nearly homogeneous one tends to, see `Net.limit`.
    """

    function: Callable
    of_degree: float
    bound: tuple[float, ...] = ()
    limits_to: Callable | None = None

    def __post_init__(self):
        if not callable(self.function):
            raise ValueError(f"function must be callable, got {self.function!r}")
        validate.positive("of_degree", self.of_degree)

    @property
    def degree(self) -> float:
        return self.of_degree

    def __call__(self, weights, x):
        return self.function(weights, x)

    def defect(self, radius):
        return self.bound

    def limit(self):
        return self if self.limits_to is None else Function(self.limits_to, self.of_degree)


@dataclasses.dataclass(frozen=True)
class Dense(Net):
    """Fully connected layers without biases; the weights are a tuple of matrices (units, inputs), the first layer first.

    **Arguments:**

    - `widths`: the number of units of each hidden layer; none for a linear predictor.
    - `activation`: between layers.
    - `outputs`: the number of logits; None for one number, the last matrix then being a vector.
    """

    widths: tuple[int, ...] = ()
    activation: Power | Softplus = RELU
    outputs: int | None = None

    def __post_init__(self):
        for width in self.widths:
            validate.whole("widths", width, 1)
        if self.outputs is not None:
            validate.whole("outputs", self.outputs, 2)
        if isinstance(self.activation, Softplus) and len(self.widths) != 1:
            raise ValueError(f"Softplus has a bound for one hidden layer, got {len(self.widths)}; give the net as a Function")

    @property
    def degree(self) -> float:
        return functools.reduce(lambda degree, _: degree * self.activation.degree + 1, self.widths, 1)

    def _parts(self, weights, x):
        """What enters each activation, and the output."""
        entering = []
        for matrix in weights[:-1]:
            entering.append(matrix @ x)
            x = self.activation(entering[-1])
        return entering, weights[-1] @ x

    def __call__(self, weights, x):
        return self._parts(weights, x)[1]

    def init(self, key, input_shape):
        (width,) = input_shape
        sizes = [width, *self.widths]
        shapes: list[tuple[int, ...]] = [*zip(self.widths, sizes, strict=False)]
        shapes.append((sizes[-1],) if self.outputs is None else (self.outputs, sizes[-1]))
        keys = jax.random.split(key, len(shapes))
        return tuple(jax.random.normal(k, shape) / shape[-1] ** 0.5 for k, shape in zip(keys, shapes, strict=True))

    def defect(self, radius):
        # the sum over units of a_j (sigma'(z) z - sigma(z)), and |a|_1 <= sqrt(units) |a|
        return (0.0, self.activation.defect * math.sqrt(self.widths[0])) if isinstance(self.activation, Softplus) else ()

    def limit(self):
        return dataclasses.replace(self, activation=RELU) if isinstance(self.activation, Softplus) else self

    @property
    def kinked(self):
        broken = isinstance(self.activation, Power) and self.activation.power == 1 and self.activation != IDENTITY
        return bool(self.widths) and broken

    def preactivations(self, weights, x):
        return self._parts(weights, x)[0] if self.kinked else []

    def layers(self, weights):
        return [jnp.atleast_2d(matrix) for matrix in weights]


def linear(outputs: int | None = None) -> Dense:
    """A linear predictor, degree 1."""
    return Dense((), outputs=outputs)


def deep_linear(widths: tuple[int, ...], outputs: int | None = None) -> Dense:
    """A deep linear network, degree one more than its hidden layers."""
    return Dense(tuple(widths), IDENTITY, outputs)


def two_layer(
    width: int, *, power: int = 1, slope: float = 0.0, at_zero: float | None = None, outputs: int | None = None
) -> Dense:
    """One hidden layer of (leaky) ReLU units or their powers, degree `power` + 1."""
    return Dense((width,), Power(power, slope, at_zero), outputs)


def deep(
    widths: tuple[int, ...], *, power: int = 1, slope: float = 0.0, at_zero: float | None = None, outputs: int | None = None
) -> Dense:
    """Several hidden layers of (leaky) ReLU units or their powers."""
    return Dense(tuple(widths), Power(power, slope, at_zero), outputs)


def softplus(width: int, outputs: int | None = None) -> Dense:
    """One hidden layer of softplus units, nearly of degree 2."""
    return Dense((width,), Softplus(), outputs)


@dataclasses.dataclass(frozen=True)
class Skip(Net):
    r"""$a^\top\sigma(W x + b) + c^\top x$, nearly of degree 2; the weights are (W, b, a, c).

    **Arguments:**

    - `width`: the number of units.
    - `activation`: ReLU (a `Power` of degree 1) or `Softplus`.
    """

    width: int
    activation: Power | Softplus = RELU

    def __post_init__(self):
        validate.whole("width", self.width, 1)
        if self.activation.degree != 1:
            raise ValueError(f"activation must be of degree 1, got {self.activation}")

    @property
    def degree(self) -> float:
        return 2

    def __call__(self, weights, x):
        inner, biases, outer, straight = weights
        return outer @ self.activation(inner @ x + biases) + straight @ x

    def init(self, key, input_shape):
        (width,) = input_shape
        keys = jax.random.split(key, 3)
        inner = jax.random.normal(keys[0], (self.width, width)) / width**0.5
        outer = jax.random.normal(keys[1], (self.width,)) / self.width**0.5
        return inner, jnp.zeros(self.width), outer, jax.random.normal(keys[2], (width,)) / width**0.5

    def defect(self, radius):
        unit = self.activation.defect * math.sqrt(self.width) if isinstance(self.activation, Softplus) else 0.0
        # <grad, c> c.x counts once where degree 2 wants twice; |a| and |c| together are at most the norm
        return (0.0, math.hypot(unit, radius))

    def limit(self):
        return _WithoutSkip(
            dataclasses.replace(self, activation=RELU if isinstance(self.activation, Softplus) else self.activation)
        )

    @property
    def kinked(self):
        return isinstance(self.activation, Power)

    def preactivations(self, weights, x):
        return [weights[0] @ x + weights[1]] if self.kinked else []


@dataclasses.dataclass(frozen=True)
class _WithoutSkip(Net):
    """What is left of `Skip` at large weights."""

    net: Skip

    @property
    def degree(self) -> float:
        return 2

    def __call__(self, weights, x):
        inner, biases, outer, _ = weights
        return outer @ self.net.activation(inner @ x + biases)

    @property
    def kinked(self):
        return self.net.kinked

    def preactivations(self, weights, x):
        return self.net.preactivations(weights, x)


@dataclasses.dataclass(frozen=True)
class Convolutional(Net):
    """Convolutions without biases, each with ReLU and max-pooling by 2, then a dense layer of ReLU units and the logits.

    Inputs are (height, width, channels). The weights are a tuple: a kernel (size, size, channels in, channels out) for each
    convolution, the dense matrix (units, inputs), the last matrix (classes, units).

    **Arguments:**

    - `channels`: of each convolution.
    - `units`: of the dense hidden layer.
    - `outputs`: the number of logits.
    - `size`: of the kernels, in pixels.
    """

    channels: tuple[int, ...]
    units: int
    outputs: int
    size: int = 3

    @property
    def degree(self) -> float:
        return len(self.channels) + 2

    @property
    def kinked(self):
        return True

    def __call__(self, weights, x):
        *kernels, hidden, last = weights
        x = x[None]
        for kernel in kernels:
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = RELU(x)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return last @ RELU(hidden @ x.ravel())

    def init(self, key, input_shape):
        height, width, incoming = input_shape
        keys = iter(jax.random.split(key, len(self.channels) + 2))
        kernels = []
        for channels in self.channels:
            shape = (self.size, self.size, incoming, channels)
            kernels.append(jax.random.normal(next(keys), shape) * (2 / math.prod(shape[:3])) ** 0.5)
            height, width, incoming = height // 2, width // 2, channels
        inputs = height * width * incoming
        if inputs == 0:
            raise ValueError(f"inputs of shape {input_shape} are too small to pool {len(self.channels)} times by 2")
        hidden = jax.random.normal(next(keys), (self.units, inputs)) * (2 / inputs) ** 0.5
        return *kernels, hidden, jax.random.normal(next(keys), (self.outputs, self.units)) * (2 / self.units) ** 0.5
