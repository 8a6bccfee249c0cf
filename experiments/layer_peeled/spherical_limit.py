"""What descent with normalised features tends to, how fast, and how much its norms grow."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.instances import Size, worst_of
from experiments.shared.spherical import SHAPES, SOURCE, answers, pulls, spherical_draws
from experiments.shared.spherical_oracles import angle, cosine, descend, length, pairs, planar_pairs, unit, worst


def _contraction(members: int, rescaled: bool) -> Measured:
    """|h/|h| - v/|v|| from step to step once it is below 1e-9; the pull along an axis, so that angles keep their digits."""
    h, v, eta = planar_pairs(members, alpha=(0.2, 0.9), rescaled=rescaled)
    path = descend(h, v, np.repeat(eta[None, :, None], 400, axis=0), rescaled=rescaled)
    theta = np.abs(np.arctan2(path[..., 1], path[..., 0]))
    k = np.argmax(theta < 1e-9, axis=0)
    picked = lambda j: np.take_along_axis(2 * np.sin(theta / 2), j[None], axis=0)[0]
    last = eta * length(v) / length(path[-1]) ** (1 if rescaled else 2)
    residual = np.where(k > 0, np.abs(picked(k + 1) / picked(k) - (1 - last)), np.inf)
    return worst(residual, smallest=float(last.min()), largest=float(last.max()))


def _batch(members: int) -> Measured:
    """The root of the summed squares over five samples follows the smallest alpha_inf."""
    parts = [planar_pairs(members, alpha=(0.3 * 1.25**i, 0.32 * 1.25**i), theta=(0.1, 0.5), seed=i) for i in range(5)]
    h, v, eta = (np.stack(x) for x in zip(*parts, strict=True))
    path = descend(h, v, np.repeat(eta[None, ..., None], 600, axis=0))
    theta = np.abs(np.arctan2(path[..., 1], path[..., 0]))
    total = np.sqrt(np.sum(theta**2, axis=1))
    last = (eta * length(v) / length(path[-1]) ** 2).min(axis=0)
    return worst(np.abs(total[-1] / total[-2] - (1 - last)))


def _growth(alpha, theta, steps: int) -> np.ndarray:
    """log(|h_inf|/|h_0|) by the recursion of angle and step; any shapes."""
    alpha, theta = np.broadcast_arrays(np.asarray(alpha, float), np.asarray(theta, float))
    grown = np.zeros(alpha.shape)
    for _ in range(steps):
        tangent = alpha * np.sin(theta)
        theta, alpha = theta - np.arctan(tangent), alpha / (1 + tangent**2)
        grown = grown + 0.5 * np.log1p(tangent**2)
    return grown


def _bounded(members: int, constant: float) -> Measured:
    """By how much log(|h_inf|/|h_0|) exceeds the constant times alpha_0 theta_0; the vectors themselves."""
    h, v, eta = pairs(members, alpha=(0.02, 1.0), theta=(0.01, 3.14))
    path = descend(h, v, np.repeat(eta[None, :, None], 1500, axis=0))
    alpha, theta = eta * length(v) / length(h) ** 2, angle(h, v)
    ratio = np.log(length(path[-1]) / length(h)) / (alpha * theta)
    alphas, thetas = np.linspace(0.02, 1, 50)[:, None], np.linspace(0.02, 3.14, 157)[None]
    grid = float((_growth(alphas, thetas, 1500) / (alphas * thetas)).max())
    return worst(np.maximum(ratio - constant, 0.0), **{"largest ratio": float(ratio.max()), "largest ratio on a grid": grid})


def _small_steps(members: int) -> Measured:
    """(|h_inf|^2/|h_0|^2 - 1)/(alpha_0 (1 - beta_0)) - 1 at alpha_0 = .01; halving alpha_0 halves it."""
    theta = np.random.default_rng(6).uniform(0.2, 3.0, members)
    off = [np.expm1(2 * _growth(np.full(members, a), theta, int(60 / a))) / (a * (1 - np.cos(theta))) - 1 for a in (0.02, 0.01)]
    numbers = {f"median at {a}": float(np.median(x)) for a, x in zip((0.02, 0.01), off, strict=True)}
    return worst(np.abs(off[1]), **numbers)


def _any_step(members: int) -> Measured:
    """alpha_0 log-uniform from .1 to 100: the angle after 6000 steps; the smallest alpha_inf is what makes it slow."""
    h, v, eta = pairs(members, alpha=(0.1, 100.0), theta=(0.05, 3.1))
    end = h
    for _ in range(6):
        end = descend(end, v, np.repeat(eta[None, :, None], 1000, axis=0))[-1]
    return worst(angle(end, v), **{"least alpha_inf": float((eta * length(v) / length(end) ** 2).min())})


def _fixed(members: int) -> Measured:
    """Starts along the pull and opposite to it, exactly."""
    h, v, eta = planar_pairs(members, alpha=(0.1, 2.0))
    both = np.concatenate([length(h)[:, None] * [[1.0, 0.0]], length(h)[:, None] * [[-1.0, 0.0]]])
    path = descend(both, np.concatenate([v, v]), np.repeat(np.concatenate([eta, eta])[None, :, None], 100, axis=0))
    return worst(length(path[-1] - both) / length(both))


def _directions(size: Size, members: int, rescaled: bool):
    """The limit that the library states against iterates of the vectors, prototypes not zero-sum."""
    draw = spherical_draws(size, members, rescaled, False)
    limit = answers("limit", draw, size, rescaled).direction.features
    v, h = pulls(draw, size), draw.features
    rates = 0.5 * (length(h) ** (1 if rescaled else 2) / length(v))[..., None]
    end = descend(h, v, np.repeat(rates[None], 300, axis=0), rescaled=rescaled)[-1]
    return np.max(length(unit(limit) - unit(end)), axis=1)


def _norms(size: Size, members: int):
    """Without decay, the limit keeps the norms of the start: their shares in features and prototypes."""
    draw = spherical_draws(size, members, False, False)
    found = answers("limit", draw, size)
    scale = np.exp(found.constants["log_norm"])[:, None]
    return np.max(np.abs(scale * length(found.direction.features) / length(draw.features) - 1), axis=1)


def _rate(size: Size, members: int, rescaled: bool):
    """The limit's rate against the slope of the distance of the vectors, by the half-angle law far out."""
    draw = spherical_draws(size, members, rescaled, False)
    strength = length(pulls(draw, size)) / length(draw.features) ** (1 if rescaled else 2)
    return np.abs(answers("limit", draw, size, rescaled).rate / strength.min(axis=1) - 1)


