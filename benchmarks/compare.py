"""Two results beside each other."""

from typing import Any

from benchmarks import machine

DEVICE = ("device", "devices", "cpu", "cores")


def compared(a: dict[str, Any], b: dict[str, Any], force: bool = False) -> list[str]:
    """One line a racer that ran in both: the ratio of medians, the first over the second; marked where it is beyond the spread.

    A change is beyond the spread where the quartiles of the two do not overlap.

    **Raises:** `ValueError` for results of different devices, unless forced.
    """
    apart = machine.differences(a["header"], b["header"], DEVICE)
    if apart and not force:
        raise ValueError(f"the results are of different devices ({'; '.join(apart)}); --force compares them all the same")
    said = [f"note: other {line}" for line in machine.differences(a["header"], b["header"], ("python", "versions", "threads"))]
    both = [name for name in a["workloads"] if name in b["workloads"]]
    for name in both:
        one, other = a["workloads"][name], b["workloads"][name]
        if one["kind"] != other["kind"] or one["kind"] not in ("race", "counts"):
            continue
        said.append(name)
        if one["settings"] != other["settings"]:
            said.append("  not compared: the settings differ")
            continue
        found = {racer["name"]: racer for racer in other["racers"] if racer["status"] == "ran"}
        for racer in one["racers"]:
            if racer["status"] == "ran" and racer["name"] in found:
                said.append(f"  {racer['name']:<46} {_change(racer, found[racer['name']])}")
    missing = sorted(set(a["workloads"]) ^ set(b["workloads"]))
    return [*said, f"only in one: {', '.join(missing)}"] if missing else said


def _change(a: dict[str, Any], b: dict[str, Any]) -> str:
    if "value" in a:
        return f"{a['value']:.4g} -> {b['value']:.4g}" + ("" if a["value"] == b["value"] else "  CHANGED")
    (low_a, middle_a, high_a), (low_b, middle_b, high_b) = a["quartiles"], b["quartiles"]
    mark = "  FASTER" if high_b < low_a else "  SLOWER" if low_b > high_a else ""
    return (
        f"{middle_a / middle_b:>8.3f}x  {middle_a:.4g} s -> {middle_b:.4g} s, error {a['error']:.1e} -> {b['error']:.1e}{mark}"
    )
