"""Squared error with depth: decay of L layers acts on singular values as a power 2/L, and from L = 3 on they jump."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.minimiser_oracles import hessians
from experiments.shared.quasi_newton import bfgs

SOURCE = "Schatten-2/L form of decay: F. Shang et al. 2016; the threshold of the jump derived here"
DEPTHS = (2, 3, 4, 5)


def best_strength(sigma, kappa, decay, depth: int) -> np.ndarray:
    """The strength u >= 0 of a mode that minimises kappa/2 (u - sigma)^2 + (L decay/2) u^(2/L).

    L = 2: (sigma - decay/kappa)_+. L >= 3: the root of kappa (sigma - u) u^(1 - 2/L) = decay above
    sigma (L-2)/(2L-2), kept only if its value beats that of u = 0.
    """
    sigma, kappa, decay = np.broadcast_arrays(sigma, kappa, decay)
    if depth == 2:
        return np.maximum(sigma - decay / kappa, 0)
    low, high = sigma * (depth - 2) / (2 * depth - 2), sigma
    for _ in range(60):
        middle = (low + high) / 2
        inside = kappa * (sigma - middle) * middle ** (1 - 2 / depth) > decay
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    better = mode_value(low, sigma, kappa, decay, depth) < kappa * sigma**2 / 2
    return np.where(better, low, 0.0)


def jump(sigma, kappa, depth: int):
    """The decay at which the minimum jumps, and the strength it jumps to from zero, sigma (L-2)/(L-1)."""
    to = sigma * (depth - 2) / (depth - 1)
    return kappa * (sigma - to) * to ** (1 - 2 / depth), to


def mode_value(u, sigma, kappa, decay, depth: int):
    """What a mode of strength u costs."""
    return kappa * (u - sigma) ** 2 / 2 + depth * decay / 2 * u ** (2 / depth)


def _drawn(depth: int, members: int):
    """sigma and kappa log-uniform in (1/3, 3); the decay up to 1.5 times that of the jump (depth 2: of the threshold)."""
    rng = np.random.default_rng([59, depth])
    sigma, kappa = 3 ** rng.uniform(-1, 1, (2, members))
    top = kappa * sigma if depth == 2 else jump(sigma, kappa, depth)[0]
    return sigma, kappa, rng.uniform(0.05, 1.5, members) * top


def _over_depths(residual, members: int) -> Measured:
    share = -(-members // len(DEPTHS))
    found = np.array([residual(depth, share) for depth in DEPTHS])
    found = np.where(np.isfinite(found), found, np.inf)
    depth = DEPTHS[int(found.max(axis=1).argmax())]
    return Measured(float(found.max()), share * len(DEPTHS), f"L = {depth}, member {int(found.max(axis=0).argmax())}")


def _grid(depth: int, members: int):
    """Against the lowest of a million points, in three refinements; off a tie of the two minima by 1e-3 in the decay."""
    sigma, kappa, decay = _drawn(depth, members)
    low, high = np.zeros(members), 1.2 * sigma
    for _ in range(3):
        u = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 1001)
        values = mode_value(u, sigma[:, None], kappa[:, None], decay[:, None], depth)
        best = u[np.arange(members), values.argmin(axis=1)]
        step = (high - low) / 1000
        low, high = np.maximum(best - 2 * step, 0), best + 2 * step
    tie = np.abs(decay / jump(sigma, kappa, depth)[0] - 1) < 1e-3 if depth > 2 else np.zeros(members, bool)
    return np.where(tie, 0, np.abs(best - best_strength(sigma, kappa, decay, depth)) / sigma)


def _jumps(depth: int, members: int):
    """At the jump both minima cost the same; 1e-6 on either side the grid-free formula is 0 and sigma (L-2)/(L-1)."""
    if depth == 2:
        return np.zeros(members)
    sigma, kappa, _ = _drawn(depth, members)
    decay, to = jump(sigma, kappa, depth)
    equal = np.abs(mode_value(to, sigma, kappa, decay, depth) / (kappa * sigma**2 / 2) - 1)
    below = best_strength(sigma, kappa, decay * (1 - 1e-9), depth)
    above = best_strength(sigma, kappa, decay * (1 + 1e-9), depth)
    return np.where((above == 0) & (below > 0), np.maximum(equal, np.abs(below / to - 1)), np.inf)


def _chain(depth: int, size: int, target, kappa, decay):
    """The objective of L square layers and its gradient, from the definition; x of shape (members, L size^2)."""

    def value_and_gradient(x, members=slice(None)):
        weight, pull, goal = (np.asarray(part)[members] for part in (kappa, decay, target))
        layers = x.reshape(-1, depth, size, size)
        before = [np.eye(size, dtype=x.dtype)[None]]
        for k in range(depth):
            before.append(layers[:, k] @ before[-1])
        error = before[-1] - goal
        value = weight * np.sum(error**2, axis=(1, 2)) / 2 + pull * np.sum(x**2, axis=1) / 2
        after, gradient = error * np.reshape(weight, (-1, 1, 1)), np.empty_like(layers)
        for k in reversed(range(depth)):
            gradient[:, k] = after @ before[k].swapaxes(1, 2)
            after = layers[:, k].swapaxes(1, 2) @ after
        return value, (gradient + np.reshape(pull, (-1, 1, 1, 1)) * layers).reshape(x.shape)

    return value_and_gradient


def _networks(depth: int, members: int):
    """Networks of L layers of 2 x 2: the lowest of descents from random starts and from near the target with 2, 1, 0 modes."""
    members = min(members, 64)
    sigma, kappa, decay = _drawn(depth, members)
    rng = np.random.default_rng([61, depth])
    sigmas = np.stack([sigma, sigma * rng.uniform(0.4, 0.95, members)], axis=1)
    left, right = (np.linalg.qr(rng.normal(size=(members, 2, 2)))[0] for _ in range(2))
    target = (left * sigmas[:, None]) @ right.swapaxes(1, 2)
    expected = 0.0
    for one in sigmas.T:
        expected = expected + mode_value(best_strength(one, kappa, decay, depth), one, kappa, decay, depth)
    fun = _chain(depth, 2, target, kappa, decay)
    lowest = np.full(members, np.inf)
    for kept in (None, None, 2, 1, 0):
        start = rng.normal(size=(members, depth, 2, 2)) * (0.7 if kept is None else 0.03)
        if kept is not None:
            strength = (sigmas * (np.arange(2) < kept)) ** (1 / depth)
            start += strength[:, None, :, None] * np.eye(2)
            start[:, 0] = start[:, 0] @ right.swapaxes(1, 2)
            start[:, -1] = left @ start[:, -1]
        lowest = np.minimum(lowest, bfgs(fun, start.reshape(members, -1), reach=0.2)[0])
    return float(np.abs(lowest / expected - 1).max())


def _zero(depth: int, members: int):
    """The Hessian at zero is decay times the identity (L >= 3), and descents from starts near zero go back to it."""
    if depth == 2:
        return 0.0
    sigma, kappa, decay = _drawn(depth, members)
    rng = np.random.default_rng([67, depth])
    target = sigma[:, None, None] * np.eye(2)
    size = depth * 4
    hessian = hessians(_chain(depth, 2, target[:1], kappa[:1], decay[:1]), np.zeros((1, size)))[0]
    curved = np.abs(hessian / decay[0] - np.eye(size)).max()
    near = 0.05 * (decay / kappa)[:, None] * rng.normal(size=(members, size))
    fun = _chain(depth, 2, target, kappa, decay)
    x, value, sinks = near, fun(near)[0], True
    for _ in range(60):
        x = x - 0.2 / decay[:, None] * fun(x)[1]
        lower = fun(x)[0]
        sinks &= bool(np.all(lower <= value * (1 + 1e-15)))
        value = lower
    smaller = np.linalg.norm(x, axis=1) < 1e-4 * np.linalg.norm(near, axis=1)
    return float(curved) if sinks and smaller.all() else np.inf


_claim = functools.partial(Claim, id="mse.deep_minimiser", source=SOURCE)
_ASSUMED = ("L linear layers", "equal decay of all layers", "squared error")


def _check(residual):
    return functools.partial(_over_depths, residual)


EXPERIMENT = Experiment(
    name="deep-minimiser",
    family="square-loss",
    summary="minima of deep linear layers: soft threshold at two, a jump from three on",
    claims=(
        _claim(
            name="deep-minimiser-grid",
            statement="u minimises kappa/2 (u-sigma)^2 + (L wd/2) u^(2/L): soft threshold (L = 2), upper root if it beats 0",
            assumptions=(*_ASSUMED, "decay at least 1e-3 off the jump"),
            tolerance=8.5e-6,
            check=_check(_grid),
        ),
        _claim(
            name="deep-minimiser-jump",
            statement="L >= 3: it jumps to zero from sigma (L-2)/(L-1), where both cost the same",
            assumptions=_ASSUMED,
            tolerance=1e-7,
            check=_check(_jumps),
        ),
        _claim(
            name="deep-minimiser-networks",
            statement="L layers of 2 x 2: the lowest of five descents costs the sum over singular values",
            assumptions=(*_ASSUMED, "64 networks a depth"),
            tolerance=1e-12,
            check=_check(lambda depth, members: np.full(members, _networks(depth, members))),
        ),
        _claim(
            name="deep-minimiser-zero",
            statement="L >= 3: zero is a strict local minimum, Hessian wd I, and small starts never leave it",
            assumptions=_ASSUMED,
            tolerance=1e-15,
            check=_check(lambda depth, members: np.full(members, _zero(depth, members))),
        ),
    ),
)
