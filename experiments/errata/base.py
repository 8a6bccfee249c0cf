"""An erratum as a value: what is printed, what it should say, and the number that tells the two apart."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Residuals:
    """Worst deviation from the oracle over the random instances: of the formula as printed, and as corrected."""

    printed: float
    corrected: float


@dataclasses.dataclass(frozen=True)
class Erratum:
    """One slip of a printed paper with the check that decides it.

    **Arguments:**

    - `number`: as in the list of errata, with a letter where one entry has several parts, e.g. `2a`.
    - `severity`: `A` changes a result or a constant, `B` is a slip in a proof, a caption or a remark.
    - `where`: theorem, equation or figure.
    - `summary`: what is wrong, in a sentence; and what the residual measures where that is not a plain relative error.
    - `printed_text`, `corrected_text`: the two formulas.
    - `oracle`: what both are held against; it shares no formula with either.
    - `tolerance`: the largest residual at which the corrected formula holds.
    - `evaluate`: computes both residuals; seeds are fixed, so it returns the same numbers each time.
    """

    number: str
    severity: str
    where: str
    summary: str
    printed_text: str
    corrected_text: str
    oracle: str
    tolerance: float
    evaluate: Callable[[], Residuals]

    @property
    def order(self) -> tuple[int, str]:
        """Sorts `2b` after `2a` and before `10`."""
        digits = self.number.rstrip("abcdefghijklmnopqrstuvwxyz")
        return int(digits), self.number[len(digits) :]

    def row(self) -> "Row":
        """Evaluate both formulas."""
        begin = time.perf_counter()
        residuals = self.evaluate()
        return Row(self, residuals, time.perf_counter() - begin)


@dataclasses.dataclass(frozen=True)
class Row:
    """An erratum with its residuals."""

    erratum: Erratum
    residuals: Residuals
    seconds: float

    @property
    def holds(self) -> bool:
        """The corrected formula agrees with the oracle (a NaN never does)."""
        return self.residuals.corrected <= self.erratum.tolerance

    @property
    def refuted(self) -> bool:
        """The printed formula does not agree with the oracle (a NaN counts as disagreement)."""
        return not self.residuals.printed <= self.erratum.tolerance

    @property
    def verdict(self) -> str:
        if not self.holds:
            return "CORRECTION FAILS"
        return "corrected" if self.refuted else "both agree"

    def to_json(self) -> dict[str, str | float | bool]:
        """A dictionary of JSON values; a residual that is not finite becomes its name as a string."""
        texts = {f.name: getattr(self.erratum, f.name) for f in dataclasses.fields(Erratum) if f.name != "evaluate"}
        numbers = {key: _json_number(value) for key, value in dataclasses.asdict(self.residuals).items()}
        return texts | numbers | {"holds": self.holds, "refuted": self.refuted, "seconds": self.seconds}


def _json_number(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def table(rows: Sequence[Row], verbose: bool = False) -> str:
    """The rows as an aligned text table; `verbose` adds, beneath it, both formulas of every row."""
    head = ("no.", "sev.", "where", "printed", "corrected", "tolerance", "verdict")
    cells: list[tuple[str, ...]] = [head]
    for row in rows:
        e, r = row.erratum, row.residuals
        numbers = (f"{r.printed:.1e}", f"{r.corrected:.1e}", f"{e.tolerance:.0e}")
        cells.append((e.number, e.severity, e.where, *numbers, row.verdict))
    widths = [max(len(line[k]) for line in cells) for k in range(len(head))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    failed = sum(not row.holds for row in rows)
    lines.append(f"{len(rows)} rows, {failed} corrections fail, {sum(row.seconds for row in rows):.1f} s")
    for row in rows if verbose else ():
        e = row.erratum
        lines += ["", f"{e.number}  {e.where}: {e.summary}"]
        texts = {"printed": e.printed_text, "corrected": e.corrected_text, "against": e.oracle}
        lines += [f"    {name:<9}  {text}" for name, text in texts.items()]
    return "\n".join(lines)
