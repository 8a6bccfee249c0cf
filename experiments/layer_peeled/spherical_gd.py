"""Descent with normalised features: the recursion of angle and step, and how large a step never turns back."""

import functools

import numpy as np

from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.spherical import SOURCE
from experiments.shared.spherical_oracles import angle, cosine, descend, length, pairs, unit, worst

STEPS = 60


@functools.cache
def _path(members: int, rescaled: bool):
    """Pairs, their iterates at random steps within a tenth of eta, and the steps, (STEPS, members)."""
    h, v, eta = pairs(members, alpha=(0.01, 5.0), rescaled=rescaled)
    rates = eta * np.random.default_rng(3).uniform(0.9, 1.1, (STEPS, members))
    return v, descend(h, v, rates[..., None], rescaled=rescaled), rates


def _alphas(v, path, rates, rescaled: bool):
    """eta |v|/|h|^2 (rescaled: /|h|) before each step."""
    return rates * length(v) / length(path[:-1]) ** (1 if rescaled else 2)


def _cosines(members: int, rescaled: bool) -> Measured:
    v, path, rates = _path(members, rescaled)
    alpha, beta = _alphas(v, path, rates, rescaled), cosine(path, v)
    square = 1 - beta[:-1] ** 2
    return worst(np.abs((beta[:-1] + alpha * square) / np.sqrt(1 + alpha**2 * square) - beta[1:]))


def _sines(members: int) -> Measured:
    v, path, rates = _path(members, False)
    alpha, beta = _alphas(v, path, rates, False), cosine(path, v)
    square = 1 - beta**2
    return worst(np.abs(square[:-1] * (1 - alpha * beta[:-1]) ** 2 / (1 + alpha**2 * square[:-1]) - square[1:]))


def _steps(members: int, rescaled: bool) -> Measured:
    """The next alpha, relative; rescaled it falls by the root."""
    v, path, rates = _path(members, rescaled)
    alpha, beta = _alphas(v, path, rates, rescaled), cosine(path, v)
    growth = 1 + alpha[:-1] ** 2 * (1 - beta[:-2] ** 2)
    expected = rates[1:] / rates[:-1] * alpha[:-1] / growth ** (0.5 if rescaled else 1.0)
    return worst(np.abs(alpha[1:] / expected - 1))


def _norms(members: int, rescaled: bool) -> Measured:
    """|h|^2 (1 + alpha^2 (1 - beta^2)), which is |h|^2 + |step|^2; relative."""
    v, path, rates = _path(members, rescaled)
    alpha, beta = _alphas(v, path, rates, rescaled), cosine(path, v)
    before, after = length(path[:-1]) ** 2, length(path[1:]) ** 2
    pythagoras = np.abs((before + length(np.diff(path, axis=0)) ** 2) / after - 1)
    return worst(np.maximum(np.abs(before * (1 + alpha[:] ** 2 * (1 - beta[:-1] ** 2)) / after - 1), pythagoras))


def _angles(members: int, rescaled: bool) -> Measured:
    v, path, rates = _path(members, rescaled)
    alpha, theta = _alphas(v, path, rates, rescaled), angle(path, v)
    return worst(np.abs(np.abs(theta[:-1] - np.arctan(alpha * np.sin(theta[:-1]))) - theta[1:]))


def _drop(path, v) -> np.ndarray:
    """The largest fall of cos(h, v) along each path."""
    return np.maximum(0.0, -np.diff(cosine(path, v), axis=0)).max(axis=0)


def _monotone(members: int, rescaled: bool) -> Measured:
    """alpha_0 log-uniform up to 2, a quarter of them 2 exactly."""
    h, v, eta = pairs(members, theta=(1e-3, 3.14), rescaled=rescaled)
    power = 1 if rescaled else 2
    eta[::4] = 2 * length(h[::4]) ** power / length(v[::4])
    path = descend(h, v, np.repeat(eta[None, :, None], STEPS, axis=0), rescaled=rescaled)
    return worst(np.maximum(_drop(path, v), np.maximum(0.0, -np.diff(length(path) / length(h), axis=0)).max(axis=0)))


def _sharp(members: int) -> Measured:
    """Share of pairs whose cosine does not fall just above alpha = 2 cos/cos(2 theta), or falls just below it."""
    h, v, _ = pairs(members, theta=(0.01, 0.7))
    theta = angle(h, v)
    edge = 2 * np.cos(theta) / np.cos(2 * theta) * length(h) ** 2 / length(v)
    changes = [cosine(descend(h, v, [(factor * edge)[:, None]])[-1], v) - cosine(h, v) for factor in (1 - 1e-3, 1 + 1e-3)]
    wrong = (changes[0] <= 0) | (changes[1] >= 0)
    lowest = float((2 * np.cos(theta) / np.cos(2 * theta)).min())
    return Measured(float(wrong.mean()), members, "share of pairs", {"lowest alpha that falls": lowest})


def _overshoot(members: int) -> Measured:
    """Share of pairs that do not pass their pull when alpha cos(theta) > 1, or do when it is < 1."""
    h, v, eta = pairs(members, alpha=(0.1, 20.0))
    side = v / length(v)[:, None]
    across = lambda x: x - np.sum(x * side, axis=-1)[:, None] * side
    passed = np.sum(across(descend(h, v, [eta[:, None]])[-1]) * across(h), axis=-1) < 0
    return Measured(float(np.mean(passed != (eta * length(v) / length(h) ** 2 * cosine(h, v) > 1))), members, "share of pairs")


