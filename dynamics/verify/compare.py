"""One trajectory held against another."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dynamics.trajectory import Trajectory


class Comparison(eqx.Module):
    """Residuals between two trajectories.

    **Arguments:**

    - `ts`: shape (times,).
    - `residuals`: shape (..., times): at each time the largest over the parts of the state (or the observed values) of the
      distance between the two, over the norm of the second; infinite where either is not finite.
    - `worst`: the largest residual; `time`: the time it is found at; `member`: the flat index of its member; `where`: the name
      of its part, an index into `parts`.
    """

    ts: Array
    residuals: Float[Array, "*members times"]
    worst: Float[Array, ""]
    time: Array
    member: Array
    where: Array
    parts: tuple[str, ...] = eqx.field(static=True)

    def __str__(self):
        place = f"in {self.parts[int(self.where)]} at t = {float(self.time):.6g}"
        member = f" of member {int(self.member)}" if np.ndim(self.residuals) > 1 else ""
        return f"worst relative residual {float(self.worst):.3e} {place}{member}"


def compare(moved: Trajectory, exact: Trajectory) -> Comparison:
    """Residuals of `moved` against `exact` over time, and the worst: how large, when and where.

    Both trajectories, single or batched alike, keep states, or both keep the same observed values. The norm a residual is
    taken relative to is that of the whole state (each observed value by itself). Of scaled trajectories the log of the norm
    is a part of its own, compared absolutely: a relative error of the norm.

    Where one of them is determined up to a rotation of feature space, the Gram matrix of all rows of its matrices together
    (features over prototypes: every inner product, logits among them) is compared instead of the matrices.
    """
    if jnp.shape(moved.ts) != jnp.shape(exact.ts):
        raise ValueError(f"ts of the two trajectories must agree, got shapes {jnp.shape(moved.ts)} and {jnp.shape(exact.ts)}")
    if bool(np.any(np.asarray(moved.ts) != np.asarray(exact.ts))):
        raise ValueError("ts of the two trajectories must agree, got different times")
    if (moved.states is None) != (exact.states is None):
        raise ValueError("one trajectory keeps states and the other observed values; compare like with like")
    if (moved.log_scale is None) != (exact.log_scale is None):
        raise ValueError("one trajectory is scaled and the other is not; compare like with like")
    axes = jnp.ndim(exact.ts)
    if exact.states is None:
        if set(moved.observed) != set(exact.observed):
            raise ValueError(f"observed values must agree, got {sorted(moved.observed)} and {sorted(exact.observed)}")
        names = sorted(exact.observed)
        pairs = [(moved.observed[name], exact.observed[name]) for name in names]
        sizes = [_norm(b, axes) for _, b in pairs]
    else:
        turned = "rotation" in (moved.determined, exact.determined)
        found, reference = (_parts(states, axes, turned) for states in (moved.states, exact.states))
        names = list(reference)
        pairs = [(found[name], reference[name]) for name in names]
        whole = jnp.sqrt(sum(_norm(b, axes) ** 2 for _, b in pairs))
        sizes = [whole] * len(pairs)
    parts = [_relative(_norm(a - b, axes), size) for (a, b), size in zip(pairs, sizes, strict=True)]
    if exact.log_scale is not None and moved.log_scale is not None:
        names.append("log_scale")
        parts.append(_relative(jnp.abs(moved.log_scale - exact.log_scale), jnp.ones_like(exact.log_scale)))
    stacked = jnp.stack(parts)
    residuals = jnp.max(stacked, axis=0)
    flat = jnp.argmax(residuals)
    times = residuals.shape[-1]
    return Comparison(
        ts=exact.ts,
        residuals=residuals,
        worst=jnp.max(residuals),
        time=jnp.reshape(exact.ts, -1)[flat],
        member=flat // times,
        where=jnp.argmax(stacked.reshape(len(parts), -1)[:, flat]),
        parts=tuple(names),
    )


def _parts(states: PyTree, axes: int, turned: bool) -> dict[str, Array]:
    """Names and leaves of the states; `turned`, the Gram matrix of the rows of all matrices instead of the matrices."""
    paths = jax.tree_util.tree_leaves_with_path(states)
    parts = {jax.tree_util.keystr(path).lstrip("."): jnp.asarray(leaf) for path, leaf in paths}
    if not turned:
        return parts
    matrices = {name: leaf for name, leaf in parts.items() if leaf.ndim == axes + 2}
    rows = jnp.concatenate(list(matrices.values()), axis=-2)
    gram = jnp.einsum("...ik,...jk->...ij", rows, rows, precision="highest")
    rest = {name: leaf for name, leaf in parts.items() if name not in matrices}
    return {f"gram of {' and '.join(matrices)}": gram, **rest}


def _norm(x: PyTree, axes: int) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(jnp.reshape(x, (*x.shape[:axes], -1))), axis=-1))


def _relative(distance: Array, size: Array) -> Array:
    ratio = jnp.where(distance == 0, 0.0, distance / size)
    return jnp.where(jnp.isfinite(ratio), ratio, jnp.inf)
