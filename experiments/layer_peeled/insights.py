"""What the start decides about the limit, and what a common shift of features and prototypes does to decisions."""

import dataclasses
import functools

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.dense import size_of, spectrum, stacked
from experiments.shared.instances import (
    SIZES,
    Draw,
    Size,
    admissible,
    class_sides,
    common_part,
    draws,
    limits,
    sigmas,
    undecayed,
    worst_of,
)

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Appendix D"
SCALES = np.geomspace(0.1, 1e6, 13)  # of the prototypes at the start


def _draw(size: Size, members: int, decay: bool) -> Draw:
    draw = admissible(draws(size, members), size)
    return draw if decay else undecayed(draw)


def _zero_sum(x):
    return x - common_part(x)


def _unit(x):
    return x / size_of(x)[..., None, None]


def _prototypes(draw: Draw, size: Size):
    return limits(draw, size).direction.prototypes


def _depends(size: Size, members: int, decay: bool):
    """Two starts with one combination of class sides and prototypes, and all else different: the same limit.

    Without decay the combination is (G0 + sqrt(s) W0) Pi, with it sigma1 G0 + (omega2 + s lambda1) W0; by the library and by
    the dense generator.
    """
    draw, other = _draw(size, members, decay), draws(size, members, 1)
    s, (fast, slow), sigma = draw.ratio, draw.decay.T[:2], sigmas(draw, size)[0]
    upper = (-s * fast - slow + np.sqrt((s * fast - slow) ** 2 + 4 * s * sigma**2)) / 2
    weight = ((upper + s * fast) / sigma)[:, None, None]  # sqrt(s) without decay
    combined = _zero_sum(class_sides(draw.features, size) + weight * draw.prototypes)
    theirs = _zero_sum(class_sides(other.features, size))
    prototypes = (combined - theirs) / weight + common_part(other.prototypes)
    second = draw._replace(features=other.features, prototypes=prototypes)
    found = [stacked(x.features, x.prototypes) for x in (limits(start, size).direction for start in (draw, second))]
    dense = [_unit(spectrum(x, size).leading(stacked(x.features, x.prototypes))) for x in (draw, second)]
    return np.maximum(size_of(found[0] - found[1]), size_of(dense[0] - dense[1]))


def _sides(members: int) -> Measured:
    """Gaussian features of scale sigma_h: the mean square of an entry of G0 over sigma_h^2, minus one, in standard errors."""

    def residuals(size, share):
        draw = draws(size, share)
        scale = 10 ** (2 * draw.spare[:, 3] - 1)
        entries = class_sides(scale[:, None, None] * draw.features, size) / scale[:, None, None]
        squares = np.sum(entries**2, axis=(1, 2)) / entries[0].size
        return np.full(share, abs(squares.mean() - 1) / (squares.std() / share**0.5))

    return worst_of(residuals, members)


def _cosines(size: Size, members: int, decay: bool):
    """Cosine between the limit of the prototypes and their start, as the scale of the start grows; (scales, members)."""
    draw = _draw(size, members, decay)
    start = _unit(_zero_sum(draw.prototypes))
    scaled = [draw._replace(prototypes=scale * draw.prototypes) for scale in SCALES]
    return np.stack([np.sum(_unit(_prototypes(x, size)) * start, axis=(1, 2)) for x in scaled])


def _larger_prototypes(size: Size, members: int, decay: bool):
    """The cosine rises with the scale and ends within its inverse square of one: residual is what it falls or lacks."""
    cosines = _cosines(size, members, decay)
    falls = np.max(cosines[:-1] - cosines[1:], axis=0)
    return np.maximum(np.maximum(falls, 0.0), 1 - cosines[-1])


def _simplex_start(size: Size, members: int):
    """Prototypes starting as a simplex of growing scale: how far the limit's gram matrix ends from a simplex's."""
    draw = _draw(size, members, decay=False)
    frame = np.asarray(dyn.initial.simplex_etf(size.classes, size.dim))
    simplex = (np.eye(size.classes) - 1 / size.classes) / np.sqrt(size.classes - 1)
    distances = []
    for scale in SCALES:
        started = draw._replace(prototypes=np.broadcast_to(scale * frame, draw.prototypes.shape))
        limit = _prototypes(started, size)
        distances.append(size_of(_unit(limit @ limit.swapaxes(1, 2)) - simplex))
    return distances[-1]


def _shifted(size: Size, members: int):
    """A random state, the shift of its features, and the state shifted: h + Delta, w + k Delta; all about as large."""
    draw = draws(size, members)
    delta = 3 * draws(size, members, 1).prototypes[:, :1]
    factor = (4 * draw.spare[:, 4] - 2)[:, None, None]
    return draw, delta, draw.features + delta, draw.prototypes + factor * delta


