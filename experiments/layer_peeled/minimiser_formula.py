"""The minimum of the unhinged loss that `exact.minimiser` gives, with bounded norms and with decay."""

import functools

import numpy as np

import dynamics as dyn
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.instances import Size, draws, worst_of
from experiments.shared.oracles import labels_of, pull_matrix

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Lemma 1, corrected"
SIZES = (Size(3, 2, 3), Size(2, 3, 2), Size(4, 1, 4), Size(5, 1, 3))


def _drawn(size: Size, members: int):
    """Gamma: 0; inside (0, 2/(C-2)), 10 % off its ends; at its end; past it by a tenth or more. Norms from a tenth to ten."""
    draw = draws(size, members)
    top = 2 / (size.classes - 2) if size.classes > 2 else np.inf
    inside = (top if size.classes > 2 else 2.0) * (0.1 + 0.8 * draw.spare[:, 0])
    kind = np.arange(members) % (4 if size.classes > 2 else 2)
    at_end = np.full(members, top)
    gamma = np.select([kind == 0, kind == 1, kind == 2], [0 * inside, inside, at_end], top * (1.1 + draw.spare[:, 0]))
    return draw, kind, gamma, 10 ** (2 * draw.spare[:, 1:3] - 1)


@functools.cache
def _by_formula(size: Size, members: int):
    def one(gamma, norms):
        problem = dyn.LayerPeeled.balanced(size.classes, size.per_class, loss=dyn.losses.Unhinged(gamma))
        return dyn.exact.minimiser(problem, dim=size.dim, norms=(norms[0], norms[1]))

    _, _, gamma, norms = _drawn(size, members)
    return dyn.ensemble.run(lambda x: one(*x), (gamma, norms), progress=False).values


def _value(size: Size, members: int):
    """As printed for each range, and minus the spectral norm of the dense coupling times sqrt(C n) E1 E2."""
    _, kind, gamma, norms = _drawn(size, members)
    value, product = np.asarray(_by_formula(size, members).value), norms.prod(axis=1)
    printed = -np.where(kind == 3, (size.classes - 1) * gamma - 1, 1 + gamma) * product
    dense = pull_matrix(labels_of((size.per_class,) * size.classes), gamma)
    radius = np.sqrt(size.classes * size.classes * size.per_class) * product
    spectral = -np.linalg.norm(dense, 2, axis=(1, 2)) * radius
    return np.maximum(np.abs(value - printed), np.abs(value - spectral)) / -printed


def _attained(size: Size, members: int):
    """The loss at the state, from its definition, and the lengths of all its vectors."""
    _, _, gamma, norms = _drawn(size, members)
    best = _by_formula(size, members)
    features, prototypes = np.asarray(best.state.features), np.asarray(best.state.prototypes)
    logits = features @ prototypes.swapaxes(1, 2)
    own = np.repeat(np.eye(size.classes), size.per_class, axis=0)
    losses = gamma[:, None] * logits.sum(axis=2) - (1 + gamma[:, None]) * np.sum(logits * own, axis=2)
    value = np.asarray(best.value)
    lengths = [
        np.abs(np.linalg.norm(rows, axis=2) / norm[:, None] - 1).max(axis=1)
        for rows, norm in ((prototypes, norms[:, 0]), (features, norms[:, 1]))
    ]
    return np.max([np.abs(losses.mean(axis=1) / value - 1), *lengths], axis=0)


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=2, keepdims=True)


def _alternating(gamma, prototypes, sweeps: int = 800):
    """Unit prototypes after minimising over features and over prototypes in turn, each exactly, one feature a class."""
    gamma = gamma[:, None, None]
    for _ in range(sweeps):
        features = _unit((1 + gamma) * prototypes - gamma * prototypes.sum(axis=1, keepdims=True))
        prototypes = _unit((1 + gamma) * features - gamma * features.sum(axis=1, keepdims=True))
    return prototypes


