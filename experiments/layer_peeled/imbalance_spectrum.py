"""Singular values of the coupling with classes of different sizes, of weighted samples, and which modes decay keeps."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.imbalanced import weights_of
from experiments.shared.oracles import generator, labels_of, mode_exponents, pull_matrix

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Lemma 9, for any class sizes"


def _over_draws(residual, members: int) -> Measured:
    """The worst of `residual(rng)` over random class sizes."""
    values = np.array([residual(np.random.default_rng([7, k])) for k in range(members)])
    values = np.where(np.isnan(values), np.inf, values)
    return Measured(float(values.max()), members, f"draw {int(values.argmax())}")


def _sizes(rng) -> np.ndarray:
    """Two to five classes of one to six samples."""
    return rng.integers(1, 7, rng.integers(2, 6))


def _gamma(rng, classes: int) -> float:
    """In (0, 2/(C-2)); 1/(C-1) half of the time."""
    top = 2 / (classes - 2) if classes > 2 else 2.0
    return 1 / (classes - 1) if rng.random() < 0.5 else rng.uniform(0.02, 0.98) * top


def _squares(sizes, gamma: float, power: float = 0.0) -> np.ndarray:
    """Squared singular values of the dense coupling, descending."""
    return np.linalg.svd(pull_matrix(labels_of(sizes), gamma, weights_of(tuple(sizes), power)), compute_uv=False) ** 2


def _gram(rng):
    """Those of ((1 + gamma)/n)^2 (diag(n_c) - c r r^T), r_c = sqrt(n_c)."""
    sizes = _sizes(rng)
    gamma, root = _gamma(rng, sizes.size), np.sqrt(sizes)
    c = 2 * gamma / (1 + gamma) - gamma**2 * sizes.size / (1 + gamma) ** 2
    expected = np.linalg.eigvalsh(np.diag(sizes) - c * np.outer(root, root)) * ((1 + gamma) / sizes.sum()) ** 2
    return np.abs(_squares(sizes, gamma) - expected[::-1]).max() / expected.max()


def _interlaced(rng):
    """By how much mu_1 <= n_(1), n_(i+1) <= mu_i <= n_(i) is missed, sizes and mu descending."""
    sizes = _sizes(rng)
    gamma = _gamma(rng, sizes.size)
    mu = _squares(sizes, gamma) * (sizes.sum() / (1 + gamma)) ** 2
    ordered = np.sort(sizes)[::-1]
    return max((mu - ordered).max(), (ordered[1:] - mu[:-1]).max(initial=0), 0.0) / ordered[0]


def _zero(rng):
    """At gamma = 1/(C-1)."""
    sizes = _sizes(rng)
    squares = _squares(sizes, 1 / (sizes.size - 1))
    return np.sqrt(squares[-1] / squares[0])


def _step(rng):
    """Two sizes, k_a classes of a and k_b of b, at gamma = 1/(C-1)."""
    (a, b), (ka, kb) = rng.integers(1, 10, 2), rng.integers(1, 4, 2)
    classes, samples = ka + kb, ka * a + kb * b
    mixed = (kb * a + ka * b) / classes
    expected = np.sqrt(np.sort([*[a] * (ka - 1), mixed, *[b] * (kb - 1), 0])[::-1])
    expected *= (1 + 1 / (classes - 1)) / samples
    return np.abs(np.sqrt(_squares([*[a] * ka, *[b] * kb], 1 / (classes - 1))) - expected)[:-1].max() / expected[0]


def _restored(rng):
    """Weights n_c^{-1/2}: the spread of the first C - 1 singular values, and their formula (1 + gamma) s/n."""
    sizes = _sizes(rng)
    gamma = _gamma(rng, sizes.size)
    sigma = np.sort(np.sqrt(_squares(sizes, gamma, -0.5)))
    weight = (np.sqrt(sizes) * weights_of(tuple(sizes), -0.5)[np.cumsum(sizes) - 1])[0]
    expected = np.full(sizes.size, (1 + gamma) * weight / sizes.sum())
    expected[-1] = abs(1 + gamma - gamma * sizes.size) * weight / sizes.sum()
    return np.abs(sigma - np.sort(expected)).max() / expected.max()


def _overcorrected(rng):
    """Weights 1/n_c, step imbalance, at least two classes a size: the majority's share of the leading mode."""
    b = rng.integers(1, 4)
    a, ka, kb = b + rng.integers(1, 6), rng.integers(2, 4), rng.integers(2, 4)
    sizes, classes = (a,) * ka + (b,) * kb, ka + kb
    gamma = _gamma(rng, classes)
    right = np.linalg.svd(pull_matrix(labels_of(sizes), gamma, weights_of(sizes, -1.0)))[2]
    return np.abs(right[0, :ka]).max()


