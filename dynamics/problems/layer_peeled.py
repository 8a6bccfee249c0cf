"""The layer-peeled problem: last-layer features are free variables next to the classifier's prototypes and biases."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics import state as tree
from dynamics import status, validate
from dynamics.losses import Loss, Unhinged
from dynamics.problems.base import Problem
from dynamics.problems.coupling import LabelCoupling, Labels
from dynamics.problems.fields import kernel_matrix, static_labels, static_weights
from dynamics.problems.sphere import anti_aligned, tangential_pull, unit_rows
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
    - `bias`: True, biases are trained; False, they stay where they start and still count in the logits; "slaved", they are
      at every moment the best ones for the features and prototypes (squared error), wherever they start.
    - `anchored`: prototypes and biases stay where they start.
    - `normalize`: the loss sees features divided by their norm.
    - `adjusted`: for `normalize` with `anchored` and a loss linear in the logits: in (0, 1), the epsilon of the adjusted
      prototype, which pulls harder at features with a cosine below -1 + epsilon. It depends on the features, so it is a
      factor on their force and no part of `objective`.
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
    adjusted: float | Float[Array, ""] | None
    bias: bool | Literal["slaved"] = eqx.field(static=True)
    anchored: bool = eqx.field(static=True)
    normalize: bool = eqx.field(static=True)

    def __init__(
        self,
        labels,
        *,
        num_classes: int,
        loss: Loss | None = None,
        decay: Decay | None = None,
        bias: bool | Literal["slaved"] = False,
        anchored: bool = False,
        normalize: bool = False,
        adjusted=None,
        sample_weights=None,
        kernel=None,
        feature_kernel=None,
    ):
        num_classes = validate.whole("num_classes", num_classes, 1)
        if num_classes == 1:
            raise ValueError("num_classes must be >= 2, got 1: with a single class there is no margin to learn")
        labels = static_labels(labels, num_classes)
        loss = Unhinged() if loss is None else loss
        if not isinstance(loss, Loss):
            raise ValueError(f"loss must be a dynamics.losses.Loss, got {loss!r}")
        decay = Decay() if decay is None else decay
        if not isinstance(decay, Decay):
            raise ValueError(f"decay must be a dynamics.Decay, got {decay!r}")
        for name, value in (("anchored", anchored), ("normalize", normalize)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        if not isinstance(bias, bool) and bias != "slaved":
            raise ValueError(f"bias must be True or False, or 'slaved', got {bias!r}")
        weights = None if sample_weights is None else static_weights(sample_weights, labels.values)
        self.data = Labels(labels, weights, num_classes)
        self.loss = loss
        self.decay = decay
        self.kernel = kernel_matrix("kernel", kernel, labels.values.size, "(samples, samples)")
        self.feature_kernel = kernel_matrix("feature_kernel", feature_kernel, None, "(dim, dim)")
        self.adjusted = adjusted
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
        if bias == "slaved" and (anchored or loss.best_biases is None):
            raise ValueError(
                "bias='slaved' needs free prototypes and a loss whose best biases are known (SquaredError), got "
                f"{type(loss).__name__}{' with anchored=True' if anchored else ''}"
            )
        if adjusted is not None:
            if not (normalize and anchored) or coupling is None or kernel is not None or feature_kernel is not None:
                raise ValueError(
                    "adjusted needs normalize=True, anchored=True, no kernel and a loss linear in the logits: it is defined "
                    "by the angle to a fixed pull"
                )
            if validate.is_concrete(adjusted) and not 0 < float(adjusted) < 1:
                raise ValueError(f"adjusted must lie in (0, 1), got {validate.shown(adjusted)}")

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

    def complete(self, state: Peeled) -> Peeled:
        """The state with slaved biases at their optimum."""
        if self.bias != "slaved":
            return state
        logits = self.logits(Peeled(state.features, state.prototypes, jnp.zeros_like(state.biases)))
        weights = jnp.asarray(self.data.weights, logits.dtype)
        assert self.loss.best_biases is not None
        return Peeled(
            state.features,
            state.prototypes,
            self.loss.best_biases(logits, jnp.asarray(self.labels), weights, self.decay.biases),
        )

    def data_loss(self, state: Peeled, counted: Float[Array, " samples"] | None = None) -> Float[Array, ""]:
        """The weighted mean loss over samples, without decay; `counted` multiplies each sample's loss."""
        logits = self.logits(state)
        rows = self.labels
        if self.label_coupling is not None and self.label_coupling.by_sample:
            rows = np.arange(self.num_samples)
        rows = jnp.asarray(rows)
        self._check_losses(jax.eval_shape(jax.vmap(self.loss), logits, rows))
        if counted is None and self.data.static_weights is None:
            return self.loss.mean(logits, rows)
        losses = jax.vmap(self.loss)(logits, rows) * jnp.asarray(self.data.weights, logits.dtype)
        return jnp.mean(losses if counted is None else counted * losses)

    def _check_losses(self, losses) -> None:
        """Refuse what a loss returned when it is not one floating number a sample."""
        shape, dtype = np.shape(losses), getattr(losses, "dtype", None)
        if shape != (self.num_samples,) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"loss {type(self.loss).__name__} must return one floating number a sample, shape (), got "
                + (f"{dtype} of shape {shape[1:]}" if dtype is not None else type(losses).__name__)
            )

    def objective(self, state: Peeled) -> Float[Array, ""]:
        """Mean loss over samples plus half of each decay times the squared norm of its part."""
        state = self.complete(state)
        penalty = (
            self.decay.features * jnp.sum(jnp.square(state.features))
            + self.decay.prototypes * jnp.sum(jnp.square(state.prototypes))
            + self.decay.biases * jnp.sum(jnp.square(state.biases))
        )
        return self.data_loss(state) + 0.5 * penalty

    def force(self, state: Peeled, counted: Float[Array, " samples"] | None = None) -> Peeled:
        """Minus the gradient of the objective, the features' data part multiplied by the kernels.

        `counted` multiplies each sample's loss: samples/batch size for those of a minibatch, 0 for the others.
        """
        state = self.complete(state)
        pull = self._pull(state, counted)
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

    def _pull(self, state: Peeled, counted) -> Peeled:
        """Minus the gradient of the data part."""
        coupling = self.label_coupling
        if coupling is None and self.normalize:
            return jax.tree.map(jnp.negative, jax.grad(self.data_loss)(state, counted))
        if coupling is None:
            pull = self._pull_logits(self.logits(state), counted)
            return Peeled(pull @ state.prototypes, pull.T @ state.features, jnp.sum(pull, axis=0))
        # a linear loss pulls by a constant matrix: no logits are needed, and its structure saves a factor C
        features, seen = coupling.pull_features(state.prototypes), state.features
        if self.normalize:
            features, seen = tangential_pull(seen, features, self.adjusted), unit_rows(seen)
        if counted is None:
            return Peeled(features, coupling.pull_prototypes(seen), coupling.pull_biases(state.biases.dtype))
        part = counted[:, None]
        return Peeled(part * features, coupling.pull_prototypes(part * seen), coupling.pull_prototypes(part)[:, 0])

    def _pull_logits(self, logits: Float[Array, "samples classes"], counted) -> Float[Array, "samples classes"]:
        """Minus the gradient of the data part in the logits."""
        labels = jnp.asarray(self.labels)
        self._check_losses(jax.eval_shape(jax.vmap(self.loss), logits, labels))
        weights = jnp.asarray(self.data.weights, logits.dtype) / self.num_samples
        weights = weights if counted is None else counted * weights
        return -weights[:, None] * jax.vmap(self.loss.gradient)(logits, labels)

    def pace(self, motion: Peeled, state: Peeled, rates: Rates, t) -> Peeled:
        """`motion` times the rates at time `t`; parts that are anchored or not trained stay."""
        features = rates.features(t) * motion.features
        if rates.rescaled:
            features = features * jnp.linalg.norm(state.features, axis=-1, keepdims=True)
        weights = rates.weights(t)
        prototypes, biases = weights * motion.prototypes, weights * motion.biases
        if self.anchored:
            prototypes = jnp.zeros_like(prototypes)
        if self.anchored or self.bias is not True:
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
        if dim == 1 and self.adjusted is not None:
            raise ValueError("features must have dim >= 2 with adjusted, got 1: on a line there is no tangent to turn along")
        if self.feature_kernel is not None:
            validate.shape("feature_kernel", self.feature_kernel, (dim, dim), "(dim, dim)")
        for name in ("features", "prototypes", "biases"):
            validate.finite(name, getattr(state, name))
        for part in ("features", "prototypes", "biases"):
            if np.shape(getattr(self.decay, part)) != ():
                raise ValueError(f"decay.{part} must be a scalar, got shape {np.shape(getattr(self.decay, part))}")
        if self.normalize and validate.is_concrete(state.features):
            still = np.flatnonzero(~np.any(np.asarray(state.features), axis=1))
            if still.size:
                raise ValueError(f"features must not be zero where they are normalised; that of sample {still[0]} is")
        dtype = jnp.result_type(state.features, state.prototypes, state.biases)
        if not jnp.issubdtype(dtype, jnp.floating):
            dtype = jnp.result_type(float)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), state)

    def valid(self) -> Array:
        """Whether the hyper-parameters are finite and in range, traced or not."""
        kernels = [leaf for leaf in (self.kernel, self.feature_kernel) if leaf is not None]
        ok = self.loss.valid() & tree.all_finite((kernels, self.decay))
        if self.adjusted is not None:
            ok = ok & (jnp.asarray(self.adjusted) > 0) & (jnp.asarray(self.adjusted) < 1)
        return ok & jnp.all(jnp.stack([jnp.asarray(value) >= 0 for value in jax.tree.leaves(self.decay)]))

    def start_code(self, state: Peeled) -> Array:
        """`bad_input` for a zero feature that is normalised; `fixed_point` where one faces away from a fixed pull."""
        code = jnp.asarray(status.OK, jnp.int32)
        if not self.normalize:
            return code
        coupling = self.label_coupling
        if coupling is not None and self.anchored and self.adjusted is None and self.kernel is None:
            stuck = jnp.any(anti_aligned(state.features, coupling.pull_features(state.prototypes)))
            code = jnp.where(stuck, status.FIXED_POINT, code)
        zero = jnp.any(jnp.all(state.features == 0, axis=1))
        return jnp.where(zero, status.BAD_INPUT, code).astype(jnp.int32)
