"""The angle fan: many samples turn towards their pulls, simulated flow under the half-angle law."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import dynamics as dyn
from dynamics import plotting
from experiments.shared.spherical import planar

ANGLES = np.pi * np.array([0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.93, 0.975, 0.995, 0.9995])
TS = np.linspace(0, 8, 161)
EPS = 0.1
PANELS = (
    ("equal norms", 1.0, 0.0, False, None),
    ("equal norms, decay: faster and faster", 1.0, 0.15, False, None),
    ("norms 0.7 to 1.4, rescaled rates", np.geomspace(0.7, 1.4, ANGLES.size), 0.0, True, None),
    (r"adjusted prototypes, $\epsilon=0.1$", 1.0, 0.0, False, EPS),
)


def _angles(problem, state):
    """Angles in units of pi."""
    return jnp.arctan2(state.features[:, 1], state.features[:, 0]) / jnp.pi


@functools.cache
def _program(rescaled: bool, eps: float | None):
    def one(norms, decay):
        ones = jnp.ones(ANGLES.size)
        problem, state = planar(ones, ANGLES, norms, adjusted=eps, decay=dyn.Decay(decay))
        rates, observe = dyn.Rates.equal(1.0, rescaled), {"angle": _angles}
        return [verb(problem, state, rates, TS, observe=observe).observed["angle"] for verb in (dyn.flow, dyn.exact.flow)]

    return jax.jit(one)


def draw_fan(folder: Path) -> list[Path]:
    """Angles over the clock in four settings."""
    figure, axes = plotting.page(2, 2, title="Samples turn towards their pulls, each by its own clock")
    colors = [matplotlib.colormaps["viridis"](x) for x in np.linspace(0.05, 0.9, ANGLES.size)]
    for ax, (title, norms, decay, rescaled, eps) in zip(axes.ravel(), PANELS, strict=True):
        plotting.label(ax, title, r"clock $\zeta$", r"angle to the pull $\theta/\pi$")
        moved, exact = _program(rescaled, eps)(norms * np.ones(ANGLES.size), decay)
        for i, color in enumerate(colors):
            plotting.simulated(TS, moved[:, i], ax=ax, color=color)
            plotting.theory(TS, exact[:, i], ax=ax, color="0.15")
        if eps is not None:
            edge = 1 - np.arccos(1 - eps) / np.pi
            ax.axhspan(edge, 1, color="0.5", alpha=0.12, linewidth=0)
            ax.text(7.9, 0.985, "pulled harder", ha="right", va="top", fontsize=8.5, color="0.35")
        ax.set(xlim=(0, TS[-1]), ylim=(0, 1.0))
    plotting.legend(figure, axes[0, 0])
    return plotting.save(figure, folder, "spherical-fan")
