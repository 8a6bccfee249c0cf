"""Gradient flows by SciPy, one member after the other."""

from collections.abc import Callable

import numpy as np
import scipy.integrate


def loop(force: Callable, ts, tolerance: float, method: str) -> Callable:
    """(features, prototypes), leading axis members, to their saved states."""
    ts = np.asarray(ts)

    def one(features, prototypes):
        rows, shape = features.shape[0], (-1, features.shape[1])

        def velocity(t, y):
            both = y.reshape(shape)
            return np.concatenate(force(both[:rows], both[rows:])).ravel()

        y = np.concatenate([features, prototypes]).ravel()
        solved = scipy.integrate.solve_ivp(velocity, (0.0, ts[-1]), y, method=method, t_eval=ts, rtol=tolerance, atol=tolerance)
        both = solved.y.T.reshape(ts.size, *shape[:1], features.shape[1])
        return both[:, :rows], both[:, rows:]

    def moved(starts):
        saved = [one(*start) for start in zip(*starts, strict=True)]
        return tuple(np.stack(part) for part in zip(*saved, strict=True))

    return moved
