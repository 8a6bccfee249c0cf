"""The page docs/performance.md, from a result and the words below: `python -m benchmarks page RESULT.json`."""

from pathlib import Path
from typing import Any

from benchmarks.ratios import quartiles, sized
from dynamics.whole_file import whole_file

PAGE = "performance"


def write(result: dict[str, Any], docs: Path) -> list[Path]:
    """The page and its figures; returns their paths."""
    from benchmarks import figures

    path = docs / f"{PAGE}.md"
    drawn = figures.draw(result, docs, PAGE)
    with whole_file(path, "w") as file:
        file.write(text(result))
    return [path, *drawn]


def text(result: dict[str, Any]) -> str:
    """The whole page."""
    parts = [
        OPENING,
        _measured_on(result["header"]),
        _summary(result),
        _choices(result),
        _work_precision(result),
        _scaling(result),
        _accelerator(result),
        FLOOR,
        NO_HELP,
        EDGE,
        _details(result),
        AGAIN,
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _measured_on(header: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items() if version)
    return (
        "## What was measured\n\n"
        f"On {header['cores']} cores of {header['cpu']} ({header['device']}), python {header['python']}, {versions}; "
        f"{header['precision']}; {header['date'][:10]}.\n\n" + METHOD.strip()
    )


def _summary(result: dict[str, Any]) -> str:
    rows = ["| workload | base | library | ratio (quartiles) | target | stretch |", "| --- | --- | --- | --- | --- | --- |"]
    for name, entry in result["workloads"].items():
        if entry["kind"] not in ("race", "counts") or not entry["best"]:
            continue
        best, base = _racer(entry, entry["best"]), _racer(entry, entry["base"])
        if entry["kind"] == "counts":
            cell = f"{entry['value']:.2f} (base {base['value']:.2f})"
        else:
            low, high = quartiles(base, best)
            cell = f"**{sized(entry['ratio'])}** ({sized(low)} to {sized(high)})"
        cells = (name, entry["base"], entry["best"], cell, _bound(entry, "target"), _bound(entry, "stretch"))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n\n" + RATIOS.strip()


def _bound(entry: dict[str, Any], word: str) -> str:
    if entry[word] is None:
        return "-"
    reached = entry["reached"]
    state = "not judged" if reached is None else "reached" if reached[word] else "not reached"
    return f"{entry[word]:,g}, {state}"


def _choices(result: dict[str, Any]) -> str:
    """How to choose, with the numbers of this result."""
    found = result["workloads"]

    def times(workload: str, slow: str, fast: str) -> str:
        """How many times longer one racer takes than another."""
        a, b = (_seconds(found.get(workload), name) for name in (slow, fast))
        return "not measured" if a is None or b is None else f"{sized(a / b)} times"

    def between(slow: tuple[str, str], fast: tuple[str, str]) -> str:
        a, b = (_seconds(found.get(workload), name) for workload, name in (slow, fast))
        return "not measured" if a is None or b is None else f"{sized(a / b)} times"

    rows = [
        ("the loss is linear in the logits", "`exact.flow`, `exact.descent`",
         times("UNHINGED-PAPER", "lax.scan, class means", "dynamics.exact.descent") + " as fast as a scan of class means"),
        ("only some numbers of a state are wanted", "`observe={...}`",
         between(("UNHINGED-PAPER", "dynamics.exact.descent"), ("UNHINGED-OBS", "dynamics.exact.descent"))
         + " as fast by formula; simulated " + between(("FLOW-S", "dynamics.flow"), ("FLOW-S-OBS", "dynamics.flow"))),
        ("members differ in stiffness", "`jax.vmap` of `flow`",
         times("FLOW-S-SPREAD", "diffrax, vmap", "dynamics.flow") + " as fast as lockstep"),
        ("there is more than one CPU device", "`ensemble.Dealt`, `ensemble.run`",
         times("FLOW-S-SPREAD", "dynamics.flow", "dynamics.ensemble.Dealt") + " as fast as one device"),
        ("states are looked at before the next call", "`ensemble.Dealt(..., reuse=True)`",
         times("FLOW-S", "dynamics.ensemble.Dealt", "dynamics.ensemble.Dealt, reuse") + " as fast as in new memory"),
        ("dim > samples + classes, states may stay reduced", "`reduce.span`, `lift` on demand",
         times("FLOW-L", "dynamics.flow, all states", "dynamics.flow of the span") + " as fast as with all states lifted"),
        ("single precision is enough", "float32 states",
         between(("GD-S-F64", "dynamics.descent"), ("GD-S-F32", "dynamics.descent")) + " as fast in GD-S"),
        ("a tolerance below 1e-8 is wanted, many saved times", "`solver=diffrax.Tsit5()`",
         times("FLOW-S-TIGHT", "dynamics.flow, Dopri8 (by itself)", "dynamics.flow, Tsit5") + " as fast as the usual Dopri8"),
        ("gradients in a few parameters", "`jax.jacfwd` with `method=\"forward\"`",
         times("GRAD-S-CE", "diffrax, BacksolveAdjoint", "dynamics.flow, jacfwd") + " as fast as solving backwards"),
        ("gradients, loss linear in the logits", "`jax.grad` of `exact.flow`",
         times("GRAD-S-UNHINGED", "diffrax, BacksolveAdjoint", "dynamics.exact.flow, grad") + " as fast"),
        ("many schedules of one start", "`jax.vmap` of `exact.descent` over `Rates`",
         times("SCHEDULES", "lax.scan of 2x2 products", "dynamics.exact.descent") + " as fast as products of 2x2 matrices"),
        ("the first result counts", "`enable_compile_cache()`, or a saved program",
         times("COLD", "diffrax_vmap", "dynamics cached") + " as soon; a saved program "
         + times("COLD", "diffrax_vmap", "dynamics saved")),
    ]  # fmt: skip
    table = ["| where | take | measured here |", "| --- | --- | --- |", *("| " + " | ".join(row) + " |" for row in rows)]
    return "## How to choose\n\n" + "\n".join(table)


def _work_precision(result: dict[str, Any]) -> str:
    entry = result["workloads"].get("WORK-PRECISION")
    if entry is None or entry["kind"] != "curves":
        return ""
    rows = ["| solver | error in microseconds a member, from tolerance to tolerance |", "| --- | --- |"]
    for name, points in entry["data"]["curves"].items():
        cells = ", ".join(f"{float(p['error']):.0e} in {1e6 * p['seconds_per_member']:.0f}" for p in points)
        rows.append(f"| {name} | {cells} |")
    return (
        "## Error against time\n\n![Error against time a member, for every solver](performance-work-precision.png)\n\n"
        f"FLOW-S with {entry['settings']['members']} members, tolerances "
        f"{', '.join(f'{t:.0e}' for t in entry['settings']['tolerances'])}.\n\n" + "\n".join(rows)
    )


def _scaling(result: dict[str, Any]) -> str:
    entry = result["workloads"].get("SCALING")
    if entry is None or entry["kind"] != "curves":
        return ""
    curves = entry["data"]["curves"]
    verbs = list(dict.fromkeys(verb for found in curves.values() for verb in found))
    rows = [f"| cost grows with | {' | '.join(verbs)} |", "| --- |" + " --- |" * len(verbs)]
    for axis, found in curves.items():
        cells = (f"{found[v]['exponent']:.2f} ± {found[v]['error']:.2f}" if v in found else "-" for v in verbs)
        ladder = next(iter(found.values()))["sizes"]
        rows.append(f"| {axis}, {ladder[0]} to {ladder[-1]} | {' | '.join(cells)} |")
    return (
        "## Cost against size\n\n![Seconds of a call against sizes](performance-scaling.png)\n\n"
        "Exponents of seconds against one size, the others held, fitted to the upper half of its ladder, with standard errors; "
        "below 1, what does not grow with the size still counts.\n\n" + "\n".join(rows)
    )


def _accelerator(result: dict[str, Any]) -> str:
    entry = result["workloads"].get("ENSEMBLE-GPU")
    if entry is None:
        return ""
    if entry["kind"] == "unavailable":
        return f"## Accelerators\n\nNot in this run: {entry['reason']}."
    return "## Accelerators\n\n" + "\n".join(f"- {key}: {value}" for key, value in entry["data"].items())


def _details(result: dict[str, Any]) -> str:
    """Every racer of every race."""
    said = ["## Every racer"]
    for name, entry in result["workloads"].items():
        if entry["kind"] == "unavailable":
            said.append(f"**{name}**: not run, {entry['reason']}.")
        if entry["kind"] == "counts":
            counts = "\n".join(f"| {one['name']} | {one['value']:.3f} |" for one in entry["racers"])
            said.append(f"**{name}**: {entry['setting']}.\n\n| | ratio |\n| --- | --- |\n{counts}")
        if entry["kind"] != "race":
            continue
        rows = [
            "| | seconds (quartiles) | ratio | error | tolerance | compile | by |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        rows += [_row(racer) for racer in entry["racers"]]
        gate = entry["gate"]
        missed = f", missed by {', '.join(gate['missed'])}" if gate["missed"] else ", passed"
        said.append(
            f"**{name}**: {entry['setting']}. Error: {gate['error_is']}. "
            f"Gate: {gate['means']}: {float(gate['limit']):.1e}{missed}.\n\n" + "\n".join(rows)
        )
    return "\n\n".join(said)


def _row(racer: dict[str, Any]) -> str:
    if racer["status"] != "ran":
        return f"| {racer['name']} | {racer['status']}: {racer['reason']} | | | | | |"
    low, middle, high = racer["quartiles"]
    tolerance = "-" if racer["tolerance"] is None else f"{racer['tolerance']:.1e}"
    by = "; ".join(word for word in (racer["library"], racer["threads"], racer["note"]) if word)
    error = "-" if racer["floor"] else f"{float(racer['error']):.1e}"
    return (
        f"| {racer['name']} | {middle:.3g} ({low:.3g} to {high:.3g}) | {sized(racer['ratio'])} | {error} | {tolerance} | "
        f"{racer['compile_seconds']:.1f} s | {by} |"
    )


def _racer(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return next(racer for racer in entry["racers"] if racer["name"] == name)


def _seconds(entry: dict[str, Any] | None, name: str) -> float | None:
    """Median seconds of a racer, where it ran."""
    racers = [] if entry is None else entry.get("racers", [])
    return next((one["quartiles"][1] for one in racers if one["name"] == name and one["status"] == "ran"), None)


OPENING = """
# Performance

This page is written by `python -m benchmarks page` from a measured result; its numbers are those of that file.
"""

METHOD = """
Every workload is a race in one process: the library and its peers run in turns, and a ratio is the median over rounds of the
seconds of the base over those of the racer. Compilation is left out and stated apart. A ratio counts only at equal accuracy:
the library takes the loosest tolerance at which its measured error is no larger than what the gate allows, mostly the error of
the base. Truth is SciPy's DOP853 at 1e-12 or a NumPy loop, never the library. Loops that would take too long are timed over a
part and extrapolated; the table at the end says so. A peer that is not installed is skipped, and is never a win. Repeats on a
shared machine spread by a quarter: below 1.3 times is noise. What takes less than 10 ms runs several times in a turn.
"""

RATIOS = """
![Ratios to the base, with targets](performance-ratios.png)

LOCKSTEP counts steps, the fewer the better: steps done over steps that members needed.
"""

FLOOR = r"""
## The floor

A member has D = pC(N + 1) numbers: features (CN, p) and prototypes (C, p). With S saved times, B members and s bytes a number:

| what | costs at least | C 4, N 5, p 16 |
| --- | --- | --- |
| right-hand side of a nonlinear loss | F = 6 p C² N flops (logits and two products) and C² N exponentials | 7.7 kflop, 80 exp |
| step of gradient descent | F + 4 D | 9.2 kflop |
| step of Tsit5 | 6 F + 65 D | 71 kflop |
| keeping states | B S D s bytes | 154 kB a member at 50 times |
| keeping k observables | B S k s bytes | 3.2 kB for eight |
| unhinged step, dense coupling | 4 p C² N flops | 5.1 kflop |
| unhinged step of class means | 8 p C flops | 0.5 kflop |
| unhinged closed form | 12 p C flops a saved time, whatever the number of steps | 0.8 kflop |

- A small flow takes about 16 steps for 50 saved times: writing the states is a cost of first order, and so is every pass
  over them.
- For starts of scale 0.01 to 10 and tolerance 1e-6 the step times the spectral radius stays below 2.2, and the solver is stable
  to 3.3: steps are limited by accuracy. Implicit, stabilised and exponential integrators have nothing to win there.
- Members that move in lockstep pay for the longest: steps done over steps needed is B max(n) / sum(n). With scales over
  three decades that is about 8; sorted by stiffness, sixteen at a time, it is near 1.
- A closed form cannot be faster than writing its result: "writing those bytes once" in the last table is that bound.
"""

NO_HELP = """
## What does not help

Measured before on machines like this one with jax 0.10, not in this run:

- Integrating factors around the linear part of cross-entropy: 1.5 to 2.8 times more evaluations than plain Runge-Kutta, and
  errors 6 to 37 times larger.
- An associative scan for linear descents on a CPU: a tenth of the speed of the scan one after the other.
- One step size shared by a batch: an error norm averaged over members hides the bad ones (error ten times larger), and a
  failing member stops its neighbours.
- Cutting steps at the saved times instead of interpolating: 16 steps become 50.
- More members under one `vmap` of an adaptive solver: the time a member does not fall between 64 and 1024.
- Members sorted and cut into chunks when all are equally stiff: 0.8 times, a loss.
- Float32 for its own sake: it halves bytes, not overheads; 1.0 to 1.7 times.
- Parallel-in-time methods have nothing to win at 16 to 40 steps (an estimate, not a measurement).
- `jax.lax.optimization_barrier` between the pieces of a step: XLA removes it on a CPU before it merges loops. A call that must
  not be inlined keeps a sum of products from being computed once for every reader.
- LAPACK's QR in a loop over members on shared cores: its threads wait for each other (1 s where one thread takes 2 ms).
- Keeping every iterate of a descent and thinning afterwards: 2 to 5 times slower than nested loops.
- Cutting what is observed into parts of eight operations, which XLA would run one after another: twice as slow, each part reads
  and writes what one would have kept in registers.
- Two times of a member looked at side by side: 198 microseconds a member instead of 193, as what both need no longer fits
  together into the nearest cache; four take 236.
- More than sixteen members of 384 numbers side by side: 32 take 205 microseconds each where 16 take 182, and 64 take 282,
  though one step alone is a fifth cheaper with 32. The arrays of a step and a look leave the second cache (2 MiB).
- A step's result taken over when the next one begins, to spare two copies of the state: XLA copies others instead. Taken over
  where a number that the saving returns says so, nothing is copied: a fiftieth of the time.
- Huge pages (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`): new memory costs half, for the peers too; no ratio moves.

What does, outside this library's reach: `jax.jit(..., compiler_options={"xla_cpu_prefer_vector_width": 512})` made motions in
lanes 1.2 to 1.3 times faster on a CPU with such vectors; `ensemble.run` and `ensemble.Dealt` set it by themselves. And as many
threads of XLA as there are cores, `NPROC` in the environment, which is its own choice: with twice as many, loops are split in
more parts than there are cores, and SCHEDULES fell from 5.2 to 3.3, GD-S in float32 from 8.6 to 5.2.
"""

EDGE = """
## At the edge of a target

FLOW-S-OBS read 9.1, 9.4, 10.1, 9.9 and 10.3 in five runs of the same code on one day; the table has the third. Measured on
one core of the same machine: a step of sixteen members takes 58 microseconds, 37 of them for six right-hand sides, 14 for
their combinations, 5 for the error and the norm; a member takes 16 steps at the tolerance that the gate asks for. Looking
takes 16 for sixteen: 4 to interpolate, which is reading eight arrays from the second cache, 11 for the observables, 1 to
write; and as members save at different steps, 50 times take 64 rounds. Together 133 microseconds a member, of which 70 are
steps.
"""

AGAIN = """
## Again

```bash
pip install -e '.[test,bench]'
python -m benchmarks run --out benchmarks/results/cpu.json   # on an idle machine
python -m benchmarks report benchmarks/results/cpu.json
python -m benchmarks page benchmarks/results/cpu.json        # writes this page
python -m benchmarks compare old.json benchmarks/results/cpu.json
```
"""
