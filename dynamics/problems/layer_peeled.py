"""The layer-peeled problem: last-layer features are free variables next to the classifier's prototypes and biases."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics import state as tree
from dynamics import validate
from dynamics.losses import Loss, Unhinged
from dynamics.problems.base import Problem, StaticArray
from dynamics.problems.coupling import LabelCoupling, Labels
from dynamics.rates import Rates


class Peeled(eqx.Module):
    """The state of a layer-peeled problem; rows are vectors.

    **Arguments:**

    - `features`: shape (samples, dim).
    - `prototypes`: shape (classes, dim).
    - `biases`: shape (classes,); None is zeros.
    """

    features: Float[Array, "samples dim"]
    prototypes: Float[Array, "classes dim"]
    biases: Float[Array, " classes"]

    def __init__(self, features, prototypes, biases=None):
        self.features = jnp.asarray(features)
        self.prototypes = jnp.asarray(prototypes)
        if biases is None:
            biases = jnp.zeros(self.prototypes.shape[:-1], self.prototypes.dtype)
        self.biases = jnp.asarray(biases)


class Decay(eqx.Module):
    """Weight decay: the objective gains half of each coefficient times the squared norm of its part."""

    features: float | Float[Array, ""] = 0.0
    prototypes: float | Float[Array, ""] = 0.0
    biases: float | Float[Array, ""] = 0.0

    def __check_init__(self):
        for part in ("features", "prototypes", "biases"):
            validate.nonnegative(f"decay.{part}", getattr(self, part))


class LayerPeeled(Problem):
    r"""The layer-peeled (unconstrained-features) problem.

    The objective is the weighted mean loss of the logits `features @ prototypes.T + biases` over samples, plus
    `decay.features/2 |H|^2 + decay.prototypes/2 |W|^2 + decay.biases/2 |b|^2`.

    **Arguments:**

    - `labels`: shape (samples,), integers in 0..num_classes-1, every class present; concrete and static.
    - `num_classes`: C >= 2.
    - `loss`: a `dynamics.losses` loss.
    - `decay`: a `Decay`.
    - `bias`: whether biases are trained. If not, they stay where they start and still count in the logits.
    - `anchored`: prototypes and biases stay where they start.
    - `normalize`: the loss sees features divided by their norm.
    - `sample_weights`: shape (samples,), >= 0, mean one; concrete and static, like the labels they belong to.
    - `kernel`: shape (samples, samples), symmetric positive semi-definite: a fixed tangent kernel that multiplies the data
      part of the features' gradient (the motion is then no gradient flow of `objective`).
    - `feature_kernel`: shape (dim, dim), the same across feature coordinates.
    """

    data: Labels
    loss: Loss
    decay: Decay
    kernel: Float[Array, "samples samples"] | None
    feature_kernel: Float[Array, "dim dim"] | None
    bias: bool = eqx.field(static=True)
    anchored: bool = eqx.field(static=True)
    normalize: bool = eqx.field(static=True)

    def __init__(
        self,
        labels,
        *,
        num_classes: int,
        loss: Loss | None = None,
        decay: Decay | None = None,
        bias: bool = False,
        anchored: bool = False,
        normalize: bool = False,
        sample_weights=None,
        kernel=None,
        feature_kernel=None,
    ):
        num_classes = validate.whole("num_classes", num_classes, 1)
        if num_classes == 1:
            raise ValueError("num_classes must be >= 2, got 1: with a single class there is no margin to learn")
        labels = _static_labels(labels, num_classes)
        loss = Unhinged() if loss is None else loss
        if not isinstance(loss, Loss):
            raise ValueError(f"loss must be a dynamics.losses.Loss, got {loss!r}")
        decay = Decay() if decay is None else decay
        if not isinstance(decay, Decay):
            raise ValueError(f"decay must be a dynamics.Decay, got {decay!r}")
        for name, value in (("bias", bias), ("anchored", anchored), ("normalize", normalize)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        weights = None if sample_weights is None else _static_weights(sample_weights, labels.values)
        self.data = Labels(labels, weights, num_classes)
        self.loss = loss
        self.decay = decay
        self.kernel = _kernel("kernel", kernel, labels.values.size, "(samples, samples)")
        self.feature_kernel = _kernel("feature_kernel", feature_kernel, None, "(dim, dim)")
        self.bias = bias
        self.anchored = anchored
        self.normalize = normalize
        coupling = loss.coupling(num_classes)
        if isinstance(coupling, jax.Array):
            rows = {num_classes, labels.values.size}
            if coupling.shape[0] not in rows or coupling.shape[1] != num_classes:
                raise ValueError(
                    f"coupling of the loss must have shape (classes, classes) = ({num_classes}, {num_classes}) or "
                    f"(samples, classes) = ({labels.values.size}, {num_classes}), got {coupling.shape}"
                )

    @classmethod
    def balanced(cls, num_classes: int, per_class: int, **fields) -> "LayerPeeled":
        """`per_class` samples of each class, labels sorted by class; further fields as in `LayerPeeled`."""
        num_classes = validate.whole("num_classes", num_classes, 1)
        per_class = validate.whole("per_class", per_class, 1)
        return cls(np.repeat(np.arange(num_classes), per_class), num_classes=num_classes, **fields)

    @property
    def labels(self) -> np.ndarray:
        """Labels, shape (samples,)."""
        return self.data.labels

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.data.num_classes

    @property
    def num_samples(self) -> int:
        """The number of samples."""
        return self.data.labels.size

    @property
    def label_coupling(self) -> LabelCoupling | None:
        """The constant matrix that a linear loss couples samples and classes by; None for other losses."""
        coupling = self.loss.coupling(self.num_classes)
        return None if coupling is None else LabelCoupling(self.data, coupling)

    def logits(self, state: Peeled) -> Float[Array, "samples classes"]:
        """Logits of every sample."""
        features = unit_rows(state.features) if self.normalize else state.features
        return features @ state.prototypes.T + state.biases

    def data_loss(self, state: Peeled) -> Float[Array, ""]:
        """The weighted mean loss over samples, without decay."""
        logits = self.logits(state)
        rows = self.labels
        if self.label_coupling is not None and self.label_coupling.by_sample:
            rows = np.arange(self.num_samples)
        losses = jax.vmap(self.loss)(logits, jnp.asarray(rows))
        return jnp.mean(losses * jnp.asarray(self.data.weights, losses.dtype))

    def objective(self, state: Peeled) -> Float[Array, ""]:
        """Mean loss over samples plus half of each decay times the squared norm of its part."""
        penalty = (
            self.decay.features * jnp.sum(state.features**2)
            + self.decay.prototypes * jnp.sum(state.prototypes**2)
            + self.decay.biases * jnp.sum(state.biases**2)
        )
        return self.data_loss(state) + 0.5 * penalty

    def force(self, state: Peeled) -> Peeled:
        """Minus the gradient of the objective, the features' data part multiplied by the kernels."""
        pull = self._pull(state)
        features = pull.features
        if self.kernel is not None:
            features = self.kernel @ features
        if self.feature_kernel is not None:
            features = features @ self.feature_kernel
        return Peeled(
            features - self.decay.features * state.features,
            pull.prototypes - self.decay.prototypes * state.prototypes,
            pull.biases - self.decay.biases * state.biases,
        )

    def _pull(self, state: Peeled) -> Peeled:
        """Minus the gradient of the data part."""
        coupling = self.label_coupling
        if coupling is None or self.normalize:
            return jax.tree.map(jnp.negative, jax.grad(self.data_loss)(state))
        # a linear loss pulls by a constant matrix: no logits are needed, and its structure saves a factor C
        return Peeled(
            coupling.pull_features(state.prototypes),
            coupling.pull_prototypes(state.features),
            coupling.pull_biases(state.biases.dtype),
        )

    def pace(self, motion: Peeled, state: Peeled, rates: Rates, t) -> Peeled:
        """`motion` times the rates at time `t`; parts that are anchored or not trained stay."""
        features = rates.features(t) * motion.features
        if rates.rescaled:
            features = features * jnp.linalg.norm(state.features, axis=-1, keepdims=True)
        weights = rates.weights(t)
        prototypes, biases = weights * motion.prototypes, weights * motion.biases
        if self.anchored:
            prototypes = jnp.zeros_like(prototypes)
        if self.anchored or not self.bias:
            biases = jnp.zeros_like(biases)
        return Peeled(features, prototypes, biases)

    def check(self, state: Peeled) -> Peeled:
        """The state with arrays of one floating dtype; refuses what does not fit the problem."""
        if not isinstance(state, Peeled):
            raise ValueError(f"state must be a dynamics.Peeled, got {type(state).__name__}")
        samples, classes = self.num_samples, self.num_classes
        validate.shape("features", state.features, (samples, "dim"), "(samples, dim)")
        dim = state.features.shape[1]
        validate.shape("prototypes", state.prototypes, (classes, dim), "(classes, dim)")
        validate.shape("biases", state.biases, (classes,), "(classes,)")
        if dim == 0:
            raise ValueError("features must have dim >= 1, got 0")
        if self.feature_kernel is not None:
            validate.shape("feature_kernel", self.feature_kernel, (dim, dim), "(dim, dim)")
        for name in ("features", "prototypes", "biases"):
            validate.finite(name, getattr(state, name))
        for part in ("features", "prototypes", "biases"):
            if np.shape(getattr(self.decay, part)) != ():
                raise ValueError(f"decay.{part} must be a scalar, got shape {np.shape(getattr(self.decay, part))}")
        dtype = jnp.result_type(state.features, state.prototypes, state.biases)
        if not jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.result_type(float)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), state)

    def valid(self) -> Array:
        """Whether the hyper-parameters are finite and in range, traced or not."""
        kernels = [leaf for leaf in (self.kernel, self.feature_kernel) if leaf is not None]
        ok = self.loss.valid() & tree.all_finite((kernels, self.decay))
        return ok & jnp.all(jnp.stack([jnp.asarray(value) >= 0 for value in jax.tree.leaves(self.decay)]))


