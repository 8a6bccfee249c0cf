"""Verdicts as a table to read and as JSON to keep."""

import json
import platform
from pathlib import Path

import jax

from dynamics.verify import Verdict
from dynamics.whole_file import whole_file


def status_of(verdict: Verdict) -> str:
    """holds, finding (known to fail, shown with its residual) or FAILS."""
    if verdict.holds:
        return "holds"
    return "finding" if verdict.finding else "FAILS"


def failed(verdict: Verdict) -> bool:
    """Whether the claim fails and is not listed as a finding."""
    return not verdict.holds and not verdict.finding


HEADER = f"{'claim':<38} {'id':<30} {'residual':>9} {'tolerance':>9} {'members':>7} {'time':>7}  verdict"


def line(verdict: Verdict) -> str:
    """One line of the table; a claim that does not hold says where and what was found."""
    text = (
        f"{verdict.name:<38} {verdict.id:<30} {verdict.residual:>9.1e} {verdict.tolerance:>9.1e} {verdict.members:>7} "
        f"{verdict.seconds:>5.1f} s  {status_of(verdict)}"
    )
    if not verdict.holds:
        text += f"\n    {verdict.statement}\n    worst: {verdict.where}"
    if verdict.limited_by:
        text += f"\n    limited by: {verdict.limited_by}"
    if verdict.finding:
        text += f"\n    finding: {verdict.finding}"
    return text


def summary(verdicts: list[Verdict]) -> str:
    """How many hold, are findings, fail."""
    kinds = [status_of(verdict) for verdict in verdicts]
    return f"{kinds.count('holds')} hold, {kinds.count('finding')} findings, {kinds.count('FAILS')} fail"


def environment() -> dict[str, str]:
    """What the numbers were measured with."""
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": f"{device.platform} {device.device_kind}",
        "precision": "float64" if jax.config.jax_enable_x64 else "float32",  # pyright: ignore[reportAttributeAccessIssue]
    }


def write_json(path: Path, rows: list[dict]) -> Path:
    """Write rows and environment, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, "w") as file:
        json.dump({"environment": environment(), "rows": rows}, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
    return path
