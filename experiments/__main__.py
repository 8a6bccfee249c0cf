"""The command line: `python -m experiments list | run NAME | verify | errata`."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DEFAULT_MEMBERS = 1026
"""At least 1024, shared by three sizes."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line, exit code 2; for a misspelt command the nearest one."""
        self.exit(2, f"{self.prog}: {message}\n")


def _nearest(word: str, names: Sequence[str]) -> str:
    from dynamics.validate import nearest  # loads JAX, which `--help` can do without

    return nearest(word, names)


def _members(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m experiments",
        description="The literature on the dynamics of learning as runnable claims and figures.",
        epilog="example: python -m experiments run unconstrained",
    )
    commands = parser.add_subparsers(dest="command", metavar="{list,run,verify,errata}", parser_class=_Parser)
    commands.add_parser("list", help="all experiments and their claims")
    run = commands.add_parser("run", help="one experiment: its claims and its figures")
    run.add_argument("name", help="an experiment, as `list` prints it")
    verify = commands.add_parser("verify", help="all claims, one table; figures 1 and 5")
    verify.add_argument("--family", help="only the experiments of this family")
    errata = commands.add_parser("errata", help="printed formulas and corrected ones against independent numbers")
    errata.add_argument("--verbose", action="store_true", help="also print both formulas and the oracle")
    for command in (run, verify, errata):
        command.add_argument("--out", type=Path, default=Path("results"), help="folder for JSON and figures (%(default)s)")
    for command in (run, verify):
        command.add_argument("--members", type=_members, default=DEFAULT_MEMBERS, help="random instances a claim (%(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """0: everything holds (or is a listed finding); 1: a claim fails; 2: bad usage; 3: a file could not be written."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    commands = ("list", "run", "verify", "errata")
    if words and not words[0].startswith("-") and words[0] not in commands:
        parser.error(f"unknown command {words[0]!r}; {_nearest(words[0], commands)}")
    options = parser.parse_args(words)
    if options.command is None:
        parser.print_help()
        return 2

    # the oracles factor thousands of tiny matrices, which threads only slow down
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import jax

    jax.config.update("jax_enable_x64", True)
    try:
        return _COMMANDS[options.command](parser, options)
    except OSError as error:
        print(f"{parser.prog}: cannot write: {error}", file=sys.stderr)
        return 3


def _list(parser, options) -> int:
    from experiments.catalogue import EXPERIMENTS

    for experiment in EXPERIMENTS:
        print(f"{experiment.name:<24} [{experiment.family}] {experiment.summary}")
        for claim in (*experiment.claims, *experiment.long_claims):
            print(f"    {claim.name:<36} {claim.statement}")
    return 0


def _run(parser, options) -> int:
    from experiments.catalogue import EXPERIMENTS

    chosen = [experiment for experiment in EXPERIMENTS if experiment.name == options.name]
    if not chosen:
        names = [experiment.name for experiment in EXPERIMENTS]
        parser.error(f"unknown experiment {options.name!r}; {_nearest(options.name, names)}")
    return _check(chosen, options, drawing=chosen, file=f"{options.name}.json")


def _verify(parser, options) -> int:
    from experiments.catalogue import EXPERIMENTS, FAMILIES

    if options.family is not None and options.family not in FAMILIES:
        parser.error(f"unknown family {options.family!r}; {_nearest(options.family, FAMILIES)}")
    chosen = [experiment for experiment in EXPERIMENTS if options.family in (None, experiment.family)]
    drawing = [experiment for experiment in chosen if experiment.drawn_by_verify]
    return _check(chosen, options, drawing=drawing, file="verdicts.json")


def _check(chosen, options, *, drawing, file: str) -> int:
    from experiments import report

    begin = time.perf_counter()
    verdicts, pictures = [], []
    print(report.HEADER)
    # long simulations run beside the claims, which mostly wait for one core's compiler
    with ThreadPoolExecutor(max_workers=1) as beside:
        prepared = {one.name: beside.submit(one.prepare) for one in drawing if one.prepare is not None}
        for experiment in chosen:
            claims = experiment.claims
            if experiment in drawing:
                claims += experiment.long_claims
                if experiment.name in prepared:
                    prepared[experiment.name].result()
            for claim in claims:
                verdicts.append(claim.verdict(options.members))
                print(report.line(verdicts[-1]), flush=True)
            if experiment in drawing and experiment.draw is not None:
                pictures += experiment.draw(options.out)
    written = report.write_json(options.out / file, [verdict.to_json() for verdict in verdicts])
    print(f"{report.summary(verdicts)}; {time.perf_counter() - begin:.0f} s")
    for path in (written, *pictures):
        print(f"wrote {path}")
    return 1 if any(map(report.failed, verdicts)) else 0


def _errata(parser, options) -> int:
    from experiments import report
    from experiments.errata import evaluate_all, table

    rows = evaluate_all()
    print(table(rows, verbose=options.verbose))
    print(f"wrote {report.write_json(options.out / 'errata.json', [row.to_json() for row in rows])}")
    return 0 if all(row.holds for row in rows) else 1


_COMMANDS = {"list": _list, "run": _run, "verify": _verify, "errata": _errata}

if __name__ == "__main__":
    sys.exit(main())
