"""What a motion tends to."""

import equinox as eqx
from jaxtyping import Array, Float

from dynamics.problems import Peeled


class Limit(eqx.Module):
    r"""The limit of a motion as the clocks go to infinity along a constant ratio of rates.

    **Arguments:**

    - `direction`: the limit of (features, prototypes)/norm, of unit norm; biases are the limit of the biases, infinite where
      they grow without bound.
    - `growth_exponent`: $\omega$ with norm $\sim e^{\omega\zeta}$; positive grows, negative vanishes, 0 converges (or, where
      nothing decays in an anchored problem, grows linearly).
    - `rate`: the direction's error vanishes as $e^{-\mathrm{rate}\,\zeta}$ (0: slower than any exponential, or not at all).
    - `constants`: further numbers. For coupled modes: `log_norm`, the log of the norm of $\lim e^{-\omega\zeta} Z$;
      `self_duality`, the ratio of feature side to prototype side; `ratio`, s. For an anchored problem: `log_norm`.

    For coupled modes the clock $\zeta$ is that of the weights; for an anchored problem that of the features.
    """

    direction: Peeled
    growth_exponent: Float[Array, ""]
    rate: Float[Array, ""]
    constants: dict[str, Array]
