"""Races of the library against its peers: `python -m benchmarks list | run [NAME...] | report | compare A B | page RESULT`."""

import argparse
import os
import sys
from pathlib import Path

EXAMPLE = """\
examples:
  python -m benchmarks list
  python -m benchmarks run FLOW-S GD-S --quick      a scaled-down look
  python -m benchmarks run                          everything, on an idle machine
  python -m benchmarks report                       a table, and figures beside the result
  python -m benchmarks compare old.json new.json
"""
RESULT = Path("results/benchmarks.json")


def parser() -> argparse.ArgumentParser:
    """The commands."""
    top = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the workloads, their bases, gates and targets")
    run = commands.add_parser("run", help="race workloads by name, all for none, and keep the result as JSON")
    run.add_argument("names", nargs="*", metavar="NAME", help="of a workload or a group of them, in any case")
    run.add_argument(
        "--repeats", type=_count, default=5, help="alternating runs (5; with fewer a race counts towards no target)"
    )
    run.add_argument("--members", type=_count, help="so many instead: a look that counts towards no target")
    run.add_argument("--quick", action="store_true", help="few members and steps: a look that counts towards no target")
    run.add_argument("--out", type=Path, default=RESULT, help=f"the result, updated where it is there ({RESULT})")
    report = commands.add_parser("report", help="print a result and draw its figures beside it")
    report.add_argument("result", nargs="?", type=Path, default=RESULT)
    compare = commands.add_parser("compare", help="two results: ratios of medians, marked where beyond the spread")
    compare.add_argument("results", nargs=2, type=Path, metavar="RESULT")
    compare.add_argument("--force", action="store_true", help="though they are of different devices")
    page = commands.add_parser("page", help="regenerate docs/performance.md and its figures from a result")
    page.add_argument("result", type=Path)
    page.add_argument("--docs", type=Path, default=Path("docs"), help="the folder of the page (docs)")
    return top


def main(words: list[str]) -> int:
    """0 when all is well, 1 when a gate was missed, 2 for what cannot be done as asked."""
    given = parser().parse_args(words)
    try:
        return COMMANDS[given.command](given)
    except (ValueError, OSError) as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return 2


def _list(given) -> int:
    from benchmarks.table import ROWS

    for row in ROWS:
        group = f" (in {row.group})" if row.group and row.group != row.name else ""
        print(f"{row.name}{group}: {row.setting}")
        if row.base:
            beat = f"; must not trail {', '.join(row.beat)}" if row.beat else ""
            print(f"    base {row.base}{beat}; gate: {row.gate}")
        if row.target is not None:
            stretch = "" if row.stretch is None else f", stretch {row.stretch:g}"
            print(f"    target {row.target:g}{stretch}" + (" (at most)" if row.counted else ""))
    return 0


def _run(given) -> int:
    from benchmarks.table import chosen

    rows = chosen(given.names)
    settle()
    from benchmarks.running import run

    missed = run(rows, given.out, given.repeats, given.members, given.quick)
    for line in missed:
        print(f"gate missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def settle() -> None:
    """One device a core, float64; before JAX is used for the first time."""
    # XLA's threads are as many as NPROC says: more than cores only take turns, and cost up to half of the speed
    os.environ.setdefault("NPROC", str(os.cpu_count() or 1))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads only slow tiny matrices down
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", os.cpu_count())


def _report(given) -> int:
    from benchmarks import figures, record, report

    result = record.read(given.result)
    for line in report.head(result["header"]):
        print(line)
    for name, entry in result["workloads"].items():
        for line in report.lines(name, entry):
            print(line)
    for path in figures.draw(result, given.result.parent, given.result.stem):
        print(f"figure: {path}")
    return 0


def _compare(given) -> int:
    from benchmarks import compare, record

    for line in compare.compared(*map(record.read, given.results), given.force):
        print(line)
    return 0


def _page(given) -> int:
    from benchmarks import page, record

    for path in page.write(record.read(given.result), given.docs):
        print(path)
    return 0


def _count(word: str) -> int:
    count = int(word)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {count}")
    return count


COMMANDS = {"list": _list, "run": _run, "report": _report, "compare": _compare, "page": _page}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
