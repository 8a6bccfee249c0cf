"""Map a function of one member over many, in chunks of one size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dynamics import status, validate
from dynamics.ensemble.progress import Progress
from dynamics.ensemble.store import write_chunk
from dynamics.trajectory import Trajectory


class Result(NamedTuple):
    """What an ensemble returned, in the order of its members.

    - `values`: what `one` returned, with a leading axis of members, on the host.
    - `status`: shape (members,): the status of the returned trajectory, else whether the values are finite.
    - `index`: shape (members,): the number of each member, which its key is folded from.
    """

    values: Any
    status: np.ndarray
    index: np.ndarray

    @property
    def ok(self) -> np.ndarray:
        """Which members ended well, shape (members,)."""
        return self.status == status.OK


def run(
    one: Callable,
    members: PyTree,
    *,
    key=None,
    cost: Callable | None = None,
    chunk: int | None = None,
    store: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Map `one` over the leading axis of `members`.

    Members are independent: with the same chunk size a member's numbers do not depend, by one bit, on which others share its
    chunk, whether they fail, or in what order they run.

    **Arguments:**

    - `one`: takes one member, and with `key` also a key of its own, `fold_in(key, index)`; returns any pytree.
    - `members`: a pytree of arrays with a common leading axis.
    - `cost`: maps a member to a number; members are run in its order, so that those alike in cost share a chunk. None: as
      given.
    - `chunk`: members per call; None is all, at most 1024. The last chunk is padded with copies of its first member.
    - `store`: a folder; each finished chunk is also written there as `chunk-<number>.npz`, whole or not at all.
    - `progress`: a line on stderr after each chunk, when there are several.

    **Raises:** `ValueError` where the members have no common leading axis, or the chunk is not a positive integer.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(members)}
    if len(sizes) != 1 or sizes == {()} or sizes == {(0,)}:
        raise ValueError(f"members must be arrays with one common leading axis >= 1, got leading sizes {sorted(sizes)}")
    total = sizes.pop()[0]
    chunk = min(total, 1024) if chunk is None else min(validate.whole("chunk", chunk, 1), total)
    index = np.arange(total)
    order = index if cost is None else _by_cost(cost, members, chunk)
    host = jax.tree.map(_on_host, members)

    if key is None:
        call = jax.jit(jax.vmap(lambda member, i: one(member)))
    else:
        call = jax.jit(jax.vmap(lambda member, i: one(member, jax.random.fold_in(key, i))))

    pieces, codes, failed = [], [], 0
    line = Progress(total, progress and total > chunk)
    for number, begin in enumerate(range(0, total, chunk)):
        chosen = order[begin : begin + chunk]
        padded = np.concatenate([chosen, np.full(chunk - chosen.size, chosen[0])])
        values = _rows(call(_rows(host, padded), jnp.asarray(padded)), slice(chosen.size))
        pieces.append(values)
        codes.append(_status(values))
        if store is not None:
            write_chunk(Path(store), number, chosen, codes[-1], values)
        failed += int(np.sum(codes[-1] != status.OK))
        line.update(begin + chosen.size, failed)
    back = np.argsort(order, kind="stable")
    values = jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *pieces)
    return Result(values, np.concatenate(codes)[back], index)


def _rows(tree: PyTree, which) -> PyTree:
    """The chosen rows of every leaf, on the host."""
    return jax.tree.map(lambda leaf: _on_host(leaf)[which], tree)


def _on_host(leaf):
    """The leaf as a NumPy array; random keys, which NumPy cannot hold, as they are."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else np.asarray(leaf)


def _by_cost(cost: Callable, members: PyTree, chunk: int) -> np.ndarray:
    costs = np.asarray(jax.jit(lambda m: jax.lax.map(cost, m, batch_size=chunk))(members))
    if costs.ndim != 1:
        raise ValueError(f"cost must return a scalar for each member, got shape {costs.shape[1:]}")
    return np.argsort(costs, kind="stable")


def _status(values: PyTree) -> np.ndarray:
    """Codes of a chunk: of the first trajectory in what was returned, else from finiteness."""
    for leaf in jax.tree.leaves(values, is_leaf=lambda x: isinstance(x, Trajectory)):
        if isinstance(leaf, Trajectory):
            return np.asarray(leaf.status)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(values)]
    finite = np.all([np.isfinite(leaf).reshape(leaf.shape[0], -1).all(axis=1) for leaf in leaves], axis=0)
    return np.where(finite, status.OK, status.NON_FINITE).astype(np.int32)
