"""Erratum 3: the norm-constrained minimisers of Lemma 1.

`|w_c| <= E1`, `|h_c| <= E2`; prototypes are the columns of `W (p, C)`; one sample a class is enough, since samples of a
class share their best feature.
"""

import numpy as np

from experiments.errata.base import Erratum, Residuals
from experiments.errata.oracles import relative, worst


def _optimised(rng, C, p, gamma, starts=48, sweeps=20_000):
    """Unit prototypes and features `(starts, p, C)` and losses after exact minimisation in H and in W by turns."""
    A = (1 + gamma) * np.eye(C) - gamma * np.ones((C, C))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    W = unit(rng.normal(size=(starts, p, C)))
    for _ in range(sweeps):
        H = unit(W @ A)
        W, before = unit(H @ A), W
        if abs(W - before).max() < 1e-15:
            break
    # The loss by the definition, class by class, target and non-target logits apart.
    losses = np.zeros(starts)
    for c in range(C):
        for j in range(C):
            losses += (-1.0 if j == c else gamma) * (W[:, :, j] * H[:, :, c]).sum(axis=1) / C
    return W, H, losses


def spread() -> Residuals:
    def one(rng):
        C, p = rng.integers(3, 8), rng.integers(1, 6)
        W = rng.normal(size=(p, C))
        mean = W.mean(axis=1)
        truth = sum(np.sum((C * mean - W[:, c]) ** 2) for c in range(C)) / C
        squares, common = np.sum(W**2) / C, np.sum(mean**2)
        return [relative(squares + factor * common, truth) for factor in (-(C**2), C * (C - 2))]

    return worst(one)


def minimum() -> Residuals:
    def one(rng):
        C, E1, E2 = int(rng.integers(3, 7)), *rng.uniform(0.5, 2.0, size=2)
        gamma = rng.uniform(1.1, 2.0) * 2 / (C - 2)
        best = E1 * E2 * _optimised(rng, C, C, gamma)[2].min()
        claims = [-(1 + gamma) * E1 * E2, -((C - 1) * gamma - 1) * E1 * E2]
        return [abs(claim / best - 1) for claim in claims]

    return worst(one)


def uniqueness() -> Residuals:
    def one(rng):
        C = int(rng.integers(4, 7))
        gamma = rng.uniform(0.3, 0.7) * 2 / (C - 2)
        W, H, losses = _optimised(rng, C, C, gamma)
        best = losses <= losses.min() + 1e-12
        cosines = (np.swapaxes(W, 1, 2) @ W)[best][:, ~np.eye(C, dtype=bool)]
        frame = [abs(W.sum(axis=2))[best].max(), abs(H - W)[best].max(), abs(losses.min() + 1 + gamma)]
        return abs(cosines + 1 / (C - 1)).max(), np.max(frame)

    return worst(one, members=8)


ROWS = (
    Erratum(
        "3a",
        "A",
        "Lemma 1, proof",
        "The cross term of the mean is lost.",
        "(1/C) sum_c |C wbar - w_c|^2 = (1/C) sum_c |w_c|^2 - C^2 |wbar|^2",
        "(1/C) sum_c |C wbar - w_c|^2 = (1/C) sum_c |w_c|^2 + C (C-2) |wbar|^2",
        "the sum, class by class",
        2e-15,
        spread,
    ),
    Erratum(
        "3b",
        "A",
        "Lemma 1, range of gamma",
        "Beyond gamma = 2/(C-2) prototypes coincide and features oppose them. Residual: relative error of the minimum.",
        "min L = -(1+gamma) E1 E2 for every gamma > 0",
        "min L = -((C-1) gamma - 1) E1 E2 for gamma > 2/(C-2)",
        "lowest loss over random starts of alternating exact minimisation, p = C",
        1e-14,
        minimum,
    ),
    Erratum(
        "3c",
        "A",
        "Lemma 1, uniqueness",
        "For C >= 4 every zero-sum, equal-norm frame is a minimiser. Residual printed: largest |cosine + 1/(C-1)| in "
        "the minimisers found; corrected: their |sum_c w_c|, |h_c - w_c| and excess over -(1+gamma).",
        "0 < gamma < 2/(C-2): the minimiser is a simplex ETF",
        "0 < gamma < 2/(C-2): minimisers are sum_c w_c = 0, |w_c| = E1, h_c = E2 w_c/E1; the ETF is one of them",
        "lowest losses over random starts of alternating exact minimisation, p = C",
        5e-14,
        uniqueness,
    ),
)
