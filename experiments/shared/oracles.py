"""More that judges the formulas: plain loops, dense systems of any class sizes, quadratures, extended precision.

Host arrays with a leading axis of members, NumPy, SciPy and mpmath alone. Only definitions enter: the loss, the decays,
the rates. `pull` B is minus the gradient of the mean loss in the logits, (members, samples, classes): features are
pulled by B W, prototypes by B^T H, biases by B^T 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import mpmath
import numpy as np
from scipy.integrate import solve_ivp

from experiments.shared.dense import size_of, stacked
from experiments.shared.instances import Draw, Size


class States(NamedTuple):
    """States of all members."""

    features: np.ndarray
    prototypes: np.ndarray
    biases: np.ndarray


def labels_of(sizes) -> np.ndarray:
    """Labels sorted by class, for class sizes."""
    return np.repeat(np.arange(len(sizes)), sizes)


def sides_of(features: np.ndarray, sizes) -> np.ndarray:
    """Class sums over the root of the class size, (..., classes, dim)."""
    own = labels_of(sizes)[:, None] == np.arange(len(sizes))
    return (own / np.sqrt(sizes)).T @ features


def column(x) -> np.ndarray:
    """A number of each member, shaped to multiply its matrices."""
    return np.asarray(x)[..., None, None]


def pull_matrix(labels: np.ndarray, gamma, weights=None) -> np.ndarray:
    """B entry by entry: 1 for the label, -gamma for every other class; times the sample's weight, over the samples."""
    own = labels[:, None] == np.arange(labels.max() + 1)
    entries = np.where(own, 1.0, -column(gamma)) / labels.size
    return entries if weights is None else entries * np.asarray(weights)[:, None]


def balanced_pull(draw: Draw, size: Size) -> np.ndarray:
    """B of the balanced draw."""
    return pull_matrix(labels_of((size.per_class,) * size.classes), draw.gamma)


def generator(pull: np.ndarray, rates, decays) -> np.ndarray:
    """A of Z' = A Z, Z features over prototypes; rates (or clocks) and decays are pairs, of features and prototypes."""
    samples, classes = pull.shape[-2:]
    fading = [-column(rate) * column(decay) for rate, decay in zip(rates, decays, strict=True)]
    top = np.concatenate([fading[0] * np.eye(samples), column(rates[0]) * pull], axis=-1)
    bottom = np.concatenate([column(rates[1]) * np.swapaxes(pull, -1, -2), fading[1] * np.eye(classes)], axis=-1)
    return np.concatenate([top, bottom], axis=-2)


def dense_motion(pull, start, clocks, decays) -> np.ndarray:
    """Z after two positive clocks, of rates of constant ratio, by all eigenvectors of the generator.

    It is symmetric for features and prototypes in units of the roots of their clocks.
    """
    units = np.sqrt(np.stack(clocks, axis=-1)).repeat(pull.shape[-2:], axis=-1)[..., None]
    symmetric = generator(pull, clocks, decays) * np.swapaxes(units, -1, -2) / units
    exponents, vectors = np.linalg.eigh(symmetric)
    return units * (vectors @ (np.exp(exponents)[..., None] * (np.swapaxes(vectors, -1, -2) @ (start / units))))


def descend(pull, start, rates, decays, momentum=0.0, *, nesterov: bool = False) -> States:
    """Gradient descent by a plain loop: iterates 0, 1, ..., steps, with leading axes (members, steps + 1).

    `start` has features, prototypes, biases; `rates` (members, 2, steps) of features and of weights; `decays`
    (members, 3); `momentum` (members,). Heavy ball: v <- mu v + gradient, x <- x - rate v; Nesterov:
    x <- x - rate (gradient + mu v).
    """
    x = [np.asarray(start.features), np.asarray(start.prototypes), np.asarray(start.biases)[..., None]]
    decays, momentum = [column(decays[:, part]) for part in range(3)], column(momentum)
    transposed, drift = np.swapaxes(pull, 1, 2), pull.sum(axis=1)[..., None]
    velocity, path = [np.zeros_like(part) for part in x], [x]
    for k in range(rates.shape[-1]):
        rate = [column(rates[:, part, k]) for part in (0, 1, 1)]
        gradient = [-pull @ x[1], -transposed @ x[0], -drift]
        gradient = [g + decay * part for g, decay, part in zip(gradient, decays, x, strict=True)]
        velocity = [momentum * v + g for v, g in zip(velocity, gradient, strict=True)]
        move = [g + momentum * v for g, v in zip(gradient, velocity, strict=True)] if nesterov else velocity
        x = [part - eta * m for part, eta, m in zip(x, rate, move, strict=True)]
        path.append(x)
    features, prototypes, biases = (np.stack(parts, axis=1) for parts in zip(*path, strict=True))
    return States(features, prototypes, biases[..., 0])