def _survivors(rng):
    """Positive exponents of the dense generator against singular values with sigma^2 > lambda1 lambda2, and the rest."""
    sizes = _sizes(rng)
    gamma, ratio, decays = _gamma(rng, sizes.size), 10 ** rng.uniform(-1, 1), rng.uniform(0.02, 0.4, 2)
    pull, rates = pull_matrix(labels_of(sizes), gamma), (np.sqrt(ratio), 1.0)
    symmetric = generator(pull, rates, (decays[0] * rates[0], decays[1]))
    symmetric[sizes.sum() :, : sizes.sum()] *= rates[0]
    found, squares = np.linalg.eigvalsh(symmetric), _squares(sizes, gamma)
    if np.sum(found > 0) != np.sum(squares > decays[0] * decays[1]):
        return np.inf
    expected = [*np.concatenate(mode_exponents(np.sqrt(squares), ratio, decays))]
    expected = np.sort(expected + [-ratio * decays[0]] * (sizes.sum() - sizes.size))
    return np.abs(found - expected).max() / np.abs(found).max()


_claim = functools.partial(Claim, id="beyond.imbalance", source=SOURCE)
_check = functools.partial(functools.partial, _over_draws)
_ANY = ("any class sizes", "0 < gamma < 2/(C-2)")
_BEST = ("gamma = 1/(C-1)",)

EXPERIMENT = Experiment(
    name="imbalance-spectrum",
    family="beyond",
    summary="singular values with classes of different sizes",
    claims=(
        _claim(
            name="imbalance-gram",
            statement="K^T K = ((1+gamma)/n)^2 (diag(n_c) - c r r^T), r = sqrt(n_c), "
            "c = 2 gamma/(1+gamma) - gamma^2 C/(1+gamma)^2",
            assumptions=_ANY,
            tolerance=1e-14,
            check=_check(_gram),
        ),
        _claim(
            name="imbalance-interlacing",
            statement="its eigenvalues interlace the class sizes (residual: by how much they do not)",
            assumptions=_ANY,
            tolerance=1e-14,
            check=_check(_interlaced),
        ),
        _claim(
            name="imbalance-zero-mode",
            statement="one singular value is zero, for any class sizes",
            assumptions=_BEST,
            tolerance=1e-15,
            check=_check(_zero),
        ),
        _claim(
            name="imbalance-step",
            statement="k_a classes of size a, k_b of b: (1+gamma)/n times sqrt(a), k_a - 1 times; "
            "sqrt((k_b a + k_a b)/C); sqrt(b), k_b - 1 times; 0",
            assumptions=_BEST,
            tolerance=1e-14,
            check=_check(_step),
        ),
        _claim(
            name="imbalance-root-weights",
            statement="samples weighted by n_c^{-1/2}: the balanced spectrum, C - 1 singular values equal",
            assumptions=_ANY,
            tolerance=1e-14,
            check=_check(_restored),
        ),
        _claim(
            name="imbalance-inverse-weights",
            statement="samples weighted by 1/n_c over-correct: the majority has no share of the leading mode",
            assumptions=("two class sizes, each of two classes or more", "0 < gamma < 2/(C-2)"),
            tolerance=1e-13,
            check=_check(_overcorrected),
        ),
        _claim(
            name="imbalance-survival",
            statement="a mode survives decay iff sigma^2 > lambda1 lambda2; exponents are those of the singular values",
            assumptions=("any class sizes", "constant ratio of rates", "any decays"),
            tolerance=1e-13,
            check=_check(_survivors),
        ),
    ),
)
