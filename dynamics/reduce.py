"""Exact reductions: smaller problems that move exactly as the one given."""

import equinox as eqx
import jax
from jaxtyping import Array, Float

from dynamics.losses import Linear
from dynamics.problems import LayerPeeled, Peeled
from dynamics.problems.coupling import Labels


class ClassMeans(eqx.Module):
    r"""A balanced problem with a linear loss, reduced to one feature a class.

    $(G, W)$ with $G_c = \sqrt{N} \times$ class mean obey a closed system that does not know N; what is left of the features,
    their deviations from the class means, is pulled by nothing and only decays.

    **Arguments:**

    - `problem`: the reduced problem, one sample a class.
    - `state`: the reduced start.
    - `deviations`: within-class deviations of the start, shape (samples, dim).
    """

    problem: LayerPeeled
    state: Peeled
    deviations: Float[Array, "samples dim"]
    data: Labels

    def lift(self, state: Peeled, kept: float | Array = 1.0) -> Peeled:
        """The full state for a reduced one; `kept` multiplies the deviations (their decay so far)."""
        root = (self.data.labels.size / self.data.num_classes) ** 0.5
        features = self.data.spread(state.features / root) + kept * self.deviations
        return Peeled(features, state.prototypes, state.biases)


def class_means(problem: LayerPeeled, state: Peeled) -> ClassMeans:
    """Reduce a balanced problem with a loss linear in the logits by label to its class means.

    Exact for flow and descent, with decay and momentum, for any rates.

    **Reference:** "On the Dynamics Under the Unhinged Loss and Beyond", JMLR 24 (2023), Lemma 9: deviations are invariant.
    """
    state = problem.check(state)
    classes = problem.num_classes
    per_class, left = divmod(problem.num_samples, classes)
    coupling = problem.label_coupling
    if coupling is None or coupling.by_sample or problem.normalize:
        raise ValueError("loss must be linear in the logits, with one coupling a label, for the class-mean reduction")
    if left or any(problem.data.sizes != per_class) or problem.data.static_weights is not None:
        raise ValueError(
            f"classes must be balanced and unweighted for the class-mean reduction, got sizes {problem.data.sizes}"
        )
    if problem.bias:
        raise ValueError("bias must be False for the class-mean reduction: biases do not scale with the features")
    if problem.kernel is not None:
        raise ValueError("kernel must be None for the class-mean reduction: it mixes samples")
    root = per_class**0.5
    reduced = LayerPeeled.balanced(
        classes,
        1,
        loss=Linear(jax.tree.map(lambda x: x / root, coupling.coupling)),
        decay=problem.decay,
        bias=False,
        anchored=problem.anchored,
        feature_kernel=problem.feature_kernel,
    )
    means = problem.data.class_means(state.features)
    return ClassMeans(
        reduced,
        Peeled(root * means, state.prototypes, state.biases),
        state.features - problem.data.spread(means),
        problem.data,
    )
