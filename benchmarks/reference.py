"""The truth, in NumPy and SciPy alone: motions by DOP853 at 1e-12 and by plain loops, and observables of their states."""

import functools
from collections.abc import Callable

import numpy as np
import scipy.integrate

TIGHT = 1e-12


def soft(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def cross_entropy_force(labels: np.ndarray, classes: int, decay: float) -> Callable:
    """(features, prototypes) to minus the gradient of the mean cross-entropy with decay; leading axes are members."""
    truth = np.eye(classes)[labels]

    def force(features, prototypes):
        pull = (truth.astype(features.dtype) - soft(features @ np.swapaxes(prototypes, -1, -2))) / labels.size
        return pull @ prototypes - decay * features, np.swapaxes(pull, -1, -2) @ features - decay * prototypes

    return force


def flow(force: Callable, start: tuple[np.ndarray, np.ndarray], ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One flow at `ts` by DOP853 at 1e-12, a step ending at every time: nothing is interpolated."""
    rows, shape = start[0].shape[0], (-1, start[0].shape[1])

    def velocity(t, y):
        both = y.reshape(shape)
        return np.concatenate(force(both[:rows], both[rows:])).ravel()

    y, t, found = np.concatenate(start).ravel(), 0.0, []
    for end in ts:
        if end > t:
            solved = scipy.integrate.solve_ivp(velocity, (t, end), y, method="DOP853", rtol=TIGHT, atol=TIGHT)
            assert solved.success, solved.message
            y, t = solved.y[:, -1], end
        found.append(y.reshape(shape))
    both = np.stack(found)
    return both[:, :rows], both[:, rows:]


_FLOWS: dict[tuple, tuple] = {}


def flows(force: Callable, starts: tuple[np.ndarray, np.ndarray], ts: np.ndarray, key: tuple) -> tuple[np.ndarray, np.ndarray]:
    """`flow` of every member, leading axes (members, times); solved once in a process for a key."""
    key = (*key, starts[0].tobytes(), starts[1].tobytes(), np.asarray(ts).tobytes())
    if key not in _FLOWS:
        solved = [flow(force, start, np.asarray(ts)) for start in zip(*starts, strict=True)]
        _FLOWS[key] = tuple(np.stack(part) for part in zip(*solved, strict=True))
    return _FLOWS[key]


def descents(force: Callable, start: tuple, rates: np.ndarray, steps: int, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Descents at rates (members,), a NumPy loop: snapshots every, 2 every, ..., leading axes (members, snapshots)."""
    features, prototypes = start
    rates, found = rates[:, None, None], []
    for step in range(1, steps + 1):
        up, down = force(features, prototypes)
        features, prototypes = features + rates * up, prototypes + rates * down
        if step % every == 0:
            found.append((features, prototypes))
    return tuple(np.stack(part, axis=1) for part in zip(*found, strict=True))


def largest_difference(found, truth) -> float:
    """The largest absolute difference over members, times and entries; infinite where anything is not a number."""
    worst = max(float(np.max(np.abs(np.asarray(a) - b))) for a, b in zip(found, truth, strict=True))
    return worst if np.isfinite(worst) else np.inf


def relative_difference(found, truth, lead: int) -> float:
    """The same, divided by the largest entry of the truth (all parts together) over all but the first `lead` axes."""

    def largest(parts):
        return np.max([np.abs(part).reshape(*part.shape[:lead], -1).max(axis=-1) for part in parts], axis=0)

    apart = largest([np.asarray(a) - b for a, b in zip(found, truth, strict=True)])
    worst = float(np.max(apart / largest(truth)))
    return worst if np.isfinite(worst) else np.inf


def relative_over_times(found: dict, truth: dict) -> float:
    """Of observables (members, times): the largest difference over the largest size at any time, by member and observable."""
    worst = max(
        float(np.max(np.max(np.abs(np.asarray(found[name]) - value), axis=-1) / np.max(np.abs(value), axis=-1)))
        for name, value in truth.items()
    )
    return worst if np.isfinite(worst) else np.inf


OBSERVABLES = ("objective", "loss", "feature_norm", "prototype_norm", "average_margin", "self_duality", "nc2", "nc3")


def observed(
    features: np.ndarray, prototypes: np.ndarray, labels: np.ndarray, decay: float, loss: str
) -> dict[str, np.ndarray]:
    """The eight observables of states with any leading axes; `loss`: "cross-entropy" or "unhinged"."""
    classes = prototypes.shape[-2]
    logits = features @ np.swapaxes(prototypes, -1, -2)
    own = np.take_along_axis(logits, np.broadcast_to(labels[:, None], (*logits.shape[:-1], 1)), axis=-1)[..., 0]
    margins = own - (logits.sum(axis=-1) - own) / (classes - 1)
    if loss == "unhinged":
        losses = -margins
    else:
        top = logits.max(axis=-1)
        losses = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1)) - own
    squares = [np.sum(part**2, axis=(-1, -2)) for part in (features, prototypes)]
    belonging = np.eye(classes)[labels]
    means = np.swapaxes(belonging, 0, 1) @ features / belonging.sum(axis=0)[:, None]
    centred = means - features.mean(axis=-2, keepdims=True)
    gram = centred @ np.swapaxes(centred, -1, -2)
    simplex = np.broadcast_to(np.eye(classes) - 1 / classes, gram.shape)
    turned = prototypes - prototypes.mean(axis=-2, keepdims=True)

    def gap(a, b):
        sizes = [np.sqrt(np.sum(x**2, axis=(-1, -2), keepdims=True)) for x in (a, b)]
        return np.sqrt(np.sum((a / sizes[0] - b / sizes[1]) ** 2, axis=(-1, -2)))

    mean_loss = losses.mean(axis=-1)
    return {
        "objective": mean_loss + 0.5 * decay * sum(squares),
        "loss": mean_loss,
        "feature_norm": np.sqrt(squares[0]),
        "prototype_norm": np.sqrt(squares[1]),
        "average_margin": margins.mean(axis=-1),
        "self_duality": gap(features, prototypes[..., labels, :]),
        "nc2": gap(gram, simplex),
        "nc3": gap(turned, centred),
    }


@functools.cache
def library_observables() -> dict[str, Callable]:
    """The same eight of the library."""
    import dynamics as dyn

    return {name: getattr(dyn.observables, name) for name in OBSERVABLES}
