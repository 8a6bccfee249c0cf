"""Projections onto the eigenspaces: explicit formulas against orthonormal bases."""

import functools

import numpy as np

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import coupling, deviation, size_of, stacked
from experiments.shared.instances import SIZES, Size, class_sides, common_part, draws, spread, worst_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Lemmas 13-17"
ONE_SAMPLE = Size(4, 1, 3)


def _split(z, size: Size):
    """The five projections of stacked states: E1+, E2+, E1-, E2-, E3."""
    samples = size.classes * size.per_class
    h, w = z[..., :samples, :], z[..., samples:, :]
    g = class_sides(h, size)
    parts = []
    for sign in (1, -1):
        both = (sign * g + w) / 2
        for part in (both - common_part(both), common_part(both)):
            parts.append(stacked(spread(sign * part, size), part))
    return [*parts, stacked(h - spread(g, size), np.zeros_like(w))]


def _start(size: Size, members: int):
    draw = draws(size, members)
    return stacked(draw.features, draw.prototypes)


def _bases(size: Size, members: int):
    """Against orthonormal bases of the eigenspaces, from the dense operator at a gamma that keeps them apart."""
    draw = draws(size, members)
    gamma = (0.2 + 0.5 * draw.spare[:, 0]) / (size.classes - 1)
    pull = coupling(draw._replace(gamma=gamma), size)
    classes, samples = pull.shape[1:]
    operator = np.zeros((members, samples + classes, samples + classes))
    operator[:, :samples, samples:], operator[:, samples:, :samples] = pull.swapaxes(1, 2), pull
    values, vectors = np.linalg.eigh(operator)
    z, order = _start(size, members), np.cumsum([0, classes - 1, 1, samples - classes, 1, classes - 1])
    found = []
    for begin, end in zip(order[:-1], order[1:], strict=True):  # ascending: E1-, E2-, E3, E2+, E1+
        basis = vectors[:, :, begin:end]
        apart = np.ptp(values[:, begin:end], axis=1).max() if end > begin else 0.0
        found.append(basis @ (basis.swapaxes(1, 2) @ z) if apart < 1e-12 else np.full_like(z, np.nan))
    parts = _split(z, size)
    pairs = zip([found[4], found[3], found[0], found[1], found[2]], parts, strict=True)
    return np.max([size_of(a - b) for a, b in pairs], axis=0) / size_of(z)


def _complete(size: Size, members: int):
    """Idempotent, mutually annihilating, and together the identity."""
    z = _start(size, members)
    parts = _split(z, size)
    worst = size_of(sum(parts) - z)
    for i, part in enumerate(parts):
        for j, again in enumerate(_split(part, size)):
            worst = np.maximum(worst, size_of(again - part if i == j else again))
    return worst / size_of(z)


def _constraints(size: Size, members: int):
    """Onto W 1 = 0 and onto H Y^T = 0, against least squares: x - C^T pinv(C C^T) C x for each constraint C."""
    draw = draws(size, members)
    ones, labels = np.ones((1, size.classes)), np.repeat(np.eye(size.classes), size.per_class, axis=1)
    away = lambda constraint: np.eye(constraint.shape[1]) - np.linalg.pinv(constraint) @ constraint
    of_w = draw.prototypes - common_part(draw.prototypes)
    of_h = draw.features - spread(class_sides(draw.features, size), size)
    wrong_w = size_of(of_w - away(ones) @ draw.prototypes) / size_of(draw.prototypes)
    return np.maximum(wrong_w, size_of(of_h - away(labels) @ draw.features) / size_of(draw.features))


def _common_direction(size: Size, members: int):
    """Pi2 by one vector, h = (eps H 1/sqrt(N) + W 1)/(2C), against its form in class means."""
    z = _start(size, members)
    samples = size.classes * size.per_class
    parts, worst = _split(z, size), np.zeros(members)
    for sign, part in ((1, parts[1]), (-1, parts[3])):
        totals = sign * z[:, :samples].sum(axis=1) / size.per_class**0.5 + z[:, samples:].sum(axis=1)
        h = totals[:, None] / (2 * size.classes)
        features = np.repeat(sign * h, samples, axis=1) / size.per_class**0.5
        worst = np.maximum(worst, size_of(stacked(features, np.repeat(h, size.classes, axis=1)) - part))
    return worst / size_of(z)


def _deviations(size: Size, members: int):
    """What the library's reduction to class means sets aside is the fifth projection, and what it keeps are the sides."""
    draw = draws(size, members)
    problem = dyn.LayerPeeled.balanced(size.classes, size.per_class)

    def one(member):
        reduced = dyn.reduce.class_means(problem, dyn.Peeled(member.features, member.prototypes))
        return reduced.state.features, reduced.deviations

    sides, left = dyn.ensemble.run(one, draw, progress=False).values
    rest = _split(_start(size, members), size)[4][:, : draw.features.shape[1]]
    return np.maximum(size_of(left - rest) / size_of(draw.features), deviation(sides, class_sides(draw.features, size)))


def _one_sample(size: Size, members: int):
    z = _start(size, members)
    return size_of(_split(z, size)[4]) / size_of(z)


_claim = functools.partial(Claim, id="unhinged.projections", source=SOURCE, assumptions=("balanced classes",))

EXPERIMENT = Experiment(
    name="projections",
    family="unhinged",
    summary="projections onto the eigenspaces",
    claims=(
        _claim(
            name="projections-bases",
            statement="Pi1, Pi2, Pi3 in class means = projections by orthonormal bases of the eigenspaces",
            tolerance=1e-14,
            check=functools.partial(worst_of, _bases, sizes=(*SIZES, ONE_SAMPLE)),
        ),
        _claim(
            name="projections-complete",
            statement="idempotent, mutually orthogonal, sum to the identity",
            tolerance=5e-15,
            check=functools.partial(worst_of, _complete, sizes=(*SIZES, ONE_SAMPLE)),
        ),
        _claim(
            name="projections-constraints",
            statement="W Pi projects onto W 1 = 0, H - H Y^T Y/N onto H Y^T = 0",
            tolerance=5e-15,
            check=functools.partial(worst_of, _constraints),
        ),
        _claim(
            name="projections-common",
            statement="Pi2 = (eps h 1^T/sqrt(N), h 1^T) with h = (eps H 1/sqrt(N) + W 1)/(2C)",
            tolerance=5e-15,
            check=functools.partial(worst_of, _common_direction),
        ),
        _claim(
            name="projections-deviations",
            statement="the reduction to class means keeps G = sqrt(N) x means and sets Pi3 aside",
            tolerance=5e-15,
            check=functools.partial(worst_of, _deviations),
        ),
        _claim(
            name="projections-one-sample",
            statement="N = 1: nothing is left in the fifth space",
            tolerance=0.0,
            check=functools.partial(worst_of, _one_sample, sizes=(ONE_SAMPLE,)),
        ),
    ),
)
