"""One feature a class: class means under losses linear in the logits, and features that start collapsed."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics import validate
from dynamics.losses import Linear
from dynamics.problems import LayerPeeled, Peeled
from dynamics.reduce.base import Reduction, checked


class ClassMeans(Reduction):
    r"""A balanced problem with a linear loss, reduced to one feature a class.

    $(G, W)$ with $G_c = \sqrt{N} \times$ class mean obey a closed system that does not know N; what is left of the features,
    their deviations from the class means, is pulled by nothing and only decays.

    **Arguments:**

    - `full`, `problem`, `state`: as in `Reduction`; the reduced problem has one sample a class.
    - `deviations`: within-class deviations of the start, shape (samples, dim).
    """

    deviations: Float[Array, "samples dim"]

    def lift(self, state: Peeled, kept: float | Array = 1.0) -> Peeled:
        """The full state for a reduced one; `kept` multiplies the deviations (their decay so far)."""
        root = (self.full.num_samples / self.full.num_classes) ** 0.5
        kept = jnp.asarray(kept, self.deviations.dtype)
        return Peeled(self.full.data.spread(state.features / root) + kept * self.deviations, state.prototypes, state.biases)

    def see(self, state: Peeled, kept: float | Array = 1.0) -> tuple[LayerPeeled, Peeled]:
        return self.full, self.lift(state, kept)


class Collapsed(Reduction):
    r"""A problem whose features start equal within classes, reduced to one sample a class.

    Equal features stay equal under any loss. Class c, of $n_c$ samples of weight $w_c$ each, becomes one sample of weight
    $C n_c w_c/n$, so that the loss and the forces on prototypes and biases are the full ones. The force on that sample is
    then $n_c$ times the one on each feature: the diagonal kernel $1/n_c$ divides it, and leaves decay alone.

    The reduced state counts each class once: norms over all samples and decay terms are those of the lifted state.

    **Arguments:**

    - `full`, `problem`, `state`: as in `Reduction`; the reduced problem has one sample a class. The reduced features are NaN
      where a traced start turns out not to be collapsed, and a run from them is `bad_input`.
    """

    def lift(self, state: Peeled, kept: float | Array = 1.0) -> Peeled:
        """The full state for a reduced one; there are no deviations for `kept` to multiply."""
        return Peeled(self.full.data.spread(state.features), state.prototypes, state.biases)

    def see(self, state: Peeled, kept: float | Array = 1.0) -> tuple[LayerPeeled, Peeled]:
        return self.full, self.lift(state)


def class_means(problem: LayerPeeled, state: Peeled) -> ClassMeans:
    """Reduce a balanced problem with a loss linear in the logits by label to its class means.

    Exact for flow and descent on all samples, with decay and momentum, for any rates that are not rescaled by feature norms.

    **Raises:** `ValueError` for other losses, `normalize`, unbalanced or weighted classes, trained biases and kernels.

    **Reference:** "On the Dynamics Under the Unhinged Loss and Beyond", JMLR 24 (2023), Lemma 9: deviations are invariant.
    """
    state = checked(problem, state)
    refusal = no_class_means(problem)
    if refusal is not None:
        raise ValueError(refusal)
    coupling = problem.label_coupling
    assert coupling is not None
    root = (problem.num_samples / problem.num_classes) ** 0.5
    reduced = LayerPeeled.balanced(
        problem.num_classes,
        1,
        loss=Linear(jax.tree.map(lambda x: x / root, coupling.coupling)),
        decay=problem.decay,
        bias=False,
        anchored=problem.anchored,
        feature_kernel=problem.feature_kernel,
    )
    means = problem.data.class_means(state.features)
    return ClassMeans(
        problem,
        reduced,
        Peeled(root * means, state.prototypes, state.biases),
        state.features - problem.data.spread(means),
    )


def no_class_means(problem: LayerPeeled) -> str | None:
    """Why the class means of a problem are no closed system; None where they are."""
    coupling = problem.label_coupling
    if coupling is None or coupling.by_sample or problem.normalize:
        return "loss must be linear in the logits, with one coupling a label, for the class-mean reduction"
    sizes = problem.data.sizes
    if np.any(sizes != sizes[0]) or problem.data.static_weights is not None:
        return f"classes must be balanced and unweighted for the class-mean reduction, got sizes {sizes}"
    if problem.bias:
        return "bias must be False for the class-mean reduction: biases do not scale with the features"
    if problem.kernel is not None:
        return "kernel must be None for the class-mean reduction: it mixes samples"
    return None


def collapsed(problem: LayerPeeled, state: Peeled) -> Collapsed:
    """Reduce a problem whose features are equal within classes to one sample a class.

    Exact for flow and descent on all samples, with any loss, decay, momentum, rates (rescaled ones too), biases, normalised
    features, a feature kernel and class sizes; sample weights must be equal within classes.

    **Raises:** `ValueError` for a coupling by sample, a kernel, weights that differ within a class, an adjusted prototype, and
    features of a class that differ in any bit.
    """
    state = checked(problem, state)
    data, classes = problem.data, problem.num_classes
    coupling = problem.label_coupling
    if coupling is not None and coupling.by_sample:
        raise ValueError("loss must have one coupling a label, not one a sample, for the collapsed reduction")
    if problem.kernel is not None:
        raise ValueError("kernel must be None for the collapsed reduction: it mixes samples")
    if problem.adjusted is not None:
        raise ValueError("adjusted must be None for the collapsed reduction, which needs a kernel")
    first = np.array([np.flatnonzero(data.labels == label)[0] for label in range(classes)])
    uneven = np.flatnonzero(data.weights != data.weights[first][data.labels])
    if uneven.size:
        raise ValueError(
            "sample_weights must be equal within classes for the collapsed reduction; "
            f"those of class {data.labels[uneven[0]]} differ"
        )
    features = state.features[first]
    equal = jnp.all(state.features == data.spread(features), axis=1)
    if validate.is_concrete(equal):
        apart = np.flatnonzero(~np.asarray(equal))
        if apart.size:
            raise ValueError(
                "features must be equal within classes for the collapsed reduction; "
                f"that of sample {apart[0]} differs from the first of class {data.labels[apart[0]]}"
            )
    weights = classes * data.sizes * data.weights[first] / problem.num_samples
    reduced = LayerPeeled.balanced(
        classes,
        1,
        loss=problem.loss,
        decay=problem.decay,
        bias=problem.bias,
        anchored=problem.anchored,
        normalize=problem.normalize,
        sample_weights=None if np.all(weights == 1) else weights,
        kernel=np.diag(1 / data.sizes),
        feature_kernel=problem.feature_kernel,
    )
    features = jnp.where(jnp.all(equal), features, jnp.nan)
    return Collapsed(problem, reduced, Peeled(features, state.prototypes, state.biases))