def _unique(size: Size, members: int):
    """Where `unique`, the lowest of descents has the Gram matrix of the formula; elsewhere two that are as low differ."""
    draw, _, gamma, norms = _drawn(size, members)
    best = _by_formula(size, members)
    grams, values = [], []
    for start in range(4):
        prototypes = _alternating(gamma, np.roll(draw.prototypes, start, axis=0))
        pull = (1 + gamma[:, None, None]) * prototypes - gamma[:, None, None] * prototypes.sum(axis=1, keepdims=True)
        values.append(-np.linalg.norm(pull, axis=2).mean(axis=1) / -(np.asarray(best.value) / norms.prod(axis=1)))
        grams.append(prototypes @ prototypes.swapaxes(1, 2))
    lowest = np.array(values) < -1 + 1e-6
    formula = np.asarray(best.prototype_gram) / norms[:, :1, None] ** 2
    off = np.where(lowest, np.abs(np.array(grams) - formula).max(axis=(2, 3)), np.nan)
    others = np.nanmax(off, axis=0)
    return np.where(np.asarray(best.unique), others, np.where(others > 1e-3, 0.0, np.inf))


def _with_decay(size: Size, members: int):
    """Zero where the dense quadratic form (Hessian) has no negative eigenvalue, minus infinity where it has."""
    draw, _, gamma, _ = _drawn(size, members)
    sigma = np.linalg.norm(pull_matrix(labels_of((size.per_class,) * size.classes), gamma), 2, axis=(1, 2))
    tilt, over = 10 ** (2 * draw.spare[:, 3] - 1), np.where(draw.spare[:, 4] < 0.5, 1 - 1e-6, 1 + 1e-6)
    decays = np.stack([sigma * over * tilt, sigma * over / tilt], axis=1)

    def one(gamma, decays):
        problem = dyn.LayerPeeled.balanced(
            size.classes, size.per_class, loss=dyn.losses.Unhinged(gamma), decay=dyn.Decay(decays[0], decays[1])
        )
        return dyn.exact.minimiser(problem, dim=size.dim).value

    value = np.asarray(dyn.ensemble.run(lambda x: one(*x), (gamma, decays), progress=False).values)
    coupling = pull_matrix(labels_of((size.per_class,) * size.classes), gamma)
    samples = size.classes * size.per_class
    form = np.zeros((members, samples + size.classes, samples + size.classes))
    form[:, :samples, samples:], form[:, samples:, :samples] = -coupling, -coupling.swapaxes(1, 2)
    form += np.eye(samples + size.classes) * np.repeat(decays, [samples, size.classes], axis=1)[:, None]
    negative = np.linalg.eigvalsh(form)[:, 0] < 0
    return np.where(value == np.where(negative, -np.inf, 0.0), 0.0, np.inf)


_claim = functools.partial(Claim, id="unhinged.minimiser", source=SOURCE)
_BALLS = ("balanced classes", "|w_c| <= E1, |h| <= E2", "no biases", "any gamma")

EXPERIMENT = Experiment(
    name="minimiser-formula",
    family="unhinged",
    summary="the global minimum by formula, all ranges of gamma",
    claims=(
        _claim(
            name="minimiser-formula-value",
            statement="-(1+gamma) E1 E2 up to gamma = 2/(C-2), -((C-1) gamma - 1) E1 E2 past it: the coupling's spectral norm",
            assumptions=_BALLS,
            tolerance=1e-14,
            check=functools.partial(worst_of, _value, sizes=SIZES),
        ),
        _claim(
            name="minimiser-formula-state",
            statement="the state of the formula attains it, every vector at its bound, also for p < C-1",
            assumptions=_BALLS,
            tolerance=1e-14,
            check=functools.partial(worst_of, _attained, sizes=SIZES),
        ),
        _claim(
            name="minimiser-formula-unique",
            statement="it is unique for C = 2, 3 inside (0, 2/(C-2)) and for any C past it, nowhere else",
            assumptions=_BALLS,
            tolerance=1e-12,
            check=functools.partial(worst_of, _unique, sizes=SIZES),
        ),
        _claim(
            name="minimiser-formula-decay",
            statement="with decay the minimum is zero iff wd_h wd_w >= sigma_max^2 of the coupling, else minus infinity",
            assumptions=("balanced classes", "no biases", "any gamma", "1e-6 on either side"),
            tolerance=0.0,
            check=functools.partial(worst_of, _with_decay, sizes=SIZES),
        ),
    ),
)
