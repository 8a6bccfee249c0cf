r"""How a linear loss couples samples and classes.

The data part of the objective is $-\langle B, H W^T\rangle - \langle B \mathbf{1}..., b\rangle$ with one constant matrix
$B$ (samples, classes), $B_i = v_i A_{y_i}/n$; features are pulled by $B W$, prototypes by $B^T H$, biases by $B^T 1$.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics.losses import SymmetricCoupling
from dynamics.problems.base import StaticArray


class Labels(eqx.Module):
    """The static data of a classification problem: labels, class sizes, sample weights of mean one."""

    static: StaticArray = eqx.field(static=True)
    static_weights: StaticArray | None = eqx.field(static=True)
    num_classes: int = eqx.field(static=True)

    @property
    def labels(self) -> np.ndarray:
        """Labels, shape (samples,)."""
        return self.static.values

    @property
    def weights(self) -> np.ndarray:
        """Sample weights, shape (samples,); ones when none were given."""
        return np.ones(self.labels.shape) if self.static_weights is None else self.static_weights.values

    @property
    def sizes(self) -> np.ndarray:
        """Class sizes, shape (classes,)."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @property
    def sorted_and_balanced(self) -> bool:
        """Whether samples are listed class by class, with as many in each."""
        per_class, left = divmod(self.labels.size, self.num_classes)
        return left == 0 and np.array_equal(self.labels, np.repeat(np.arange(self.num_classes), per_class))

    def class_sums(self, x: Float[Array, "samples *rest"]) -> Float[Array, "classes *rest"]:
        """The sum of `x` over the samples of each class."""
        if self.sorted_and_balanced:
            return jnp.sum(x.reshape(self.num_classes, -1, *x.shape[1:]), axis=1)
        return jax.ops.segment_sum(x, jnp.asarray(self.labels), self.num_classes)

    def class_means(self, x: Float[Array, "samples *rest"]) -> Float[Array, "classes *rest"]:
        """The mean of `x` over the samples of each class."""
        sizes = jnp.asarray(self.sizes, x.dtype)
        return self.class_sums(x) / sizes.reshape(-1, *([1] * (x.ndim - 1)))

    def spread(self, x: Float[Array, "classes *rest"]) -> Float[Array, "samples *rest"]:
        """Each sample's row of the class-wise `x`."""
        if self.sorted_and_balanced:
            return jnp.repeat(x, self.labels.size // self.num_classes, axis=0)
        return x[jnp.asarray(self.labels)]

    def weighted(self, x: Float[Array, "samples dim"]) -> Float[Array, "samples dim"]:
        """Rows of `x` times their sample weights."""
        return x if self.static_weights is None else x * jnp.asarray(self.weights, x.dtype)[:, None]


def _symmetric(coupling: SymmetricCoupling, by_class: Float[Array, "classes dim"]) -> Float[Array, "classes dim"]:
    """(a I - b 11^T) x as a (x - mean) + (a - C b) mean: rounding then does not feed the mean mode step after step."""
    mean = jnp.mean(by_class, axis=0)
    return coupling.diagonal * (by_class - mean) + coupling.drift * mean


class LabelCoupling(eqx.Module):
    """The matrix B of a linear loss on given labels, applied without being formed where it has structure."""

    data: Labels
    coupling: SymmetricCoupling | Float[Array, "rows classes"]

    @property
    def by_sample(self) -> bool:
        """Whether the coupling has one row a sample (else one a label)."""
        coupling = self.coupling
        return not isinstance(coupling, SymmetricCoupling) and coupling.shape[0] != self.data.num_classes

    def pull_features(self, prototypes: Float[Array, "classes dim"]) -> Float[Array, "samples dim"]:
        """B W, minus the gradient of the data part in the features."""
        coupling, samples = self.coupling, self.data.labels.size
        if isinstance(coupling, SymmetricCoupling):
            return self.data.weighted(self.data.spread(_symmetric(coupling, prototypes))) / samples
        rows = coupling @ prototypes
        return self.data.weighted(rows if self.by_sample else self.data.spread(rows)) / samples

    def pull_prototypes(self, features: Float[Array, "samples dim"]) -> Float[Array, "classes dim"]:
        """B^T H, minus the gradient of the data part in the prototypes."""
        coupling, samples = self.coupling, self.data.labels.size
        features = self.data.weighted(features)
        if isinstance(coupling, SymmetricCoupling):
            return _symmetric(coupling, self.data.class_sums(features)) / samples
        return coupling.T @ (features if self.by_sample else self.data.class_sums(features)) / samples

    def pull_biases(self, dtype) -> Float[Array, " classes"]:
        """B^T 1, the constant drift of the biases; exactly zero for balanced classes at the balanced gamma."""
        coupling, samples = self.coupling, self.data.labels.size
        share = np.bincount(self.data.labels, self.data.weights, self.data.num_classes) / samples
        if isinstance(coupling, SymmetricCoupling):
            even = np.full(self.data.num_classes, 1 / self.data.num_classes)
            excess = np.where(np.isclose(share, even, rtol=1e-14, atol=0), 0.0, share - even)
            return coupling.diagonal * jnp.asarray(excess, dtype) + coupling.drift / self.data.num_classes
        if self.by_sample:
            return coupling.T @ jnp.asarray(self.data.weights / samples, dtype)
        return coupling.T @ jnp.asarray(share, dtype)

    def matrix(self, dtype) -> Float[Array, "samples classes"]:
        """B itself; small problems and kernels only."""
        return self.pull_features(jnp.eye(self.data.num_classes, dtype=dtype))
