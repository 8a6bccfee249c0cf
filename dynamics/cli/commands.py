"""What each command does: options in, an exit code out."""

import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dynamics.cli import config as configuration
from dynamics.cli import folder as folders
from dynamics.cli import processes, result, running
from dynamics.cli import sweep as sweeps
from dynamics.cli.main import IO, OK, SOME_FAILED
from dynamics.compile_cache import VARIABLE, enable_compile_cache
from dynamics.ensemble import Ensemble
from dynamics.ensemble.identity import identity
from dynamics.ensemble.progress import Progress
from dynamics.ensemble.store import CorruptFile, Store
from dynamics.whole_file import whole_file

CONFIG, ORDER = "config.toml", "order.npy"


class Log:
    """Lines for people: printed, and appended to the run's `log.txt` with the time."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder

    def __call__(self, text: str, *, shown: bool = True) -> None:
        if shown:
            print(text, flush=True)
        if self.folder is not None:
            moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            with open(self.folder / "log.txt", "a", encoding="utf-8") as file:
                file.writelines(f"{moment} {line}\n" for line in text.splitlines())


def run(options) -> int:
    """Run a sweep file in a folder of its own."""
    config = configuration.load(options.sweep, options.set)
    process, joined = processes.which(options.process_index, options.process_count, options.distributed)
    if process[1] > 1 and options.out is None and not options.dry_run:
        raise ValueError("--out must be given when several processes share a run: they must agree on the folder")
    running.set_up(config, options.devices or processes.cores())
    with joined:
        sweep = sweeps.build(config)
        members = running.assemble(config, sweep, process)
        members.settle()
        running.warn_of_large_steps(sweep)
        if options.dry_run:
            print(running.describe(members))
            return OK
        folder = folders.create(
            options.out, config.name, configuration.sha256(config), overwrite=options.overwrite, part=process
        )
        with whole_file(folder / CONFIG) as file:
            file.write(configuration.dumps(config).encode())
        if members.cost is not None:
            with whole_file(folder / ORDER) as file:
                np.save(file, np.concatenate(members.orders))
        store = Store.create(folder, _identity(config, members), {"name": config.name, "environment": running.environment()})
        with store.lock():
            for name in (CONFIG, ORDER):
                if (folder / name).exists():
                    store.add_file(name)
            store.note(event="started", at=folders.stamp(), environment=running.environment())
            return _work(config, sweep, members, store, quiet=options.quiet)


def compile(options) -> int:
    """Compile every program of a sweep file into the cache, where `run` of the same file finds them."""
    folder = enable_compile_cache()
    if folder is None:
        raise ValueError(f"compile needs a folder for compiled programs: unset {VARIABLE}, or set it to one")
    config = configuration.load(options.sweep, options.set)
    running.set_up(config, options.devices or processes.cores())
    begin = time.perf_counter()
    with running.requested() as programs:
        sweep = sweeps.build(config)
        members = running.assemble(config, sweep)
        running.compile_all(config, sweep, members)
    print(running.describe(members))
    large = len(members.groups) * len(members.slots())
    print(
        f"programs   {programs.total} ({large} of the motion), {programs.found} of them in {folder} before; "
        f"{members.compile_seconds:.1f} s for those of the motion, {time.perf_counter() - begin:.1f} s in all"
    )
    return OK


def resume(options) -> int:
    """Go on with the run in a folder; with the parts of a run over several processes, one after the other, then join them."""
    parts = folders.parts(options.folder)
    if parts and not (options.folder / "manifest.json").exists():
        for part in parts:
            _resume(part, options)
        return _merge([options.folder], None)
    return _resume(options.folder, options)


def _resume(folder: Path, options) -> int:
    store = Store.open(folder)
    config = configuration.load(folder / CONFIG)
    running.set_up(config, options.devices or processes.cores())
    with store.lock(take=options.take_lock):
        store.clean()
        log = Log(folder)
        for number, reason in sorted(store.sound().items()):
            log(f"chunk {number}: {reason}; it is computed again")
        sweep, members = _members(config, store)
        members.settle()
        here, before = running.environment(), store.about["environment"]
        for key in ("versions", "platform", "device"):
            if here[key] != before.get(key):
                log(f"resumed elsewhere ({key}: {before.get(key)} then, {here[key]} now): equal to rounding, not to the bit")
        store.note(event="resumed", at=folders.stamp(), environment=here)
        return _work(config, sweep, members, store, quiet=options.quiet)


def _identity(config, members: Ensemble) -> dict:
    return {**identity(members), "config": configuration.sha256(config)}


def _members(config, store: Store, process: tuple[int, int] | None = None) -> tuple[sweeps.Sweep, Ensemble]:
    """The sweep of a run folder and its ensemble, cut and ordered as when it was started."""
    sweep = sweeps.build(config)
    index, count = store.identity["process"] if process is None else process
    members = running.assemble(config, sweep, (index, count), chunk=store.identity["chunk"])
    if ORDER in store.files:
        members.ordered_as(np.load(store.file(ORDER), allow_pickle=False))
    store.require({**_identity(config, members), "process": store.identity["process"]})
    return sweep, members


def _work(config, sweep: sweeps.Sweep, members: Ensemble, store: Store, *, quiet: bool) -> int:
    """Run what is missing, write the result, and say how it went."""
    log = Log(store.folder)
    log(running.describe(members))
    mine = members.mine()
    missing = sum(chunk.members.size for chunk in mine if chunk.number not in store.entries)
    begin, compiled = time.perf_counter(), members.compile_seconds
    try:
        members.execute(store, progress=Progress(sum(chunk.members.size for chunk in mine), not quiet))
    except KeyboardInterrupt:
        done = members.report(store).members
        log(f"interrupted with {done} of {members.total} members stored; go on with: dynamics resume {store.folder}")
        raise
    except OSError as error:
        log(f"stopped: {error}; chunks already written stay; go on with: dynamics resume {store.folder}", shown=False)
        raise OSError(f"{error}; chunks already written stay; go on with: dynamics resume {store.folder}") from error
    seconds = time.perf_counter() - begin - (members.compile_seconds - compiled)
    report = members.report(store)
    pace = f"{missing / seconds:.0f} members/s, " if missing and seconds > 0 else ""
    log(f"{running.outcome(members, store)}; {pace}{seconds:.1f} s and {members.compile_seconds:.1f} s of compilation")
    log(running.quantiles_of_chunks(store), shown=False)
    if members.process[1] == 1:
        path = result.write(store.folder, config, sweep, members, store, running.versions())
        log(f"wrote {path}")
    else:
        index, count = members.process
        log(f"part {index} of {count} is complete; join all with: dynamics merge {store.folder.parent}")
    store.note(
        event="finished", at=folders.stamp(), seconds=round(seconds, 3), compile_seconds=round(members.compile_seconds, 3)
    )
    return SOME_FAILED if report.failed else OK


def status(options) -> int:
    """Print how far a run is. 0: complete and all ok; 1: complete, some failed; 3: chunks are missing."""
    parts = folders.parts(options.folder)
    whole = (options.folder / "manifest.json").exists()
    results = [running.status_of(folder) for folder in ([options.folder] if whole or not parts else parts)]
    for text, _ in results:
        print(text)
    if parts and not whole:
        count = int(parts[0].name.rsplit("-", 1)[1])
        absent = sorted(set(range(count)) - {int(part.name.split("-")[1]) for part in parts})
        if absent:
            print(f"parts not started: {', '.join(map(str, absent))} of {count}")
            return IO
    return max(code for _, code in results)


def check(options) -> int:
    """Re-hash every file, the result with them, and recompute a random sample of chunks."""
    parts = [] if (options.folder / "manifest.json").exists() else folders.parts(options.folder)
    return max(_check(folder, options) for folder in parts or [options.folder])


def _check(folder: Path, options) -> int:
    from dynamics.ensemble import dataset

    store = Store.open(folder)
    faults = store.check()
    if (folder / result.FILES["zarr"]).exists():  # a folder, with checksums of its own
        faults += dataset.problems_of(folder / result.FILES["zarr"])
    for fault in faults:
        print(f"{folder}: {fault}")
    print(f"{folder}: {len(store.entries)} chunks and {len(store.files)} files re-hashed, {len(faults)} faults")
    if not options.sample or not store.entries:
        return IO if faults else OK
    config = configuration.load(folder / CONFIG)
    running.set_up(config, processes.cores())
    _, members = _members(config, store)
    apart, checked = running.recomputed(members, store, options.sample, options.seed)
    print(f"{folder}: {checked}; worst difference {apart:.3g}" + ("" if apart else ", equal to the bit"))
    return IO if faults or not apart <= running.SAME else OK


def merge(options) -> int:
    """Join the parts of a run over several processes into one run folder."""
    return _merge(options.folders, options.out)


def _merge(given: list[Path], out: Path | None) -> int:
    parts = [part for folder in given for part in (folders.parts(folder) or [folder])]
    out = out if out is not None else (given[0] if len(given) == 1 else parts[0].parent)
    if (out / "manifest.json").exists():
        raise folders.Taken(f"{out} holds a whole run already; give another --out")
    stores = [Store.open(part) for part in parts]
    config = configuration.load(parts[0] / CONFIG)
    running.set_up(config, processes.cores())
    sweep, members = _members(config, stores[0], process=(0, 1))
    wanted = _identity(config, members)
    for store in stores:
        store.require({**wanted, "process": store.identity["process"]})
        store.clean()
        for number, reason in store.sound().items():
            raise CorruptFile(
                f"{store.folder}: chunk {number}: {reason}; compute it again with: dynamics resume {store.folder}"
            )
    found = {number: store for store in stores for number in store.entries}
    absent = [chunk.number for chunk in members.chunks() if chunk.number not in found]
    if absent:
        raise OSError(
            f"{len(absent)} of {len(members.chunks())} chunks are missing (the first is {absent[0]}); "
            f"go on with the parts that stopped, dynamics resume {stores[0].folder.parent}, and run those that never started"
        )
    folder = folders.resolved(out)
    folder.mkdir(parents=True, exist_ok=True)
    whole = Store.create(folder, wanted, {**stores[0].about, "parts": len(stores)})
    with whole.lock():
        for name in (CONFIG, ORDER):
            if name in stores[0].files:
                with whole_file(folder / name) as file:
                    file.write((stores[0].folder / name).read_bytes())
                whole.add_file(name)
        for number, store in sorted(found.items()):
            facts = {key: value for key, value in store.entries[number].items() if key not in ("file", "sha256", "bytes")}
            whole.write(number, dict(store.read(number)), facts)
        log = Log(folder)
        log(running.outcome(members, whole))
        log(f"wrote {result.write(folder, config, sweep, members, whole, running.versions())}")
        whole.note(event="merged", at=folders.stamp(), parts=[part.name for part in parts])
    return SOME_FAILED if members.report(whole).failed else OK


def plot(options) -> int:
    """Draw the result of a run into its `figures` folder."""
    from dynamics.cli.plot import plot as draw

    store = Store.open(options.folder)
    config = configuration.load(options.folder / CONFIG)
    running.set_up(config, processes.cores())
    paths = draw(
        options.folder,
        observables=options.observable,
        axes=options.axes,
        theory=not options.no_theory,
        theory_members=options.theory_members,
    )
    with store.lock():
        for path in paths:
            store.add_file(path.relative_to(options.folder).as_posix())
            print(f"wrote {path}")
    return OK


def new(options) -> int:
    """Write a commented sweep file that runs as it is."""
    from dynamics.cli.template import template

    name = options.name.removesuffix(".toml")
    if folders.NAME.fullmatch(name) is None:
        raise ValueError(f"name must be 1 to 80 of A-Z a-z 0-9 . _ - and not begin with . or -, got {options.name!r}")
    path = Path(f"{name}.toml")
    if path.exists():
        raise folders.Taken(f"{path} exists already; choose another name")
    with whole_file(path) as file:
        file.write(template(name).encode())
    print(f"wrote {path}; run it with: dynamics run {path}")
    return OK
