r"""A linear loss splits into independent modes: pairs (feature side, prototype side) coupled by one singular value.

`Modes.split` takes a state apart, `Modes.join` puts it together; in between each mode is multiplied by the 2x2 propagator of
its block. What no prototype pulls is the rest: it belongs to the last block, whose `up` and `down` are zero.

Two ways to find the modes:

- `group_modes`: couplings $aI - b\mathbf{1}\mathbf{1}^T$. Classes of equal weight form a group; the part of a group that sums
  to zero is one block exactly, by a projector, whatever its multiplicity, and only the few group means need an SVD, of
  distinct singular values: no eigenvector of a degenerate space is ever computed, and gradients stay finite.
- `singular_modes`: any coupling, or a kernel across samples, by SVD. Directions are then right to eps times the clock, and
  gradients with respect to the coupling are NaN where singular values coincide.

**Reference:** "On the Dynamics Under the Unhinged Loss and Beyond", JMLR 24 (2023), Lemma 9, extended to any class sizes.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynamics.exact.propagators import Propagator
from dynamics.losses import SymmetricCoupling
from dynamics.problems import LayerPeeled, Peeled
from dynamics.problems.base import StaticArray
from dynamics.problems.coupling import LabelCoupling, Labels


class GroupBasis(eqx.Module):
    """Classes grouped by equal weight: the parts of a group that sum to zero, and the modes of the group means."""

    data: Labels
    left: Float[Array, "groups groups"]
    right: Float[Array, "groups groups"]
    group: StaticArray = eqx.field(static=True)  # (classes,): the group of each class

    @property
    def root_sizes(self) -> np.ndarray:
        """Square root of the number of classes in each group."""
        return np.sqrt(np.bincount(self.group.values))

    def read(self, features: Float[Array, "samples dim"]) -> Float[Array, "classes dim"]:
        """Feature sides by class: weighted class sums of unit weight."""
        sums = self.data.class_sums(self.data.weighted(features))
        return sums / jnp.asarray(class_weights(self.data), features.dtype)[:, None]

    def write(self, by_class: Float[Array, "classes dim"]) -> Float[Array, "samples dim"]:
        """The adjoint of `read`: what the feature sides contribute to each sample."""
        scaled = by_class / jnp.asarray(class_weights(self.data), by_class.dtype)[:, None]
        return self.data.weighted(self.data.spread(scaled))

    def analyse(self, by_class: Array, rotation: Array) -> Array:
        """Zero-sum parts of the classes, then the modes of the group means."""
        group, root = self.group.values, jnp.asarray(self.root_sizes, by_class.dtype)[:, None]
        sums = jax.ops.segment_sum(by_class, jnp.asarray(group), root.shape[0])
        free = by_class - (sums / root**2)[group]
        # a class alone in its group has no zero-sum part, not even one of rounding
        free = jnp.where(jnp.asarray(self.root_sizes[group] == 1)[:, None], 0.0, free)
        return jnp.concatenate([free, rotation.T @ (sums / root)])

    def synthesise(self, modes: Array, rotation: Array) -> Array:
        """The inverse of `analyse`."""
        group, root = self.group.values, jnp.asarray(self.root_sizes, modes.dtype)[:, None]
        classes = group.size
        return modes[:classes] + ((rotation @ modes[classes:]) / root)[group]

    def split(self, features: Array, prototypes: Array) -> tuple[Array, Array, Array]:
        """Feature sides, prototype sides (modes, dim), and the rest of the features."""
        by_class = self.read(features)
        sides = self.analyse(by_class, self.right), self.analyse(prototypes, self.left)
        return *sides, features - self.write(by_class)

    def join(self, g: Array, w: Array, rest: Array) -> tuple[Array, Array]:
        """Features and prototypes."""
        return self.write(self.synthesise(g, self.right)) + rest, self.synthesise(w, self.left)


class SingularBasis(eqx.Module):
    """Modes by SVD: `read` and `write` are biorthogonal, oblique under a kernel."""

    reading: Float[Array, "samples modes"]
    writing: Float[Array, "samples modes"]
    basis: Float[Array, "classes modes"]

    def split(self, features: Array, prototypes: Array) -> tuple[Array, Array, Array]:
        """Feature sides, prototype sides (modes, dim), and the rest of the features."""
        g = self.reading.T @ features
        return g, self.basis.T @ prototypes, features - self.writing @ g

    def join(self, g: Array, w: Array, rest: Array) -> tuple[Array, Array]:
        """Features and prototypes."""
        return self.writing @ g + rest, self.basis @ w


class Modes(eqx.Module):
    """The modes of a problem.

    **Arguments:**

    - `up`, `down`: the couplings of each block, (blocks,) or with a feature kernel (blocks, dim); the last block is the rest.
    - `lead`: up times down, less a constant common to all blocks, from differences that do not cancel where two blocks tie.
    - `basis`: how a state splits into modes.
    - `block`: the block of each mode, static.
    - `has_rest`: whether the rest is more than zero, static.
    - `rotation`: eigenvectors of the feature kernel, or None.
    """

    up: Float[Array, "blocks *dim"]
    down: Float[Array, "blocks *dim"]
    lead: Float[Array, "blocks *dim"]
    basis: GroupBasis | SingularBasis
    rotation: Float[Array, "dim dim"] | None
    block: StaticArray = eqx.field(static=True)
    has_rest: bool = eqx.field(static=True)

    def split(self, state: Peeled) -> tuple[Array, Array, Array]:
        """Feature sides and prototype sides, (modes, dim), and the rest of the features, (samples, dim)."""
        features, prototypes = state.features, state.prototypes
        if self.rotation is not None:
            features, prototypes = features @ self.rotation, prototypes @ self.rotation
        return self.basis.split(features, prototypes)

    def join(self, g: Array, w: Array, rest: Array) -> tuple[Array, Array]:
        """Features and prototypes from their modes."""
        features, prototypes = self.basis.join(g, w, rest)
        if self.rotation is not None:
            features, prototypes = features @ self.rotation.T, prototypes @ self.rotation.T
        return features, prototypes

    def apply(self, propagator: Propagator, parts: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        """Features and prototypes, over `exp(log_scale)`, after the propagator acted on the parts of the start."""
        g, w, rest = parts
        of_mode = jax.tree.map(
            lambda x: x[self.block.values].reshape(g.shape[0], -1),
            (propagator.gg, propagator.gw, propagator.wg, propagator.ww),
        )
        gg, gw, wg, ww = of_mode
        return self.join(gg * g + gw * w, wg * g + ww * w, propagator.gg[-1] * rest)


def class_weights(data: Labels) -> np.ndarray:
    """The weight of each class: the root of the sum of its squared sample weights, root n_c without weights."""
    return np.sqrt(np.bincount(data.labels, data.weights**2, data.num_classes))


def modes_of(problem: LayerPeeled, dim: int, dtype) -> Modes:
    """The modes of a problem whose loss is linear in the logits."""
    coupling = problem.label_coupling
    assert coupling is not None
    if isinstance(coupling.coupling, SymmetricCoupling) and problem.kernel is None:
        modes = group_modes(coupling.data, coupling.coupling, dtype)
    else:
        modes = singular_modes(coupling, problem.kernel, dtype)
    if problem.feature_kernel is None:
        return modes
    strengths, rotation = jnp.linalg.eigh(problem.feature_kernel)
    strengths = jnp.maximum(strengths, 0.0)
    down = jnp.broadcast_to(modes.down[:, None], (modes.down.shape[0], dim))
    common = (modes.up * modes.down - modes.lead)[:, None]
    lead = modes.lead[:, None] * strengths + common * (strengths - strengths[-1])
    return Modes(modes.up[:, None] * strengths, down, lead, modes.basis, rotation, modes.block, modes.has_rest)


def group_modes(data: Labels, coupling: SymmetricCoupling, dtype) -> Modes:
    """Modes of a coupling `diagonal I - common 11^T` for any class sizes and sample weights."""
    weights = class_weights(data)
    samples, classes = data.labels.size, data.num_classes
    group, distinct, counts = _groups(weights)
    distinct, roots = jnp.asarray(distinct, dtype), jnp.asarray(np.sqrt(counts), dtype)
    if len(counts) == 1:
        # one group: the mean mode keeps the sign of its singular value, and is exactly zero where the drift is
        left = right = jnp.eye(1, dtype=dtype)
        sigma_means = coupling.drift * distinct / samples
    else:
        means = (coupling.diagonal * jnp.diag(distinct) - coupling.common * jnp.outer(roots, roots * distinct)) / samples
        left, sigma_means, right_t = jnp.linalg.svd(means)
        right = right_t.T
    free_groups = np.flatnonzero(counts > 1)
    sigma = jnp.concatenate([coupling.diagonal * distinct[free_groups] / samples, sigma_means, jnp.zeros((1,), dtype)])
    free_block = np.searchsorted(free_groups, group)  # of a class alone in its group: any block, its part is zero
    block = np.concatenate([free_block, free_groups.size + np.arange(len(counts))])
    basis = GroupBasis(data, left, right, StaticArray(group))
    pole = coupling.diagonal**2 * (distinct - distinct[-1]) * (distinct + distinct[-1])
    means = pole[::-1] + _shifts(coupling, distinct[::-1], roots[::-1], sigma_means * samples)
    rest = -((coupling.diagonal * distinct[-1:]) ** 2)
    lead = jnp.concatenate([pole[free_groups], means, rest]) / samples**2
    return Modes(sigma, sigma, lead, basis, None, StaticArray(block), samples > classes)


def _shifts(coupling: SymmetricCoupling, distinct: Array, roots: Array, sigma: Array) -> Array:
    r"""How far each squared singular value of the group means lies from the mean-free value of its group.

    The squares are the eigenvalues of a diagonal matrix less a multiple of rank one; their shifts solve a secular equation
    without cancellation. One Newton step from the SVD (descending order) makes them right relative to themselves.
    """
    strength = coupling.common * (coupling.diagonal + coupling.drift)
    pole, weight = (coupling.diagonal * distinct) ** 2, (roots * distinct) ** 2
    apart = coupling.diagonal**2 * (distinct - distinct[:, None]) * (distinct + distinct[:, None])
    shift = jax.lax.stop_gradient(sigma**2 - pole)
    others = 1 / jnp.where(np.eye(distinct.shape[0], dtype=bool), jnp.inf, apart - shift[:, None])
    pull, slope = others @ weight, others**2 @ weight
    value = shift * (1 - strength * pull) + strength * weight
    return shift - value / (1 - strength * pull - strength * shift * slope)


def _groups(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The group of each class, the groups' weights and their numbers of classes; equal means to 1e-12."""
    order = np.argsort(weights, kind="stable")
    steps = np.diff(weights[order]) > 1e-12 * weights.max()
    group = np.empty(weights.size, int)
    group[order] = np.concatenate([[0], np.cumsum(steps)])
    counts = np.bincount(group)
    distinct = np.array([weights[group == a][0] for a in range(counts.size)])
    return group, distinct, counts


