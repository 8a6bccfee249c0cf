"""What an experiment is."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dynamics.verify import Claim


class Experiment(NamedTuple):
    """One result of the literature.

    - `name`: what the command line calls it; `family`: the group it belongs to; `summary`: one line.
    - `claims`: its statements, checked numerically.
    - `long_claims`: statements that need the long simulation of its figure: checked whenever the figure is drawn.
    - `draw`: writes its figures into a folder and returns their paths; None if it has no figure.
    - `prepare`: the long simulation itself, run beside other experiments' claims; `long_claims` and `draw` then find it done.
    - `drawn_by_verify`: whether `verify` draws it too; the others are drawn by `run`.
    """

    name: str
    family: str
    summary: str
    claims: tuple[Claim, ...]
    long_claims: tuple[Claim, ...] = ()
    draw: Callable[[Path], list[Path]] | None = None
    prepare: Callable[[], None] | None = None
    drawn_by_verify: bool = False