def _not_prototypes(members: int) -> Measured:
    """Share of members whose limit of some sample is within 1e-3 of its own prototype's direction."""
    shares = []
    for size in SHAPES:
        draw = spherical_draws(size, members, False, False)
        own = np.repeat(draw.prototypes, size.per_class, axis=1)
        apart = np.sqrt(np.maximum(0, 2 - 2 * cosine(own, pulls(draw, size)))).max(axis=1)
        shares.append(np.mean((apart < 1e-3) & (draw.gamma > 0.01)))
    return Measured(float(max(shares)), members * len(SHAPES), "share of members")


_claim = functools.partial(Claim, id="unhinged.spherical.gd", source=SOURCE)


def _check(one, rescaled: bool):
    """Rescaled rates with two classes, plain ones with fewer dimensions than a simplex needs."""
    return functools.partial(worst_of, one, sizes=SHAPES[int(not rescaled) :][:1])


_BASIC = ("anchored prototypes", "normalised features", "constant steps")

EXPERIMENT = Experiment(
    name="spherical-limit",
    family="spherical",
    summary="descent with normalised features: limit, contraction, growth of norms",
    claims=(
        _claim(
            name="spherical-limit-contraction",
            statement="|h/|h| - v/|v|| contracts by 1 - alpha_inf a step, alpha_inf = eta |v|/|h_inf|^2",
            assumptions=(*_BASIC, "alpha_0 in [.2, .9]"),
            tolerance=1e-12,
            check=functools.partial(_contraction, rescaled=False),
        ),
        Claim(
            name="spherical-rlr-contraction",
            id="recipe.rlr",
            source=SOURCE.replace("Theorem 7", "Section 4.3"),
            statement="rescaled rates: it contracts by 1 - eta |v|/|h_inf| a step",
            assumptions=(*_BASIC, "eta |v|/|h_0| in [.2, .9]"),
            tolerance=1e-12,
            check=functools.partial(_contraction, rescaled=True),
        ),
        _claim(
            name="spherical-limit-batch",
            statement="the error of a batch follows its smallest alpha_inf",
            assumptions=(*_BASIC, "five samples, alpha_0 apart by a quarter, theta_0 in [.1, .5]"),
            tolerance=1e-12,
            check=_batch,
        ),
        _claim(
            name="spherical-limit-norm-bound",
            statement="log(|h_inf|/|h_0|) <= (2/pi) alpha_0 theta_0: norms are bounded by themselves (residual: excess)",
            assumptions=(*_BASIC, "alpha_0 <= 1"),
            tolerance=0.0,
            check=functools.partial(_bounded, constant=2 / np.pi),
        ),
        _claim(
            name="spherical-limit-norm-bound-sharper",
            statement="log(|h_inf|/|h_0|) <= alpha_0 theta_0/2 (residual: excess)",
            assumptions=(*_BASIC, "alpha_0 <= 1"),
            tolerance=0.0,
            check=functools.partial(_bounded, constant=0.5),
        ),
        _claim(
            name="spherical-limit-small-steps",
            statement="|h_inf|^2/|h_0|^2 = 1 + alpha_0 (1 - beta_0) to leading order (residual: relative, at alpha_0 = .01)",
            assumptions=(*_BASIC, "alpha_0 = .01"),
            tolerance=0.01,
            check=_small_steps,
        ),
        _claim(
            name="spherical-limit-any-step",
            statement="descent ends along the pull from every constant step (residual: angle after 6000 steps)",
            assumptions=(*_BASIC, "alpha_0 in [.1, 100]"),
            tolerance=1e-12,
            check=_any_step,
        ),
        _claim(
            name="spherical-limit-fixed-points",
            statement="beta_0 = 1 and beta_0 = -1 are fixed points",
            assumptions=(*_BASIC, "exactly along an axis"),
            tolerance=1e-14,
            check=_fixed,
        ),
        *(
            _claim(
                name=f"spherical-limit-directions{name}",
                statement="the stated limit is the direction of B W, whether or not prototypes sum to zero",
                assumptions=("anchored prototypes, any W", "normalised features", "alpha_0 = 1/2"),
                tolerance=1e-12,
                check=_check(functools.partial(_directions, rescaled=rescaled), rescaled),
            )
            for name, rescaled in (("", False), ("-rescaled", True))
        ),
        _claim(
            name="spherical-limit-not-prototypes",
            statement="that is not the direction of the prototypes (residual: share of members where it is)",
            assumptions=("W 1 != 0", "gamma > .01"),
            tolerance=0.0,
            check=_not_prototypes,
        ),
        _claim(
            name="spherical-limit-norms",
            statement="the limit of the flow without decay keeps every norm",
            assumptions=("anchored prototypes, any W", "normalised features"),
            tolerance=1e-14,
            check=_check(_norms, False),
        ),
        *(
            _claim(
                name=f"spherical-limit-rate{name}",
                statement="its rate per unit of the features' clock is the smallest |v|/|h_0|^2 (rescaled: /|h_0|)",
                assumptions=("anchored prototypes, any W", "normalised features"),
                tolerance=1e-14,
                check=_check(functools.partial(_rate, rescaled=rescaled), rescaled),
            )
            for name, rescaled in (("", False), ("-rescaled", True))
        ),
    ),
)
