"""Errata 4 and 10: a frozen tangent kernel, under the unhinged loss (Theorem 8) and under squared error (Eq. 25).

`K (p, p)` acts on the feature index of each sample: `H' = eta K W M`, `W' = eta H M^T`. With `A = [[0, K], [I_p, 0]]`,
`B = [[0, M^T], [M, 0]]` and `Zd = blockdiag(H, W)` this is `Zd' = eta A Zd B`, row-major `z' = eta (A (x) B) z`.
"""

import numpy as np
from scipy.linalg import expm

from experiments.errata.base import Erratum, Residuals
from experiments.errata.oracles import Problem, complex_gradient, cosine_rate, ode, relative, worst


def _definite(rng, p):
    root = rng.normal(size=(p, p))
    return root @ root.T / p + 0.3 * np.eye(p)


def _diagonal(H, W):
    """`Zd = blockdiag(H, W)`."""
    return np.block([[H, np.zeros_like(W)], [np.zeros_like(H), W]])


def _theorem(K, M, H, W, time, printed_basis=False):
    """`blockdiag(H, W)` after `time` by Theorem 8, in the printed or in the corrected eigenbasis."""
    p, C, n = len(H), W.shape[1], H.shape[1]
    A = np.block([[np.zeros((p, p)), K], [np.eye(p), np.zeros((p, p))]])
    B = np.block([[np.zeros((n, n)), M.T], [M, np.zeros((C, C))]])
    (a, UA), (b, UB) = np.linalg.eig(A), np.linalg.eigh(B)
    inverse_a, inverse_b = np.linalg.inv(UA), np.linalg.inv(UB)
    X = np.kron(inverse_b @ inverse_a, np.eye(n + C)) if printed_basis else np.kron(inverse_a, inverse_b)
    z = np.exp(time * np.kron(a, b)) * (X @ _diagonal(H, W).ravel())
    return np.linalg.solve(X, z).reshape(2 * p, n + C)


def eigenbasis() -> Residuals:
    def one(rng):
        # Sizes at which the printed product exists at all: 2 p = C (N + 1).
        C, N = [(2, 2), (3, 1), (2, 3), (3, 3)][rng.integers(4)]
        problem, p = Problem(C, N, rng.uniform(0.05, 1.0)), C * (N + 1) // 2
        (H, W, _), K, M = problem.start(rng, p), _definite(rng, p), problem.M
        truth = _diagonal(*ode(lambda t, H, W: [K @ W @ M, H @ M.T], [H, W], 2.0))
        return [relative(_theorem(K, M, H, W, 2.0, printed_basis), truth) for printed_basis in (True, False)]

    return worst(one)


def rate() -> Residuals:
    def one(rng):
        problem, p = Problem(3, 2, rng.uniform(0.05, 1.0)), 4
        (H, W, _), K, M, (eta, zeta, t) = problem.start(rng, p), _definite(rng, p), problem.M, cosine_rate(rng)
        truth = _diagonal(*ode(lambda u, H, W: [eta(u) * K @ W @ M, eta(u) * H @ M.T], [H, W], t))
        return [relative(_theorem(K, M, H, W, time), truth) for time in (t, zeta(t))]

    return worst(one)


def cross_samples() -> Residuals:
    def one(rng):
        problem, p = Problem(3, 2, rng.uniform(0.05, 1.0)), 4
        (H, W, _), K, M = problem.start(rng, p), _definite(rng, p), problem.M
        Ks = _definite(rng, problem.n)
        Ks /= np.sqrt(np.outer(np.diag(Ks), np.diag(Ks)))  # unit diagonal: each sample's own kernel is K

        def rhs(t, H, W):
            pulls = (W @ M).T
            features = [sum(Ks[i, j] * (K @ pulls[j]) for j in range(problem.n)) for i in range(problem.n)]
            return [np.transpose(features), H @ M.T]

        truth = np.hstack(ode(rhs, [H, W], 2.0))
        k, U = np.linalg.eigh(K)
        rows = np.hstack([U.T @ H, U.T @ W])
        for row, weight in zip(rows, k, strict=True):
            right = np.block([[np.zeros((problem.n,) * 2), M.T], [weight * M @ Ks, np.zeros((problem.C,) * 2)]])
            row[:] = row @ expm(2.0 * right)
        blocks = _theorem(K, M, H, W, 2.0)
        printed = np.hstack([blocks[:p, : problem.n], blocks[p:, problem.n :]])
        return relative(printed, truth), relative(U @ rows, truth)

    return worst(one)


