"""The spherical case: random instances, the library's answers for all of them, and problems in the plane."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

import dynamics as dyn
from experiments.shared.dense import clock, coupling
from experiments.shared.instances import HORIZON, SIZES, TIMES, Draw, Size, draws, instance
from experiments.shared.spherical_oracles import descend, dot, length, unit

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 7"
SHAPES = SIZES[1:]
"""Two classes; fewer dimensions than a simplex needs."""
CHUNK = 520
"""Members in one call of a compiled program."""
STEPS, EVERY = 60, 20


def cosine_rate(draw: Draw):
    """The features' rate of a draw as a function of time, shaped to multiply (members, samples, dim)."""
    rate, floor, ratio = (x[:, None, None] for x in (draw.rate, draw.floor, draw.ratio))
    return lambda t: ratio * (floor + (rate - floor) * (0.5 + 0.5 * np.cos(np.pi * np.minimum(t / HORIZON, 1.0))))


def pulls(draw: Draw, size: Size) -> np.ndarray:
    """B W from the definition of the loss, (members, samples, dim)."""
    return coupling(draw, size).swapaxes(1, 2) @ draw.prototypes


@functools.cache
def spherical_draws(size: Size, members: int, rescaled: bool, decay: bool, behind: float = 0.0) -> Draw:
    """Draws that turn by A log-uniform in [.05, 6] until the horizon, were there no decay; decay takes at most e^{-1.5}.

    Of each member's samples one starts close to its pull, one close to the opposite, one almost there. With `behind` all start
    within that angle of the opposite.
    """
    draw, rng = draws(size, members), np.random.default_rng([11, *size])
    v, rows = pulls(draw, size), (members, size.classes * size.per_class)
    theta = rng.uniform(0.05, 3.0, rows)
    theta[:, 0] = 10 ** rng.uniform(-6, -1, members)
    theta[:, 1] = np.pi - 10 ** rng.uniform(-2, -1, members)
    theta[:, 2] = np.pi - 10 ** rng.uniform(-5, -3, members)
    if behind:
        theta = np.pi - behind * rng.uniform(0.05, 0.95, rows)
    aim = unit(v)
    tangent = unit(draw.features - dot(draw.features, aim)[..., None] * aim)
    zeta = (draw.ratio * clock(draw, [HORIZON])[:, 0])[:, None]
    once = length(v) * zeta / 10 ** rng.uniform(np.log10(0.05), np.log10(6), rows)
    norms = once if rescaled else np.sqrt(once)
    coefficient = np.zeros(members)
    if decay:
        coefficient = 1.5 * draw.spare[:, 0] / (zeta[:, 0] * (norms.max(axis=1) if rescaled else 1.0))
    features = norms[..., None] * (np.cos(theta)[..., None] * aim + np.sin(theta)[..., None] * tangent)
    return draw._replace(features=features, decay=np.stack([coefficient, *draw.decay.T[1:]], axis=1))


def epsilon(draw: Draw):
    """That of the adjusted prototypes, uniform in (.05, .55)."""
    return 0.05 + 0.5 * draw.spare[..., 3]


def _member(draw: Draw, size: Size, rescaled: bool, adjusted: bool):
    eps = epsilon(draw) if adjusted else None
    problem, state, rates = instance(draw, size, decay=True, normalize=True, anchored=True, adjusted=eps)
    return problem, state, dyn.Rates.proportional(rates.weights, draw.ratio, rescaled)


def _run(draw: Draw):
    """dt and momentum of a descent; decay that shrinks norms for longer makes alpha large and the iterates chaotic."""
    momentum = 0.95 * draw.spare[..., 1]
    return 0.15 * draw.spare[..., 2] * (1 - momentum), momentum


@functools.cache
def _program(verb: str, size: Size, rescaled: bool, adjusted: bool, nesterov: bool):
    def one(draw):
        member = _member(draw, size, rescaled, adjusted)
        if verb == "simulated flow":
            return dyn.flow(*member, TIMES, rtol=1e-10, atol=1e-12).states.features
        if verb == "flow":
            return dyn.exact.flow(*member, TIMES).states.features
        if verb == "limit":
            return dyn.exact.limit(*member)
        descent = dyn.descent if verb == "simulated descent" else dyn.exact.descent
        dt, momentum = _run(draw)
        run = {"every": EVERY, "dt": dt, "momentum": momentum, "nesterov": nesterov}
        return descent(*member, STEPS, **run).states.features

    return jax.jit(jax.vmap(one))


def answers(verb: str, draw: Draw, size: Size, rescaled=False, *, adjusted=False, nesterov=False, chunk=CHUNK):
    """The library's features of all members, (members, times, samples, dim), or their limits.

    `verb` is "flow", "descent", "limit", "simulated flow" or "simulated descent". Chunks of one
    size, padded with the first member.
    """
    members = draw.gamma.shape[0]
    program, pieces = _program(verb, size, rescaled, adjusted, nesterov), []
    for begin in range(0, members, chunk):
        index = np.arange(begin, begin + chunk)
        index = np.where(index < members, index, begin)
        pieces.append(program(jax.tree.map(lambda x, index=index: x[index], draw)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:members], *pieces)


def iterates(draw: Draw, size: Size, rescaled=False, *, adjusted=False, nesterov=False) -> np.ndarray:
    """What `answers` calls "descent", by the loop over vectors."""
    rate, (dt, momentum) = cosine_rate(draw), (x[:, None, None] for x in _run(draw))
    path = descend(
        draw.features,
        pulls(draw, size),
        [dt * rate(k * dt) for k in range(STEPS)],
        rescaled=rescaled,
        decay=draw.decay[:, :1, None],
        momentum=momentum,
        nesterov=nesterov,
        eps=epsilon(draw)[:, None, None] if adjusted else None,
    )
    return np.moveaxis(path[::EVERY], 0, 1)


def gap(found, expected, weight: ArrayLike = 1.0) -> np.ndarray:
    """Worst distance of a sample over its norm, times its weight, for each member; (members, times, samples, dim)."""
    return np.max(weight * length(found - expected) / length(expected), axis=(1, 2))


def planar(strength, theta, size, **fields) -> tuple[dyn.LayerPeeled, dyn.Peeled]:
    """Samples in planes of their own: pulls of given strength along the first of two axes, starts at given angles and norms.

    A sample only ever moves in the plane of its start and its pull, so this is any spherical problem, two numbers a sample.
    """
    strength, samples = jnp.asarray(strength), np.size(strength)
    problem = dyn.LayerPeeled.balanced(samples, 1, loss=dyn.losses.Unhinged(0.0), normalize=True, anchored=True, **fields)
    prototypes = samples * strength[:, None] * np.array([1.0, 0.0])
    features = jnp.asarray(size)[..., None] * np.stack([np.cos(theta), np.sin(theta)], axis=-1)
    return problem, dyn.Peeled(features, prototypes)
