"""Modes of deep linear networks: the time between two strengths, the strength at a time, infinite depth; with figure."""

import functools
from pathlib import Path

import jax
import numpy as np

from dynamics import plotting
from dynamics.exact import deep_modes
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.instances import Leaf
from experiments.shared.square_modes import integrate, norm_of, orthogonal

SOURCE = "A. Saxe, J. McClelland, S. Ganguli (2014); the clock in this form and its limit of infinite depth: derived here"
WIDTH = 3
DEPTHS = (2, 3, 4)
_clock = jax.jit(deep_modes.deep_clock)
_strength = jax.jit(deep_modes.deep_mode)


def _velocity(targets, kappa):
    """Of all layers, the first one nearest the input, inputs white: sum of squares, unit rates."""

    def velocity(layers):
        below = [np.eye(WIDTH)]
        for layer in layers[:-1]:
            below.append(layer @ below[-1])
        pull = kappa[:, None, None] * (targets - layers[-1] @ below[-1])  # times what is above, from the left
        found = []
        for layer, before in zip(reversed(layers), reversed(below), strict=True):
            found.append(pull @ np.swapaxes(before, -1, -2))
            pull = layer.swapaxes(1, 2) @ pull
        return tuple(reversed(found))

    return velocity


def _layers(members: int) -> Measured:
    """Every layer a whole matrix, aligned and balanced; the product against the modes."""
    share, residuals = -(-members // len(DEPTHS)), []
    for depth in DEPTHS:
        rng = np.random.default_rng([23, depth])
        turns = [orthogonal(rng, share, WIDTH) for _ in range(depth + 1)]
        kappa, sigma = 10 ** rng.uniform(-1, 0, share), rng.uniform(0.5, 2, (share, WIDTH))
        start = sigma * 10 ** rng.uniform(-2, 0.3, (share, WIDTH))
        matrix = lambda d, i, j, turns=turns: (turns[i] * d[:, None]) @ turns[j].swapaxes(1, 2)
        layers = tuple(matrix(start ** (1 / depth), i + 1, i) for i in range(depth))
        fastest = depth * np.maximum(start, sigma).max(axis=1) ** (2 - 2 / depth)
        times = 10 / (kappa * fastest)[:, None] * np.array([0.1, 0.4, 1.0])
        moved = integrate(_velocity(matrix(sigma, depth, 0), kappa), layers, times, 7)
        product = functools.reduce(lambda below, layer: layer @ below, moved)
        u = _strength(start[:, None], sigma[:, None], depth * times[..., None], float(depth), kappa=kappa[:, None, None])
        expected = (turns[depth][:, None] * np.asarray(u)[:, :, None]) @ turns[0][:, None].swapaxes(2, 3)
        residuals.append((norm_of(product - expected) / norm_of(matrix(sigma, depth, 0))[:, None]).max(axis=1))
    values = np.concatenate(residuals)
    return Measured.worst(values, where=f"depth {DEPTHS[int(values.argmax()) // share]}")


class Span:
    """From one strength to another, below the target or above it, by whole and broken depths."""

    def __init__(self, members: int):
        rng = np.random.default_rng(29)
        self.depth = rng.choice([2, 3, 4, 10, 100, 2.5, np.inf], members)
        self.sigma, self.kappa = 10 ** rng.uniform(-1, 1, (2, members))
        above = rng.uniform(size=members) < 0.3
        y0 = np.where(above, 1 + 10 ** rng.uniform(-3, 1, members), 10 ** rng.uniform(-4, -0.2, members))
        left = 10 ** rng.uniform(-10, -0.3, members)  # of log(1/y)
        self.start, self.stop = y0 * self.sigma, y0**left * self.sigma

    def _logs(self, u):
        """log y and the logit of y, log(y/|1-y|); the difference from the target does not round."""
        gap = (u - self.sigma) / self.sigma
        return np.log1p(gap), np.log1p(gap) - np.log(np.abs(gap))

    def quadrature(self) -> Leaf:
        r"""$\int y^{2/L-1} dz$ over the logit z, cut into panels: no singularity is subtracted."""
        (x0, first), (x1, last) = self._logs(self.start), self._logs(self.stop)
        # distances from the target fall from panel to panel
        x = x0[:, None] * np.geomspace(1, x1 / x0, 61, axis=-1)
        z = x - np.log(np.abs(np.expm1(x)))
        z[:, 0], z[:, -1] = first, last
        nodes, weights = np.polynomial.legendre.leggauss(16)
        half = 0.5 * np.diff(z, axis=1)[..., None]
        at = z[:, :-1, None] + half * (1 + nodes)
        side = np.where(self.start < self.sigma, 1.0, -1.0)[:, None, None]
        log_y = -np.log1p(side * np.exp(-at))
        values = np.exp((2 / self.depth - 1)[:, None, None] * log_y)
        return (values * weights * half).sum(axis=(1, 2)) / (self.kappa * self.sigma ** (2 - 2 / self.depth))


def _inverted(members: int) -> Measured:
    span = Span(members)
    found = _clock(span.start, span.stop, span.sigma, span.depth, kappa=span.kappa)
    return Measured.worst(np.abs(np.asarray(found) / span.quadrature() - 1))


def _infinite(members: int, depth: float) -> np.ndarray:
    """Relative distance of the clock at a depth from its printed limit."""
    rng = np.random.default_rng(31)
    sigma = rng.uniform(0.5, 2, members)
    u0, u1 = sigma * rng.uniform(0.02, 0.5, members), sigma * rng.uniform(0.6, 0.99, members)
    printed = (np.log(u1 * (sigma - u0) / (u0 * (sigma - u1))) / sigma + 1 / u0 - 1 / u1) / sigma
    return np.abs(np.asarray(_clock(u0, u1, sigma, depth)) / printed - 1)


def _order(members: int) -> Measured:
    """Ten times deeper is ten times nearer."""
    near, far = _infinite(members, 1e7), _infinite(members, 1e6)
    return Measured.worst(np.abs(far / near / 10 - 1))


_claim = functools.partial(Claim, id="mse.deep_mode", source=SOURCE)

EXPERIMENT = Experiment(
    name="square-deep-modes",
    family="square-loss",
    summary="aligned modes of deep linear networks",
    claims=(
        _claim(
            name="deep-mode",
            statement="flow of L whole matrices: modes of the product obey u' = kappa L u^(2-2/L) (sigma - u)",
            assumptions=("aligned, balanced layers", "depths 2, 3, 4", "starts below and above the target"),
            tolerance=5e-12,
            check=_layers,
        ),
        _claim(
            name="deep-clock",
            statement="the time from u0 to u1 = quadrature of the law in the logit of u",
            assumptions=("any depth from 2 to infinity", "1e-4 to 10 times the target, ending as near as 1e-10"),
            tolerance=3e-11,
            check=_inverted,
        ),
        _claim(
            name="deep-infinite",
            statement="L t -> [log(u1(sigma-u0)/(u0(sigma-u1)))/sigma + 1/u0 - 1/u1]/sigma, at depth 1e6",
            assumptions=("0 < u0 < u1 < sigma",),
            tolerance=2e-5,
            check=lambda members: Measured.worst(_infinite(members, 1e6)),
        ),
        _claim(
            name="deep-infinite-exact",
            statement="the same at infinite depth",
            assumptions=("0 < u0 < u1 < sigma",),
            tolerance=1e-13,
            check=lambda members: Measured.worst(_infinite(members, np.inf)),
        ),
        _claim(
            name="deep-infinite-order",
            statement="the distance to that limit is of order 1/L (residual: factor from 1e6 to 1e7, over 10, less 1)",
            assumptions=("0 < u0 < u1 < sigma",),
            tolerance=1e-3,
            check=_order,
        ),
    ),
    draw=lambda folder: _draw(folder),
)


def _draw(folder: Path) -> list[Path]:
    sheet, axes = plotting.page(1, 2, title="Aligned modes of deep linear networks")
    depths = np.array([2.0, 3.0, 4.0, 8.0, np.inf])
    power = 2 - 2 / depths
    for ax, start, title in zip(
        axes[0], (0.1, 0.02), ("a moderate start", "a small one: deep is late and abrupt"), strict=True
    ):
        # infinite depth takes the longest, about 1/start
        taus = np.linspace(0, 1.25 * (1 / start + np.log(1 / start)) + 3, 241)
        velocity = lambda x: (x[0] ** power * (1 - x[0]),)
        (u,) = integrate(velocity, (np.full(5, start),), np.broadcast_to(taus[1:], (5, 240)), 2)
        plotting.label(ax, title, r"depth $\times$ time, $\tau = Lt$", r"strength $u/\sigma$")
        for k, color in zip(range(5), plotting.COLORS, strict=False):
            name = r"$L\to\infty$" if np.isinf(depths[k]) else rf"$L={depths[k]:g}$"
            plotting.simulated(taus[1:], u[k], ax=ax, color=color, label=name)
            plotting.theory(taus, _strength(start, 1.0, taus, depths[k]), ax=ax, color=color)
    plotting.legend(sheet, axes[0, 0])
    return plotting.save(sheet, folder, "square-deep-modes")