def unit_rows(x: Float[Array, "rows dim"]) -> Float[Array, "rows dim"]:
    """Each row divided by its norm; a zero row becomes NaN, it has no direction."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _static_labels(labels, num_classes: int) -> StaticArray:
    if not validate.is_concrete(labels):
        raise ValueError("labels must be concrete: they are static, one compiled program each")
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"labels must have shape (samples,) with samples >= 1, got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got dtype {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        bad = labels[(labels < 0) | (labels >= num_classes)][0]
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {bad}")
    empty = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
    if empty.size:
        raise ValueError(f"labels must hold every class of 0..{num_classes - 1}; class {empty[0]} is empty")
    return StaticArray(labels.astype(np.int32))


def _static_weights(weights, labels: np.ndarray) -> StaticArray:
    if not validate.is_concrete(weights):
        raise ValueError("sample_weights must be concrete: they are static, like the labels")
    weights = np.asarray(weights, float)
    validate.shape("sample_weights", weights, labels.shape, "(samples,)")
    validate.nonnegative("sample_weights", weights)
    if abs(weights.mean() - 1) > 1e-6:
        raise ValueError(f"sample_weights must have mean one, got mean {weights.mean():.6g}")
    idle = np.flatnonzero(np.bincount(labels, weights) == 0)
    if idle.size:
        raise ValueError(f"sample_weights must be positive on some sample of every class; class {idle[0]} has none")
    return StaticArray(weights)


def _kernel(name: str, kernel, size: int | None, meaning: str) -> Array | None:
    if kernel is None:
        return None
    shape = np.shape(kernel)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{name} must be square, {meaning}, got shape {shape}")
    if size is not None:
        validate.shape(name, kernel, (size, size), meaning)
    validate.finite(name, kernel)
    if validate.is_concrete(kernel):
        values = np.asarray(kernel, float)
        resolution = 1e-10 if np.asarray(kernel).dtype == np.float64 else 1e-4
        slack = resolution * np.max(np.abs(values), initial=0.0)
        if np.max(np.abs(values - values.T), initial=0.0) > slack:
            raise ValueError(f"{name} must be symmetric, largest asymmetry {np.max(np.abs(values - values.T)):.3g}")
        lowest = np.linalg.eigvalsh(values)[0]
        if lowest < -slack:
            raise ValueError(f"{name} must be positive semi-definite, smallest eigenvalue {lowest:.3g}")
    return jnp.asarray(kernel)
