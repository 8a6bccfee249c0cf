"""One compiled program of an ensemble: a chunk of members in, what is kept and watched of them out."""

import inspect
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import PyTree

from dynamics import status
from dynamics.ensemble.lanes import run_in_lanes
from dynamics.segmented import Segmented
from dynamics.trajectory import Trajectory

Device = Any
"""A `jax.Device`, which type checkers do not take for a type."""


class Outcome(NamedTuple):
    """What a chunk gives back, leading axis (chunk,); only `work`, the lane-steps executed, is a number (-1: unknown)."""

    status: Any
    stats: dict[str, Any]
    kept: PyTree
    watched: dict[str, Any]
    work: Any


class Program:
    """`one` over chunks of members, on single devices or sharded over several.

    **Arguments:**

    - `one`: of one member, and with `keyed` also of its key; or a `Segmented`.
    - `static`: structural values, added to every member (then a dictionary).
    - `keyed`: whether members have keys, folded from their numbers.
    - `keep`, `watch`: of what `one` returned, what stays and what is reduced.
    - `chunk`, `lanes`: members a call, and how many of them move side by side.
    """

    def __init__(self, one, static: dict, keyed: bool, keep: Callable | None, watch: Callable, chunk: int, lanes: int):
        self.one, self.static, self.keyed = one, static, keyed
        self.keep, self.watch = keep, watch
        self.chunk, self.lanes = chunk, lanes
        self._on_one: Callable | None = None

    def member(self, row: PyTree) -> PyTree:
        """The member as `one` sees it."""
        return {**self.static, **row} if self.static else row

    def outcome(self, returned: PyTree) -> Outcome:
        """What is asked of one returned value."""
        code, stats = _ended(returned)
        kept = () if self.keep is None else self.keep(returned)
        return Outcome(code, stats, kept, self.watch(returned), jnp.asarray(-1, jnp.int32))

    def block(self, rows: PyTree, numbers, key, count) -> Outcome:
        """Of the first `count` rows; what stands in the others is meaningless."""
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers) if self.keyed else None
        if isinstance(self.one, Segmented):
            begin, end = self.one.begin, self.one.end
            motion = self.one._replace(
                begin=lambda row, *keys: begin(self.member(row), *keys), end=lambda carry: self.outcome(end(carry))
            )
            outcome, work = run_in_lanes(motion, rows, keys, count, self.lanes)
            return outcome._replace(work=work)

        def alone(given):
            row, keys = given
            return self.outcome(self.one(self.member(row), *keys))

        given = (rows, () if keys is None else (keys,))
        size = numbers.shape[0]
        if self.lanes >= size:
            outcome = jax.vmap(alone)(given)
        else:
            outcome = jax.lax.map(alone, given, batch_size=self.lanes)
        return outcome._replace(work=jnp.asarray(-1, jnp.int32))

    def compile(self, rows: PyTree, key, devices: list[Device]) -> "jax.stages.Compiled":
        """The program for chunks like these rows: on one device, or sharded over several."""
        options = compiler_options(devices[0])
        if len(devices) == 1:
            if self._on_one is None:
                self._on_one = jax.jit(self.block, compiler_options=options)  # one for all devices: it is traced once
            run = self._on_one
            split = whole = SingleDeviceSharding(devices[0])
        else:
            mesh = Mesh(np.array(devices), ("members",), axis_types=(AxisType.Auto,))
            over, everywhere = PartitionSpec("members"), PartitionSpec()
            local = self.chunk // len(devices)

            def part(rows, numbers, key, count):
                mine = jnp.clip(count - jax.lax.axis_index("members") * local, 0, local)
                outcome = self.block(rows, numbers, key, mine)
                return outcome._replace(work=outcome.work[None])

            # check_vma=True fails in loops whose carry starts as a constant; the parts never speak to each other
            specs = (over, over, everywhere, everywhere)
            run = jax.jit(
                jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=over, check_vma=False), compiler_options=options
            )
            split, whole = NamedSharding(mesh, over), NamedSharding(mesh, everywhere)

        def like(sharding):
            return lambda leaf: jax.ShapeDtypeStruct(leaf.shape, _as_jax(leaf.dtype), sharding=sharding)

        numbers = np.zeros(self.chunk, np.int32)
        shapes = jax.tree.map(like(split), (_sized(rows, self.chunk), numbers)), jax.tree.map(like(whole), (key, np.int32(0)))
        return run.lower(*shapes[0], *shapes[1]).compile()


def compiler_options(device: Device) -> dict[str, int] | None:
    """On a CPU the widest vectors there are: XLA prefers 256 bits, which costs motions in lanes a quarter of their speed."""
    return {"xla_cpu_prefer_vector_width": 512} if device.platform == "cpu" else None


def must_take_turns(compiled: "jax.stages.Compiled", devices: int) -> bool:
    """Whether runs of this program on several CPU devices at a time could wait for each other for ever.

    XLA splits large loops over one pool of threads, which the programs themselves run on too (jax 0.10): with no thread more
    than there are devices, none may be left for the parts of a loop. The environment variable NPROC sets the size of the pool.
    """
    threads = int(os.environ.get("NPROC") or os.cpu_count() or 1)
    return devices >= threads and "outer_dimension_partitions" in (compiled.as_text() or "")


def takes_key(function: Callable) -> bool:
    """Whether a function of a member also asks for its key."""
    return len(inspect.signature(function).parameters) >= 2


def _sized(rows: PyTree, size: int) -> PyTree:
    """Shapes of the rows with another leading size; keys keep their dtype."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), rows)


def _as_jax(dtype):
    """The dtype JAX holds it in under the present settings; that of random keys as it is."""
    return dtype if jnp.issubdtype(dtype, jax.dtypes.extended) else jax.dtypes.canonicalize_dtype(dtype)


def _ended(returned: PyTree):
    """The status and the numbers of the first trajectory in what was returned, else whether it is all finite."""
    for leaf in jax.tree.leaves(returned, is_leaf=lambda x: isinstance(x, Trajectory)):
        if isinstance(leaf, Trajectory):
            known = {name: leaf.stats[name] for name in ("steps", "t_end") if name in leaf.stats}
            return jnp.asarray(leaf.status, jnp.int32), known
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(returned)]
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves if leaf.dtype != jax.dtypes.float0] or [True]))
    return jnp.where(finite, status.OK, status.NON_FINITE).astype(jnp.int32), {}
