"""Gradient flows by PyTorch on one thread: torchdiffeq with one shared step, torchode with a step for every member."""

from collections.abc import Callable

import numpy as np


def _force(labels: np.ndarray, classes: int, decay: float) -> Callable:
    """The motion of flat states (members, numbers)."""
    import torch

    truth = torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)), classes).double()
    rows = labels.size

    def force(t, y):
        both = y.reshape(y.shape[0], rows + classes, -1)
        features, prototypes = both[:, :rows], both[:, rows:]
        pull = (truth - torch.softmax(features @ prototypes.mT, dim=-1)) / rows
        up, down = pull @ prototypes - decay * features, pull.mT @ features - decay * prototypes
        return torch.cat([up, down], dim=1).reshape(y.shape)

    return force


def torchdiffeq_shared(labels: np.ndarray, classes: int, decay: float, ts, tolerance: float) -> Callable:
    """Starts to saved states by dopri5, one step size for the batch."""
    import torch
    import torchdiffeq

    force, times = _force(labels, classes, decay), torch.tensor(np.concatenate([[0.0], np.asarray(ts)]))

    def moved(starts):
        torch.set_num_threads(1)
        with torch.no_grad():
            y = _flat(starts)
            saved = torchdiffeq.odeint(force, y, times, rtol=tolerance, atol=tolerance, method="dopri5")
            return _parts(saved[1:].transpose(0, 1), labels.size, starts[0].shape[-1])

    return moved


def torchode_each(labels: np.ndarray, classes: int, decay: float, ts, tolerance: float) -> Callable:
    """Starts to saved states by Tsit5, a step size for every member."""
    import torch
    import torchode

    term = torchode.ODETerm(_force(labels, classes, decay))
    solver = torchode.AutoDiffAdjoint(
        torchode.Tsit5(term=term), torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
    )
    times = torch.tensor(np.asarray(ts))

    def moved(starts):
        torch.set_num_threads(1)
        with torch.no_grad():
            y = _flat(starts)
            members = y.shape[0]
            problem = torchode.InitialValueProblem(
                y0=y, t_start=torch.zeros(members, dtype=y.dtype), t_eval=times.expand(members, -1)
            )
            return _parts(solver.solve(problem).ys, labels.size, starts[0].shape[-1])

    return moved


def _flat(starts):
    import torch

    both = np.concatenate([np.asarray(part) for part in starts], axis=1)
    return torch.from_numpy(both.reshape(both.shape[0], -1))


def _parts(saved, rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    both = saved.numpy().reshape(*saved.shape[:2], -1, dim)
    return both[:, :, :rows], both[:, :, rows:]
