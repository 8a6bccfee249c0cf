"""What an experiment is."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dynamics.verify import Claim


class Experiment(NamedTuple):
    """One result of the literature.

    - `name`: what the command line calls it; `family`: the group it belongs to; `summary`: one line.
    - `claims`: its statements, checked numerically.
    - `draw`: writes its figures into a folder and returns their paths; None if it has no figure.
    - `measure`: further claims that come from the figure's own long simulation, checked only by `run`; they share `draw`'s work.
    """

    name: str
    family: str
    summary: str
    claims: tuple[Claim, ...]
    draw: Callable[[Path], list[Path]] | None = None
    drawn_by_verify: bool = False
