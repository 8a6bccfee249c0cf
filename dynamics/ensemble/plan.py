"""What runs where: members sorted, cut into chunks of one size, and dealt to processes."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import validate
from dynamics.ensemble.design import Design, Group, Listed
from dynamics.ensemble.program import takes_key


class Chunk(NamedTuple):
    """Members that run together: the number of the chunk, the group (program) they belong to, and their numbers."""

    number: int
    group: int
    members: np.ndarray


def chosen_groups(source: Design | Listed, only) -> list[Group]:
    """The groups of the design, cut down to the numbers in `only` (None: all)."""
    groups = source.groups()
    if only is None:
        return groups
    only = np.asarray(only)
    if only.ndim != 1 or not np.issubdtype(only.dtype, np.integer) or only.size == 0:
        raise ValueError(f"only must be member numbers, integers of shape (n,) with n >= 1, got {validate.shown(only)}")
    if only.min() < 0 or only.max() >= source.size or np.unique(only).size < only.size:
        raise ValueError(f"only must be different numbers in 0..{source.size - 1}, got {validate.shown(only)}")
    cut = [Group(group.static, np.sort(only[np.isin(only, group.numbers)])) for group in groups]
    return [group for group in cut if group.numbers.size]


def hardest_first(cost: Callable, source: Design | Listed, group: Group, key) -> np.ndarray:
    """The numbers of the group, in the order of falling cost; ties in the order of their numbers."""

    def one(row, number):
        member = {**group.static, **row} if group.static else row
        return cost(member) if key is None or not takes_key(cost) else cost(member, jax.random.fold_in(key, number))

    call = jax.jit(jax.vmap(one))
    numbers, costs = group.numbers, []
    block = min(numbers.size, 4096)
    for begin in range(0, numbers.size, block):
        these = padded(numbers[begin : begin + block], block)
        found = np.asarray(call(source.rows(these), these))
        if found.ndim != 1:
            raise ValueError(f"cost must return a scalar for each member, got shape {found.shape[1:]}")
        costs.append(found)
    falling = np.concatenate(costs)[: numbers.size]
    return numbers[np.argsort(-falling.astype(float), kind="stable")]


def cut(orders: list[np.ndarray], chunk: int) -> list[Chunk]:
    """The chunks of all groups, numbered through."""
    pieces = [
        (group, order[begin : begin + chunk]) for group, order in enumerate(orders) for begin in range(0, len(order), chunk)
    ]
    return [Chunk(number, group, members) for number, (group, members) in enumerate(pieces)]


def padded(members: np.ndarray, chunk: int) -> np.ndarray:
    """Filled up to the size of a chunk with copies of the last member."""
    return np.concatenate([members, np.full(chunk - members.size, members[-1])])


def share(process: tuple[int, int]) -> tuple[int, int]:
    """(index, count) of this process; chunk i belongs to process i % count."""
    index, count = process
    count = validate.whole("process count", count, 1)
    index = validate.whole("process index", index, 0)
    if index >= count:
        raise ValueError(f"process index must be below the process count {count}, got {index}")
    return index, count


def fingerprint(*parts: Any) -> str:
    """SHA-256 of arrays, texts, numbers and containers of them, by value and dtype."""
    digest = hashlib.sha256()
    for part in parts:
        for path, leaf in jax.tree_util.tree_leaves_with_path(part):
            if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                digest.update(str(leaf.dtype).encode())
                leaf = jax.random.key_data(leaf)
            text = not (hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float))
            array = np.frombuffer(str(leaf).encode(), np.uint8) if text else np.ascontiguousarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype.str} {array.shape} ".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
