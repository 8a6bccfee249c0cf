"""Quantities that the flow conserves, whatever the loss."""

from collections.abc import Callable

from jaxtyping import Array, Float

from dynamics.observables.base import observable
from dynamics.problems import LayerPeeled, Peeled


def balance(ratio=1.0) -> Callable[[LayerPeeled, Peeled], Array]:
    r"""An observable: $H^T H/s - W^T W$, of shape (dim, dim), for rates of ratio s = features over weights.

    Along the flow of any loss of the logits it is conserved without decay, and vanishes exactly as $e^{-2\lambda_2\zeta_2}$
    when $s\lambda_1 = \lambda_2$.
    """

    @observable(rotation_invariant=False)
    def imbalance(problem: LayerPeeled, state: Peeled) -> Float[Array, "dim dim"]:
        return state.features.T @ state.features / ratio - state.prototypes.T @ state.prototypes

    return imbalance