def singular_modes(coupling: LabelCoupling, kernel: Array | None, dtype) -> Modes:
    """Modes of any label coupling, with a kernel across samples where one is given, by SVD."""
    matrix = coupling.matrix(dtype)  # B, (samples, classes)
    samples, classes = matrix.shape
    if kernel is None:
        write, sigma, basis_t = jnp.linalg.svd(matrix, full_matrices=False)
        up = down = sigma
        read, basis = write, basis_t.T
    else:
        eps = jnp.finfo(matrix.dtype).eps
        strengths, vectors = jnp.linalg.eigh(kernel)
        strengths = jnp.where(strengths > samples * eps * strengths[-1], strengths, 0.0)
        root = (vectors * jnp.sqrt(strengths)) @ vectors.T
        out, sigma, basis_t = jnp.linalg.svd(root @ matrix, full_matrices=False)
        basis = basis_t.T
        # the feature side that drives prototype mode u is B u, what it is driven along is kernel B u: scale both by |B u|
        driving = matrix @ basis
        length = jnp.linalg.norm(driving, axis=0)
        length = jnp.where(length > 0, length, 1.0)
        # a mode the kernel does not reach is frozen up to decay: it is read, and never written
        reached = sigma > 100 * samples * eps * sigma[0]
        up, down = sigma * (sigma / length), length
        read = driving / length
        write = jnp.where(reached, (root @ out) * (length / jnp.where(reached, sigma, 1.0)), 0.0)
    zero = jnp.zeros((1,), matrix.dtype)
    up, down = jnp.concatenate([up, zero]), jnp.concatenate([down, zero])
    block = np.arange(classes)
    has_rest = samples > classes or kernel is not None
    return Modes(
        up,
        down,
        up * down,
        SingularBasis(read, write, basis),
        None,
        StaticArray(block),
        has_rest,
    )
