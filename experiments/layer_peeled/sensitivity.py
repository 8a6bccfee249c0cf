"""How exponents and whole motions depend on gamma, decays, rates and the start: printed derivatives and library gradients."""

import functools

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.dense import Spectrum, spectrum
from experiments.shared.instances import SIZES, Draw, Size, admissible, draws, instance, sigmas, undecayed, worst_of
from experiments.shared.slopes import SIMULATED, along, complex_slopes, dense_flow, gradients, looped_descent

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Corollaries 3 and 5; derivatives derived here"
TWO_SIZES = SIZES[1:]


def _draw(size: Size, members: int) -> Draw:
    """Gamma inside the range of the limit theorems; 1/(C-1) a third of the time."""
    return admissible(draws(size, members), size)


def _gap_of(draw: Draw, sigma):
    return np.sqrt((draw.ratio * draw.decay[:, 0] - draw.decay[:, 1]) ** 2 + 4 * draw.ratio * sigma**2)


def _partials(draw: Draw, sigma) -> np.ndarray:
    """Of omega2(sigma) in sigma, lambda1, lambda2 and s, as printed, (4, members)."""
    s, skew, gap = draw.ratio, draw.ratio * draw.decay[:, 0] - draw.decay[:, 1], _gap_of(draw, sigma)
    by_ratio = -draw.decay[:, 0] / 2 + (draw.decay[:, 0] * skew + 2 * sigma**2) / (2 * gap)
    return np.stack([2 * s * sigma / gap, -s / 2 * (1 - skew / gap), -(1 + skew / gap) / 2, by_ratio])


