"""Cost against size: seconds of the four verbs along ladders of every size, with fitted exponents.

`python -m benchmarks.scaling [quick] [PICTURE]` prints the exponents and draws the curves.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

BASE = {"members": 16, "classes": 4, "samples": 5, "dim": 16, "times": 32}
"""Sizes that a ladder does not change; `samples` are those of one class."""

LADDERS = {
    "members": (8, 24, 72, 216, 648),
    "classes": (2, 4, 8, 16, 32),
    "samples": (2, 6, 18, 54, 162),
    "dim": (8, 24, 72, 216, 648),
    "times": (8, 24, 72, 216, 648),
}
QUICK = {
    "members": (8, 64, 512),
    "classes": (2, 8, 32),
    "samples": (2, 16, 128),
    "dim": (8, 64, 512),
    "times": (8, 64, 512),
}
VERBS = ("flow", "descent", "exact.flow", "exact.descent")
T_END, STEPS_A_TIME, TOLERANCE, DECAY = 20.0, 4, 1e-6, 5e-3
SHORTEST = 5e-3
"""Seconds: what is quicker is run several times over for one reading."""


def scaling(quick: bool) -> dict:
    """Seconds of one call, compilation excluded, along every ladder; at float64, states kept at all times.

    Flows go to t = 20 at tolerance 1e-6 and are saved at `times` times; descents take four steps for each time saved. Simulated
    motions are of cross-entropy with decay, exact ones of the unhinged loss.

    **Returns:** a dictionary for JSON: `base` (sizes), `settings`, and `curves`: for each ladder and verb the sizes, the
    readings in seconds (sizes, repeats), and the `exponent` of the upper half with its standard `error`: of the least-squares
    line through the logarithms of all readings there.
    """
    ladders, repeats = (QUICK, 3) if quick else (LADDERS, 5)
    curves = {axis: {} for axis in ladders}
    for axis, sizes in ladders.items():
        for verb in VERBS:
            seconds = [_readings(_call(verb, **{**BASE, axis: size}), repeats) for size in sizes]
            exponent, error = fitted(sizes, seconds)
            curves[axis][verb] = {"sizes": list(sizes), "seconds": seconds, "exponent": exponent, "error": error}
    settings = {"t_end": T_END, "tolerance": TOLERANCE, "steps_a_time": STEPS_A_TIME, "precision": "float64"}
    return {"base": BASE, "settings": settings, "curves": curves}


def fitted(sizes, seconds) -> tuple[float, float]:
    """Exponent of cost against size in the upper half of the ladder, and its standard error.

    Least squares through the logarithms of all readings, `seconds` of shape (sizes, repeats). What neither a straight line nor
    a constant noise explains is in the residuals, and so in the error.
    """
    upper = slice(len(sizes) // 2, None)
    readings = np.log(np.asarray(seconds)[upper])
    x = np.repeat(np.log(np.asarray(sizes, float)[upper]), readings.shape[1])
    y = readings.ravel()
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    return slope, float(np.sqrt(rest @ rest / (x.size - 2) / (x @ x)))


def _call(verb: str, members: int, classes: int, samples: int, dim: int, times: int) -> Callable:
    """A verb over a batch, compiled; takes nothing."""
    import jax
    import jax.numpy as jnp

    import dynamics as dyn

    exact = verb.startswith("exact.")
    decay = dyn.Decay(DECAY, DECAY)
    loss = dyn.losses.Unhinged() if exact else dyn.losses.CrossEntropy()
    problem = dyn.LayerPeeled.balanced(classes, samples, loss=loss, decay=decay)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(members))
    starts = jax.vmap(lambda key: dyn.initial.gaussian(problem, dim=dim, key=key, scale=0.3))(keys)
    rates, rooms = dyn.Rates.equal(0.1), dyn.exact if exact else dyn
    if verb.endswith("flow"):
        ts = np.linspace(T_END / times, T_END, times)
        options = {} if exact else {"rtol": TOLERANCE, "atol": TOLERANCE}

        def one(start):
            return rooms.flow(problem, start, dyn.Rates.equal(1.0), ts, **options).states
    else:

        def one(start):
            return rooms.descent(problem, start, rates, STEPS_A_TIME * times, every=STEPS_A_TIME).states

    program = jax.jit(jax.vmap(one)).lower(starts).compile()
    return lambda: jax.block_until_ready(program(starts))


def _readings(call: Callable, repeats: int) -> list[float]:
    """Seconds of a call, `repeats` times; the first call is not counted."""
    call()
    begin = time.perf_counter()
    call()
    once = time.perf_counter() - begin
    over = max(1, int(np.ceil(SHORTEST / once)))
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(over):
            call()
        found.append((time.perf_counter() - begin) / over)
    return found


# ---- the picture ----

STYLES = {  # colours of Okabe and Ito; the shapes tell them apart without colour
    "flow": ("#0072B2", "o", "-"),
    "descent": ("#D55E00", "s", "-"),
    "exact.flow": ("#56B4E9", "o", "--"),
    "exact.descent": ("#E69F00", "s", "--"),
}
NAMES = {
    "members": "members",
    "classes": "classes",
    "samples": "samples of a class",
    "dim": "dimension",
    "times": "times saved",
}


def figure(data: dict, axes):
    """One panel a ladder, one curve a verb: medians with the range of the readings, and the fitted exponents.

    **Arguments:**

    - `data`: what `scaling` returned.
    - `axes`: at least as many axes as ladders, in any shape; those left over are turned off.

    **Returns:** the axes.
    """
    panels = np.ravel(axes)
    everything = np.concatenate([np.ravel(curve["seconds"]) for curves in data["curves"].values() for curve in curves.values()])
    for ax, (axis, curves) in zip(panels, data["curves"].items(), strict=False):
        for verb, curve in curves.items():
            color, marker, line = STYLES[verb]
            sizes, seconds = np.asarray(curve["sizes"]), np.asarray(curve["seconds"])
            middle = np.median(seconds, axis=1)
            text = f"{verb}   {curve['exponent']:.2f} ± {curve['error']:.2f}"
            ax.fill_between(sizes, seconds.min(axis=1), seconds.max(axis=1), color=color, alpha=0.15, linewidth=0)
            ax.plot(sizes, middle, line, color=color, marker=marker, markersize=5, linewidth=1.6, label=text)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(sizes, [f"{size:d}" for size in sizes])
        ax.minorticks_off()
        ax.set_ylim(0.5 * everything.min(), 50 * everything.max())  # room for the legend
        ax.set_xlabel(NAMES[axis])
        ax.grid(True, which="major", color="0.9", linewidth=0.7)
        ax.set_axisbelow(True)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        ax.legend(
            loc="upper left",
            fontsize="small",
            frameon=False,
            handlelength=2.4,
            title="exponent, upper half",
            title_fontsize="small",
        )
        if ax.get_subplotspec() is None or ax.get_subplotspec().is_first_col():
            ax.set_ylabel("seconds a call")
    for ax in panels[len(data["curves"]) :]:
        ax.set_axis_off()
    return axes


def main(words: list[str]) -> int:
    """Measure, print the exponents, and draw where a picture is named."""
    import jax

    jax.config.update("jax_enable_x64", True)
    data = scaling("quick" in words)
    for axis, curves in data["curves"].items():
        print(f"{NAMES[axis]}: " + ", ".join(f"{verb} {c['exponent']:.2f} ± {c['error']:.2f}" for verb, c in curves.items()))
    for path in (word for word in words if word != "quick"):
        from matplotlib import pyplot as plt

        picture, axes = plt.subplots(2, 3, figsize=(12, 7.2), layout="constrained")
        figure(data, axes)
        picture.savefig(path, dpi=150)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
