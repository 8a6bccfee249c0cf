"""Step imbalance against decay, on a grid of simulated descents: which differences between classes training keeps."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.steps import CLASSES, DIM, coupling_of, problem_of, rates_of, sigmas_of, sizes_of, state_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Corollary 5, for two class sizes"
CELLS, STARTS, STEPS, EVERY, RATE, RATIO = 112, 4, 160, 8, 0.6, 0.5
IMBALANCE = np.geomspace(1.0, 50.0, CELLS)
DECAY = np.geomspace(0.045, 0.65, CELLS)  # root of lambda1 lambda2; lambda1 is twice that, lambda2 half of it
CELL = np.log(DECAY[1] / DECAY[0])


def _differences(problem, state):
    """Logs of how far apart prototypes are: the large classes, the means of large and small ones, the small classes."""
    w = state.prototypes
    apart = jnp.stack([w[0] - w[1], w[:2].mean(axis=0) - w[2:].mean(axis=0), w[3] - w[2]])
    return 0.5 * jnp.log(jnp.sum(apart**2, axis=1))


@functools.cache
def _grid() -> np.ndarray:
    """Which differences still grow at the end of a descent, (decays, imbalances, starts, 3)."""
    imbalance, decay = (x.ravel() for x in np.meshgrid(IMBALANCE, DECAY))
    starts = np.random.default_rng(41).normal(size=(imbalance.size, STARTS, 2 * CLASSES, DIM))

    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def grows(coupling, decay, start):
        run = problem_of(coupling, (2 * decay, decay / 2)), state_of(start), rates_of(RATE, RATIO), STEPS
        logs = dyn.descent(*run, every=EVERY, observe={"logs": _differences}).observed["logs"]
        return logs[-1] > logs[-2]

    found = jax.jit(jax.vmap(grows))(coupling_of(sizes_of(imbalance)), decay, starts)
    return np.asarray(found).reshape(CELLS, CELLS, STARTS, -1)


def _agreement(members: int) -> Measured:
    found, wrong, far = _grid(), [], []
    for k, sigma in enumerate(sigmas_of(IMBALANCE)):
        wrong.append(np.any(found[..., k] != (DECAY[:, None] < sigma)[:, :, None], axis=2))
        far.append(np.abs(np.log(DECAY[:, None] / sigma)) > CELL)
    anywhere = {"cells": float(CELLS**2), "cells that disagree anywhere": float(np.any(wrong, axis=0).sum())}
    return Measured(float(np.mean(np.array(wrong)[np.array(far)])), CELLS**2 * STARTS, "", anywhere)


def _located(members: int) -> Measured:
    """From the formula to the middle between the last decay that lets a difference grow and the next; every start."""
    worst = 0.0
    for k, sigma in enumerate(sigmas_of(IMBALANCE)):
        grows = _grid()[..., k]
        if np.any(grows[1:] & ~grows[:-1]) or not grows[0].all() or grows[-1].any():
            return Measured(np.inf, CELLS * STARTS, "not one boundary in every column")
        middle = np.log(DECAY[grows.sum(axis=0) - 1]) + CELL / 2
        worst = max(worst, float(np.abs(middle - np.log(sigma)[:, None]).max() / CELL))
    return Measured(worst, 3 * CELLS * STARTS)


SHADES = ("#f4f1ea", "#c6dbef", "#6baed6", "#08519c")
KINDS = "nothing", "large classes\nfrom one another", "and large\nfrom small", "and small classes\nfrom one another"


def _draw(folder: Path) -> list[Path]:
    sheet, axes = plotting.page(1, 1, title=f"What decay leaves: {CELLS} x {CELLS} ensembles of descents", panel=(6.6, 5.0))
    panel, kept = axes[0, 0], _grid().mean(axis=2).sum(axis=-1)
    x = r"imbalance, size of a large class over that of a small one"
    plotting.label(panel, "differences between prototypes that survive", x, r"decay $\sqrt{\lambda_1\lambda_2}$", log=True)
    panel.set_xscale("log")
    shades = {"cmap": ListedColormap(SHADES), "norm": BoundaryNorm(np.arange(-0.5, 4), 4)}
    mesh = panel.pcolormesh(IMBALANCE, DECAY, kept, **shades, shading="nearest", rasterized=True)
    names = r"$\sigma_{\mathrm{large}}$", r"$\sigma_{\mathrm{mixed}}$", r"$\sigma_{\mathrm{small}}$"
    for name, sigma in zip(names, sigmas_of(IMBALANCE), strict=True):
        panel.plot(IMBALANCE, sigma, color=plotting.COLORS[1], linewidth=1.8, linestyle=(0, (4, 2)), zorder=3)
        place = IMBALANCE[86], sigma[86]
        panel.annotate(name, place, (8, 5), textcoords="offset points", color=plotting.COLORS[1], fontsize=12)
    panel.plot([], [], color=plotting.COLORS[1], linestyle=(0, (4, 2)), label=r"closed form: $\sigma_i^2=\lambda_1\lambda_2$")
    panel.legend(loc="upper left", frameon=False)
    panel.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    panel.set_yticks([0.05, 0.1, 0.2, 0.4], ["0.05", "0.1", "0.2", "0.4"])
    panel.minorticks_off()
    panel.grid(False)
    bar = sheet.colorbar(mesh, ax=panel, location="bottom", aspect=45, pad=0.02)
    bar.set_ticks(range(4), labels=KINDS, fontsize=8.5)
    bar.ax.tick_params(length=0)
    return plotting.save(sheet, folder, "phase-diagram")


_claim = functools.partial(
    Claim,
    id="beyond.imbalance",
    source=SOURCE,
    assumptions=(
        "two classes of each size",
        "gamma = 1/(C-1)",
        "lambda1 = 4 lambda2, s = 1/2",
        f"{CELLS} x {CELLS} cells, {STARTS} starts in each",
    ),
)

EXPERIMENT = Experiment(
    name="phase-diagram",
    family="beyond",
    summary="imbalance against decay: which classes stay apart",
    claims=(
        _claim(
            name="phase-boundary",
            statement="simulated descents: a difference survives iff sigma_i^2 > lambda1 lambda2 "
            "(residual: part of the cells beyond one cell of a boundary that disagree)",
            tolerance=0.0,
            check=_agreement,
        ),
        _claim(
            name="phase-boundary-located",
            statement="at every imbalance the boundaries lie where sigma_i = sqrt(lambda1 lambda2) (residual: in cells)",
            tolerance=1.0,
            check=_located,
        ),
    ),
    draw=_draw,
)
