"""GRAD-S: gradients of |final state|^2 in four parameters, of small cross-entropy and unhinged flows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.integrate

import dynamics as dyn
from benchmarks import members as of
from benchmarks import reference
from benchmarks.peers import version
from benchmarks.race import Contest, Racer, begun, devices, error_of, loosest
from dynamics.ensemble import Dealt

CLASSES, EACH, DIM, T_END = 4, 5, 16, 30.0
SAMPLES = CLASSES * EACH
GATE = 1e-5
LADDER = (1e-6, 7e-7, 5e-7, 3.5e-7, 2e-7, 1e-7)
"""Peers take the loosest that is within the gate, the product the loosest that is also as accurate as the base."""
ERROR_IS = "largest error over checked members and parameters, relative to the member's largest derivative, against the \
variational equations by DOP853 at 1e-12"


def cross_entropy(quick: bool = False, members: int | None = None) -> Contest:
    """Logs of the rates of features and weights, and of the decays of features and prototypes."""

    def noun(x):
        decay = dyn.Decay(jnp.exp(x[2]), jnp.exp(x[3]))
        problem = dyn.LayerPeeled.balanced(CLASSES, EACH, loss=dyn.losses.CrossEntropy(), decay=decay)
        return problem, dyn.Rates(jnp.exp(x[0]), jnp.exp(x[1]))

    def gradient(tolerance: float, method: str, way: Callable) -> Callable:
        """Of the numbers and one start."""

        def final(x, start):
            problem, rates = noun(x)
            ts = jnp.asarray([T_END])
            moved = dyn.flow(problem, start, rates, ts, rtol=tolerance, atol=tolerance, max_steps=64, method=method).states
            return jnp.sum(moved.features**2) + jnp.sum(moved.prototypes**2)

        return way(final)

    def objective(parameters, x):
        features, prototypes = parameters
        losses = optax.softmax_cross_entropy_with_integer_labels(features @ prototypes.T, jnp.asarray(_labels()))
        decays = jnp.exp(x[2]) * jnp.sum(features**2) + jnp.exp(x[3]) * jnp.sum(prototypes**2)
        return jnp.mean(losses) + 0.5 * decays

    at = np.log([1.0, 1.0, of.DECAY, of.DECAY])
    contest, made = _peers(quick, members, objective, at, _cross_entropy_variation)
    racers = []
    for name, method, way in (("jacfwd", "forward", jax.jacfwd), ("grad", "auto", jax.grad)):

        def alone(tolerance: float, name=name, method=method, way=way) -> Racer:
            moved = jax.jit(jax.vmap(gradient(tolerance, method, way), (None, 0)))
            return made.racer(f"dynamics.flow, {name}", moved, version("jax"), tolerance, f"method={method!r}")

        racers.append(loosest(alone, LADDER, contest.limit))
        racers.append(made.dealt(f"dynamics.ensemble.Dealt, {name}", gradient(racers[-1].tolerance, method, way), racers[-1]))
    return contest._replace(racers=[*contest.racers, *racers])


def unhinged(quick: bool = False, members: int | None = None) -> Contest:
    """Logs of both rates, of gamma and of the decay, at equal rates and gamma 1/(C - 1), where a mode stands still."""

    def final(x, start):
        rates, gamma, decay = jnp.exp(x[:2]), jnp.exp(x[2]), jnp.exp(x[3])
        problem = dyn.LayerPeeled.balanced(CLASSES, EACH, loss=dyn.losses.Unhinged(gamma), decay=dyn.Decay(decay, decay))
        moved = dyn.exact.flow(problem, start, dyn.Rates(rates[0], rates[1]), jnp.asarray([T_END])).states
        return jnp.sum(moved.features**2) + jnp.sum(moved.prototypes**2)

    def objective(parameters, x):
        features, prototypes = parameters
        logits = features @ prototypes.T
        own = jnp.take_along_axis(logits, jnp.asarray(_labels())[:, None], axis=1)[:, 0]
        losses = -own + jnp.exp(x[2]) * (jnp.sum(logits, axis=1) - own)
        return jnp.mean(losses) + 0.5 * jnp.exp(x[3]) * (jnp.sum(features**2) + jnp.sum(prototypes**2))

    at = np.log([1.0, 1.0, 1 / (CLASSES - 1), of.DECAY])
    contest, made = _peers(quick, members, objective, at, _unhinged_variation)
    ways = (("dynamics.exact.flow, grad", jax.grad), ("dynamics.exact.flow, jacfwd", jax.jacfwd))
    racers = [made.racer(name, jax.jit(jax.vmap(way(final), (None, 0))), version("jax"), None, "") for name, way in ways]
    dealt = made.dealt("dynamics.ensemble.Dealt, jacfwd", jax.jacfwd(final), racers[-1])
    return contest._replace(racers=[*contest.racers, *racers, dealt])


def _labels() -> np.ndarray:
    return np.repeat(np.arange(CLASSES), EACH)


class Setting(NamedTuple):
    """What is differentiated: the numbers, the starts, and the gradients of those that are checked."""

    x: jax.Array
    starts: dyn.Peeled
    rows: tuple[int, ...]
    truth: np.ndarray

    def error(self, found) -> float:
        """The largest error of the checked members."""
        return reference.relative_difference((of.picked(found, self.rows),), (self.truth,), 1)

    def racer(self, name: str, gradient: Callable, library: str, tolerance, note: str, begin: Any = None) -> Racer:
        """A racer from a function (numbers, starts) to gradients."""
        begin = self.starts if begin is None else begin
        return Racer(name, lambda: gradient(self.x, begin), self.error, library, tolerance=tolerance, note=note)

    def dealt(self, name: str, gradient: Callable, like: Racer) -> Racer:
        """The same of one start, dealt to all devices."""
        many = Dealt(lambda start: gradient(self.x, start), self.starts)
        return like._replace(
            name=name, run=many, error=lambda found: self.error(many.gathered(found)), threads=devices(many), begun=None
        )


def _peers(quick, members, objective, at: np.ndarray, variation) -> tuple[Contest, Setting]:
    """The base and its peers, each at the loosest tolerance that is within the gate, and what they move."""
    count = members or (8 if quick else 64)
    problem = of.cross_entropy(CLASSES, EACH)  # for the starts, the same for both losses
    starts = of.starts(problem, DIM, count, 0.3)
    rows = of.checked(count)
    some = of.picked((starts.features, starts.prototypes), rows)
    truth = np.stack([_gradient(variation, at, *start) for start in zip(*some, strict=True)])
    made = Setting(jnp.asarray(at), starts, rows, truth)

    def peer(tolerance, adjoint, way, max_steps):
        def final(x, parameters):
            def force(t, y, x):
                pull = jax.grad(objective)(y, x)
                return tuple(-jnp.exp(x[part]) * pull[part] for part in range(2))

            solved = diffrax.diffeqsolve(
                diffrax.ODETerm(force),
                diffrax.Tsit5(),
                0.0,
                T_END,
                None,
                parameters,
                x,
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
                max_steps=max_steps,
                adjoint=adjoint,
                throw=False,
            )
            return sum(jnp.sum(part**2) for part in solved.ys)

        return jax.jit(jax.vmap(way(final), (None, 0)))

    def at_gate(name: str, adjoint, way=jax.grad, max_steps=4096, note: str = "") -> Racer:
        begin = (starts.features, starts.prototypes)
        at = lambda tolerance: made.racer(
            name, peer(tolerance, adjoint, way, max_steps), version("diffrax"), tolerance, note, begin
        )
        return loosest(at, LADDER, GATE)

    peers = [
        at_gate("diffrax, BacksolveAdjoint", diffrax.BacksolveAdjoint()),
        at_gate("diffrax, RecursiveCheckpointAdjoint, 64 steps", diffrax.RecursiveCheckpointAdjoint(), max_steps=64),
        at_gate("diffrax, ForwardMode", diffrax.ForwardMode(), jax.jacfwd, note="jacfwd"),
    ]
    settings = {"members": count, "checked": len(rows), "t_end": T_END}
    peers[0] = begun(peers[0])
    return Contest(peers, min(GATE, error_of(peers[0])), ERROR_IS, settings), made


def _gradient(variation: Callable, at: np.ndarray, features: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """The derivatives of one member: the state and its four sensitivities move together."""
    shape = (5, SAMPLES + CLASSES, DIM)
    numbers = np.exp(at)

    def velocity(t, y):
        both = y.reshape(shape)
        up, down = variation(numbers, both[:, :SAMPLES], both[:, SAMPLES:])
        return np.concatenate([up, down], axis=1).ravel()

    begin = np.zeros(shape)
    begin[0] = np.concatenate([features, prototypes])
    solved = scipy.integrate.solve_ivp(
        velocity, (0.0, T_END), begin.ravel(), method="DOP853", rtol=reference.TIGHT, atol=reference.TIGHT
    )
    end = solved.y[:, -1].reshape(shape)
    return 2 * np.sum(end[0] * end[1:], axis=(1, 2))


def _varied(rates, decays, pull, change, features, prototypes, by_decay):
    """Velocities of the state (row 0) and of its sensitivities to the logs of four numbers (rows 1 to 4).

    `pull`: minus the gradient in the logits, (samples, classes); `change`: its derivatives, (4, samples, classes);
    `by_decay`: which of the four numbers is the decay of features, and which that of prototypes.
    """
    h, w = features[0], prototypes[0]
    up, down = pull @ w - decays[0] * h, pull.T @ h - decays[1] * w
    ups = change @ w + pull @ prototypes[1:] - decays[0] * features[1:]
    downs = np.swapaxes(change, 1, 2) @ h + pull.T @ features[1:] - decays[1] * prototypes[1:]
    ups[0] += up
    downs[1] += down
    ups[by_decay[0]] -= decays[0] * h
    downs[by_decay[1]] -= decays[1] * w
    return rates[0] * np.concatenate([up[None], ups]), rates[1] * np.concatenate([down[None], downs])


def _cross_entropy_variation(numbers, features, prototypes):
    soft = reference.soft(features[0] @ prototypes[0].T)
    logits = features[1:] @ prototypes[0].T + features[0] @ np.swapaxes(prototypes[1:], 1, 2)
    change = -soft * (logits - np.sum(soft * logits, axis=-1, keepdims=True)) / SAMPLES
    pull = (np.eye(CLASSES)[_labels()] - soft) / SAMPLES
    return _varied(numbers[:2], numbers[2:], pull, change, features, prototypes, (2, 3))


def _unhinged_variation(numbers, features, prototypes):
    truth, gamma = np.eye(CLASSES)[_labels()], numbers[2]
    change = np.zeros((4, SAMPLES, CLASSES))
    change[2] = gamma * (truth - 1) / SAMPLES
    pull = ((1 + gamma) * truth - gamma) / SAMPLES
    return _varied(numbers[:2], numbers[[3, 3]], pull, change, features, prototypes, (3, 3))
