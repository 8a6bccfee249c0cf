"""Pairs of learning rates whose ratio changes over time, as numbers on the host and as the library's schedules."""

from typing import NamedTuple

import numpy as np

import dynamics as dyn
from experiments.shared.instances import Draw, Leaf

END = 10.0
"""Rates are looked at from 0 to here."""


class Pair(NamedTuple):
    """Rates of features, a linear warm-up and then a cosine, and of weights, three steps; arrays lead with members.

    Members are of three kinds in turn: plateau and cosine against a constant; a constant against steps; warm-up and cosine
    against a constant. What a kind lacks has equal numbers on its two sides.
    """

    duration: Leaf
    start: Leaf
    value: Leaf
    horizon: Leaf
    floor: Leaf
    levels: Leaf
    boundaries: Leaf

    def features(self, t):
        """At times (members, times)."""
        duration, start, value, horizon, floor = (x[:, None] for x in self[:5])
        later = np.clip((t - duration) / horizon, 0.0, 1.0)
        ramp = np.where(t < duration, start + (1 - start) * t / duration, 1.0)
        return ramp * (floor + (value - floor) * (1 + np.cos(np.pi * later)) / 2)

    def weights(self, t):
        """At times (members, times)."""
        level = (t >= self.boundaries[:, :1]).astype(int) + (t >= self.boundaries[:, 1:])
        return np.take_along_axis(self.levels, level, axis=1)

    def kinks(self):
        """Times at which a rate or its slope jumps, clipped to [0, END], sorted, with both ends; (members, 6)."""
        ends = np.stack([0 * self.duration, self.duration, self.duration + self.horizon, END + 0 * self.duration], 1)
        return np.sort(np.clip(np.concatenate([ends, self.boundaries], axis=1), 0.0, END), axis=1)

    def clocks(self, t):
        """The integrals of both rates from 0 to t, (members,) each, by Gauss-Legendre quadrature between kinks."""
        edges = np.minimum(self.kinks(), t)
        nodes, weights = np.polynomial.legendre.leggauss(24)
        half = np.diff(edges, axis=1)[..., None] / 2
        at = (edges[:, :-1, None] + half * (1 + nodes)).reshape(edges.shape[0], -1)
        values = (rate(at).reshape(*half.shape[:2], -1) for rate in (self.features, self.weights))
        return tuple((value * half * weights).sum(axis=(1, 2)) for value in values)

    def schedules(self, speed) -> dyn.Rates:
        """Of one member, times a number."""
        cosine = dyn.schedules.Cosine(speed * self.value, self.horizon, speed * self.floor)
        warm = dyn.schedules.Warmup(self.duration, cosine, self.start)
        return dyn.Rates(warm, dyn.schedules.Piecewise(speed * self.levels, self.boundaries))


def pairs(draw: Draw) -> Pair:
    """Rates of a draw: features at most ratio times rate, weights at most rate."""
    kind, u = np.arange(draw.rate.size) % 3, draw.spare
    value = draw.ratio * draw.rate
    return Pair(
        duration=np.where(kind == 0, 0.5, 1 + 3 * u[:, 3]),
        start=np.where(kind == 2, 0.5 * u[:, 4], 1.0),
        value=value,
        horizon=6 + 6 * u[:, 5],
        floor=np.where(kind == 1, value, 0.2 * u[:, 6] * value),
        levels=draw.rate[:, None] * np.where(kind[:, None] == 1, 0.1 + 0.9 * u[:, :3], 1.0),
        boundaries=np.stack([1 + 4 * u[:, 7], 5.5 + 4 * u[:, 8]], axis=1),
    )