def _squared_error(rng):
    """A random instance: `H, W, b, Y, n` and minus the gradients of `(1/n) |W^T H + b 1^T - Y|^2` in H, W and b."""
    problem = Problem(3, 3, 0.5)
    H, W, b = problem.start(rng, p=4)
    Y, n = problem.Y, problem.n

    def loss(x):
        H_, W_, b_ = x[: H.size].reshape(H.shape), x[H.size : -b.size].reshape(W.shape), x[-b.size :]
        samples = [W_.T @ H_[:, i] + b_ - Y[:, i] for i in range(n)]
        return sum((error**2).sum() for error in samples) / n

    descent = -complex_gradient(loss, np.r_[H.ravel(), W.ravel(), b])
    parts = descent[: H.size].reshape(H.shape), descent[H.size : -b.size].reshape(W.shape), descent[-b.size :]
    return (2 / n) * (W.T @ H + b[:, None] - Y), H, W, parts


def descent_sign() -> Residuals:
    def one(rng):
        R, H, W, (dH, dW, db) = _squared_error(rng)
        K, flat = _definite(rng, 4), lambda *parts: np.concatenate([np.ravel(x) for x in parts])
        truth, formula = flat(K @ dH, dW, db), flat(K @ W @ R, H @ R.T, R.sum(axis=1))
        return relative(formula, truth), relative(-formula, truth)

    return worst(one)


def bias_sum() -> Residuals:
    def one(rng):
        R, _, _, (_, _, db) = _squared_error(rng)
        readings = [*-R.T, -R.mean(axis=1)]
        return min(relative(reading, db) for reading in readings), relative(-R.sum(axis=1), db)

    return worst(one)


_ORACLE = "the differential equations, DOP853 at rtol 1e-13"

ROWS = (
    Erratum(
        "4a",
        "A",
        "Theorem 8, eigenbasis",
        "The printed product needs 2p = C(N+1), taken here, and never diagonalises B. A's identity block must be I_p.",
        "(U_B^{-1} U_A^{-1} (x) I) z(t) = exp(zeta Lam_A (x) Lam_B) (U_B^{-1} U_A^{-1} (x) I) z(0)",
        "(U_A^{-1} (x) U_B^{-1}) z(t) = exp(zeta Lam_A (x) Lam_B) (U_A^{-1} (x) U_B^{-1}) z(0)",
        _ORACLE,
        1e-13,
        eigenbasis,
    ),
    Erratum(
        "4b",
        "A",
        "Theorem 8, rate",
        "The learning rate is dropped.",
        "exp(t Lam_A (x) Lam_B)",
        "exp(zeta Lam_A (x) Lam_B), zeta = int_0^t eta",
        _ORACLE,
        5e-13,
        rate,
    ),
    Erratum(
        "4c",
        "A",
        "Theorem 8, hypothesis",
        "The factorisation needs a kernel without cross-sample terms, which is not stated; here the kernel of a sample "
        "with itself is K, and that of samples i, j is Ks_ij K.",
        "Zd' = eta A Zd B for any frozen kernel",
        "H' = eta K W M Ks: one generator [[0, M^T], [k M Ks, 0]] per eigenvalue k of K",
        "the differential equations, sample by sample, DOP853 at rtol 1e-13",
        2e-13,
        cross_samples,
    ),
    Erratum(
        "10a",
        "A",
        "Eq. 25",
        "The minus sign of descent is missing from all three right-hand sides.",
        "H' = K W R, W' = H R^T, b' = R 1_n, R = (2/n)(W^T H + b 1^T - Y)",
        "H' = -K W R, W' = -H R^T, b' = -R 1_n",
        "minus the complex-step gradient of the loss, summed sample by sample",
        3e-15,
        descent_sign,
    ),
    Erratum(
        "10b",
        "A",
        "Eq. 25, biases",
        "R is (C, n), b is (C,). Residual printed: of its closest reading, a column of R or their mean, sign mended.",
        "b' = -R",
        "b' = -R 1_n",
        "minus the complex-step gradient of the loss, summed sample by sample",
        3e-15,
        bias_sum,
    ),
)
