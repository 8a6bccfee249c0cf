"""A result in words: what `python -m benchmarks report` prints."""

from typing import Any

WIDTH = 46


def head(header: dict[str, Any]) -> list[str]:
    """On what it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items() if version)
    threads = ", ".join(f"{name}={value}" for name, value in header["threads"].items() if value)
    return [
        f"{header['cpu']}, {header['cores']} cores; {header['device']} as {header['devices']} device(s); {threads}",
        f"python {header['python']}, {versions}",
        f"{header['precision']}; {header['date']}",
    ]


def lines(name: str, entry: dict[str, Any]) -> list[str]:
    """One workload: ratios to the base (above 1: faster), medians with quartiles, errors, and what was reached."""
    scaled = " [scaled down: counts towards no target]" if entry.get("scaled") else ""
    said = ["", f"{name}: {entry['setting']}{scaled}"]
    if entry["kind"] == "unavailable":
        return [*said, f"  not run: {entry['reason']}"]
    if entry["kind"] == "curves":
        return [*said, *(f"  {line}" for line in _curves(entry["data"]))]
    if entry["kind"] == "counts":
        said += [f"  {racer['name']:<{WIDTH}} {racer['value']:.3f}" for racer in entry["racers"]]
        return [*said, f"  {verdict(entry)}"]
    said.append(f"  {'':<{WIDTH}} {'ratio':>9}  seconds (quartiles)              error    tolerance  compile")
    said += [f"  {_racer(racer)}" for racer in entry["racers"]]
    gate = entry["gate"]
    said.append(f"  gate: {gate['means']} (limit {float(gate['limit']):.2e}): {_missed(gate)}")
    return [*said, f"  {verdict(entry)}"]


def verdict(entry: dict[str, Any]) -> str:
    """The best product against target, stretch and further peers."""
    if entry["best"] is None:
        return "no product passed the gate"
    value = entry["value"] if entry["kind"] == "counts" else entry["ratio"]
    said = f"best: {entry['best']} at {value:.4g}"
    if entry["target"] is not None:
        reached = entry["reached"]
        for word in ("target", "stretch"):
            if entry[word] is not None:
                state = "not judged" if reached is None else "reached" if reached[word] else "NOT reached"
                said += f"; {word} {entry[word]:g} {state}"
    for peer, ratio in entry.get("beaten", {}).items():
        outcome = "not raced" if ratio is None else f"{ratio:.2f}x" + ("" if ratio >= 1 else ", BEHIND")
        said += f"; against {peer}: {outcome}"
    return said


def _racer(racer: dict[str, Any]) -> str:
    if racer["status"] != "ran":
        return f"{racer['name']:<{WIDTH}}   {racer['status']}: {racer['reason']}"
    low, middle, high = racer["quartiles"]
    seconds = f"{middle:.4g} ({low:.4g}-{high:.4g})"
    tolerance = "-" if racer["tolerance"] is None else f"{racer['tolerance']:.0e}"
    about = "; ".join(word for word in (racer["library"], racer["threads"], racer["note"]) if word)
    return (
        f"{racer['name']:<{WIDTH}} {racer['ratio']:>8.4g}x  {seconds:<32} {float(racer['error']):.1e}  {tolerance:>9}  "
        f"{racer['compile_seconds']:>6.1f}s  [{about}]"
    )


def _missed(gate: dict[str, Any]) -> str:
    return "passed" if not gate["missed"] else f"MISSED by {', '.join(gate['missed'])}"


def _curves(data: dict[str, Any]) -> list[str]:
    """Error against time of every solver, or fitted exponents of every verb along every ladder; else what is there."""
    if not isinstance(data.get("curves"), dict):
        return [f"{key}: {value}" for key, value in data.items()]
    said = []
    for name, found in data["curves"].items():
        if isinstance(found, list):
            points = ", ".join(f"{float(p['error']):.1e} in {1e6 * p['seconds_per_member']:.0f} us" for p in found)
            said.append(f"{name:<{WIDTH}} {points}")
        else:
            powers = ", ".join(f"{verb} {one['exponent']:.2f} ± {one['error']:.2f}" for verb, one in found.items())
            said.append(f"cost against {name}, exponent: {powers}")
    return said + [f"{name:<{WIDTH}} skipped: {reason}" for name, reason in data.get("skipped", {}).items()]
