"""The problem from its definition, random instances of it, and independent solvers that judge the formulas.

Letters are the paper's: C classes, N samples per class, n = C N, p dimensions; `H (p, n)` features, columns class by
class; `W (p, C)` prototypes; `b (C,)` biases; `eta2(t)` the rate of W and b, `eta1 = s eta2` that of H, `zeta_i` their
integrals. Only the definition enters here: none of the closed forms under test.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from experiments.errata.base import Residuals


@dataclasses.dataclass(frozen=True)
class Problem:
    """The layer-peeled unhinged problem: `-z_y + gamma sum_{j != y} z_j`, mean over samples, plus quadratic decay."""

    C: int
    N: int
    gamma: float
    s: float = 1.0
    lambda1: float = 0.0
    lambda2: float = 0.0

    @property
    def n(self) -> int:
        return self.C * self.N

    @property
    def Y(self) -> np.ndarray:
        """One-hot labels `(C, n)`, class-major."""
        return np.repeat(np.eye(self.C), self.N, axis=1)

    @property
    def M(self) -> np.ndarray:
        """Minus the gradient of the mean loss in the logits `(C, n)`, entry by entry from its definition."""
        M = np.empty((self.C, self.n))
        for c in range(self.C):
            for i in range(self.n):
                M[c, i] = (1.0 if i // self.N == c else -self.gamma) / self.n
        return M

    @property
    def kappa(self) -> float:
        """Drift of each bias: a row sum of `M`."""
        return float(self.M[0].sum())

    @property
    def sigma1(self) -> float:
        return (1 + self.gamma) / (self.C * np.sqrt(self.N))

    @property
    def sigma2(self) -> float:
        return (1 + self.gamma - self.gamma * self.C) / (self.C * np.sqrt(self.N))

    def start(self, rng: np.random.Generator, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gaussian `H (p, n)`, `W (p, C)`, `b (C,)`."""
        return rng.normal(size=(p, self.n)), rng.normal(size=(p, self.C)), rng.normal(size=self.C)

    def generator(self) -> np.ndarray:
        """`A` with `d(H, W)/dzeta2 = (H, W) A`, of size n + C."""
        M = self.M
        decay_h, decay_w = self.s * self.lambda1 * np.eye(self.n), self.lambda2 * np.eye(self.C)
        return np.block([[-decay_h, M.T], [self.s * M, -decay_w]])

    def spectrum(self) -> np.ndarray:
        """Growth exponents per unit zeta2, ascending: eigenvalues of the generator, symmetric after H -> H/sqrt(s)."""
        scale = np.diag(np.r_[np.full(self.n, np.sqrt(self.s)), np.ones(self.C)])
        symmetric = scale @ self.generator() @ np.linalg.inv(scale)
        return np.linalg.eigvalsh((symmetric + symmetric.T) / 2)

    def gap(self) -> float:
        """Rate of directional convergence: the top exponent (C - 1 times) minus the next one."""
        exponents = self.spectrum()
        return float(exponents[-1] - exponents[-self.C])


def random_problem(rng: np.random.Generator, admissible: bool = False, equal_decays: bool = False) -> Problem:
    """C up to 5, N up to 4, s in (.2, 3), decays in (.05, .5); `admissible`: 0 < gamma < 2/(C - 2), off 1/(C - 1)."""
    C, N = int(rng.integers(2, 6)), int(rng.integers(1, 5))
    # Admissible draws keep |sigma2| at .3 to .7 of its value for gamma = 0, so that no two exponents nearly coincide.
    gamma = rng.uniform(0.3, 0.7) / (C - 1) if admissible else rng.uniform(0.05, 1.0)
    lambda1, lambda2 = rng.uniform(0.05, 0.5, size=2)
    return Problem(C, N, gamma, rng.uniform(0.2, 3.0), lambda1, lambda1 if equal_decays else lambda2)


def cosine_rate(rng: np.random.Generator) -> tuple[Callable, Callable, float]:
    """A cosine-annealed rate eta(t), its exact integral zeta(t), and the time at which it ends."""
    a, T = rng.uniform(0.5, 2.0), rng.uniform(2.0, 5.0)
    eta = lambda t: a / 2 * (1 + np.cos(np.pi * t / T))
    zeta = lambda t: a / 2 * (t + T / np.pi * np.sin(np.pi * t / T))
    return eta, zeta, T


def dense(problem: Problem, H: np.ndarray, W: np.ndarray, zeta2: float) -> tuple[np.ndarray, np.ndarray]:
    """`(H, W)` after a time zeta2, by the exponential of the whole generator."""
    Z = np.hstack([H, W]) @ expm(zeta2 * problem.generator())
    return Z[:, : problem.n], Z[:, problem.n :]


def ode(rhs: Callable, start: list[np.ndarray], t: float) -> list[np.ndarray]:
    """Solve `x' = rhs(t, *x)` for a list of arrays `x` from 0 to t with DOP853 at rtol 1e-13."""
    cuts = np.cumsum([x.size for x in start])[:-1]
    unpack = lambda flat: [part.reshape(x.shape) for part, x in zip(np.split(flat, cuts), start, strict=True)]
    pack = lambda parts: np.concatenate([np.ravel(part) for part in parts])
    flat_rhs = lambda u, flat: pack(rhs(u, *unpack(flat)))
    return unpack(solve_ivp(flat_rhs, (0.0, t), pack(start), method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1])


def complex_gradient(f: Callable, x: np.ndarray) -> np.ndarray:
    """Gradient of an analytic `f: (..., p) -> (...)` along the last axis, by finite differences with a complex step."""
    columns = []
    for j in range(x.shape[-1]):
        moved = x.astype(complex)
        moved[..., j] += 1e-30j  # nothing cancels, so the step can be this small
        columns.append(f(moved).imag / 1e-30)
    return np.stack(columns, axis=-1)


def relative(value: ArrayLike, truth: ArrayLike) -> float:
    return float(np.linalg.norm(np.subtract(value, truth)) / np.linalg.norm(truth))


def worst(one: Callable, members: int = 16, seed: int = 0) -> Residuals:
    """`one(rng) -> (printed, corrected)` over `members` random instances; the worst of each."""
    rng = np.random.default_rng(seed)
    printed, corrected = np.transpose([one(rng) for _ in range(members)])
    return Residuals(float(printed.max()), float(corrected.max()))