def _slopes(draw: Draw, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Of the growth exponent and of the rate, in gamma, lambda1, lambda2, s, as printed, (members, 4) each."""
    unit = 1 / (size.classes * size.per_class**0.5)
    sigma1, sigma2, _ = sigmas(draw, size)
    first, second = _partials(draw, sigma1), _partials(draw, np.abs(sigma2))
    growth, runner = first.copy(), second.copy()
    growth[0] *= unit
    runner[0] *= -np.sign(sigma2) * (size.classes - 1) * unit
    return growth.T, (growth - runner).T


def _perturbed(draw: Draw, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """The same by first-order perturbation of the dense generator: covectors times its derivative times vectors.

    The mean over an eigenspace; the generator is linear in all four.
    """
    found = spectrum(draw, size)
    top = found.exponents > found.exponents[:, -1:] - 1e-10
    rest = np.where(top, -np.inf, found.exponents)
    runner = rest > rest.max(axis=1, keepdims=True) - 1e-10
    samples, classes = size.classes * size.per_class, size.classes
    own = np.repeat(np.eye(classes, dtype=bool), size.per_class, axis=0)
    pull = np.where(own, 1.0, -draw.gamma[:, None, None]) / samples
    rows, columns, s = slice(0, samples), slice(samples, None), draw.ratio[:, None, None]
    change = np.zeros((4, len(draw.gamma), samples + classes, samples + classes))
    change[0, :, rows, columns] = s * np.where(own, 0.0, -1.0) / samples
    change[0, :, columns, rows] = np.where(own, 0.0, -1.0).T / samples
    change[1, :, rows, rows] = -s * np.eye(samples)
    change[2, :, columns, columns] = -np.eye(classes)
    change[3, :, rows, rows] = -draw.decay[:, :1, None] * np.eye(samples)
    change[3, :, rows, columns] = pull
    return _mean_over(found, change, top), _mean_over(found, change, runner)


def _mean_over(found: Spectrum, change, space) -> np.ndarray:
    moved = np.einsum("mki,pmij,mjk->mpk", found.covectors, change, found.vectors, optimize=True)
    return np.sum(moved * space[:, None], axis=2) / space.sum(axis=1)[:, None]


def _printed(size: Size, members: int):
    """Both, relative to 1 + the ratio of rates."""
    draw = _draw(size, members)
    growth, rate = _slopes(draw, size)
    top, runner = _perturbed(draw, size)
    return np.max([np.abs(growth - top), np.abs(rate - (top - runner))], axis=(0, 2)) / (1 + draw.ratio)


def _kink(size: Size, members: int):
    """dE/dgamma = 1/sqrt(N) below 1/(C-1), -(C-2)/(C sqrt(N)) above; E by the dense generator at s = 1."""
    draw = undecayed(_draw(size, members))
    best, classes = 1 / (size.classes - 1), size.classes
    side = np.where(np.arange(members) % 2 == 0, 1.0, -1.0)
    gamma = np.where(draw.gamma == best, best * (1 + 0.5 * side * draw.spare[:, 1]), draw.gamma)
    draw = draw._replace(gamma=gamma, ratio=np.ones(members))
    top, runner = _perturbed(draw, size)
    expected = np.where(gamma < best, 1.0, -(classes - 2) / classes)
    singular = top[:, 0] * classes * size.per_class**0.5 - 1, np.abs(runner[:, 0]) * classes * size.per_class**0.5 - classes + 1
    return np.max([np.abs((top - runner)[:, 0] * size.per_class**0.5 - expected), *np.abs(singular)], axis=0)


@functools.cache
def _limit_program(size: Size):
    def one(gamma, decay, ratio, draw):
        draw = draw._replace(gamma=gamma, decay=decay, ratio=ratio)
        found = dyn.exact.limit(*instance(draw, size, decay=True))
        return found.growth_exponent, found.rate

    return jax.jit(jax.vmap(jax.jacrev(one, argnums=(0, 1, 2))))


def _library(draw: Draw, size: Size) -> list[np.ndarray]:
    """Gradients of the growth exponent and of the rate through `exact.limit`, (members, 4) each."""
    found = _limit_program(size)(draw.gamma, draw.decay, draw.ratio, draw)
    return [np.stack([g, d[:, 0], d[:, 1], s], axis=1) for g, d, s in found]


def _through_limit(size: Size, members: int):
    """Half of the members without decay; there off the kink."""
    draw = _draw(size, members)
    bare = np.arange(members) % 2 == 0
    off = np.where(draw.gamma == 1 / (size.classes - 1), 0.7 * draw.gamma, draw.gamma)
    draw = draw._replace(gamma=np.where(bare, off, draw.gamma), decay=np.where(bare[:, None], 0.0, draw.decay))
    gaps = [np.abs(a - b).max(axis=1) for a, b in zip(_library(draw, size), _slopes(draw, size), strict=True)]
    return np.max(gaps, axis=0) / (1 + draw.ratio)


def _at_kink(size: Size, members: int):
    """Without decay, and with s lambda1 = lambda2, at 1/(C-1): a subgradient, between the slopes of the two sides."""
    draw = _draw(size, members)
    draw = draw._replace(gamma=np.full(members, 1 / (size.classes - 1)))
    level = np.where(np.arange(members) % 2 == 0, 0.0, draw.decay[:, 0])
    draw = draw._replace(decay=np.stack([level, draw.ratio * level, level], axis=1))
    _, rate = _library(draw, size)
    unit = np.sqrt(draw.ratio) / size.per_class**0.5
    low, high = -(size.classes - 2) / size.classes * unit, unit
    return np.where(np.isfinite(rate).all(axis=1), np.maximum(np.maximum(low - rate[:, 0], rate[:, 0] - high), 0.0), np.inf)


def _through(verb: str, motion, members: int) -> Measured:
    """Gradients along every number by itself and a random direction of the start, relative to all of them."""
    members = min(members, SIMULATED) if verb == "flow" else members
    expected = _complex(motion, members)
    errors = np.linalg.norm(along(gradients(verb, members), members) - expected, axis=1) / np.linalg.norm(expected, axis=1)
    errors = np.where(np.isnan(errors), np.inf, errors)
    return Measured(float(errors.max()), members, f"member {int(errors.argmax())}")


_complex = functools.cache(complex_slopes)
_claim = functools.partial(Claim, id="beyond.sensitivity", source=SOURCE)
_INSIDE = ("balanced classes", "constant ratio of rates", "0 < gamma < 2/(C-2), or C = 2")
_MOTION = ("balanced classes", "constant ratio of rates, four pieces", "any decays", "log |W| + <U, H>/|H| at the end")

EXPERIMENT = Experiment(
    name="sensitivity",
    family="beyond",
    summary="derivatives of exponents and of motions",
    claims=(
        _claim(
            name="sensitivity-kink",
            statement="dE/dgamma = 1/sqrt(N) below 1/(C-1), -(C-2)/(C sqrt(N)) above; dsigma1/dgamma = 1/(C sqrt(N)), "
            "dsigma2/dgamma = -(C-1)/(C sqrt(N))",
            assumptions=(*_INSIDE, "no decay", "equal rates"),
            tolerance=1e-12,
            check=functools.partial(worst_of, _kink),
        ),
        _claim(
            name="sensitivity-printed",
            statement="derivatives of omega2 and omega in gamma, lambda1, lambda2, s = perturbation of the dense generator",
            assumptions=_INSIDE,
            tolerance=1e-11,
            check=functools.partial(worst_of, _printed),
        ),
        _claim(
            name="sensitivity-limit",
            statement="gradients through exact.limit = the printed derivatives",
            assumptions=_INSIDE,
            tolerance=1e-12,
            check=functools.partial(worst_of, _through_limit, sizes=TWO_SIZES),
        ),
        _claim(
            name="sensitivity-at-the-kink",
            statement="gradients of the rate at 1/(C-1) are finite, and subgradients where the maximum is a kink",
            assumptions=(*_INSIDE, "s lambda1 = lambda2"),
            tolerance=1e-12,
            check=functools.partial(worst_of, _at_kink, sizes=TWO_SIZES),
        ),
        _claim(
            name="gradient-exact-flow",
            statement="gradients through exact.flow = complex steps of the dense exponential",
            assumptions=_MOTION,
            tolerance=1e-12,
            check=functools.partial(_through, "exact.flow", dense_flow),
        ),
        _claim(
            name="gradient-flow",
            statement="gradients through the simulated flow = complex steps of the dense exponential",
            assumptions=_MOTION,
            tolerance=1e-7,
            check=functools.partial(_through, "flow", dense_flow),
        ),
        _claim(
            name="gradient-exact-descent",
            statement="gradients through exact.descent = complex steps of a plain loop",
            assumptions=_MOTION,
            tolerance=1e-12,
            check=functools.partial(_through, "exact.descent", looped_descent),
        ),
        _claim(
            name="gradient-descent",
            statement="gradients through the simulated descent = complex steps of a plain loop",
            assumptions=_MOTION,
            tolerance=1e-12,
            check=functools.partial(_through, "descent", looped_descent),
        ),
    ),
)
