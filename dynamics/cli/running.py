"""From a configuration to a finished run folder."""

import contextlib
import os
import platform
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from dynamics import ensemble, status
from dynamics.cli import config as configuration
from dynamics.cli import result
from dynamics.cli import sweep as sweeps
from dynamics.ensemble import Design, Ensemble, lock
from dynamics.ensemble.engine import observed
from dynamics.ensemble.store import Store
from dynamics.trajectory import Trajectory, blank

PACKAGES = ("dynamics", "jax", "jaxlib", "diffrax", "optax", "numpy")


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def environment() -> dict:
    """Where a run happens; it may differ when the run is resumed."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    device = jax.local_devices()[0]
    return {
        "versions": versions(),
        "host": platform.node(),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.local_device_count(),
        "x64": bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
        "matmul_precision": "highest",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit.stdout.strip(),
    }


def set_up(config: configuration.SweepConfig, devices: int) -> None:
    """JAX's settings for a run; before its first array."""
    jax.config.update("jax_enable_x64", config.precision == "float64")
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:  # the calling program has started JAX already: with the devices it has
        pass


def kept(keep: configuration.Keep, watch: Callable) -> Callable | None:
    """What stays of each member: its observables at the last saved time it reached, and at all times, where asked for."""
    if not (keep.final or keep.trajectories):
        return None

    def one(moved: Trajectory) -> dict:
        reached = jnp.clip(jnp.sum(jnp.asarray(moved.ts) <= moved.stats["t_end"]) - 1, 0)
        final = {f"{name}_final": values[reached] for name, values in moved.observed.items()} if keep.final else {}
        return {**final, **(watch(moved) if keep.trajectories else {})}

    return one


def watched(config: configuration.SweepConfig, ts: np.ndarray) -> Callable:
    """What is watched over time: everything observed, of a run along a clock not its stop between two of the times."""
    if config.motion.clock is None:
        return observed
    return lambda moved: blank(moved.ts != ts, moved.observed)


def assemble(config: configuration.SweepConfig, sweep: sweeps.Sweep, process: tuple[int, int] = (0, 1), chunk=None) -> Ensemble:
    """The ensemble of a sweep; nothing is compiled yet."""
    run, watch = config.run, watched(config, sweep.ts)
    return Ensemble(
        sweep.one,
        sweep.design,
        key=sweep.key,
        cost=sweep.cost if run.sort else None,
        chunk=run.chunk if chunk is None else chunk,
        keep=kept(config.keep, watch),
        watch=watch,
        reduce=sweep.reduce,
        by=config.keep.by,
        lanes=run.lanes,
        memory=run.memory,
        shard=run.shard,
        process=process,
    )


class Requested:
    """How many programs JAX has asked for since, and how many of them the cache of compiled programs had."""

    def __init__(self):
        self.total = self.found = 0

    def __call__(self, event: str, **_) -> None:
        self.total += event == "/jax/compilation_cache/compile_requests_use_cache"
        self.found += event == "/jax/compilation_cache/cache_hits"


@contextlib.contextmanager
def requested() -> Iterator[Requested]:
    """Count the programs that JAX asks for in the block."""
    count = Requested()
    jax.monitoring.register_event_listener(count)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_listener(count)


def compile_all(config: configuration.SweepConfig, sweep: sweeps.Sweep, members: Ensemble) -> None:
    """Compile what a run of the sweep needs; of the members nothing runs but what orders them."""
    members.settle()
    warn_of_large_steps(sweep)
    members.chunks()
    for group in range(len(members.groups)):
        for slot in members.slots():
            members.compiled(group, slot)
    if config.keep.states:
        one, design, options = result.with_states(config, config.keep.states)
        Ensemble(one, design, **options).settle()


def describe(members: Ensemble) -> str:
    """The sizes of a run, in a few lines."""
    from dynamics.ensemble import memory

    chunks = members.chunks()
    axes = members.source.axes if isinstance(members.source, Design) else ()
    lines = [
        f"members    {members.total}" + (f" in {len(members.groups)} groups" if len(members.groups) > 1 else ""),
        f"axes       {', '.join(f'{axis.name} ({len(axis)})' for axis in axes)}",
        f"chunks     {len(chunks)} of {members.chunk} members, {members.lanes} lanes side by side",
        f"devices    {len(members.slots()[0]) if members.shard else len(members.slots())} x {members.devices[0].device_kind}",
        f"memory     {memory.shown(members.forecast)} forecast of {memory.shown(members.cap)} allowed",
    ]
    if members.process[1] > 1:
        lines.append(f"process    {members.process[0]} of {members.process[1]}: {len(members.mine())} chunks")
    return "\n".join(lines)


def outcome(members: Ensemble, store: Store) -> str:
    """How the members ended, and how much of the work moved one."""
    report = members.report(store)
    counts: Counter[str] = Counter()
    for entry in store.entries.values():
        counts.update(entry["status"])
    ended = ", ".join(
        f"{number} {name}" for name, number in sorted(counts.items(), key=lambda item: (item[0] != "ok", item[0]))
    )
    useful = f"; {100 * report.useful:.0f} % of the steps were useful" if np.isfinite(report.useful) else ""
    return f"{report.members} of {members.total} members: {ended}{_first_failure(members, store)}{useful}"


