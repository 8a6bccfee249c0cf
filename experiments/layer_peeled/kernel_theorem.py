"""The forms the flow under a frozen kernel can be written in, each against the exponential of the general system."""

import functools

import numpy as np
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import EXPM, clock, coupling, deviation, product, stacked, under_kernel
from experiments.shared.instances import TIMES, Draw, Kernels, Size, draws, kernels, undecayed, worst_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 8, corrected and extended"


def _draw(size: Size, members: int) -> tuple[Draw, np.ndarray]:
    """Without decay, and the clock that features and weights share."""
    draw = undecayed(draws(size, members))._replace(ratio=np.ones(members))
    return draw, clock(draw, TIMES[-1:])[:, 0]


def _identity(kernel) -> np.ndarray:
    return np.broadcast_to(np.eye(kernel.shape[1]), kernel.shape)


@functools.cache
def _across_features(size: Size, members: int):
    """The draws, their clock, the kernel across feature coordinates, and where it leads."""
    (draw, zeta), both = _draw(size, members), kernels(size, members)
    judge = under_kernel(draw, size, product(Kernels(_identity(both.across_samples), both.across_features)), zeta)
    return draw, zeta, both.across_features, judge


def _eigenbases(size: Size, members: int):
    """exp(zeta Lam_A (x) Lam_B) between the eigenbases of A = [[0, K], [I, 0]] and B = [[0, M^T], [M, 0]].

    Acts on blockdiag(H, W), dim and classes in rows as the theorem has them; K is made regular, else A has no eigenbasis.
    """
    draw, zeta, kernel, _ = _across_features(size, members)
    kernel = kernel + 0.1 * np.eye(size.dim)
    samples, dim, pull = size.classes * size.per_class, size.dim, coupling(draw, size)
    left, right = np.zeros((members, 2 * dim, 2 * dim)), np.zeros((members, *2 * [samples + size.classes]))
    left[:, :dim, dim:], left[:, dim:, :dim] = kernel, np.eye(dim)
    right[:, :samples, samples:], right[:, samples:, :samples] = pull.swapaxes(1, 2), pull
    state = np.zeros((members, 2 * dim, samples + size.classes))
    state[:, :dim, :samples], state[:, dim:, samples:] = draw.features.swapaxes(1, 2), draw.prototypes.swapaxes(1, 2)
    (a, of_left), (b, of_right) = np.linalg.eig(left), np.linalg.eigh(right)
    inside = np.linalg.solve(of_left, state) @ of_right
    moved = of_left @ (np.exp(zeta[:, None, None] * a[:, :, None] * b[:, None]) * inside) @ of_right.swapaxes(1, 2)
    found = stacked(moved[:, :dim, :samples].swapaxes(1, 2), moved[:, dim:, samples:].swapaxes(1, 2))
    both = Kernels(np.broadcast_to(np.eye(samples), (members, samples, samples)), kernel)
    return deviation(found, under_kernel(draw, size, product(both), zeta))


def _modes(size: Size, members: int):
    """2x2 blocks of frequency sqrt(k_i) S_j: cosh and sinh, and w + S_j zeta h where k_i = 0."""
    draw, zeta, kernel, judge = _across_features(size, members)
    strengths, rotation = np.linalg.eigh(kernel)
    strengths = np.where(strengths < 1e-13, 0.0, strengths)
    out, sigma, into = np.linalg.svd(coupling(draw, size), full_matrices=False)  # M = out sigma into
    h, w = into @ draw.features @ rotation, out.swapaxes(1, 2) @ draw.prototypes @ rotation
    rest = draw.features - into.swapaxes(1, 2) @ into @ draw.features
    root = np.sqrt(strengths)[:, None]
    x = root * sigma[:, :, None] * zeta[:, None, None]
    sinhc = np.where(x > 0, np.sinh(x) / np.where(x > 0, x, 1), 1.0) * sigma[:, :, None] * zeta[:, None, None]
    moved_h, moved_w = h * np.cosh(x) + root**2 * w * sinhc, w * np.cosh(x) + h * sinhc
    back = rotation.swapaxes(1, 2)
    return deviation(stacked(into.swapaxes(1, 2) @ moved_h @ back + rest, out @ moved_w @ back), judge)


def _right_generator(pull, across_samples, strength):
    """[[0, M^T], [k M Ks, 0]], which multiplies a row (h, w) of states with classes and samples in columns."""
    classes, samples = pull.shape[1:]
    right = np.zeros((len(pull), samples + classes, samples + classes))
    right[:, :samples, samples:] = pull.swapaxes(1, 2)
    right[:, samples:, :samples] = strength[:, None, None] * (pull @ across_samples)
    return right


