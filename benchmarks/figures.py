"""Two figures of a result: ratios beside their targets, and error against time for every solver."""

import importlib
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks.ratios import quartiles, sized

# Okabe and Ito: told apart by people who see two primary colours
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#8C8C8C",
)  # fmt: skip
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "savefig.dpi": 150,
}


def draw(result: dict[str, Any], folder: Path, stem: str) -> list[Path]:
    """Write the figures that the result has data for; returns their paths."""
    jobs = {"ratios": _ratios, "work-precision": _work_precision, "scaling": _scaling}
    written = []
    for name, job in jobs.items():
        with plt.rc_context(STYLE):
            figure = job(result)
            if figure is not None:
                path = folder / f"{stem}-{name}.png"
                figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
                plt.close(figure)
                written.append(path)
    return written


def _ratios(result: dict[str, Any]):
    entries = {name: entry for name, entry in result["workloads"].items() if entry["kind"] == "race" and entry["best"]}
    if not entries:
        return None
    names = list(entries)[::-1]
    figure, axes = plt.subplots(figsize=(8.4, 1.4 + 0.46 * len(names)))
    for row, name in enumerate(names):
        entry = entries[name]
        ran = {racer["name"]: racer for racer in entry["racers"] if racer["status"] == "ran"}
        best = ran[entry["best"]]
        low, high = quartiles(ran[entry["base"]], best)
        axes.barh(row, best["ratio"] - 1, left=1, height=0.56, color=GREY if entry["scaled"] else BLUE, zorder=2)
        axes.plot([low, high], [row, row], color="black", lw=1.2, zorder=3)
        for racer in ran.values():
            if not racer["product"] and not racer["floor"] and racer["name"] != entry["base"]:
                axes.plot(racer["ratio"], row, "o", ms=4.5, mfc="white", mec=RED, mew=1.2, zorder=4)
        for word, colour, height in (("target", ORANGE, 0.42), ("stretch", GREEN, 0.42)):
            if entry[word] is not None:
                axes.plot([entry[word]] * 2, [row - height, row + height], color=colour, lw=2.4, zorder=5)
        far = max(best["ratio"], high, entry["stretch"] or entry["target"] or 1)
        axes.annotate(f"{sized(best['ratio'])}×", (far, row), (8, 0), textcoords="offset points", va="center", weight="bold")
    axes.axvline(1, color="#555555", lw=1)
    axes.set_xscale("log")
    _, right = axes.get_xlim()
    slowest = min(racer["ratio"] for entry in entries.values() for racer in entry["racers"] if racer["status"] == "ran")
    axes.set_xlim(0.7 * slowest, right * 4)  # room for the numbers
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", lw=0.7, zorder=0)
    axes.set_xlabel("times faster than the base (log scale)")
    axes.set_title("The library against its peers, at equal measured error")
    handles = [
        Patch(color=BLUE, label="library, with quartiles"),
        Line2D([], [], color=ORANGE, lw=2.4, label="target"),
        Line2D([], [], color=GREEN, lw=2.4, label="stretch"),
        Line2D([], [], ls="", marker="o", mfc="white", mec=RED, mew=1.2, label="other peers"),
        Line2D([], [], color="#555555", lw=1, label="base"),
    ]
    if any(entry["scaled"] for entry in entries.values()):
        handles.insert(1, Patch(color=GREY, label="scaled down: judged by nothing"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.set_layout_engine("constrained")
    return figure


def _work_precision(result: dict[str, Any]):
    entry = result["workloads"].get("WORK-PRECISION")
    if entry is None or entry["kind"] != "curves":
        return None
    figure, axes = plt.subplots(figsize=(8.4, 4.8), layout="constrained")
    peers = iter(zip((ORANGE, GREEN, RED, PURPLE, SKY, GREY, "#A6761D"), "osv^DPX", strict=True))
    ends = []
    for name, points in entry["data"]["curves"].items():
        mine = name.startswith("dynamics")
        own = name == "dynamics.flow"
        colour, marker = (BLUE, "o") if own else ("black", "*") if mine else next(peers)
        points = [point for point in points if math.isfinite(float(point["error"]))]
        x, y = [point["error"] for point in points], [1e6 * point["seconds_per_member"] for point in points]
        axes.plot(
            x,
            y,
            marker=marker,
            color=colour,
            lw=2.6 if mine else 1.4,
            ms=6 if mine else 4.5,
            label=name,
            zorder=3 if mine else 2,
        )
        ends += y
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("largest error of a member against DOP853 at 1e-12 (more accurate to the right)")
    axes.set_ylabel("microseconds a member")
    axes.grid(color="#E3E3E3", lw=0.7)
    axes.set_title(f"Work and precision on FLOW-S, {entry['settings'].get('members', '')} members; lower is better")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _scaling(result: dict[str, Any]):
    entry = result["workloads"].get("SCALING")
    if entry is None or entry["kind"] != "curves":
        return None
    try:
        scaling = importlib.import_module("benchmarks.scaling")
    except ModuleNotFoundError:
        return None
    made, axes = plt.subplots(2, 3, figsize=(10.5, 6.2), layout="constrained")
    scaling.figure(entry["data"], axes)
    return made
