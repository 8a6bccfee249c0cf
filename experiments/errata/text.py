"""Errata 11, 12 and 16b: slips of wording and layout, each turned into the number it changes."""

import numpy as np

from experiments.errata.base import Erratum, Residuals
from experiments.errata.oracles import Problem, cosine_rate, ode, relative, worst


def threshold() -> Residuals:
    def one(rng):
        C, gamma = int(rng.integers(3, 8)), rng.uniform(0.1, 1.0)
        # Unit simplex-ETF prototypes as columns, features anywhere on the sphere, half of them near a pair's bisector.
        W = np.sqrt(C / (C - 1)) * (np.eye(C) - 1 / C)
        near = W[:, rng.integers(1, C, size=2000)] + W[:, :1] + 0.05 * rng.normal(size=(C, 2000))
        h = np.hstack([near, rng.normal(size=(C, 2000))])
        z = W.T @ (h / np.linalg.norm(h, axis=0))  # the target is class 0
        losses = -z[0] + gamma * sum(z[j] for j in range(1, C))
        wrong = z[0] <= z[1:].max(axis=0)
        bound = (1 + gamma) * np.sqrt((C - 2) / (2 * (C - 1)))
        return [float(np.mean(wrong[losses < sign * bound])) for sign in (1, -1)]

    return worst(one)


def target_logit() -> Residuals:
    def one(rng):
        w, h, b = rng.normal(size=4), rng.normal(size=4), rng.normal()
        truth = sum(x * y for x, y in zip((*w, b), (*h, 1.0), strict=True))
        return relative((w + b) @ h, truth), relative(w @ h + b, truth)

    return worst(one)


def layout() -> Residuals:
    def one(rng):
        C, N = int(rng.integers(2, 6)), int(rng.integers(2, 5))
        problem = Problem(C, N, rng.uniform(0.1, 1.0))
        h, W = rng.normal(size=(C, N, 4)), rng.normal(size=(4, C))
        pulls = np.empty_like(h)  # minus the gradient of the mean loss in each feature, sample by sample
        for c in range(C):
            for i in range(N):
                pulls[c, i] = sum((1.0 if j == c else -problem.gamma) * W[:, j] for j in range(C)) / problem.n
        M = ((1 + problem.gamma) * np.kron(np.eye(C), np.ones((1, N))) - problem.gamma) / problem.n
        columns = (W @ M).T
        sample_major = columns.reshape(N, C, 4).swapaxes(0, 1)
        return relative(sample_major, pulls), relative(columns.reshape(C, N, 4), pulls)

    return worst(one)


def difference_equation() -> Residuals:
    def one(rng):
        problem, decay = Problem(3, 2, rng.uniform(0.1, 1.0)), rng.uniform(0.1, 0.5)
        (H, W, _), (eta, zeta, _), t = problem.start(rng, p=4), cosine_rate(rng), 2
        pull = W @ problem.M
        truth = ode(lambda u, H: [eta(u) * (pull - decay * H)], [H], t)[0]
        differential = np.exp(-decay * zeta(t)) * H - np.expm1(-decay * zeta(t)) / decay * pull
        for k in range(t):
            H = H + eta(k) * (pull - decay * H)
        return relative(H, truth), relative(differential, truth)

    return worst(one)


ROWS = (
    Erratum(
        "11a",
        "B",
        "Appendix A, second mention of the threshold",
        "The threshold lacks its minus sign. Residual: share of misclassified samples among those below it, C > 2.",
        "correct if loss < (1+gamma) sqrt((C-2)/(2(C-1)))",
        "correct if loss < -(1+gamma) sqrt((C-2)/(2(C-1)))",
        "decisions on 4000 random unit features a draw",
        0.0,
        threshold,
    ),
    Erratum(
        "11b",
        "B",
        "Appendix A, target logit",
        "A misplaced bracket. Residual: of the reading that adds b_y to each entry of w_y.",
        "(w_y^T + b_y) h",
        "w_y^T h + b_y",
        "the inner product of (w_y, b_y) with (h, 1), term by term",
        1e-14,
        target_logit,
    ),
    Erratum(
        "12",
        "B",
        "layout of H; proof of Lemma 14",
        "H is listed sample-major, the labels class-major. Residual: of the features' descent direction W M, N > 1.",
        "H = (h_{1,1}, h_{2,1}, ..., h_{C,1}, h_{1,2}, ...) with Y = I_C (x) 1_N^T",
        "H = (h_{1,1}, h_{1,2}, ..., h_{1,N}, h_{2,1}, ...) with Y = I_C (x) 1_N^T",
        "minus the gradient of the mean loss, sample by sample",
        2e-15,
        layout,
    ),
    Erratum(
        "16b",
        "B",
        "Theorem 6",
        "Says difference equation for differential equation; made visible by solving it as said, with unit steps.",
        "H_{k+1} - H_k = eta(k) (W M - lambda H_k)",
        "H' = eta (W M - lambda H), so H = e^{-lambda zeta} H_0 + (1 - e^{-lambda zeta})/lambda W M",
        "the differential equation under a cosine rate, DOP853 at rtol 1e-13",
        2e-13,
        difference_equation,
    ),
)