def _first_failure(members: Ensemble, store: Store) -> str:
    """The first member that failed, why, and how far it got."""
    found = []
    for number, entry in store.entries.items():
        if entry["failed"]:
            piece = store.read(number)
            failed = np.flatnonzero(piece["status"] != status.OK)
            first = failed[np.argmin(piece["index"][failed])]
            reached = f" at {piece['t_end'][first]:.6g}" if "t_end" in piece else ""
            found.append((int(piece["index"][first]), f"{status.name(piece['status'][first])}{reached}"))
    if not found:
        return ""
    member, text = min(found)
    return f" (the first to fail: member {member}, {text})"


def quantiles_of_chunks(store: Store) -> str:
    """Seconds and steps of the chunks: least, median, most."""
    rows = []
    for name, text in (("seconds", "seconds a chunk"), ("most_steps", "steps of a chunk's hardest member")):
        values = [entry[name] for entry in store.entries.values() if name in entry]
        if values and max(values) > 0:
            low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
            rows.append(f"{text}: {low:.4g} least, {middle:.4g} median, {high:.4g} most")
    return "\n".join(rows)


def status_of(folder: Path) -> tuple[str, int]:
    """How far the run in a folder is, and the exit code that says so: 0 all ok, 1 some failed, 3 incomplete."""
    store = Store.open(folder)
    index, count = store.identity["process"]
    mine = range(index, store.identity["chunks"], count)
    missing = [number for number in mine if number not in store.entries]
    done = sum(entry["members"] for entry in store.entries.values())
    failed: Counter[str] = Counter()
    for entry in store.entries.values():
        failed.update({name: number for name, number in entry["status"].items() if name != "ok"})
    work = sum(entry.get("work", 0.0) for entry in store.entries.values())
    lines = [
        f"{folder}: {store.about['name']}" + (f", part {index} of {count}" if count > 1 else ""),
        f"  members    {done} done of {store.identity['count']}" + (" in all parts" if count > 1 else ""),
        f"  failed     {', '.join(f'{number} {name}' for name, number in sorted(failed.items())) or 'none'}",
        f"  chunks     {len(mine) - len(missing)} of {len(mine)}" + (f"; missing: {_shortened(missing)}" if missing else ""),
    ]
    if work:
        useful = sum(entry.get("steps", 0) for entry in store.entries.values()) / work
        lines.append(f"  useful     {100 * useful:.0f} % of the steps")
    lines += [f"  {line}" for line in quantiles_of_chunks(store).splitlines()]
    for event in store.history:
        lines.append(f"  {event['at']} {event['event']}")
    holder = lock.holder(folder / ".lock")
    if holder is not None:
        lines.append(f"  locked     {holder}")
    elif missing:
        lines.append(f"  go on with: dynamics resume {folder}")
    return "\n".join(lines), 3 if missing else 1 if failed else 0


def _shortened(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (f", ... ({len(numbers)} in all)" if len(numbers) > 8 else "")


SAME = 1e-12
"""The largest difference of a recomputed number, relative to the largest of its kind in the chunk."""


def recomputed(members: Ensemble, store: Store, sample: int, seed: int | None) -> tuple[float, str]:
    """Run a random sample of the stored chunks again: the worst relative difference, and what was compared.

    Statistics of a chunk are compared number by number too, so that a run that keeps no member is checked as well.
    """
    members.settle()
    stored = [chunk for chunk in members.mine() if chunk.number in store.entries]
    draw = np.random.default_rng(seed)
    chosen = [stored[place] for place in sorted(draw.choice(len(stored), min(sample, len(stored)), replace=False))]
    worst, count = 0.0, 0
    for chunk in chosen:
        arrays, _ = members.piece(chunk, members.slots()[0])
        kept = store.read(chunk.number)
        if set(arrays) != set(kept):
            return float("inf"), f"chunk {chunk.number} holds other arrays"
        for name, array in arrays.items():
            worst = max(worst, _apart(array, kept[name]))
        count += chunk.members.size
    numbers = ", ".join(str(chunk.number) for chunk in chosen)
    return worst, f"{count} members (chunk {numbers}) computed again"


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
        return 0.0
    if a.dtype.kind != "f" or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(a)
    return float(np.max(np.abs(a[finite] - b[finite])) / np.max(np.abs(b[finite]), initial=np.finfo(b.dtype).tiny))


LOOKED_AT = 256
"""Members, evenly spaced, whose steps are held against the stability bound before a run."""


def warn_of_large_steps(sweep: sweeps.Sweep) -> None:
    """Warn once where a descent's steps are above the largest stable one, as far as a formula knows it."""
    if sweep.overstep is None:
        return
    size = sweep.design.size
    looked_at = np.unique(np.linspace(0, size - 1, min(size, LOOKED_AT)).astype(int))
    above = ensemble.run(sweep.overstep, sweep.design, key=sweep.key, only=looked_at, progress=False).values
    if np.any(above > 1):
        warnings.warn(
            f"{np.sum(above > 1)} of {above.size} members looked at take steps above the largest stable one (up to "
            f"{np.max(above):.3g} times): expect them to diverge",
            stacklevel=2,
        )
