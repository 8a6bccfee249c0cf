"""An ensemble taken apart: what is compiled, what runs where, and what comes of it."""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dynamics import status, validate
from dynamics.ensemble import memory as bytes_of
from dynamics.ensemble.design import Design, Listed
from dynamics.ensemble.lanes import WIDTH
from dynamics.ensemble.plan import Chunk, chosen_groups, cut, fingerprint, hardest_first, padded, share
from dynamics.ensemble.program import Outcome, Program, must_take_turns
from dynamics.ensemble.progress import Progress
from dynamics.ensemble.reductions import Reduced, Reduction
from dynamics.ensemble.rows import rows_of
from dynamics.ensemble.store import ForeignRun, MemoryStore, Store
from dynamics.segmented import Segmented
from dynamics.trajectory import Trajectory

LARGEST_CHUNK = 8192
"""Members of a chunk unless told otherwise: enough to hide the cost of a call, few enough to lose little with one."""


class Report(NamedTuple):
    """How a run went.

    - `members`, `failed`: how many were run, and how many of them ended other than ok.
    - `chunk`, `lanes`: members a chunk, and how many of them moved side by side.
    - `seconds`, `compile_seconds`: of this call; 0 seconds where everything was there already.
    - `useful`: steps that moved a member over all lane-steps that were executed; NaN where steps are not known.
    - `bytes`: the forecast of the memory that all devices' chunks take together.
    """

    members: int
    failed: int
    chunk: int
    lanes: int
    seconds: float
    compile_seconds: float
    useful: float
    bytes: int


class OutOfMemory(MemoryError):
    """A chunk does not fit; the message says which size does."""


def everything(returned: PyTree) -> PyTree:
    """Keep what `one` returned."""
    return returned


def observed(returned: PyTree) -> dict[str, Any]:
    """What a trajectory observed; else a dictionary of arrays itself."""
    if isinstance(returned, Trajectory):
        return returned.observed
    if isinstance(returned, dict):
        return returned
    raise ValueError(f"watch must say which named arrays to reduce: a {type(returned).__name__} has none")