def _printed_condition(members: int) -> Measured:
    """|h| = .1, eta = .1, |v| = 1, theta_0 = .3: eta |v|/|h| = 1, alpha_0 = 10."""
    h, v = 0.1 * np.array([[np.cos(0.3), np.sin(0.3)]]), np.array([[1.0, 0.0]])
    beta = cosine(descend(h, v, [0.1] * 400), v)[:, 0]
    numbers = {f"beta_{k}": float(b) for k, b in enumerate(beta[:4])} | {"beta_400": float(beta[-1])}
    residual = np.abs(beta[:3] - [0.955, 0.586, 0.969]).max()
    return Measured(float(residual), 1, "three decimals; the limit is reached all the same", numbers)


def _printed_rescaled(members: int) -> Measured:
    """Rescaled rates under eta |v| <= 1: share of pairs with |h0| < .5 whose cosine never falls."""
    h, v, _ = pairs(members, theta=(0.05, 0.5))
    eta = np.random.default_rng(4).uniform(0.5, 1, members) / length(v)
    h = unit(h) * np.minimum(length(h), 0.1)[:, None]
    drop = _drop(descend(h, v, np.repeat(eta[None, :, None], STEPS, axis=0), rescaled=True), v)
    return Measured(float(np.mean(drop < 1e-12)), members, "share of pairs", {"largest drop": float(drop.max())})


_claim = functools.partial(Claim, id="unhinged.spherical.gd", source=SOURCE)
_rescaled = functools.partial(Claim, id="recipe.rlr", source=SOURCE.replace("Theorem 7", "Section 4.3"))
_ANY = ("anchored prototypes", "normalised features", "any steps", "alpha_0 in [.01, 5]")


def _pair(name, statement, tolerance, check, assumptions=_ANY, rescaled=""):
    """The claim, and the same for rescaled rates, alpha = eta |v|/|h|."""
    plain = functools.partial(check, rescaled=False), functools.partial(check, rescaled=True)
    fields = {"tolerance": tolerance, "assumptions": assumptions}
    return (
        _claim(name=f"spherical-gd-{name}", statement=statement, check=plain[0], **fields),
        _rescaled(
            name=f"spherical-rlr-{name}",
            statement=f"rescaled rates, alpha = eta |v|/|h|: {rescaled or statement}",
            check=plain[1],
            **fields,
        ),
    )


EXPERIMENT = Experiment(
    name="spherical-gd",
    family="spherical",
    summary="descent with normalised features: recursion of angle and step; the sharp condition on the step",
    claims=(
        *_pair(
            "recursion",
            "beta' = (beta + alpha (1 - beta^2))/sqrt(1 + alpha^2 (1 - beta^2)), alpha = eta |v|/|h|^2",
            1e-14,
            _cosines,
            rescaled="the same recursion of beta",
        ),
        *_pair(
            "alpha",
            "alpha' = (eta'/eta) alpha/(1 + alpha^2 (1 - beta^2))",
            1e-14,
            _steps,
            rescaled="alpha' = (eta'/eta) alpha/sqrt(1 + alpha^2 (1 - beta^2))",
        ),
        _claim(
            name="spherical-gd-sine",
            statement="1 - beta'^2 = (1 - beta^2)(1 - alpha beta)^2/(1 + alpha^2 (1 - beta^2))",
            assumptions=_ANY,
            tolerance=1e-14,
            check=_sines,
        ),
        *_pair("norm", "|h'|^2 = |h|^2 (1 + alpha^2 (1 - beta^2)) = |h|^2 + |step|^2: norms never fall", 1e-14, _norms),
        *_pair("angle", "theta' = theta - arctan(alpha sin(theta)); a negative angle has passed the pull", 3e-14, _angles),
        *_pair(
            "monotone",
            "alpha_0 <= 2: beta and |h| never fall (residual: by how much they do)",
            5e-15,
            _monotone,
            ("anchored prototypes", "normalised features", "constant steps", "alpha_0 <= 2"),
        ),
        _claim(
            name="spherical-gd-sharp",
            statement="beta falls from angle theta iff alpha > 2 cos(theta)/cos(2 theta), which is 2 at theta = 0",
            assumptions=("0 < theta < pi/4", "a thousandth above and below"),
            tolerance=0.0,
            check=_sharp,
        ),
        _claim(
            name="spherical-gd-overshoot",
            statement="a step passes the pull iff alpha cos(theta) > 1",
            assumptions=("alpha in [.1, 20]",),
            tolerance=0.0,
            check=_overshoot,
        ),
        _claim(
            name="spherical-gd-printed-condition",
            statement="eta |v|/|h0| <= 1 as printed does not make beta rise: it goes .955, .586, .969",
            assumptions=("|h0| = .1", "eta = .1", "|v| = 1", "theta_0 = .3", "three decimals"),
            tolerance=5e-4,
            check=_printed_condition,
        ),
        _rescaled(
            name="spherical-rlr-printed-condition",
            statement="eta |v| <= 1, as printed without |h0|, does not make beta rise (residual: share of pairs that it does)",
            assumptions=("|h0| <= .1", "eta |v| in [.5, 1]", "theta in [.05, .5]"),
            tolerance=0.0,
            check=_printed_rescaled,
        ),
    ),
)
