"""Gradient descents of cross-entropy: optax in a scan under vmap, a NumPy loop, PyTorch by hand."""

from collections.abc import Callable

import jax
import numpy as np
import optax


def optax_scan(objective: Callable, steps: int, every: int) -> Callable:
    """(parameters, rates), leading axis members, to snapshots every, 2 every, ..., steps."""
    gradient = jax.grad(objective)

    def one(parameters, rate):
        optimiser = optax.sgd(rate)

        def step(carry, _):
            parameters, memory = carry
            updates, memory = optimiser.update(gradient(parameters), memory)
            return (optax.apply_updates(parameters, updates), memory), None

        def snapshot(carry, _):
            carry, _ = jax.lax.scan(step, carry, None, length=every)
            return carry, carry[0]

        return jax.lax.scan(snapshot, (parameters, optimiser.init(parameters)), None, length=steps // every)[1]

    return jax.jit(jax.vmap(one))


def numpy_loop(force: Callable, starts: tuple, rates: np.ndarray, steps: int) -> Callable:
    """Takes nothing; the state after `steps` steps of all members."""
    rates = rates[:, None, None].astype(starts[0].dtype)

    def run():
        features, prototypes = starts
        for _ in range(steps):
            up, down = force(features, prototypes)
            features, prototypes = features + rates * up, prototypes + rates * down
        return features, prototypes

    return run


def torch_bmm(labels: np.ndarray, classes: int, decay: float, starts: tuple, rates: np.ndarray, steps: int) -> Callable:
    """The same by batched products of PyTorch on one thread, gradients by hand."""
    import torch

    truth = torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)), classes)
    start = [torch.from_numpy(np.array(part)) for part in starts]
    truth = truth.to(start[0].dtype)
    rate = torch.from_numpy(rates.astype(starts[0].dtype))[:, None, None]
    keep = 1 - rate * decay

    def run():
        torch.set_num_threads(1)
        with torch.no_grad():
            features, prototypes = start
            for _ in range(steps):
                pull = rate / labels.size * (truth - torch.softmax(torch.bmm(features, prototypes.mT), dim=-1))
                features, prototypes = (
                    keep * features + torch.bmm(pull, prototypes),
                    keep * prototypes + torch.bmm(pull.mT, features),
                )
        return features.numpy(), prototypes.numpy()

    return run
