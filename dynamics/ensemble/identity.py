"""Which run a folder holds, and whether it may be gone on with."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from dynamics.ensemble.design import Listed
from dynamics.ensemble.plan import fingerprint
from dynamics.ensemble.store import ForeignRun, MemoryStore, Store

if TYPE_CHECKING:
    from dynamics.ensemble.engine import Ensemble


def identity(ensemble: "Ensemble") -> dict[str, Any]:
    """What determines the numbers of a run, so that a folder can be recognised."""
    source = ensemble.source
    axes = source.values if isinstance(source, Listed) else [(a.name, a.static, a.values) for a in source.axes]
    return {
        "members": fingerprint(axes, [group.numbers for group in ensemble.groups]),
        "count": ensemble.total,
        "key": fingerprint(ensemble.base_key()),
        "order": fingerprint(ensemble.orders),
        "chunks": len(ensemble.chunks()),
        "chunk": ensemble.chunk,
        "lanes": ensemble.lanes,
        "by": list(ensemble.statistics.by),
        "reductions": {name: [repr(one) for one in ones] for name, ones in sorted(ensemble.statistics.reduce.items())},
        "outcome": fingerprint(str(jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), ensemble.shapes[0]))),
        "process": list(ensemble.process),
    }


def code(ensemble: "Ensemble") -> dict[str, str]:
    """What a member's numbers are computed by: the traced program, with the constants in it, under this JAX."""
    digest = hashlib.sha256()
    for group in range(len(ensemble.groups)):
        traced = jax.make_jaxpr(ensemble.alone(group))(ensemble.sample(group), ensemble.base_key())
        digest.update(re.sub(r"0x[0-9a-f]+", "", str(traced)).encode())
        digest.update(fingerprint([np.asarray(const) for const in traced.consts]).encode())
    return {"jax": jax.__version__, "program": digest.hexdigest()}


@contextlib.contextmanager
def opened(ensemble: "Ensemble", store: str | Path | Store | None) -> Iterator[Store | MemoryStore]:
    """The store as it is, or the folder's, created or taken up again, and locked; None keeps chunks in memory."""
    if store is None:
        ensemble.settle()
        yield MemoryStore()
    elif isinstance(store, Store):
        yield store
    else:
        folder = Path(store)
        if (folder / "manifest.json").exists():
            found = Store.open(folder)
            if ensemble.automatic and "chunk" in found.identity:
                ensemble.chunk = found.identity["chunk"]
            ensemble.settle()
            found.require(identity(ensemble))
            now, then = code(ensemble), found.about["code"]
            if then["jax"] == now["jax"] and then != now:
                raise ForeignRun(f"{folder} holds a run of another function: `one`, or a constant in it, has changed since")
        else:
            ensemble.settle()
            found = Store.create(folder, identity(ensemble), {"code": code(ensemble)})
        with found.lock(take=True):
            found.clean()
            found.sound()
            yield found