class Ensemble:
    """The parts of `dynamics.ensemble.run`, for those who call them one by one; the arguments are the same."""

    def __init__(
        self, one, members, *, key=None, cost=None, chunk=None, keep=everything, watch=observed, reduce=(), by=(),
        lanes=None, memory=None, devices=None, shard=False, process=(0, 1), only=None,
    ):  # fmt: skip
        if not (isinstance(one, Segmented) or callable(one)):
            raise ValueError(f"one must be a function of a member or a Segmented motion, got {one!r}")
        self.source = members if isinstance(members, Design) else Listed(members)
        self.one, self.key, self.cost = one, key, cost
        self.by, self.cell_shape = tuple(by), self.source.cell_shape(tuple(by))
        self.groups = chosen_groups(self.source, only)
        self.total = sum(group.numbers.size for group in self.groups)
        self.devices = list(jax.local_devices() if devices is None else devices)
        self.shard, self.process = shard, share(process)
        self.keep, self.watch = keep, watch if reduce else lambda returned: {}
        self.automatic = chunk is None
        largest_group = max(group.numbers.size for group in self.groups)
        refilled = isinstance(one, Segmented)
        odd = lanes is not None and not refilled  # as given, though numbers then round by the lane they are in
        lanes = (16 if refilled else 256) if lanes is None else validate.whole("lanes", lanes, 1)
        if chunk is None:
            chunk = min(max(largest_group // 16, 32 * lanes if refilled else lanes), LARGEST_CHUNK)
        chunk = min(validate.whole("chunk", chunk, 1), largest_group)
        self.lanes = min(lanes, chunk) if odd else -(-min(lanes, chunk) // WIDTH) * WIDTH
        self.chunk = self._rounded(chunk)
        self.cap = min(map(bytes_of.available, self.devices[:1])) // 2 if memory is None else bytes_of.size("memory", memory)
        self.forecast = 0
        self.compile_seconds = 0.0
        self._orders: list[np.ndarray] | None = None
        self._partials: dict[int, dict[str, np.ndarray]] = {}
        self._totals: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        self._merged = 0
        self._compiled: dict[tuple, Any] = {}
        self._compiling = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._turn: contextlib.AbstractContextManager = contextlib.nullcontext()
        self.shapes = [self._outcome_shape(group) for group in range(len(self.groups))]
        self._same_shapes()
        self.reduce = _by_name(reduce, self.shapes[0].watched)

    def _rounded(self, chunk: int) -> int:
        """A chunk every lane and every device of which is used; lanes that are refilled need no multiple of them."""
        return -(-chunk // self.unit) * self.unit

    @property
    def unit(self) -> int:
        """What a chunk is a multiple of."""
        return (1 if isinstance(self.one, Segmented) else self.lanes) * (len(self.devices) if self.shard else 1)

    # ---- what is compiled ----

    def _program(self, group: int) -> Program:
        return Program(self.one, self.groups[group].static, self.key is not None, self.keep, self.watch, self.chunk, self.lanes)

    def _key(self):
        return np.uint32(0) if self.key is None else self.key

    def _sample(self, group: int) -> PyTree:
        return self.source.rows(self.groups[group].numbers[:1])

    def _outcome_shape(self, group: int) -> Outcome:
        """Shapes of one member's outcome; an error in the user's function shows here, before anything runs."""
        return jax.eval_shape(self._alone(group), self._sample(group), self._key())

    def _alone(self, group: int) -> Callable:
        program = self._program(group)

        def alone(row, key):
            keys = (jax.random.fold_in(key, 0),) if self.key is not None else ()
            member = program.member(jax.tree.map(lambda leaf: leaf[0], row))
            if isinstance(self.one, Segmented):
                return program.outcome(self.one.end(self.one.advance(self.one.begin(member, *keys))))
            return program.outcome(self.one(member, *keys))

        return alone

    def code(self) -> dict[str, str]:
        """What a member's numbers are computed by: the traced program, with the constants in it, under this JAX."""
        digest = hashlib.sha256()
        for group in range(len(self.groups)):
            traced = jax.make_jaxpr(self._alone(group))(self._sample(group), self._key())
            digest.update(re.sub(r"0x[0-9a-f]+", "", str(traced)).encode())
            digest.update(fingerprint([np.asarray(const) for const in traced.consts]).encode())
        return {"jax": jax.__version__, "program": digest.hexdigest()}

    def _same_shapes(self) -> None:
        def described(outcome):
            return {
                f"{part}{jax.tree_util.keystr(path)}": (leaf.shape, str(leaf.dtype))
                for part, tree in (("kept", outcome.kept), ("watched", outcome.watched), ("stats", outcome.stats))
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            }

        first = described(self.shapes[0])
        for group, shape in zip(self.groups, self.shapes, strict=True):
            for name, (expected, got) in _differences(first, described(shape)).items():
                raise ValueError(
                    f"what is kept and watched must have the same shapes for all static values; {name} is {expected} at "
                    f"{self.groups[0].static} and {got} at {group.static}; choose with keep= and watch="
                )

    def compiled(self, group: int, slot: tuple[jax.Device, ...]):
        """The program of a group on one device, or sharded over several; compiled once."""
        with self._compiling:
            if (group, slot) not in self._compiled:
                begin = time.perf_counter()
                compiled = self._program(group).compile(self._sample(group), self._key(), list(slot))
                self._compiled[group, slot] = compiled
                self.compile_seconds += time.perf_counter() - begin
                if len(self.devices) > 1 and slot[0].platform == "cpu" and must_take_turns(compiled, len(self.devices)):
                    if self.shard:
                        raise ValueError(
                            f"shard=True over {len(slot)} CPU devices needs more threads than devices for programs this large: "
                            f"set NPROC={2 * len(slot)} in the environment before JAX starts, or give fewer lanes"
                        )
                    self._turn = self._one_at_a_time
            return self._compiled[group, slot]

    def settle(self) -> None:
        """Compile, and see that the chunks of all devices fit into the memory; a chunk not asked for shrinks until they do.

        **Raises:** `OutOfMemory` with the size that would fit.
        """
        slots = self.slots()
        while True:
            self.forecast = max(bytes_of.needed(self.compiled(g, slots[0]), len(slots)) for g in range(len(self.groups)))
            fits = self.forecast <= self.cap
            if fits and not (self.automatic and self.devices[0].platform != "cpu"):
                return
            if fits:  # an accelerator's allocator has the last word
                try:
                    self.piece(Chunk(0, 0, self.groups[0].numbers[:1]), slots[0])
                    return
                except OutOfMemory:
                    pass
            smaller = max(self.unit, int(self.chunk * min(0.5, 0.9 * self.cap / self.forecast)) // self.unit * self.unit)
            if not self.automatic or smaller >= self.chunk:
                raise OutOfMemory(
                    f"a chunk of {self.chunk} members needs {bytes_of.shown(self.forecast)} on {len(slots)} device(s), "
                    f"{bytes_of.shown(self.cap)} are allowed; give chunk={smaller}, fewer lanes ({self.lanes} now) or more memory"
                )
            self.chunk = self._rounded(smaller)
            self._compiled.clear()

    def slots(self) -> list[tuple[jax.Device, ...]]:
        """The devices that run a chunk together: each alone, or all."""
        if self.shard:
            return [tuple(self.devices)]
        chunks = sum(-(-group.numbers.size // self.chunk) for group in self.groups)
        return [(device,) for device in self.devices[:chunks]]

    # ---- what runs ----

    @property
    def orders(self) -> list[np.ndarray]:
        """The members of each group in the order in which they run."""
        if self._orders is None:
            self._orders = [
                group.numbers if self.cost is None else hardest_first(self.cost, self.source, group, self.key)
                for group in self.groups
            ]
        return self._orders

    def ordered_as(self, order: np.ndarray) -> None:
        """Run the members of each group in this order, of all groups one after the other."""
        sizes = [group.numbers.size for group in self.groups]
        orders = np.split(order, np.cumsum(sizes)[:-1])
        for group, found in zip(self.groups, orders, strict=True):
            if not np.array_equal(np.sort(found), group.numbers):
                raise ValueError("order must hold the numbers of each group once")
        self._orders = orders

    def chunks(self) -> list[Chunk]:
        """All chunks of the run, of all processes."""
        return cut(self.orders, self.chunk)

    def mine(self) -> list[Chunk]:
        """The chunks of this process."""
        index, count = self.process
        return [chunk for chunk in self.chunks() if chunk.number % count == index]

    def identity(self) -> dict[str, Any]:
        """What determines the numbers of a run, so that a folder can be recognised."""
        source = self.source
        axes = source.values if isinstance(source, Listed) else [(a.name, a.static, a.values) for a in source.axes]
        return {
            "members": fingerprint(axes, [group.numbers for group in self.groups]),
            "count": self.total,
            "key": fingerprint(self._key()),
            "order": fingerprint(self.orders),
            "chunks": len(self.chunks()),
            "chunk": self.chunk,
            "lanes": self.lanes,
            "by": list(self.by),
            "reductions": {name: [repr(one) for one in ones] for name, ones in sorted(self.reduce.items())},
            "outcome": fingerprint(str(jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), self.shapes[0]))),
            "process": list(self.process),
        }

    @contextlib.contextmanager
    def opened(self, store: str | Path | Store | None) -> Iterator[Store | MemoryStore]:
        """The store as it is, or the folder's, created or taken up again, and locked; None keeps chunks in memory."""
        if store is None:
            self.settle()
            yield MemoryStore()
        elif isinstance(store, Store):
            yield store
        else:
            folder = Path(store)
            if (folder / "manifest.json").exists():
                found = Store.open(folder)
                if self.automatic and "chunk" in found.identity:
                    self.chunk = found.identity["chunk"]
                self.settle()
                found.require(self.identity())
                code, then = self.code(), found.about["code"]
                if then["jax"] == code["jax"] and then != code:
                    raise ForeignRun(f"{folder} holds a run of another function: `one`, or a constant in it, has changed since")
            else:
                self.settle()
                found = Store.create(folder, self.identity(), {"code": self.code()})
            with found.lock(take=True):
                found.clean()
                found.sound()
                yield found

    def execute(self, store: Store | MemoryStore, *, progress: bool | Progress = True) -> None:
        """Run the chunks of this process that the store does not have, each device its own at a time."""
        mine = self.mine()
        todo = [chunk for chunk in mine if chunk.number not in store.entries]
        before = [store.entries[chunk.number] for chunk in mine if chunk.number in store.entries]
        if not isinstance(progress, Progress):
            progress = Progress(sum(chunk.members.size for chunk in mine), progress and len(mine) > 1)
        for group in sorted({chunk.group for chunk in todo}):
            for slot in self.slots():
                self.compiled(group, slot)  # before the clock of the progress line starts
        progress.begin(sum(entry["members"] for entry in before), sum(entry["failed"] for entry in before))
        free: SimpleQueue = SimpleQueue()
        slots = self.slots()
        for slot in slots:
            free.put(slot)

        def compute(chunk: Chunk):
            slot = free.get()
            try:
                return chunk, *self.piece(chunk, slot)
            finally:
                free.put(slot)

        pool = ThreadPoolExecutor(len(slots))
        try:
            waiting, running = iter(todo), set()
            while True:
                # one more than the devices, so that none waits while a result is written
                while len(running) <= len(slots) and (chunk := next(waiting, None)) is not None:
                    running.add(pool.submit(compute, chunk))
                if not running:
                    break
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for chunk, arrays, facts in sorted((future.result() for future in finished), key=lambda one: one[0].number):
                    if isinstance(store, MemoryStore):
                        arrays = self._absorbed(chunk.number, arrays)
                    store.write(chunk.number, arrays, facts)
                    progress.update(facts["members"], facts["failed"])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _absorbed(self, number: int, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays without partial statistics, which are merged at once where their turn has come: memory stays bounded."""
        index, count = self.process
        self._partials[number] = {name: array for name, array in arrays.items() if name.startswith("reduced/")}
        while (turn := index + self._merged * count) in self._partials:
            partials = self._partials.pop(turn)
            for name, reductions in self.reduce.items():
                for reduction in reductions:
                    partial, before = _part(partials, name, reduction), self._totals.get((name, reduction.name))
                    self._totals[name, reduction.name] = partial if before is None else reduction.merge(before, partial)
            self._merged += 1
        return {name: array for name, array in arrays.items() if not name.startswith("reduced/")}

    def piece(self, chunk: Chunk, slot: tuple[jax.Device, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays of one chunk, as they are stored, and facts about it."""
        compiled = self.compiled(chunk.group, slot)
        begin = time.perf_counter()
        full, count = padded(chunk.members, self.chunk).astype(np.int32), chunk.members.size
        try:
            with self._turn:
                outcome: Outcome = jax.device_get(compiled(self.source.rows(full), full, self._key(), np.int32(count)))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OutOfMemory(
                f"a chunk of {self.chunk} members does not fit on {slot[0]}; chunks already stored stay; "
                f"try chunk={max(self.unit, self.chunk // 2)}"
            ) from error
        outcome = outcome._replace(work=np.sum(outcome.work))
        work = float(outcome.work)
        outcome = rows_of(outcome._replace(work=()), slice(count))
        arrays = {"index": chunk.members.astype(np.int64), "status": outcome.status, **outcome.stats}
        for path, leaf in jax.tree_util.tree_leaves_with_path(outcome.kept):
            arrays[f"values{jax.tree_util.keystr(path)}"] = leaf
        cells = self.source.cells(self.by, chunk.members)
        for name, reductions in self.reduce.items():
            for reduction in reductions:
                for part, array in reduction.of(outcome.watched[name], cells).items():
                    arrays[f"reduced/{name}/{reduction.name}/{part}"] = array
        codes, counts = np.unique(outcome.status, return_counts=True)
        facts = {
            "members": count,
            "failed": int(np.sum(outcome.status != status.OK)),
            "status": {status.name(code): int(number) for code, number in zip(codes, counts, strict=True)},
            "seconds": round(time.perf_counter() - begin, 6),
        }
        if work >= 0:
            steps = outcome.stats["steps"]
            facts |= {"steps": int(steps.sum()), "most_steps": int(steps.max()), "work": work}
        return arrays, facts

    # ---- what comes of it ----

    def array(self, store: Store | MemoryStore, name: str) -> np.ndarray:
        """One stored array of all members of this process, in the order of their numbers."""
        pieces = [store.read(chunk.number) for chunk in self.mine()]
        index = np.concatenate([piece["index"] for piece in pieces])
        return np.concatenate([piece[name] for piece in pieces])[np.argsort(index, kind="stable")]

    def reduced(self, store: Store | MemoryStore) -> Iterator[tuple[str, Reduction, dict[str, Reduced]]]:
        """The statistics of one watched array after the other; partial results are merged in the order of the chunks."""
        cells = int(np.prod(self.cell_shape, dtype=np.int64))
        for name, reductions in self.reduce.items():
            for reduction in reductions:
                total = self._totals.get((name, reduction.name))
                for chunk in self.mine() if isinstance(store, Store) else ():
                    partial = _part(store.read(chunk.number), name, reduction)
                    total = partial if total is None else reduction.merge(total, partial)
                if total is not None:
                    found = reduction.result(total, cells)
                    yield name, reduction, {key: self._apart(one) for key, one in found.items()}

    def _apart(self, found: Reduced) -> Reduced:
        """The axis of cells unfolded into the axes that statistics are kept apart by."""
        return found._replace(values=found.values.reshape(self.cell_shape + found.values.shape[1:]), dims=self.by + found.dims)

    def report(self, store: Store | MemoryStore, seconds: float = 0.0) -> Report:
        """How the run went, from the facts of its chunks."""
        facts = [store.entries[chunk.number] for chunk in self.mine() if chunk.number in store.entries]
        work = sum(fact.get("work", 0.0) for fact in facts)
        return Report(
            members=sum(fact["members"] for fact in facts),
            failed=sum(fact["failed"] for fact in facts),
            chunk=self.chunk,
            lanes=self.lanes,
            seconds=sum(fact["seconds"] for fact in facts),
            compile_seconds=self.compile_seconds,
            useful=sum(fact.get("steps", 0) for fact in facts) / work if work else float("nan"),
            bytes=self.forecast,
        )


def _part(arrays: Mapping[str, np.ndarray], name: str, reduction: Reduction) -> dict[str, np.ndarray]:
    """What one reduction left of one variable among the arrays of a chunk."""
    head = f"reduced/{name}/{reduction.name}/"
    return {key.removeprefix(head): arrays[key] for key in arrays if key.startswith(head)}


def _differences(first: dict, other: dict) -> dict[str, tuple]:
    return {
        name: (first.get(name, "absent"), other.get(name, "absent"))
        for name in {**first, **other}
        if first.get(name) != other.get(name)
    }


def _by_name(reduce, watched: dict[str, Any]) -> dict[str, list[Reduction]]:
    """The reductions of each watched array."""
    chosen = reduce if isinstance(reduce, Mapping) else {name: reduce for name in watched}
    for name, reductions in chosen.items():
        validate.choice("reduce", name, watched)
        wrong = [one for one in reductions if not isinstance(one, Reduction)]
        if wrong:
            raise ValueError(f"reduce must hold reductions such as ensemble.Moments(), got {wrong[0]!r} for {name!r}")
        names = [one.name for one in reductions]
        if len(set(names)) < len(names):
            raise ValueError(f"reduce must hold each kind of reduction once, got {names} for {name!r}")
    return {name: list(reductions) for name, reductions in chosen.items()}
