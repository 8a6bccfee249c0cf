"""What judges the losses that are not linear: velocities from the definition of the loss, integrated for all members at once.

Host arrays with a leading axis of members, float64, NumPy and SciPy alone.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.integrate import solve_ivp
from scipy.special import softmax

from experiments.shared.instances import HORIZON, Draw
from experiments.shared.oracles import States, column


def residuals(loss: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Minus the gradient of the loss of each sample in its logits, (..., samples, classes)."""
    own = labels[:, None] == np.arange(logits.shape[-1])
    return own - {"square": lambda z: z, "cross-entropy": lambda z: softmax(z, axis=-1)}[loss](logits)


def forces(loss: str, state: States, labels: np.ndarray, weights=None, decay=0.0) -> States:
    """Minus the gradient of the objective; `weights` (samples,), `decay` of the features (members,)."""
    logits = state.features @ np.swapaxes(state.prototypes, 1, 2) + state.biases[:, None]
    pull = residuals(loss, logits, labels) / labels.size
    pull = pull if weights is None else pull * np.asarray(weights)[:, None]
    features = pull @ state.prototypes - column(decay) * state.features
    return States(features, np.swapaxes(pull, 1, 2) @ state.features, pull.sum(axis=1))


def annealed(draw: Draw, t) -> np.ndarray:
    """The weights' rate of each member at time t, one for all or (members,)."""
    cosine = 0.5 + 0.5 * np.cos(np.pi * np.minimum(np.divide(t, HORIZON), 1.0))
    return draw.floor + (draw.rate - draw.floor) * cosine


def integrate_all(velocity: Callable, start: Sequence[np.ndarray], times, rtol: float = 1e-13) -> list[np.ndarray]:
    """All members as one system by DOP853: `velocity(t, parts) -> parts`; parts at the times, (members, times, ...)."""
    shapes, sizes = [np.shape(part) for part in start], [np.size(part) for part in start]

    def split(x):
        cut = np.split(x, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(cut, shapes, strict=True)]

    flat = lambda t, x: np.concatenate([np.ravel(part) for part in velocity(t, split(x))])
    path = [np.concatenate([np.ravel(part) for part in start])]
    for begin, end in zip(times[:-1], times[1:], strict=True):  # its dense output between steps is less exact
        path.append(solve_ivp(flat, (begin, end), path[-1], method="DOP853", rtol=rtol, atol=rtol).y[:, -1])
    paths = [split(x) for x in path]
    return [np.stack(parts, axis=1) for parts in zip(*paths, strict=True)]


def simplex(rng, members: int, classes: int, dim: int) -> np.ndarray:
    """Unit vectors of pairwise cosine -1/(classes - 1) in random frames, (members, classes, dim)."""
    frames = np.linalg.qr(rng.normal(size=(members, dim, dim)))[0]
    even = np.eye(classes) - 1 / classes
    values, vectors = np.linalg.eigh(even)
    corners = vectors[:, values > 0.5] * np.sqrt(classes / (classes - 1))
    return corners @ frames[:, : classes - 1]


def beside(rng, corners: np.ndarray, rows: int) -> np.ndarray:
    """Random rows orthogonal to the corners of each member, (members, rows, dim)."""
    members, classes, dim = corners.shape
    noise = rng.normal(size=(members, rows, dim))
    if dim == classes - 1:
        return np.zeros_like(noise)
    across = (classes - 1) / classes * np.swapaxes(corners, 1, 2) @ corners  # the projection on their span
    return noise - noise @ across
