"""Members dealt to devices: a call on each at the same time, the results where they were made."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dynamics.ensemble.program import Device, compiler_options


class Dealt:
    """`jax.vmap(one)` on all devices at once, members dealt to them in turn, the costliest first.

    Nothing is stored and nothing leaves its device: for what `ensemble.run` would copy for too long. `one` is compiled when the
    object is made.

    **Arguments:**

    - `one`: of one member.
    - `members`: a pytree with leading axis (members,), at least as many as devices.
    - `cost`: of one member, a number; None deals them in the order given.
    - `devices`: None is all of this process.
    - `reuse`: every call writes into the memory of the values of the call before, which are then no longer there. Memory that
      is new costs its first use, on a CPU as much as writing it several times.

    `index` lists the numbers of the members on each device.
    """

    index: list[np.ndarray]

    def __init__(
        self,
        one: Callable,
        members: PyTree,
        *,
        cost: Callable | None = None,
        devices: Sequence[Device] | None = None,
        reuse: bool = False,
    ):
        devices = list(jax.local_devices() if devices is None else devices)
        sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(members)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError(f"members must have one leading axis on every leaf, got sizes {sorted(sizes)}")
        ((size,),) = sizes
        if size < len(devices):
            raise ValueError(f"members must be at least as many as devices, got {size} for {len(devices)}")
        order = np.arange(size)
        if cost is not None:
            order = np.argsort(-np.asarray(jax.jit(jax.vmap(cost))(members)), kind="stable")
        self.index = [order[first :: len(devices)] for first in range(len(devices))]
        self._reuse = reuse
        self._parts, self._programs, self._rooms = [], [], []
        # an argument that is given up and not used is memory for the results
        move = jax.jit(
            lambda room, part: jax.vmap(one)(part),
            donate_argnums=0,
            keep_unused=True,
            compiler_options=compiler_options(devices[0]),
        )
        for mine, device in zip(self.index, devices, strict=True):
            part = jax.device_put(jax.tree.map(lambda leaf, mine=mine: leaf[mine], members), device)
            room = _room(jax.eval_shape(jax.vmap(one), part), device) if reuse else ()
            self._parts.append(part)
            self._rooms.append(room)
            self._programs.append(move.lower(room, part).compile())

    def __call__(self) -> list[PyTree]:
        """The values, a pytree a device, with leading axis like its `index`; under way when this returns."""
        parts = zip(self._programs, self._rooms, self._parts, strict=True)
        values = [program(room, part) for program, room, part in parts]
        if self._reuse:
            self._rooms = values
        return values

    def gathered(self, values: list[PyTree]) -> PyTree:
        """Values of all devices on the host, in the order of the members."""
        back = np.argsort(np.concatenate(self.index))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[back], *jax.device_get(values))


def _room(shapes: PyTree, device: Device) -> PyTree:
    """Memory for arrays of these shapes."""
    return jax.device_put(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), device)