def _across_samples(size: Size, members: int):
    (draw, zeta), both = _draw(size, members), kernels(size, members)
    judge = under_kernel(draw, size, product(Kernels(both.across_samples, _identity(both.across_features))), zeta)
    right = _right_generator(coupling(draw, size), both.across_samples, np.ones(members))
    state = stacked(draw.features, draw.prototypes).swapaxes(1, 2)
    return deviation((state @ expm(zeta[:, None, None] * right)).swapaxes(1, 2), judge)


def _product(size: Size, members: int):
    """One right generator for each eigenvector of the kernel across coordinates."""
    (draw, zeta), both = _draw(size, members), kernels(size, members)
    strengths, rotation = np.linalg.eigh(both.across_features)
    rows = rotation.swapaxes(1, 2) @ stacked(draw.features, draw.prototypes).swapaxes(1, 2)
    moved = np.empty_like(rows)
    for i in range(size.dim):
        right = _right_generator(coupling(draw, size), both.across_samples, strengths[:, i])
        moved[:, i : i + 1] = rows[:, i : i + 1] @ expm(zeta[:, None, None] * right)
    return deviation((rotation @ moved).swapaxes(1, 2), under_kernel(draw, size, product(both), zeta))


def _any_kernel(size: Size, members: int):
    """The general system itself, under kernels without product structure, against DOP853 over pairs of samples."""
    draw, _ = _draw(size, members)
    samples, dim = size.classes * size.per_class, size.dim
    roots = np.random.default_rng([4, *size]).normal(size=(members, *2 * [samples * dim])) / (samples * dim) ** 0.5
    theta, pull = roots @ roots.swapaxes(1, 2), coupling(draw, size)
    blocks = theta.reshape(members, samples, dim, samples, dim)

    def velocity(t, flat):
        h, w = np.split(flat.reshape(members, samples + size.classes, dim), [samples], axis=1)
        forces = pull.swapaxes(1, 2) @ w
        moved = sum(np.einsum("mipq,mq->mip", blocks[:, :, :, j], forces[:, j]) for j in range(samples))
        return stacked(moved, pull @ h).ravel()

    start = stacked(draw.features, draw.prototypes)
    end = solve_ivp(velocity, (0.0, 2.0), start.ravel(), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    return deviation(under_kernel(draw, size, theta, np.full(members, 2.0)), end.reshape(start.shape))


_claim = functools.partial(Claim, id="unhinged.ntk", source=SOURCE)
_check = functools.partial(functools.partial, worst_of, sizes=(Size(3, 2, 3),))
_KERNEL = ("balanced classes", "a kernel constant in time", "equal rates", "no decay")

EXPERIMENT = Experiment(
    name="kernel-theorem",
    family="unhinged",
    summary="closed forms of the flow under frozen tangent kernels",
    claims=(
        _claim(
            name="kernel-eigenbases",
            statement="(U_A^-1 (x) U_B^-1) z = exp(zeta Lam_A (x) Lam_B) (U_A^-1 (x) U_B^-1) z0",
            assumptions=(*_KERNEL, "one regular kernel for every sample, none across samples"),
            tolerance=1e-11,
            limited_by=EXPM,
            check=_check(_eigenbases),
        ),
        _claim(
            name="kernel-modes",
            statement="h cosh q + sqrt(k) w sinh q, w cosh q + h/sqrt(k) sinh q, q = sqrt(k_i) S_j zeta; k = 0 included",
            assumptions=(*_KERNEL, "one kernel for every sample, none across samples"),
            tolerance=1e-11,
            limited_by=EXPM,
            check=_check(_modes),
        ),
        _claim(
            name="kernel-right-generator",
            statement="a kernel across samples: (H, W) exp(zeta [[0, M^T], [M Ks, 0]])",
            assumptions=_KERNEL,
            tolerance=1e-11,
            limited_by=EXPM,
            check=_check(_across_samples),
        ),
        _claim(
            name="kernel-right-generators",
            statement="a product kernel: one right generator for each eigenvector across coordinates",
            assumptions=_KERNEL,
            tolerance=1e-11,
            limited_by=EXPM,
            check=_check(_product),
        ),
        _claim(
            name="kernel-any",
            statement="any kernel: exp(zeta [[0, Theta (M^T (x) I)], [M (x) I, 0]]) on flattened states",
            assumptions=_KERNEL,
            tolerance=3e-10,
            limited_by="the judge: DOP853 over all members at once, relative tolerance 1e-11",
            check=_check(_any_kernel),
        ),
    ),
)
