"""The labelled result of a run: its chunks as variables, one at a time."""

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from dynamics import ensemble, status
from dynamics.cli import config as configuration
from dynamics.cli import skeleton
from dynamics.cli import sweep as sweeps
from dynamics.ensemble import Ensemble
from dynamics.ensemble.dataset import Variable
from dynamics.ensemble.statistics import label
from dynamics.ensemble.store import MemoryStore, Store

FILES = {"netcdf": "result.nc", "zarr": "result.zarr"}


def coordinates(config, sweep: sweeps.Sweep, members: Ensemble) -> Iterator[Variable]:
    """Member numbers, times, and every swept axis."""
    numbers = np.sort(np.concatenate([group.numbers for group in members.groups]))
    yield Variable("member", ("member",), numbers.astype(np.int64), {"long_name": "number of the member"})
    clock = {"flow": ("time of the flow", "1 / learning rate"), "descent": ("iteration", "1")}[config.motion.verb]
    clock = clock if config.motion.clock is None else ("value of the clock", "1")
    yield Variable("time", ("time",), np.asarray(sweep.ts, float), {"long_name": clock[0], "units": clock[1]})
    for name, values in sweep.design.coordinates().items():
        yield Variable(name, ("member",), values[numbers], {"long_name": f"swept axis {name}"})
    for name, values in members.statistics.coordinates().items():
        yield Variable(name, (name,), values, {"long_name": name.replace("_", " ")})


def variables(config, sweep: sweeps.Sweep, members: Ensemble, store: Store | MemoryStore) -> Iterator[Variable]:
    """Everything that was kept of single members, then the statistics over them."""
    yield Variable(
        "status",
        ("member",),
        members.array(store, "status").astype(np.int8),
        {"long_name": "how the run of the member ended", **status.flags(np.int8)},
    )
    texts = {
        "steps": "steps taken",
        "t_end": "time reached",
        "error_estimate": "distance of the log of the loss from the clock",
    }
    for name in members.shapes[0].stats:
        yield Variable(name, ("member",), lambda name=name: members.array(store, name), {"long_name": texts[name]})
    for path, leaf in jax.tree_util.tree_leaves_with_path(members.shapes[0].kept):
        name, key = path[-1].key, f"values{jax.tree_util.keystr(path)}"
        trajectory = not name.endswith("_final")
        extra = leaf.shape[1:] if trajectory else leaf.shape
        dims = ("member", *(("time",) if trajectory else ()), *(f"{name}_{axis}" for axis in range(len(extra))))
        text = name.removesuffix("_final") + ("" if trajectory else " at the last saved time that was reached")
        yield Variable(name, dims, lambda key=key: members.array(store, key), {"long_name": text})
    for name, found in members.reduced(store):
        for key, one in found.items():
            rest = one.values.ndim - len(one.dims)
            dims = tuple(label(name, dim) for dim in one.dims)
            dims += (("time",) if rest else ()) + tuple(f"{name}_{axis}" for axis in range(rest - 1))
            yield Variable(f"{name}_{key}", dims, one.values, {"long_name": f"{key} of {name} over members", **one.attributes})


def whole_states(config, chosen: list[int]) -> Iterator[Variable]:
    """The states of the named members at all times: they are run again, keeping states."""
    if not chosen:
        return
    one, design, options = with_states(config, chosen)
    result = ensemble.run(one, design, progress=False, **options)
    yield Variable("whole", ("whole",), result.index, {"long_name": "number of the member whose states are kept"})
    states = result.values
    if isinstance(config.problem, skeleton.Network):
        for number, leaf in enumerate(jax.tree.leaves(states)):
            name = f"weights_{number}"
            dims = (f"{name}_{axis}" for axis in range(leaf.ndim - 2))
            yield Variable(name, ("whole", "time", *dims), leaf, {"long_name": f"weights, array {number}"})
        return
    for name, dims in (("features", ("sample", "dim")), ("prototypes", ("class", "dim")), ("biases", ("class",))):
        yield Variable(name, ("whole", "time", *dims), getattr(states, name), {"long_name": name})


def with_states(config, chosen: list[int]):
    """The named members as an ensemble that keeps their states: its motion, its design, and its options."""
    sweep = sweeps.build(config, states=True)
    options = {"key": sweep.key, "keep": _states, "only": np.sort(np.asarray(chosen)), "devices": jax.local_devices()[:1]}
    return sweep.one, sweep.design, options


def _states(moved):
    return moved.states


def attributes(config, sweep: sweeps.Sweep, members: Ensemble, versions: dict[str, str]) -> dict:
    """What a reader must know to run it again."""
    device = members.devices[0]
    return {
        "title": config.title or config.name,
        "name": config.name,
        "config": configuration.dumps(config),
        "config_sha256": configuration.sha256(config),
        "seed": config.seed,
        "precision": config.precision,
        "chunk": members.chunk,
        "lanes": members.lanes,
        "platform": device.platform,
        "device": device.device_kind,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "sources": "\n".join(sweep.sources),
    }


def write(folder: Path, config, sweep: sweeps.Sweep, members: Ensemble, store: Store, versions: dict[str, str]) -> Path:
    """Write the result of a complete run into its folder, and register it."""
    from dynamics.ensemble import dataset

    def everything():
        yield from variables(config, sweep, members, store)
        yield from whole_states(config, config.keep.states)

    path = folder / FILES[config.run.format]
    dataset.write(
        path,
        coordinates(config, sweep, members),
        everything(),
        attributes(config, sweep, members, versions),
        format=config.run.format,
    )
    store.add_file(path.name if path.is_file() else f"{path.name}/zarr.json")
    return path
