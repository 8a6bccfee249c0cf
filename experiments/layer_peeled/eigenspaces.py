"""The five eigenspaces that (features, prototypes) splits into, and their eigenvalues."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.dense import coupling, size_of
from experiments.shared.instances import Draw, Size, class_sides, common_part, draws, sigmas, spread, worst_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Lemma 9 and Eq. 8"
SHAPES = tuple(Size(c, n, p) for c in (2, 3, 4, 5) for n in (1, 2, 3) for p in (1, 2, 3))


def _members_of(draw: Draw, size: Size):
    """A random member of each space with its eigenvalue: (eigenvalue, features, prototypes)."""
    zero_sum = draw.prototypes - common_part(draw.prototypes)
    same = common_part(draw.prototypes)
    sigma1, sigma2, _ = sigmas(draw, size)
    for sign in (1, -1):
        yield sign * sigma1, spread(sign * zero_sum, size), zero_sum
        yield sign * sigma2, spread(sign * same, size), same
    rest = draw.features - spread(class_sides(draw.features, size), size)
    yield 0 * sigma1, rest, np.zeros_like(zero_sum)


def _eigenvectors(size: Size, members: int):
    """(W M, H M^T) of each member against its eigenvalue times the member, relative to sigma1 times its norm."""
    draw = draws(size, members)
    pull, sigma1 = coupling(draw, size), sigmas(draw, size)[0]
    worst = np.zeros(members)
    for eigenvalue, h, w in _members_of(draw, size):
        wrong_h = pull.swapaxes(1, 2) @ w - eigenvalue[:, None, None] * h
        wrong_w = pull @ h - eigenvalue[:, None, None] * w
        worst = np.maximum(worst, np.hypot(size_of(wrong_h), size_of(wrong_w)) / sigma1 / np.hypot(size_of(h), size_of(w)))
    return worst


def _orthogonal(size: Size, members: int):
    """Cosines between members of different spaces, drawn independently."""
    draw, other = draws(size, members), draws(size, members, 1)
    worst = np.zeros(members)
    for i, (_, h, w) in enumerate(_members_of(draw, size)):
        for j, (_, h2, w2) in enumerate(_members_of(other, size)):
            if i != j:
                inner = np.sum(h * h2, axis=(1, 2)) + np.sum(w * w2, axis=(1, 2))
                lengths = np.hypot(size_of(h), size_of(w)) * np.hypot(size_of(h2), size_of(w2))
                worst = np.maximum(worst, np.abs(inner) / lengths)
    return worst


def _dimensions(members: int) -> Measured:
    """The sorted spectrum of B on all of R^{p x C(N+1)} against the five eigenvalues repeated by their dimensions."""

    def residuals(size, share):
        classes, per_class, dim = size
        draw = draws(size, share)
        pull, (sigma1, sigma2, _) = coupling(draw, size), sigmas(draw, size)
        samples = classes * per_class
        operator = np.zeros((share, samples + classes, samples + classes))
        operator[:, :samples, samples:], operator[:, samples:, :samples] = pull.swapaxes(1, 2), pull
        whole = np.einsum("mab,ij->maibj", operator, np.eye(dim)).reshape(share, *(2 * [dim * (samples + classes)]))
        repeats = dim * (classes - 1), dim, dim * classes * (per_class - 1), dim, dim * (classes - 1)
        values = np.stack([-sigma1, -sigma2, 0 * sigma1, sigma2, sigma1], axis=1)
        expected = np.sort(np.repeat(values, repeats, axis=1), axis=1)
        if expected.shape[1] != whole.shape[1]:
            return np.full(share, np.inf)
        return np.abs(np.linalg.eigvalsh(whole) - expected).max(axis=1) / sigma1

    return worst_of(residuals, members, sizes=SHAPES)


def _order(size: Size, members: int):
    """|sigma2| < sigma1 exactly inside the range, equal at its ends; the difference of squares without cancellation."""
    draw, classes = draws(size, members), size.classes
    end = 2 / (classes - 2) if classes > 2 else np.inf
    gamma = np.where(draw.spare[:, 0] < 0.5, draw.gamma, 6 * draw.spare[:, 1])
    sigma1, sigma2, _ = sigmas(draw._replace(gamma=gamma), size)
    inside = (gamma > 0) & (gamma < end)
    difference = gamma * (2 + 2 * gamma - gamma * classes) / (classes * size.per_class)
    identity = np.abs(sigma1**2 - sigma2**2 - difference) / (sigma1**2 + sigma2**2)
    ends = draw._replace(gamma=np.where(draw.spare[:, 2] < 0.5, 0.0, end if classes > 2 else 0.0))
    at_end = np.abs(np.subtract(*np.abs(sigmas(ends, size)[:2])))
    return np.max([identity, at_end, np.where(inside == (np.abs(sigma2) < sigma1), 0.0, np.inf)], axis=0)


_claim = functools.partial(Claim, id="unhinged.eigenspaces", source=SOURCE, assumptions=("balanced classes",))

EXPERIMENT = Experiment(
    name="eigenspaces",
    family="unhinged",
    summary="the eigenspaces of the coupling between features and prototypes",
    claims=(
        _claim(
            name="eigenspaces-members",
            statement="(eps Wz Ybar, Wz), (eps h 1^T/sqrt(N), h 1^T), (D, 0) are eigenvectors of eps sigma1, eps sigma2, 0",
            tolerance=5e-15,
            check=functools.partial(worst_of, _eigenvectors),
        ),
        _claim(
            name="eigenspaces-orthogonal",
            statement="the five spaces are mutually orthogonal",
            tolerance=5e-15,
            check=functools.partial(worst_of, _orthogonal),
        ),
        _claim(
            name="eigenspaces-dimensions",
            statement="dimensions p(C-1) twice, p twice, pC(N-1): together p C(N+1)",
            tolerance=1e-14,
            check=_dimensions,
        ),
        _claim(
            name="eigenspaces-order",
            statement="|sigma2| < sigma1 iff 0 < gamma < 2/(C-2) (C = 2: gamma > 0); equal at the ends",
            tolerance=5e-15,
            check=functools.partial(worst_of, _order),
        ),
    ),
)
