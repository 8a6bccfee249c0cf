r"""Neural collapse, NC1 to NC4, in forms that stay right down to collapse 1e-10 and are never negative.

Class means are centred by the mean of all features.

**Reference:** V. Papyan, X. Han, D. Donoho, Prevalence of neural collapse (2020).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dynamics import state as tree
from dynamics.observables.alignment import direction_gap
from dynamics.observables.base import observable
from dynamics.observables.summary import Summary
from dynamics.problems import LayerPeeled, Peeled


def centred_means(problem: LayerPeeled, state: Peeled) -> Float[Array, "classes dim"]:
    """Class means minus the mean of all features."""
    return problem.data.class_means(state.features) - jnp.mean(state.features, axis=0)


def within_class(problem: LayerPeeled, state: Peeled) -> Float[Array, "samples dim"]:
    """Features minus their class means."""
    return state.features - problem.data.spread(problem.data.class_means(state.features))


@observable(scale_invariant=True)
def nc1(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    r"""Within-class variability $\mathrm{tr}(S_W S_B^+)/C$, with $S_W$ averaged over samples and $S_B$ over classes.

    $S_B$ has rank at most C - 1: its pseudo-inverse is taken from the singular values of the centred means themselves, keeping
    at most C - 1 directions, so that no rounding direction is ever inverted. Infinite when all class means agree.
    """
    classes = problem.num_classes
    means = centred_means(problem, state) / jnp.sqrt(classes).astype(state.features.dtype)
    _, sizes, directions = jnp.linalg.svd(means, full_matrices=False)
    keep = min(classes - 1, sizes.shape[0])
    sizes, directions = sizes[:keep], directions[:keep]
    within = jnp.sum(jnp.square(within_class(problem, state) @ directions.T), axis=0) / problem.num_samples
    floor = 10 * jnp.finfo(sizes.dtype).eps * tree.norm(state.features) / jnp.sqrt(problem.num_samples)
    real = sizes > floor
    ratios = jnp.where(real, within / jnp.where(real, sizes, 1.0) ** 2, 0.0)
    return jnp.where(jnp.any(real), jnp.sum(ratios) / classes, jnp.inf)


def _nc2(problem: LayerPeeled, summary: Summary) -> Float[Array, ""] | None:
    collapse = summary.collapse
    return None if collapse is None else tree.norm(collapse.means / tree.norm(collapse.means) - collapse.simplex)


@observable(scale_invariant=True, from_summary=_nc2)
def nc2(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    r"""Distance of the centred means from a simplex: $\| MM^T/\|MM^T\| - (I - J)/\sqrt{C-1} \|$ in Frobenius norm."""
    classes = problem.num_classes
    means = centred_means(problem, state)
    gram = means @ means.T
    simplex = (jnp.eye(classes, dtype=gram.dtype) - 1 / classes) / jnp.sqrt(classes - 1).astype(gram.dtype)
    return tree.norm(gram / tree.norm(gram) - simplex)


def _nc2_norms(problem: LayerPeeled, summary: Summary) -> Float[Array, ""] | None:
    if summary.collapse is None:
        return None
    lengths = summary.collapse.lengths()
    return jnp.std(lengths) / jnp.mean(lengths)


@observable(scale_invariant=True, from_summary=_nc2_norms)
def nc2_norms(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    """Spread of the lengths of the centred means: standard deviation over mean."""
    lengths = jnp.linalg.norm(centred_means(problem, state), axis=1)
    return jnp.std(lengths) / jnp.mean(lengths)


def _nc2_angles(problem: LayerPeeled, summary: Summary) -> Float[Array, ""] | None:
    if summary.collapse is None:
        return None
    classes, over = problem.num_classes, 1 / summary.collapse.lengths()
    gaps = jnp.abs(summary.collapse.gram() * over[:, None] * over + 1 / (classes - 1))
    return jnp.sum(jnp.where(jnp.eye(classes, dtype=bool), 0.0, gaps)) / (classes * (classes - 1))


@observable(scale_invariant=True, from_summary=_nc2_angles)
def nc2_angles(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    """Mean deviation of the pairwise cosines of the centred means from -1/(C-1)."""
    classes = problem.num_classes
    means = centred_means(problem, state)
    unit = means / jnp.linalg.norm(means, axis=1, keepdims=True)
    first, second = jnp.triu_indices(classes, 1)
    cosines = jnp.sum(unit[first] * unit[second], axis=1)
    return jnp.mean(jnp.abs(cosines + 1 / (classes - 1)))


def _nc3(problem: LayerPeeled, summary: Summary) -> Float[Array, ""] | None:
    if summary.collapse is None:
        return None
    means, prototypes = summary.collapse.features[0], summary.collapse.prototypes[0]
    return direction_gap(prototypes, means)


@observable(scale_invariant=True, from_summary=_nc3)
def nc3(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    """Self-duality: distance between the centred prototypes and the centred means, both of unit Frobenius norm."""
    prototypes = state.prototypes - jnp.mean(state.prototypes, axis=0)
    means = centred_means(problem, state)
    return direction_gap(prototypes, means)


@observable(scale_invariant=True)
def nc4(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    """The fraction of samples that the prototypes (without biases) and the nearest class mean decide differently."""
    means = problem.data.class_means(state.features)
    by_prototype = jnp.argmax(state.features @ state.prototypes.T, axis=1)
    # |h - m|^2 up to the sample's own norm, with all means shifted alike so that nothing large cancels
    centre = jnp.mean(means, axis=0)
    shifted = means - centre
    by_mean = jnp.argmax((state.features - centre) @ shifted.T - 0.5 * jnp.sum(shifted**2, axis=1), axis=1)
    return jnp.mean((by_prototype != by_mean).astype(state.features.dtype))
