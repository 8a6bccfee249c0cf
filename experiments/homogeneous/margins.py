"""The smoothed margin grows along gradient flow, by an identity, and the direction tends to a KKT point."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import simpson

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.networks import (
    DEPTHS,
    FIRM,
    UNTIL,
    Runs,
    deep_linear,
    leftover,
    limit_margin,
    on_grid,
    smooth,
    worst_of,
)

SOURCE = "K. Lyu, J. Li (2020)"
DERIVED = "derived here"


def _counted(runs: Runs) -> np.ndarray:
    """Where the smoothed margin is positive, (members, times)."""
    return runs.seen["level"] > 0


def _margin(runs: Runs) -> np.ndarray:
    """The normalised margin where the smoothed one is positive, else NaN."""
    return np.where(_counted(runs), runs.seen["margin"], np.nan)


def _monotone(members: int) -> Measured:
    falls = {}
    for name, runs in smooth(members).items():
        smoothed, counted = runs.seen["smoothed"], _counted(runs)
        fall = np.where(counted[:, :-1] & counted[:, 1:], smoothed[:, :-1] - smoothed[:, 1:], -np.inf)
        falls[name] = np.maximum(fall.max(axis=1), 0.0)
    numbers = {f"members of {name}": float(len(runs.members)) for name, runs in smooth(members).items()}
    return worst_of(falls, numbers)


def _slopes(runs: Runs) -> np.ndarray:
    """L (kappa/beta^2 - 1)."""
    return runs.net.degree * (runs.seen["gap"] / (1 - runs.seen["misaligned"]) ** 2 - 1)


def _identity(members: int) -> Measured:
    """The growth of the log of the smoothed margin along the force, by differentiation, against the formula."""
    off = {}
    for name, runs in smooth(members).items():
        found = _growth(runs)
        expected = _slopes(runs)
        relative = np.abs(found - expected) / (runs.net.degree + np.abs(expected))
        off[name] = np.where(_counted(runs), relative, 0.0).max(axis=1)
    return worst_of(off)


def _growth(runs: Runs) -> np.ndarray:
    def one(inputs, targets, states):
        problem = dyn.Network(runs.net, inputs, targets)

        def along(state):
            logs = lambda state: (
                jnp.log(-problem.log_loss(state)),
                0.5 * jnp.log(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state))),
            )
            _, (level, size) = jax.jvp(logs, (state,), (problem.scaled_force(state),))
            return level / size - runs.net.degree

        return jax.vmap(along)(states)

    return np.asarray(jax.jit(jax.vmap(one))(runs.inputs, runs.targets, runs.states))


def _integrated(members: int) -> Measured:
    """The growth of the log of the smoothed margin over the run against the integral of the formula."""
    off = {}
    for name, runs in smooth(members).items():
        rows = []
        for member in range(len(runs.members)):
            counted = np.flatnonzero(runs.seen["level"][member] > 1)
            s, f = np.log(runs.seen["size"][member, counted]), _slopes(runs)[member, counted]
            grown = np.log(runs.seen["smoothed"][member, counted[-1]] / runs.seen["smoothed"][member, counted[0]])
            rows.append(abs(grown - simpson(f, s)) / grown)
        off[name] = np.array(rows)
    return worst_of(off)


@functools.cache
def _kkt(members: int) -> dict[str, dict[str, np.ndarray]]:
    """KKT residuals of the runs from their definitions: each weight scaled to margin one, the canonical multipliers."""
    return {name: _kkt_of(runs) for name, runs in smooth(members).items()}


def _kkt_of(runs: Runs) -> dict[str, np.ndarray]:
    degree = runs.net.degree

    def one(inputs, targets, states):
        problem = dyn.Network(runs.net, inputs, targets)

        def residuals(state):
            margins = problem.margins(state)
            least = jnp.min(margins)
            size = lambda tree: jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))
            shares = jax.nn.softmax(-margins)
            scaled = jax.tree.map(lambda leaf: leaf / least ** (1 / degree), state)
            counts = least ** (1 - 2 / degree) * size(state) / size(problem.scaled_force(state)) * shares
            _, back = jax.vjp(problem.margins, scaled)
            left = size(jax.tree.map(jnp.subtract, scaled, back(counts)[0]))
            slack = counts * (problem.margins(scaled) - 1)
            return {"left": left, "slack": jnp.sum(slack), "most": jnp.max(slack)}

        return jax.vmap(residuals)(states)

    found = jax.jit(jax.vmap(one))(runs.inputs, runs.targets, runs.states)
    return {name: np.where(_counted(runs), np.asarray(values), np.nan) for name, values in found.items()}


def _eps(members: int) -> Measured:
    off = {}
    for name, runs in smooth(members).items():
        expected = _margin(runs) ** (-1 / runs.net.degree) * np.sqrt(2 * runs.seen["misaligned"])
        off[name] = np.nanmax(np.abs(_kkt(members)[name]["left"] - expected), axis=1)
    return worst_of(off)


def _delta(members: int) -> Measured:
    share = {}
    for name, runs in smooth(members).items():
        degree, samples = runs.net.degree, runs.inputs.shape[1]
        bound = samples * _margin(runs) ** (-2 / degree) / (np.e * degree * runs.seen["level"])
        share[name] = np.nanmax(_kkt(members)[name]["slack"] / bound, axis=1)
    return worst_of(share)


def _beta(members: int) -> Measured:
    share = {}
    for name, runs in smooth(members).items():
        rows = []
        for member in range(len(runs.members)):
            counted = np.flatnonzero(_counted(runs)[member])
            seen = {key: runs.seen[key][member, counted] for key in ("size", "misaligned", "smoothed")}
            integral = np.trapezoid(1 / (1 - seen["misaligned"]) ** 2 - 1, np.log(seen["size"]))
            rows.append(integral / (np.log(seen["smoothed"][-1] / seen["smoothed"][0]) / runs.net.degree))
        share[name] = np.array(rows)
    return worst_of(share)


def _limit(members: int) -> Measured:
    """Epsilon and delta at log t = 1000 over those at log t = 100."""
    ratios, numbers = {}, {}
    for name, runs in smooth(members).items():
        rows = np.arange(len(runs.members))
        early, late = runs.first(100.0), runs.first(UNTIL)
        kkt = _kkt(members)[name]
        left = kkt["left"][rows, late] / kkt["left"][rows, early]
        most = kkt["most"][rows, late] / kkt["most"][rows, early]
        ratios[name] = np.maximum(left, most)
        numbers |= {f"epsilon of {name} at 1000, median": float(np.median(kkt["left"][rows, late]))}
        numbers |= {f"delta of {name} at 1000, median": float(np.median(kkt["most"][rows, late]))}
    return worst_of(ratios, numbers)


GRID = np.geomspace(3, 0.999 * UNTIL, 160)


def _draw(folder: Path) -> list[Path]:
    sheet, axes = plotting.page(1, 2, title="Deep linear networks: normalised margin over its limit", panel=(5.2, 3.7))
    left, right = axes[0]
    for ax in (left, right):
        ax.set_xscale("log")
    plotting.label(left, r"$\bar\gamma$ over $\gamma_{lin} L^{-L/2}$", r"$\log t$", "normalised margin over its limit")
    plotting.label(right, "what is missing; dashed: from the conserved balance", r"$\log t$", "1 - ratio", log=True)
    left.axhline(1.0, color="0.2", linewidth=1.3, linestyle=(0, (4, 2)), zorder=3)
    for depth, color in zip(DEPTHS, plotting.COLORS, strict=False):
        runs = deep_linear(depth, 64)
        ratio = on_grid(GRID, runs, runs.seen["margin"]) / limit_margin(depth)
        plotting.ensemble(GRID, ratio, ax=left, color=color, label=f"L = {depth}")
        plotting.ensemble(GRID, 1 - ratio, ax=right, color=color)
        if depth > 1:
            late = GRID[GRID > 30]
            missing = 0.5 * depth * np.median(leftover(depth, 64).sum(axis=1)) / (late / limit_margin(depth)) ** (2 / depth)
            plotting.theory(late, missing, ax=right, color=color)
    left.set_ylim(0.3, 1.05)
    right.set_ylim(1e-4, 1)
    plotting.legend(sheet, left, band="90 % of 64 data sets and starts")
    return plotting.save(sheet, folder, "margins")


_ANY = ("exponential loss", "smooth homogeneous net: linear of 1 to 4 layers, or squared ReLU", *FIRM)
_claim = functools.partial(Claim, assumptions=_ANY)

EXPERIMENT = Experiment(
    name="margins",
    family="homogeneous",
    summary="margins of smooth homogeneous networks to log t = 1000, and their KKT residuals",
    claims=(
        _claim(
            name="margin-smoothed-monotone",
            id="margin.smoothed_monotone",
            statement="log(1/L)/norm^L never falls once the loss is below that of one sample at margin zero",
            source=f"{SOURCE}, Theorem 4.1",
            tolerance=1e-10,
            check=_monotone,
        ),
        _claim(
            name="margin-identity",
            id="margin.identity",
            statement="the log of the smoothed margin grows by L (kappa/beta^2 - 1) with the log of the norm",
            source=f"{DERIVED}; {SOURCE}, Lemma 5.1, has the inequality",
            tolerance=1e-6,
            check=_identity,
        ),
        _claim(
            name="margin-identity-integrated",
            id="margin.identity",
            statement="over the whole run the log of the smoothed margin grows by the integral of L (kappa/beta^2 - 1)",
            source=DERIVED,
            tolerance=1e-2,
            check=_integrated,
            limited_by="Simpson's rule between the kept states",
        ),
        _claim(
            name="margin-eps-identity",
            id="margin.eps_identity",
            statement="with canonical multipliers the KKT residual is margin^(-1/L) sqrt(2 (1 - beta))",
            source=DERIVED,
            tolerance=1e-9,
            check=_eps,
        ),
        _claim(
            name="margin-delta-bound",
            id="margin.delta_bound",
            statement="the sum of lambda_i (q_i - 1) is at most n margin^(-2/L)/(e L log(1/L))",
            source=f"{DERIVED}; {SOURCE}, Lemma E.6, in kind",
            tolerance=1.0,
            check=_delta,
            limited_by="the residual is the sum over its bound",
        ),
        _claim(
            name="margin-beta-integral",
            id="margin.beta_integral",
            statement="the integral of beta^-2 - 1 over the log of the norm is at most log(smoothed margin's growth)/L",
            source=f"{SOURCE}, Lemma 5.1",
            tolerance=1.0,
            check=_beta,
            limited_by="the residual is the integral over its bound",
        ),
        _claim(
            name="margin-kkt",
            id="margin.kkt",
            statement="epsilon and delta of the scaled weights fall between log t = 100 and 1000, towards a KKT point",
            source=f"{SOURCE}, Theorem 4.4",
            tolerance=0.8,
            check=_limit,
            finding="by a fifth or more in all but the slowest members, where it falls to 0.88 of its value",
            limited_by="the residual is the value at 1000 over that at 100; epsilon falls like 1/norm, 10^(-1/L)",
        ),
    ),
    draw=_draw,
)
