"""Norms of all weights together: what steepest descent is steepest in, and whose margin it enlarges."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from dynamics import state as tree
from dynamics.observables import loss_inverse
from dynamics.problems import Network


class Norm(eqx.Module):
    """A norm of a pytree of weights. A new one is one class with the norm, its dual, and its direction."""

    @abc.abstractmethod
    def __call__(self, weights: PyTree) -> Float[Array, ""]:
        """The norm of the weights."""

    @abc.abstractmethod
    def dual(self, force: PyTree) -> Float[Array, ""]:
        r"""The dual norm $\|g\|_\star = \max_{\|v\| \le 1} \langle v, g\rangle$."""

    @abc.abstractmethod
    def direction(self, force: PyTree) -> PyTree:
        r"""$\Delta(g)$, a maximiser of $\langle v, g\rangle$ over $\|v\| \le 1$; zero at zero."""

    def steepest(self, force: PyTree) -> PyTree:
        r"""$\|g\|_\star \Delta(g)$, the maximiser of $\langle v, g\rangle - \|v\|^2/2$."""
        size = self.dual(force)
        return jax.tree.map(lambda leaf: size * leaf, self.direction(force))

    def margin(self, problem: Network, weights: PyTree) -> Float[Array, ""]:
        r"""The normalised margin $\min_i q_i / \|\theta\|^L$; NaN at zero weights."""
        return _over(jnp.min(problem.margins(weights)), self(weights), problem.degree)

    def soft_margin(self, problem: Network, weights: PyTree) -> Float[Array, ""]:
        r"""$\ell^{-1}(\mathcal{L})/\|\theta\|^L$, which steepest flow in this norm never lowers once $\mathcal{L} < \ell(0)$.

        **Reference:** N. Tsilivis, G. Vardi, J. Kempe, Flavors of margin: implicit bias of steepest descent in homogeneous
        neural networks (2025).
        """
        return _over(loss_inverse(problem, weights), self(weights), problem.degree)

    def bregman_gap(self, problem: Network, weights: PyTree) -> Float[Array, ""]:
        r"""$\|\theta\|^2 (1 - \langle g, \theta\rangle/(\|g\|_\star\|\theta\|)) \ge 0$: how far weights and scaled force are
        from dual to each other, zero at a KKT point of the margin in this norm; NaN where the force is zero.

        It is the Fenchel-Young gap $\frac12\|\theta\|^2 + \frac12\|\mu g\|_\star^2 - \langle\mu g, \theta\rangle$ of
        $\mu = \|\theta\|/\|g\|_\star$.

        **Reference:** N. Tsilivis, G. Vardi, J. Kempe, Flavors of margin: implicit bias of steepest descent in homogeneous
        neural networks (2025).
        """
        force, size = problem.scaled_force(weights), self(weights)
        return size * (size - tree.inner(force, weights) / self.dual(force))


def _over(margin, size, degree) -> Float[Array, ""]:
    return jnp.where(size > 0, margin / size**degree, jnp.nan)


class L2(Norm):
    """The Euclidean norm: gradient descent. Its dual is itself."""

    def __call__(self, weights):
        return tree.norm(weights)

    def dual(self, force):
        return tree.norm(force)

    def direction(self, force):
        size = tree.norm(force)
        size = jnp.where(size > 0, size, 1.0)
        return jax.tree.map(lambda leaf: leaf / size, force)

    def steepest(self, force):
        return force


class Linf(Norm):
    """The largest absolute entry: sign descent. Its dual is the sum of absolute entries."""

    def __call__(self, weights):
        return _largest(weights)

    def dual(self, force):
        return _absolute_sum(force)

    def direction(self, force):
        return jax.tree.map(jnp.sign, force)


class L1(Norm):
    """The sum of absolute entries: coordinate descent, as boosting is. Its dual is the largest absolute entry.

    Of several largest entries of the force the first one moves, in the order of the leaves.
    """

    def __call__(self, weights):
        return _absolute_sum(weights)

    def dual(self, force):
        return _largest(force)

    def direction(self, force):
        flat, back = ravel_pytree(force)
        chosen = jnp.arange(flat.size) == jnp.argmax(jnp.abs(flat))
        return back(jnp.where(chosen, jnp.sign(flat), 0))


class Spectral(Norm):
    r"""The largest operator norm of a layer: spectral descent. Its dual is the sum over layers of the nuclear norms.

    Every leaf is a matrix: a vector one row, a kernel of a convolution one row for every entry of its leading axes. The
    direction is $U V^\top$ of each layer's singular vectors of singular values above rounding.
    """

    def __call__(self, weights):
        sizes = [jnp.max(jnp.linalg.svd(_matrix(leaf), compute_uv=False)) for leaf in jax.tree.leaves(weights)]
        return jnp.max(jnp.stack(sizes))

    def dual(self, force):
        sizes = [jnp.sum(jnp.linalg.svd(_matrix(leaf), compute_uv=False)) for leaf in jax.tree.leaves(force)]
        return jnp.sum(jnp.stack(sizes))

    def direction(self, force):
        return jax.tree.map(lambda leaf: _isometry(_matrix(leaf)).reshape(leaf.shape), force)


def _absolute_sum(leaves: PyTree) -> Float[Array, ""]:
    return jnp.sum(jnp.stack([jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(leaves)]))


def _largest(leaves: PyTree) -> Float[Array, ""]:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(leaves)]))


def _matrix(leaf: Float[Array, "..."]) -> Float[Array, "rows columns"]:
    return jnp.atleast_2d(leaf) if leaf.ndim <= 2 else leaf.reshape(-1, leaf.shape[-1])


def _isometry(matrix: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """U V^T over the singular values that are above rounding, where the singular vectors are determined."""
    left, sizes, right = jnp.linalg.svd(matrix, full_matrices=False)
    kept = sizes > max(matrix.shape) * jnp.finfo(matrix.dtype).eps * sizes[0]
    return (left * kept) @ right
