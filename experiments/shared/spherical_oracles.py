"""What judges the spherical case: loops over vectors, in NumPy on arrays (..., samples, dim).

One sample's loss is `-<v, h/|h|>`; nothing else is used, neither angles nor planes. `half_angle` is the law as it is written.
"""

from typing import NamedTuple

import numpy as np
from scipy.integrate import DOP853

from dynamics.verify import Measured


def dot(x, y) -> np.ndarray:
    """Inner products of rows."""
    return np.einsum("...d,...d->...", x, y)


def length(x) -> np.ndarray:
    """Norms of rows."""
    return np.sqrt(dot(x, x))


def unit(x) -> np.ndarray:
    """Rows divided by their norms."""
    return x / length(x)[..., None]


def cosine(x, y) -> np.ndarray:
    """Cosines between rows."""
    return dot(x, y) / (length(x) * length(y))


def angle(x, y) -> np.ndarray:
    """Angles between rows, precise near 0 and near pi."""
    return 2 * np.arctan2(length(unit(x) - unit(y)), length(unit(x) + unit(y)))


class Pairs(NamedTuple):
    """Starts h and pulls v, (members, dim); the step eta, (members,), that makes alpha = eta |v|/|h|^2 as asked."""

    h: np.ndarray
    v: np.ndarray
    eta: np.ndarray


def pairs(members: int, alpha=(0.01, 2.0), theta=(0.01, 3.13), *, rescaled=False, dim=5, seed=0) -> Pairs:
    """Random pairs: alpha (rescaled: eta |v|/|h|) log-uniform, angle uniform, norms of h log-uniform in [.05, 5]."""
    rng = np.random.default_rng([9, seed])
    aim, tangent = np.moveaxis(np.linalg.qr(rng.normal(size=(members, dim, 2)))[0], -1, 0)
    turned, size, strength = (
        rng.uniform(theta[0], theta[1], members),
        10 ** rng.uniform(-1.3, 0.7, members),
        rng.uniform(0.5, 2, members),
    )
    h = size[:, None] * (np.cos(turned)[:, None] * aim + np.sin(turned)[:, None] * tangent)
    steps = 10 ** rng.uniform(np.log10(alpha[0]), np.log10(alpha[1]), members)
    return Pairs(h, strength[:, None] * aim, steps * size ** (1 if rescaled else 2) / strength)


def planar_pairs(members: int, alpha, theta=(0.1, 3.0), *, rescaled=False, seed=0) -> Pairs:
    """The same in the plane, pulls along the first axis: the second component keeps its relative precision."""
    h, v, eta = pairs(members, alpha, theta, rescaled=rescaled, dim=2, seed=seed)
    turned, ahead = angle(h, v)[:, None], np.array([1.0, 0.0])
    features = length(h)[:, None] * (np.cos(turned) * ahead + np.sin(turned) * ahead[::-1])
    return Pairs(features, length(v)[:, None] * ahead, eta)


def pull_across(h, v, eps=None) -> np.ndarray:
    """Minus the gradient of -<v, h/|h|>; with `eps`, of -<v + delta, h/|h|> with delta held fixed (Appendix D.3)."""
    if eps is not None:
        beta, hat = cosine(h, v)[..., None], unit(h)
        behind = beta < -1 + eps
        sine = np.sqrt(1 - np.where(behind, beta, 0.0) ** 2)
        factor = -(1 + beta * np.sqrt(1 - (1 - eps) ** 2) / ((1 - eps) * sine))
        v = np.where(behind, v + factor * (v - hat * dot(hat, v)[..., None]), v)
    square = dot(h, h)
    size = np.sqrt(square)
    return v / size[..., None] - h * (dot(h, v) / (square * size))[..., None]


def descend(h, v, rates, *, rescaled=False, decay=0.0, momentum=0.0, nesterov=False, eps=None) -> np.ndarray:
    """Iterates (steps + 1, ...) of gradient descent; `rates` holds each step's rate, anything that multiplies h."""
    path, velocity = [h], np.zeros_like(h)
    for rate in rates:
        force = pull_across(h, v, eps) - decay * h
        velocity = momentum * velocity + force
        move = momentum * velocity + force if nesterov else velocity
        h = h + rate * move * (length(h)[..., None] if rescaled else 1.0)
        path.append(h)
    return np.array(path)


def integrate(h, v, rate, ts, *, rescaled=False, decay=0.0, steps=32, scaled_decay=True) -> np.ndarray:
    """The flow at `ts` (from 0) by the eighth-order pairs of Dormand and Prince at fixed steps, `steps` an interval.

    `rate(t)` multiplies the whole velocity. Not `scaled_decay`: the decay is not multiplied by |h|, only the pull is.
    """

    def velocity(t, y):
        pull, fade = pull_across(y, v), decay * y
        if rescaled:
            size = length(y)[..., None]
            pull, fade = pull * size, fade * (size if scaled_decay else 1.0)
        return rate(t) * (pull - fade)

    path = [h]
    for begin, end in zip(ts, ts[1:], strict=False):
        dt = (end - begin) / steps
        for k in range(steps):
            slopes = []
            for a, c in zip(DOP853.A, DOP853.C, strict=True):
                moved = sum((w * s for w, s in zip(a, slopes, strict=False) if w), start=np.zeros_like(h))
                slopes.append(velocity(begin + (k + c) * dt, h + dt * moved))
            h = h + dt * sum(w * s for w, s in zip(DOP853.B, slopes, strict=True))
        path.append(h)
    return np.array(path)


def half_angle(h, v, turn) -> np.ndarray:
    """h turned towards v by the half-angle law, tan(theta/2) times e^{-turn}, its norm kept."""
    left, near = np.exp(-turn), length(unit(h) + unit(v)) ** 2 / 4
    whole = left**2 + near * (1 - left**2)
    x, y = left / whole, (1 - left) * (left + near * (1 - left)) / whole
    return length(h)[..., None] * (x[..., None] * unit(h) + y[..., None] * unit(v))


def worst(residuals, **numbers) -> Measured:
    """The largest residual; members are the last axis. One that is not a number is the worst there is."""
    residuals = np.where(np.isfinite(residuals), residuals, np.inf)
    members = residuals.reshape(-1, residuals.shape[-1]).max(axis=0)
    return Measured(float(members.max()), members.size, f"member {int(members.argmax())}", numbers)
