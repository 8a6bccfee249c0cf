"""The `dynamics` command: sweeps described in a file, run, resumed, checked, merged and drawn."""

import argparse
import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from dynamics import validate
from dynamics.compile_cache import enable_compile_cache

OK, SOME_FAILED, USAGE, IO, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: all members ok; some failed (results written); bad usage or configuration; files or lock; interrupted."""

COMMANDS = ("run", "resume", "compile", "status", "check", "merge", "plot", "new")

COMPUTING = ("run", "resume", "check", "merge", "plot")
"""Those that run programs, and keep what they compiled."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line, exit code 2."""
        self.exit(USAGE, f"{self.prog}: {message}\n")


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
    return number


def positive(text: str) -> int:
    """A whole number >= 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A whole number >= 0."""
    return _whole(text, 0)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = _Parser(
        prog="dynamics",
        description="Sweeps of gradient flow and gradient descent: many members, many devices, nothing lost.",
        epilog="example: dynamics new demo && dynamics run demo.toml. Compiled programs are kept in the user's cache folder; "
        "DYNAMICS_CACHE=DIR keeps them elsewhere, DYNAMICS_CACHE=off nowhere.",
    )
    commands = top.add_subparsers(dest="command", metavar="{" + ",".join(COMMANDS) + "}", parser_class=_Parser)

    def command(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, epilog=f"example: dynamics {example}")

    run = command("run", "run a sweep file", "run demo.toml --set motion.by=formula")
    run.add_argument("sweep", type=Path, help="a TOML file, as `dynamics new` writes one")
    run.add_argument("--out", type=Path, metavar="DIR", help="the run folder (default: runs/<name>-<time>-<hash>)")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value, e.g. start.scale=0.1")
    run.add_argument("--dry-run", action="store_true", help="print the sizes of the run and stop")
    run.add_argument("--overwrite", action="store_true", help="move what stands in DIR aside first")
    run.add_argument("--process-index", type=natural, metavar="I", help="which process this is, from 0 (default: SLURM's)")
    run.add_argument("--process-count", type=positive, metavar="N", help="how many processes share the run (default: SLURM's)")
    run.add_argument("--distributed", metavar="HOST:PORT", help="join the processes through jax.distributed")

    resume = command("resume", "go on with a run that stopped", "resume runs/demo-20260101T000000Z-0123abcd")
    resume.add_argument("folder", type=Path, metavar="DIR")
    resume.add_argument("--take-lock", action="store_true", help="take over the lock of a process that is gone")
    compile = command("compile", "compile the programs of a sweep file, for a later run", "compile demo.toml")
    compile.add_argument("sweep", type=Path, help="a TOML file, as `dynamics new` writes one")
    compile.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for the run")
    for one in (run, resume, compile):
        one.add_argument(
            "--devices", type=positive, metavar="N", help="CPU devices, each with chunks of its own (default: cores)"
        )
    for one in (run, resume):
        one.add_argument("--quiet", action="store_true", help="no progress line")
        one.add_argument("--no-cache", action="store_true", help="neither keep compiled programs nor use kept ones")

    command("status", "how far a run is, and what failed", "status runs/demo").add_argument("folder", type=Path, metavar="DIR")
    check = command("check", "re-hash every file and recompute a random sample", "check runs/demo --sample 3")
    check.add_argument("folder", type=Path, metavar="DIR")
    check.add_argument("--sample", type=natural, default=1, metavar="N", help="chunks to recompute and compare (%(default)s)")
    check.add_argument("--seed", type=natural, default=None, help="of the choice of chunks (default: another one each time)")
    merge = command("merge", "join the parts of a run over several processes", "merge runs/demo")
    merge.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="the folder of all parts, or the parts")
    merge.add_argument("--out", type=Path, metavar="DIR", help="the folder of the whole (default: the folder of all parts)")
    plot = command("plot", "draw median and band of observables, and maps over two axes", "plot runs/demo --observable nc1")
    plot.add_argument("folder", type=Path, metavar="DIR")
    plot.add_argument("--observable", action="append", metavar="NAME", help="only this one; may be repeated")
    plot.add_argument("--axes", nargs=2, metavar=("X", "Y"), help="the two swept axes of the maps")
    plot.add_argument("--no-theory", action="store_true", help="without the closed form")
    plot.add_argument("--theory-members", type=positive, default=20_000, metavar="N", help="at most so many (%(default)s)")
    new = command("new", "write a sweep file to start from", "new demo")
    new.add_argument("name", help="of the run; the file is NAME.toml")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    top = parser()
    try:
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            top.error(f"unknown command {words[0]!r}; {validate.nearest(words[0], COMMANDS)}")
        options = top.parse_args(words)
    except SystemExit as stop:  # argparse ends the process; a caller wants the code
        return int(stop.code or 0)
    if options.command is None:
        top.print_help()
        return USAGE
    from dynamics.cli import commands

    os.environ.setdefault("NPROC", str(2 * (os.cpu_count() or 1)))  # more threads than devices, see ensemble/program.py
    try:
        with _terminated_as_interrupted(), _warnings_in_one_line(top.prog):
            if options.command in COMPUTING and not getattr(options, "no_cache", False):
                enable_compile_cache()
            return getattr(commands, options.command)(options)
    except KeyboardInterrupt:
        print(f"{top.prog}: interrupted; chunks already written stay", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, ImportError) as error:
        print(f"{top.prog}: {error}", file=sys.stderr)
        return IO if isinstance(error, commands.CorruptFile) else USAGE
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"{top.prog}: {place}{error.strerror or error}", file=sys.stderr)
        return IO
    except MemoryError as error:
        print(f"{top.prog}: {error}", file=sys.stderr)
        return IO


@contextlib.contextmanager
def _terminated_as_interrupted():
    """SIGTERM, which schedulers send at the time limit, as an interrupt from the keyboard."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _warnings_in_one_line(prog: str):
    shown = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: print(f"{prog}: warning: {message}", file=sys.stderr)
    try:
        yield
    finally:
        warnings.showwarning = shown


def entry() -> None:
    """The installed command. After an interrupt the chunks still under way are dropped, not waited for."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == INTERRUPTED:
        os._exit(code)
    sys.exit(code)
