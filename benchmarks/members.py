"""The members that workloads move: starts of seed 0, scales of seed 1, rates of seed 2; those checked are drawn by seed 3."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dynamics as dyn

DECAY = 5e-3
CHECKED = 40


def cross_entropy(classes: int, per_class: int) -> dyn.LayerPeeled:
    """The cross-entropy problem with equal decays."""
    return dyn.LayerPeeled.balanced(classes, per_class, loss=dyn.losses.CrossEntropy(), decay=dyn.Decay(DECAY, DECAY))


def starts(problem: dyn.LayerPeeled, dim: int, members: int, scale, dtype=None) -> dyn.Peeled:
    """Gaussian starts, leading axis members; `scale`: a number, or one a member."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(members))
    drawn = jax.vmap(lambda key: dyn.initial.gaussian(problem, dim=dim, key=key))(keys)
    scales = jnp.broadcast_to(jnp.asarray(scale, float), (members,))[:, None, None]
    dtype = drawn.features.dtype if dtype is None else dtype
    parts = (scales * drawn.features, scales * drawn.prototypes, drawn.biases)
    return jax.block_until_ready(dyn.Peeled(*(part.astype(dtype) for part in parts)))


def scales(members: int) -> np.ndarray:
    """Scales over three decades."""
    return 10 ** np.random.default_rng(1).uniform(-2, 1, members)


def rates(members: int) -> np.ndarray:
    """Learning rates."""
    return 10 ** np.random.default_rng(2).uniform(-1.5, -0.3, members)


def checked(members: int, sizes: np.ndarray | None = None) -> tuple[int, ...]:
    """The members whose error is measured: 40 drawn, or 32 drawn and the 8 of largest size."""
    if members <= CHECKED:
        return tuple(range(members))
    if sizes is None:
        return tuple(sorted(np.random.default_rng(3).choice(members, CHECKED, replace=False).tolist()))
    largest = np.argsort(-sizes, kind="stable")[:8]
    others = np.setdiff1d(np.arange(members), largest)
    drawn = np.random.default_rng(3).choice(others, CHECKED - 8, replace=False)
    return tuple(sorted([*largest.tolist(), *drawn.tolist()]))


def plain_objective(labels: np.ndarray, decay: float = DECAY) -> Callable:
    """The cross-entropy objective as a user would write it, without the library; takes (features, prototypes)."""

    def objective(parameters):
        features, prototypes = parameters
        losses = optax.softmax_cross_entropy_with_integer_labels(features @ prototypes.T, jnp.asarray(labels))
        return jnp.mean(losses) + 0.5 * decay * (jnp.sum(features**2) + jnp.sum(prototypes**2))

    return objective


def picked(tree, rows) -> tuple:
    """Those members of a pytree of arrays with a leading axis, on the host."""
    rows = np.asarray(rows)
    return jax.tree.map(lambda leaf: np.asarray(leaf[rows]), tree)
