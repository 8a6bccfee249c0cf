"""The global minimum of a problem, by formula."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamics import state as tree
from dynamics import status, validate
from dynamics.exact.closed_form import NoClosedForm, assume
from dynamics.exact.minimisers import cross_entropy, linear, squares
from dynamics.exact.minimisers.optimum import Family, root, worst
from dynamics.problems import LayerPeeled, Peeled

FAMILIES: tuple[Family, ...] = (
    squares.PLAIN,
    squares.BIASED,
    cross_entropy.DECAYED,
    cross_entropy.BOUNDED,
    linear.DECAYED,
    linear.BOUNDED,
)


class Minimiser(eqx.Module):
    """A global minimum of `problem.objective`, or a batch of them with further leading axes.

    **Arguments:**

    - `value`: the minimum of the objective (the mean loss over samples and the decay terms); minus infinity where it is
      unbounded below, and everything else is then NaN.
    - `state`: one state that attains it, in the asked number of dimensions; what is determined are its Gram matrices.
    - `unique`: whether every minimiser is that one up to a rotation of feature space (and, where a loss does not see it and
      no decay holds it, a shift of all biases alike).
    - `status`: see `dynamics.status`; everything is NaN where it is not ok.
    """

    value: Float[Array, ""]
    state: Peeled
    unique: Bool[Array, ""]
    status: Int[Array, ""]

    @property
    def feature_norm(self) -> Float[Array, ""]:
        """Frobenius norm of the features."""
        return root_sum_of_squares(self.state.features)

    @property
    def prototype_norm(self) -> Float[Array, ""]:
        """Frobenius norm of the prototypes."""
        return root_sum_of_squares(self.state.prototypes)

    @property
    def bias(self) -> Float[Array, " classes"]:
        """The biases."""
        return self.state.biases

    @property
    def feature_gram(self) -> Float[Array, "samples samples"]:
        """Inner products of the features."""
        return _products(self.state.features, self.state.features)

    @property
    def prototype_gram(self) -> Float[Array, "classes classes"]:
        """Inner products of the prototypes."""
        return _products(self.state.prototypes, self.state.prototypes)

    @property
    def logits(self) -> Float[Array, "samples classes"]:
        """Logits of every sample, biases included."""
        return _products(self.state.features, self.state.prototypes) + self.state.biases[..., None, :]


def root_sum_of_squares(x: Float[Array, "*batch rows dim"]) -> Float[Array, "*batch"]:
    """The Frobenius norm; its gradient at zero is zero, and a NaN stays one."""
    square = jnp.sum(x**2, axis=(-2, -1))
    return jnp.where(jnp.isnan(square), square, root(square))


def _products(x: Array, y: Array) -> Array:
    return jnp.einsum("...ip,...jp->...ij", x, y, precision="highest")


def minimiser(problem: LayerPeeled, *, dim: int, norms=None) -> Minimiser:
    """The global minimum of the objective over features, prototypes and, where they are trained, biases.

    Biases that are not trained are taken at zero. Hyper-parameters may be traced, batched and differentiated; gradients are
    finite at the thresholds too. Computed in the dtype of the hyper-parameters.

    **Arguments:**

    - `problem`: what is minimised.
    - `dim`: the dimension of feature space; at least the rank of the minimiser.
    - `norms`: None; or `(prototype_norm, feature_norm)`, bounds on the norm of each prototype and of each feature instead of
      decay: the constrained layer-peeled problem. (Bounds on their root mean squares give the same value, and for
      cross-entropy the same minimiser.)

    **Raises:** `NoClosedForm` where no minimum is known, none is attained, or `dim` is below its rank, with the reason; for
    traced values that becomes the status. `ValueError` for anything out of range.
    """
    dim = validate.whole("dim", dim, 1)
    norms = _checked(norms)
    family = _choose(problem, norms)
    for part in ("features", "prototypes", "biases"):
        if np.shape(getattr(problem.decay, part)) != ():
            raise ValueError(f"decay.{part} must be a scalar, got shape {np.shape(getattr(problem.decay, part))}")
    dtype = jnp.result_type(problem.decay.features, problem.decay.prototypes, problem.decay.biases, *(norms or ()), float)
    problem, norms = tree.cast((problem, norms), dtype)
    valid = problem.valid() & tree.all_finite((norms, 0.0)) & jnp.all(jnp.stack([x >= 0 for x in (*(norms or ()), 0.0)]))
    found = family.solve(problem, norms, dim)
    enough = assume(
        jnp.asarray(found.rank <= dim), lambda: f"dim must be >= {int(found.rank)}, the rank of the minimiser, got {dim}"
    )
    code = worst(jnp.where(valid, status.OK, status.BAD_INPUT), found.code, enough).astype(jnp.int32)
    ok, attained = code == status.OK, jnp.isfinite(found.value)
    missing = max(dim - found.state.features.shape[1], 0)
    features, prototypes = (jnp.pad(x[:, :dim], ((0, 0), (0, missing))) for x in (found.state.features, found.state.prototypes))
    shown = [jnp.where(ok & attained, x, jnp.nan) for x in (features, prototypes, found.state.biases)]
    return Minimiser(jnp.where(ok, found.value, jnp.nan), Peeled(*shown), jnp.asarray(found.unique) & ok & attained, code)


def _choose(problem, norms) -> Family:
    """The first family without obstacles; decided by types, None-ness and static fields, never by values."""
    reasons = []
    for family in FAMILIES:
        obstacles = family.obstacles(problem, norms)
        if not obstacles:
            return family
        reasons.append(f"- {family.name}: {'; '.join(obstacles)}")
    raise NoClosedForm("no known global minimum applies:\n" + "\n".join(reasons))


def _checked(norms):
    if norms is None:
        return None
    if not isinstance(norms, tuple) or len(norms) != 2:
        raise ValueError(f"norms must be None or a pair (prototype_norm, feature_norm), got {norms!r}")
    for name, value in zip(("prototype_norm", "feature_norm"), norms, strict=True):
        validate.nonnegative(f"{name} of norms", value)
        if np.shape(value) != ():
            raise ValueError(f"{name} of norms must be a scalar, got shape {np.shape(value)}")
    return tuple(norms)
