"""Errata 7, 8 and 9: gradient descent through normalised features, prototypes fixed (Theorem 7, Appendix D.3).

One sample's loss is `-<v, h/|h|>`, with `v = (1+gamma) w_y/(C N)` for zero-sum prototypes; `theta` is the angle between
h and v, `beta = cos theta`, `alpha = eta |v|/|h|^2`. Iterates come from complex-step gradients of that loss alone.
"""

import numpy as np

from experiments.errata.base import Erratum, Residuals
from experiments.errata.oracles import complex_gradient, worst


def _norm(x):
    return np.linalg.norm(x, axis=-1)


def _gradient(h, v):
    return complex_gradient(lambda x: -(v * x).sum(axis=-1) / np.sqrt((x**2).sum(axis=-1)), h)


def _descend(h, v, eta, steps, rescaled=False):
    """Iterates `(steps + 1, samples, p)`; `rescaled` multiplies each sample's rate by |h|."""
    path = [h]
    for _ in range(steps):
        factor = eta * _norm(path[-1])[:, None] if rescaled else eta
        path.append(path[-1] - factor * _gradient(path[-1], v))
    return np.array(path)


def _cosine(a, b):
    return (a * b).sum(axis=-1) / _norm(a) / _norm(b)


def _samples(rng, count=512, p=4):
    """Starts of norm .05 to .5 (where powers of |h| differ) at all angles, targets, and eta in (.5, 1) over |v|."""
    v, tangent = np.moveaxis(np.linalg.qr(rng.normal(size=(count, p, 2)))[0], -1, 0)
    theta, size = rng.uniform(0.05, 3.1, size=(count, 1)), rng.uniform(0.05, 0.5, size=(count, 1))
    h, scale = size * (np.cos(theta) * v + np.sin(theta) * tangent), rng.uniform(0.5, 2.0, size=(count, 1))
    return h, scale * v, rng.uniform(0.5, 1.0, size=(count, 1)) / scale


def _largest_drop(path, v):
    return float(np.maximum(0.0, -np.diff(_cosine(path, v), axis=0)).max())


def step_condition() -> Residuals:
    h, v, unit = _samples(np.random.default_rng(0))
    return Residuals(*(_largest_drop(_descend(h, v, unit * _norm(h)[:, None] ** k, 60), v) for k in (1, 2)))


def rescaled_condition() -> Residuals:
    h, v, unit = _samples(np.random.default_rng(0))
    return Residuals(*(_largest_drop(_descend(h, v, unit * _norm(h)[:, None] ** k, 60, True), v) for k in (0, 1)))


def eq83() -> Residuals:
    h, v, eta = _samples(np.random.default_rng(0))
    new = h - eta * _gradient(h, v)
    beta, rate = _cosine(h, v), eta[:, 0] * _norm(v)
    square = 1 - beta**2
    claims = [(beta + a * square) / np.sqrt(1 + a**2 * square) for a in (rate / _norm(h), rate / _norm(h) ** 2)]
    return Residuals(*(float(abs(claim - _cosine(new, v)).max()) for claim in claims))


def contraction() -> Residuals:
    def one(rng):
        h, v = rng.normal(size=(2, 1, 4))
        eta = rng.uniform(0.2, 0.8) * _norm(h)[0] ** 2 / _norm(v)[0]
        path = _descend(h, v, eta, 200)
        errors = _norm(path / _norm(path)[..., None] - v / _norm(v))[:, 0]
        k = int(np.argmax(errors < 1e-6))  # first iterate in the linear regime; rounding is then 1e-10 of the error
        ratio, alpha = errors[k] / errors[k - 1], eta * _norm(v)[0] / _norm(path[-1])[0] ** 2
        return abs(ratio - (1 - alpha) ** 2), abs(ratio - (1 - alpha))

    return worst(one)


