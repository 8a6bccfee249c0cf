"""Directions: of features against their prototypes, and of a state against a reference."""

from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array, Float, PyTree

from dynamics import state as tree
from dynamics.observables.base import observable
from dynamics.observables.summary import Summary
from dynamics.problems import LayerPeeled, Peeled


def direction_gap(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """The distance between x and y, each divided by its norm; NaN when one of them is zero."""
    unit_x, unit_y = 1 / tree.norm(x), 1 / tree.norm(y)  # two divisions: a processor's vector units are slow at them
    return tree.norm(jax.tree.map(lambda a, b: a * unit_x - b * unit_y, x, y))


def _self_duality(problem: LayerPeeled, summary: Summary) -> Float[Array, ""] | None:
    if summary.collapse is None:
        return None
    size, own = summary.feature_norm, summary.prototype_norm
    apart = summary.collapse.features / size - summary.collapse.prototypes / own
    return tree.norm((apart, summary.collapse.within / size))


@observable(scale_invariant=True, from_summary=_self_duality)
def self_duality(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
    """The distance between the features and their own prototypes, both stacked by sample and of unit norm."""
    return direction_gap(state.features, problem.data.spread(state.prototypes))


def distance_to(
    reference: Peeled, part: Literal["both", "features", "prototypes"] = "both"
) -> Callable[[LayerPeeled, Peeled], Array]:
    """An observable: the distance of directions between a state and a reference, biases apart.

    **Arguments:**

    - `reference`: a `Peeled`, of any size.
    - `part`: features and prototypes together, or one of them.
    """
    if part not in ("both", "features", "prototypes"):
        raise ValueError(f"part must be 'both', 'features' or 'prototypes', got {part!r}")

    def chosen(state: Peeled):
        return (state.features, state.prototypes) if part == "both" else getattr(state, part)

    @observable(scale_invariant=True, rotation_invariant=False)
    def distance(problem: LayerPeeled, state: Peeled) -> Float[Array, ""]:
        return direction_gap(chosen(state), chosen(reference))

    return distance
