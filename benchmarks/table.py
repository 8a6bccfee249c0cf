"""The table of workloads. A new one is a file with a function `build(quick, members)` and a row here."""

import importlib
from collections.abc import Callable
from typing import NamedTuple


class Row(NamedTuple):
    """A workload.

    - `setting`: what is moved. `build`: "module:function" that sets it up.
    - `base`: what ratios are to; the first of several that can race here. `beat`: peers that the product must not trail.
    - `gate`: the error that the product may have. `target`, `stretch`: ratios to the base; of a count (`counted`), bounds.
    - `group`: a name that stands for several rows.
    """

    name: str
    setting: str
    build: str
    base: str = ""
    beat: tuple[str, ...] = ()
    gate: str = "none"
    target: float | None = None
    stretch: float | None = None
    counted: bool = False
    group: str = ""


SMALL = "cross-entropy flow, C 4, N 5, p 16, decay 5e-3, t to 100, float64"

ROWS = (
    Row(
        "FLOW-S",
        f"{SMALL}: 1024 members, scale 0.3, 50 states, tolerance 1e-6",
        "flow_small:equal_scales",
        "diffrax, vmap",
        ("diffrax, one shared step",),
        "error <= that of the base",
        6,
        12,
    ),
    Row(
        "FLOW-S-SPREAD",
        f"{SMALL}: 1024 members, scales 10^U(-2, 1), 50 states, tolerance 1e-6",
        "flow_small:spread_scales",
        "diffrax, vmap",
        ("SciPy RK45, a loop", "diffrax, sorted chunks of 16"),
        "error <= that of the base, the 8 largest scales among the members checked",
        40,
        90,
    ),
    Row(
        "FLOW-S-OBS",
        f"{SMALL}: 1024 members, scale 0.3, 8 observables at 50 times, tolerance 1e-6",
        "flow_small:observed",
        "diffrax, vmap, states",
        (),
        "relative error of observables <= 1e-5, for all, and that of the base; peers at 1e-6 or the loosest below within it",
        10,
        25,
    ),
    Row(
        "FLOW-S-TIGHT",
        f"{SMALL}: 64 members, scale 0.3, 50 states, tolerance 1e-10",
        "flow_small:tight",
        "diffrax, vmap, Tsit5",
        ("diffrax, vmap, Dopri8",),
        "error <= that of the better of both peers",
        5,
        10,
    ),
    Row(
        "FLOW-L",
        "cross-entropy flow, C 10, N 10, p 512, decay 5e-3, t to 100, float64: 8 members, scale 0.1, 50 reduced states, "
        "tolerance 1e-6",
        "flow_large:build",
        "diffrax, vmap",
        (),
        "lifted states within 1e-12 of the unreduced motion at fixed steps; error <= that of the base",
        4.5,
        10,
    ),
    Row(
        "GD-S-F32",
        "cross-entropy descent, C 4, N 5, p 16, decay 5e-3, 1024 members, scale 0.3, rates 10^U(-1.5, -0.3), 2000 steps, "
        "50 snapshots, float32",
        "descent_small:single",
        "optax, scan under vmap",
        ("NumPy matmul, a loop", "PyTorch bmm by hand"),
        "relative error <= 1e-5",
        6,
        12,
        group="GD-S",
    ),
    Row(
        "GD-S-F64",
        "the same in float64",
        "descent_small:double",
        "optax, scan under vmap",
        ("NumPy matmul, a loop", "PyTorch bmm by hand"),
        "relative error <= 1e-12",
        4,
        8,
        group="GD-S",
    ),
    Row(
        "GD-L",
        "cross-entropy descent, C 10, N 10, p 512, decay 5e-3, 8 members, scale 0.1, rates 10^U(-1.5, -0.3), 2000 steps, "
        "50 snapshots, float64",
        "descent_large:spread_features",
        "optax, scan under vmap",
        (),
        "relative error <= 1e-12",
        5,
        group="GD-L",
    ),
    Row(
        "GD-L-COLLAPSED",
        "the same from features that are equal within classes",
        "descent_large:collapsed_features",
        "optax, scan under vmap",
        (),
        "relative error <= 1e-12",
        5,
        50,
        group="GD-L",
    ),
    Row(
        "UNHINGED-PAPER",
        "unhinged descent, C 100, N 10, p 512, decay 5e-3, rate 0.05, 50 000 steps, 500 class-mean states, float64",
        "unhinged:states",
        "PyTorch SGD, a loop (else the scan)",
        ("lax.scan, dense matrix",),
        "relative error <= 1e-10",
        1500,
        3000,
    ),
    Row(
        "UNHINGED-OBS",
        "the same, 8 observables at 500 times",
        "unhinged:observables",
        "PyTorch SGD, a loop (else the scan)",
        (),
        "relative error of observables <= 1e-10",
        30_000,
        100_000,
    ),
    Row(
        "SCHEDULES",
        "unhinged descent, C 4, N 5, p 16, decay 5e-3, 1024 pairs of warm-up and cosine schedules, features and weights apart, "
        "50 000 steps, 2 observables at 500 times, float64",
        "schedules:build",
        "lax.scan of 2x2 products",
        (),
        "relative error <= 1e-10",
        4,
        10,
    ),
    Row(
        "GRAD-S-CE",
        "gradient of |final state|^2 in the logs of two rates and two decays: cross-entropy flow, C 4, N 5, p 16, t to 30, "
        "64 members, scale 0.3, float64",
        "gradients:cross_entropy",
        "diffrax, BacksolveAdjoint",
        ("diffrax, RecursiveCheckpointAdjoint, 64 steps",),
        "relative error <= 1e-5, for all, and that of the base; nobody takes a tolerance above 1e-6",
        3,
        6,
        group="GRAD-S",
    ),
    Row(
        "GRAD-S-UNHINGED",
        "gradient of |final state|^2 in the logs of two rates, gamma and the decay: unhinged flow, C 4, N 5, p 16, t to 30, "
        "64 members, scale 0.3, float64",
        "gradients:unhinged",
        "diffrax, BacksolveAdjoint",
        ("diffrax, RecursiveCheckpointAdjoint, 64 steps",),
        "relative error <= 1e-5, for all, and that of the base; nobody takes a tolerance above 1e-6",
        130,
        300,
        group="GRAD-S",
    ),
    Row(
        "COLD",
        "second process, persistent cache on, imports apart: the first result of FLOW-S with 64 members",
        "elsewhere:cold",
        "diffrax_vmap",
        (),
        "the same result: error at most a tenth above that of the base",
        4,
        8,
    ),
    Row(
        "LOCKSTEP",
        "FLOW-S-SPREAD: steps done over steps needed",
        "lockstep:build",
        "diffrax, vmap",
        (),
        "none",
        1.25,
        1.1,
        counted=True,
    ),
    Row(
        "HEAVY-TAIL",
        "cross-entropy flow, C 4, N 5, p 16, t to 5, 2048 members, 1 % of them at a 1000-fold rate, 10 states, tolerance 1e-6, "
        "float64",
        "heavy_tail:build",
        "diffrax, vmap",
        (),
        "error <= that of the base",
    ),
    Row(
        "WORK-PRECISION",
        f"{SMALL}: 256 members, scale 0.3, 50 states, tolerances 1e-4 to 1e-10",
        "work_precision:build",
    ),
    Row("SCALING", "cost of the four verbs against members, classes, samples, dim and times", "elsewhere:scaling"),
    Row("ENSEMBLE-GPU", "FLOW-S, GD-S and Lorenz in large ensembles on an accelerator", "elsewhere:ensemble_gpu"),
)


def names() -> list[str]:
    """All names a user may give: of rows and of groups."""
    return list(dict.fromkeys(name for row in ROWS for name in (row.group, row.name) if name))


def chosen(words: list[str]) -> list[Row]:
    """The rows that words name, whatever their case; all of them for no words.

    **Raises:** `ValueError` for a word that names nothing, with the nearest name.
    """
    if not words:
        return list(ROWS)
    from dynamics.validate import nearest

    wanted = []
    for word in words:
        found = [row for row in ROWS if word.upper() in (row.name, row.group)]
        if not found:
            raise ValueError(f"unknown workload {word!r}; {nearest(word.upper(), names())}")
        wanted += found
    return list(dict.fromkeys(wanted))


def builder(row: Row) -> Callable:
    """The function that sets up a row, its module imported now and not before."""
    module, function = row.build.split(":")
    return getattr(importlib.import_module(f"benchmarks.{module}"), function)
