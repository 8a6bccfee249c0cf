"""A statement of the literature as a value: what is said, where, under which assumptions, and how far off it measured."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a check found.

    **Arguments:**

    - `residual`: the worst deviation from the statement, dimensionless; compared with the claim's tolerance.
    - `members`: how many random instances it was taken over.
    - `where`: the instance at which the residual is worst, or what was compared.
    - `numbers`: further named figures worth printing.
    """

    residual: float
    members: int
    where: str = ""
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def worst(cls, residuals, numbers: dict[str, float] | None = None, where: str = "") -> "Measured":
        """The largest of residuals with a leading axis members, and whose it is; what is no finite number is the worst."""
        residuals = np.asarray(residuals, float)
        members = np.where(np.isfinite(residuals), residuals, np.inf).reshape(len(residuals), -1).max(axis=1)
        return cls(float(members.max()), members.size, where or f"member {int(members.argmax())}", numbers or {})


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim held against numbers: `holds` is `residual <= tolerance` (a NaN residual never holds)."""

    name: str
    id: str
    statement: str
    source: str
    assumptions: tuple[str, ...]
    tolerance: float
    residual: float
    holds: bool
    finding: str
    limited_by: str
    where: str
    members: int
    numbers: dict[str, float]
    seconds: float

    def to_json(self) -> dict:
        """A dictionary of JSON values; a residual that is not finite becomes its name as a string."""
        row = dataclasses.asdict(self)
        row["residual"] = _json_number(self.residual)
        row["numbers"] = {key: _json_number(value) for key, value in self.numbers.items()}
        return row


def _json_number(value: float) -> float | str:
    value = float(value)
    return value if abs(value) < float("inf") else str(value)


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement of the literature with its numeric check.

    **Arguments:**

    - `name`: unique, lower case with hyphens; what the command line calls it.
    - `id`: the result it belongs to, e.g. `unhinged.unconstrained`.
    - `statement`: the statement in one line.
    - `source`: authors, year, theorem.
    - `assumptions`: what is taken for granted.
    - `tolerance`: the largest residual at which the claim holds.
    - `check`: takes the number of random members, returns `Measured`.
    - `finding`: empty; or, for a claim that is known to fail, what was found. It is shown with its residual and does not
      count as a failure.
    - `limited_by`: what the residual comes from where it is not the rounding of the formula, and so why the tolerance is wide.
    """

    name: str
    id: str
    statement: str
    source: str
    assumptions: tuple[str, ...]
    tolerance: float
    check: Callable[[int], Measured]
    finding: str = ""
    limited_by: str = ""

    def verdict(self, members: int) -> Verdict:
        """Run the check over `members` random instances."""
        if members < 1:
            raise ValueError(f"members must be at least 1, got {members}")
        begin = time.perf_counter()
        measured = self.check(members)
        residual = float(measured.residual)
        return Verdict(
            name=self.name,
            id=self.id,
            statement=self.statement,
            source=self.source,
            assumptions=self.assumptions,
            tolerance=self.tolerance,
            residual=residual,
            holds=residual <= self.tolerance,
            finding=self.finding,
            limited_by=self.limited_by,
            where=measured.where,
            members=measured.members,
            numbers=measured.numbers,
            seconds=time.perf_counter() - begin,
        )