def integrate(velocity: Callable, start: np.ndarray, times, jumps) -> np.ndarray:
    """States of x' = velocity(t, x) of one member at the times, by DOP853 at rtol 1e-12, restarted at every jump."""
    flat = lambda t, x: np.ravel(velocity(t, x.reshape(start.shape)))
    x, now, states = np.ravel(start), 0.0, []
    for stop in sorted({*times, *(jump for jump in jumps if 0 < jump < times[-1])}):
        x = solve_ivp(flat, (now, stop), x, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1] if stop > now else x
        now = stop
        if stop in times:
            states.append(x.reshape(start.shape))
    return np.stack(states)


def mode_exponents(sigma, ratio, decays) -> tuple[np.ndarray, np.ndarray]:
    """The two exponents of a mode per unit of the weights' clock, by the quadratic formula."""
    a, b = ratio * decays[0], decays[1]
    root = np.sqrt((a - b) ** 2 / 4 + ratio * np.square(sigma))
    return -(a + b) / 2 - root, -(a + b) / 2 + root


def mode_exponential(sigma, clocks, decays) -> np.ndarray:
    """The exponential of a mode, (..., 2, 2): e^m [cosh r I + sinh(r)/r (-d, sigma zeta1; sigma zeta2, d)]."""
    a, b = decays[0] * clocks[0], decays[1] * clocks[1]
    m, d = -(a + b) / 2, (a - b) / 2
    r = np.sqrt(d**2 + np.square(sigma) * clocks[0] * clocks[1])
    sinhc = np.where(r > 0, np.sinh(r) / np.where(r > 0, r, 1.0), 1.0)
    entries = np.cosh(r) - d * sinhc, sigma * clocks[0] * sinhc, sigma * clocks[1] * sinhc, np.cosh(r) + d * sinhc
    return np.stack(np.broadcast_arrays(*(np.exp(m) * entry for entry in entries)), -1).reshape(*np.shape(r), 2, 2)


def moved_by(matrix: np.ndarray, g: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two sides of a mode after a 2x2 matrix (..., 2, 2) acted on them."""
    entry = lambda i, j: column(matrix[..., i, j])
    return entry(0, 0) * g + entry(0, 1) * w, entry(1, 0) * g + entry(1, 1) * w


def precise_motion(pull, start, rates, decays, times, digits: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """The stacked state of one member at constant rates: directions of unit norm, and logs of norms, at the times.

    The generator, made symmetric by the roots of the rates, is taken apart into eigenvectors in extended precision.
    """
    samples, classes = pull.shape
    with mpmath.workdps(digits):
        root = [mpmath.sqrt(rates[0])] * samples + [mpmath.sqrt(rates[1])] * classes
        decay = [mpmath.mpf(decays[0])] * samples + [mpmath.mpf(decays[1])] * classes
        symmetric = mpmath.diag([-lam * r**2 for lam, r in zip(decay, root, strict=True)])
        for i in range(samples):
            for c in range(samples, samples + classes):
                symmetric[i, c] = symmetric[c, i] = root[i] * root[c] * pull[i, c - samples]
        exponents, vectors = mpmath.eigsy(symmetric)
        top, units = max(exponents), mpmath.diag(root)
        parts = vectors.T * (units**-1 * mpmath.matrix(start.tolist()))
        directions, logs = [], []
        for t in times:
            moved = units * (vectors * (mpmath.diag([mpmath.exp((x - top) * t) for x in exponents]) * parts))
            length = mpmath.sqrt(mpmath.fsum(x**2 for x in moved))
            directions.append([[float(x / length) for x in row] for row in moved.tolist()])
            logs.append(float(top * t + mpmath.log(length)))
        return np.array(directions), np.array(logs)


def stack(states) -> np.ndarray:
    """Features over prototypes of states."""
    return stacked(np.asarray(states.features), np.asarray(states.prototypes))


def worst_gap(found, expected) -> np.ndarray:
    """The distance of states, biases beside features and prototypes, over the size of the second; the worst over axis 1."""
    whole = np.hypot(size_of(stack(expected)), size_of(expected.biases, 1))
    apart = np.hypot(size_of(stack(found) - stack(expected)), size_of(found.biases - expected.biases, 1))
    return (apart / whole).max(axis=1)