def _logits(features, prototypes):
    return features @ np.swapaxes(prototypes, -1, -2)


def _shift_of_logits(size: Size, members: int):
    """The change of logits is <w_c, Delta> plus what does not depend on the class; relative to the logits."""
    draw, delta, features, prototypes = _shifted(size, members)
    change = _logits(features, prototypes) - _logits(draw.features, draw.prototypes) - _logits(delta, draw.prototypes)
    across = change - change.mean(axis=-1, keepdims=True)
    return np.abs(across).max(axis=(1, 2)) / np.abs(_logits(features, prototypes)).max(axis=(1, 2))


@functools.cache
def _decisions(size: Size, members: int):
    """Decisions of the library's logits for the state and the shifted one: as they are, and with features centred."""
    draw, _, features, prototypes = _shifted(size, members)
    problem = dyn.LayerPeeled.balanced(size.classes, size.per_class)
    centred = lambda x: x - x.mean(axis=1, keepdims=True)
    pairs = ((draw.features, draw.prototypes), (features, prototypes))
    scored = [(h, w) for h, w in pairs] + [(centred(h), w) for h, w in pairs] + [(centred(h), centred(w)) for h, w in pairs]
    decide = jax.jit(jax.vmap(lambda h, w: problem.logits(dyn.Peeled(h, w)).argmax(axis=-1)))
    return [np.asarray(decide(h, w)) for h, w in scored]


def _flips(members: int) -> Measured:
    """Decisions that a common shift leaves alone, as a share; the claim is that it does not leave all."""
    shares = []

    def residuals(size, share):
        before, after, *_ = _decisions(size, share)
        shares.append(float(np.mean(before == after)))
        return np.full(share, shares[-1])

    return dataclasses.replace(worst_of(residuals, members), numbers={"flipped": 1 - float(np.mean(shares))})


def _centred(size: Size, members: int):
    """Share of decisions it flips on globally centred features, prototypes as they are or centred too."""
    _, _, *scored = _decisions(size, members)
    return np.mean([scored[0] != other for other in scored[1:]], axis=(0, 2))


_claim = functools.partial(Claim, id="unhinged.insights", source=SOURCE)
_INSIDE = ("balanced classes", "constant ratio of rates", "0 < gamma < 2/(C-2), or C = 2")

EXPERIMENT = Experiment(
    name="insights",
    family="unhinged",
    summary="initialisation and the limit; decisions under a common shift",
    claims=(
        _claim(
            name="insights-start",
            statement="the limit depends on the start only through (G0 + sqrt(s) W0) Pi",
            assumptions=(*_INSIDE, "no decay"),
            tolerance=1e-12,
            check=functools.partial(worst_of, functools.partial(_depends, decay=False)),
        ),
        _claim(
            name="insights-start-decay",
            statement="with decay, only through (sigma1 G0 + (omega2 + s lambda1) W0) Pi",
            assumptions=_INSIDE,
            tolerance=1e-12,
            check=functools.partial(worst_of, functools.partial(_depends, decay=True)),
        ),
        _claim(
            name="insights-sides",
            statement="entries of G0 are of size sigma_h (residual in standard errors)",
            assumptions=("independent Gaussian features",),
            tolerance=5.0,
            check=_sides,
        ),
        _claim(
            name="insights-scale",
            statement="scaling W0 up turns the limit towards W0's frame",
            assumptions=(*_INSIDE, "no decay"),
            tolerance=1e-8,
            check=functools.partial(worst_of, functools.partial(_larger_prototypes, decay=False)),
        ),
        _claim(
            name="insights-scale-decay",
            statement="with decay, too",
            assumptions=_INSIDE,
            tolerance=1e-8,
            check=functools.partial(worst_of, functools.partial(_larger_prototypes, decay=True)),
        ),
        _claim(
            name="insights-simplex",
            statement="a large simplex W0 makes the limit a simplex",
            assumptions=(*_INSIDE, "no decay", "p >= C - 1"),
            tolerance=1e-4,
            check=functools.partial(worst_of, _simplex_start, sizes=SIZES[:2]),
        ),
        _claim(
            name="insights-shift",
            statement="h + Delta, w + k Delta changes logits by <w_c, Delta> plus a term without class",
            assumptions=(),
            tolerance=1e-14,
            check=functools.partial(worst_of, _shift_of_logits),
        ),
        _claim(
            name="insights-flips",
            statement="a common shift flips decisions (residual: the share it leaves alone)",
            assumptions=("a shift about as large as the features",),
            tolerance=0.9,
            check=_flips,
        ),
        _claim(
            name="insights-centred",
            statement="on globally centred features it flips none; centring the prototypes too changes none",
            assumptions=(),
            tolerance=0.0,
            check=functools.partial(worst_of, _centred),
        ),
    ),
)
