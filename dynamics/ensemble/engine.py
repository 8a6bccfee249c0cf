"""An ensemble taken apart: what is compiled, what runs where, and what comes of it."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from dynamics import status, validate
from dynamics.ensemble import memory as bytes_of
from dynamics.ensemble.design import Design, Listed
from dynamics.ensemble.lanes import WIDTH
from dynamics.ensemble.plan import Chunk, chosen_groups, cut, hardest_first, padded, share
from dynamics.ensemble.program import Device, Outcome, Program, must_take_turns
from dynamics.ensemble.progress import Progress
from dynamics.ensemble.reductions import Reduced
from dynamics.ensemble.rows import rows_of
from dynamics.ensemble.statistics import Statistics
from dynamics.ensemble.store import MemoryStore, Store
from dynamics.segmented import Segmented
from dynamics.trajectory import Trajectory

LARGEST_CHUNK = 8192
"""Members of a chunk unless told otherwise: enough to hide the cost of a call, few enough to lose little with one."""


class Report(NamedTuple):
    """How a run went.

    - `members`, `failed`: how many were run, and how many of them ended other than ok.
    - `chunk`, `lanes`: members a chunk, and how many of them moved side by side.
    - `seconds`: of all chunks, also those that were there already, as if one after the other; `compile_seconds`: of this call.
    - `useful`: of a `Segmented`, steps that moved a member over all lane-steps that were executed; of a plain function NaN.
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
        self.source.cell_shape(tuple(by))  # refuses wrong names before anything is traced
        self.one, self.key, self.cost = one, key, cost
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
            chunk = min(max(largest_group // 16, 8 * lanes if refilled else lanes), LARGEST_CHUNK)
        chunk = min(validate.whole("chunk", chunk, 1), largest_group)
        self.lanes = min(lanes, chunk) if odd else -(-min(lanes, chunk) // WIDTH) * WIDTH
        self.chunk = self._rounded(chunk)
        self.cap = min(map(bytes_of.available, self.devices[:1])) // 2 if memory is None else bytes_of.size("memory", memory)
        self.forecast = 0
        self.compile_seconds = 0.0
        self._orders: list[np.ndarray] | None = None
        self._programs: dict[int, Program] = {}
        self._compiled: dict[tuple, Any] = {}
        self._compiling = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._turn: contextlib.AbstractContextManager = contextlib.nullcontext()
        self.shapes = [self._outcome_shape(group) for group in range(len(self.groups))]
        self._same_shapes()
        self.statistics = Statistics(reduce, tuple(by), self.source, self.shapes[0].watched)

    def _rounded(self, chunk: int) -> int:
        """A chunk every lane and every device of which is used; lanes that are refilled need no multiple of them."""
        return -(-chunk // self.unit) * self.unit

    @property
    def unit(self) -> int:
        """What a chunk is a multiple of."""
        return (1 if isinstance(self.one, Segmented) else self.lanes) * (len(self.devices) if self.shard else 1)

    # ---- what is compiled ----

    def _program(self, group: int) -> Program:
        """The program of a group, one for all devices."""
        if group not in self._programs:
            static, keyed = self.groups[group].static, self.key is not None
            self._programs[group] = Program(self.one, static, keyed, self.keep, self.watch, self.chunk, self.lanes)
        return self._programs[group]

    def base_key(self):
        """What the keys of members are folded from; a number where they have none."""
        return np.uint32(0) if self.key is None else self.key

    def sample(self, group: int) -> PyTree:
        """The first row of a group."""
        return self.source.rows(self.groups[group].numbers[:1])

    def _outcome_shape(self, group: int) -> Outcome:
        """Shapes of one member's outcome; an error in the user's function shows here, before anything runs."""
        return jax.eval_shape(self.alone(group), self.sample(group), self.base_key())

    def alone(self, group: int) -> Callable:
        """(rows, key) to the outcome of the first row, moved by itself for a while."""
        program = self._program(group)

        def alone(row, key):
            keys = (jax.random.fold_in(key, 0),) if self.key is not None else ()
            member = program.member(jax.tree.map(lambda leaf: leaf[0], row))
            if isinstance(self.one, Segmented):
                return program.outcome(self.one.end(self.one.advance(self.one.begin(member, *keys))))
            return program.outcome(self.one(member, *keys))

        return alone

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

    def compiled(self, group: int, slot: tuple[Device, ...]):
        """The program of a group on one device, or sharded over several; compiled once."""
        with self._compiling:
            if (group, slot) not in self._compiled:
                begin = time.perf_counter()
                compiled = self._program(group).compile(self.sample(group), self.base_key(), list(slot))
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
            if fits and not (self.automatic and bytes_of.must_be_tried(self.devices[0])):
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
                    f"a chunk of {self.chunk} members needs {bytes_of.shown(self.forecast)} on {len(slots)} device(s) and "
                    f"may take {bytes_of.shown(self.cap)}: give chunk={smaller}, fewer lanes than {self.lanes}, or more memory"
                )
            self.chunk = self._rounded(smaller)
            self._programs.clear()
            self._compiled.clear()

    def slots(self) -> list[tuple[Device, ...]]:
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

    def execute(self, store: Store | MemoryStore, *, progress: bool | Progress = True) -> None:
        """Run the chunks of this process that the store does not have, each device its own at a time."""
        mine = self.mine()
        places = {chunk.number: place for place, chunk in enumerate(mine)}
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
                        arrays = self.statistics.absorb(places[chunk.number], arrays)
                    store.write(chunk.number, arrays, facts)
                    progress.update(facts["members"], facts["failed"])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def piece(self, chunk: Chunk, slot: tuple[Device, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays of one chunk, as they are stored, and facts about it."""
        compiled = self.compiled(chunk.group, slot)
        begin = time.perf_counter()
        full, count = padded(chunk.members, self.chunk).astype(np.int32), chunk.members.size
        try:
            with self._turn:
                outcome: Outcome = jax.device_get(compiled(self.source.rows(full), full, self.base_key(), np.int32(count)))
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
        arrays |= self.statistics.partials(chunk.members, outcome.watched)
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

    def reduced(self, store: Store | MemoryStore) -> Iterator[tuple[str, dict[str, Reduced]]]:
        """The statistics of one watched array after the other."""
        stored = (store.read(chunk.number) for chunk in self.mine()) if isinstance(store, Store) else ()
        return self.statistics.results(stored)

    def report(self, store: Store | MemoryStore) -> Report:
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


def _differences(first: dict, other: dict) -> dict[str, tuple]:
    return {
        name: (first.get(name, "absent"), other.get(name, "absent"))
        for name in {**first, **other}
        if first.get(name) != other.get(name)
    }