def bounded_norm() -> Residuals:
    h, v, unit = _samples(np.random.default_rng(0))
    eta = unit * _norm(h)[:, None] ** 2
    alpha, theta = eta[:, 0] * _norm(v) / _norm(h) ** 2, np.arccos(_cosine(h, v))
    # A step turns h by d = arctan(alpha sin theta), theta_0 at most in all; log|h| grows by -log cos d <= d tan(d)/2.
    excess = np.log(_norm(_descend(h, v, eta, 400)[-1]) / _norm(h)) - alpha * theta / 2
    return Residuals(float(np.mean(excess <= 0)), float(np.maximum(0.0, excess).max()))


def adjusted_prototype() -> Residuals:
    def one(rng):
        eps, p = rng.uniform(0.05, 0.3), 5
        hhat, tangent = np.linalg.qr(rng.normal(size=(p, 2)))[0].T
        beta = -1 + eps * rng.uniform(0.1, 0.9)
        w = rng.uniform(0.5, 2.0) * (beta * hhat + np.sqrt(1 - beta**2) * tangent)
        factor = -(1 + beta * np.sqrt(1 - (1 - eps) ** 2) / ((1 - eps) * np.sqrt(1 - beta**2)))
        along = hhat * (hhat @ w)
        return [abs(_cosine(w + factor * (w + sign * along), hhat) - (-1 + eps)) for sign in (1, -1)]

    return worst(one, members=32)


_LOOP = "descent with complex-step gradients"

ROWS = (
    Erratum(
        "7a",
        "A",
        "Theorem 7, step condition",
        "The condition lacks a square. Residual: largest drop of cos(h, v) along the descent, which the proof needs to "
        "rise; the limit is reached either way. (2 for 1 would do, and is sharp.)",
        "(1+gamma) eta_0 |w|/(C N |h_0|) <= 1",
        "(1+gamma) eta_0 |w|/(C N |h_0|^2) <= 1",
        _LOOP,
        5e-15,
        step_condition,
    ),
    Erratum(
        "7b",
        "A",
        "Theorem 7, Eq. 83",
        "The coefficient lacks the same square. Residual: error of beta after one step.",
        "beta' = (beta + a (1-beta^2))/sqrt(1 + a^2 (1-beta^2)), a = eta |v|/|h|",
        "beta' = (beta + a (1-beta^2))/sqrt(1 + a^2 (1-beta^2)), a = eta |v|/|h|^2",
        _LOOP,
        1e-13,  # alpha up to 20 loses a digit
        eq83,
    ),
    Erratum(
        "7c",
        "A",
        "Section 4.3, rescaled rates",
        "The condition lacks |h_0|. Residual: largest drop of cos(h, v) along the descent.",
        "(1+gamma) eta_0 |w|/(C N) <= 1",
        "(1+gamma) eta_0 |w|/(C N |h_0|) <= 1",
        _LOOP + ", each step multiplied by |h|",
        5e-15,
        rescaled_condition,
    ),
    Erratum(
        "8a",
        "B",
        "Theorem 7, Eq. 93",
        "The bound e^{-mu t} is on the squared error; the error itself gets mu/2. Residual: of the contraction per "
        "step, taking mu tight.",
        "|hhat - what| = O(e^{-mu t}), e^{-mu} = (1 - alpha_inf)^2",
        "|hhat - what| = O(e^{-mu t/2}), e^{-mu/2} = 1 - alpha_inf",
        _LOOP,
        5e-10,  # rounding, 1e-16, over the error at which the ratio is taken, 1e-6
        contraction,
    ),
    Erratum(
        "8b",
        "B",
        "Theorem 7, bounded norm",
        "The norm is bounded by itself. Residual printed: share of starts that need no assumption; corrected: excess "
        "over the bound.",
        "assume in addition that |h_k| is bounded",
        "log(|h_k|/|h_0|) <= alpha_0 theta_0/2 for alpha_0 <= 1",
        _LOOP,
        0.0,
        bounded_norm,
    ),
    Erratum(
        "9",
        "A",
        "Appendix D.3, Eq. 104",
        "Sign of the part along the feature. Residual: error of cos(w_y + delta, h) against its target -1 + eps.",
        "delta ~ w_y + hhat hhat^T w_y",
        "delta ~ w_y - hhat hhat^T w_y",
        "the cosine itself",
        2e-15,
        adjusted_prototype,
    ),
)
