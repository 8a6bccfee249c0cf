"""Exact answers for homogeneous networks: one sample, two mirrored ones, balanced deep linear nets, the largest margins."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from scipy.integrate import solve_ivp

import dynamics as dyn
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment

SOURCE = "derived here"
TIMES = np.array([0.0, 0.3, 2.0, 20.0])
DEPTHS = (1, 2, 3, 4)
MOST = 64
"""Members of the claims that an integrator, quadrature in 25 digits or a program on the host judges one by one."""


def _followed(force, start: np.ndarray) -> np.ndarray:
    """All members at once from SciPy's integrator, (members, times, dim)."""
    flat = lambda _, y: force(y.reshape(start.shape)).ravel()
    done = solve_ivp(flat, (0.0, TIMES[-1]), start.ravel(), "DOP853", TIMES, rtol=1e-13, atol=1e-15)
    return np.moveaxis(done.y.reshape(*start.shape, TIMES.size), -1, 1)


def _linear(members: int, signed: np.ndarray, start: np.ndarray, loss, slope) -> Measured:
    """The closed form for `signed` inputs, (members, samples, dim), against the integrator."""

    def one(inputs, weights):
        problem = dyn.Network(dyn.nets.linear(), inputs, np.ones(inputs.shape[0]), loss)
        return dyn.exact.flow(problem, (weights,), dyn.Rates.equal(1.0), TIMES).states[0]

    found = np.asarray(jax.jit(jax.vmap(one))(signed, start))

    def force(w):
        return np.einsum("mn,mnd->md", slope(np.einsum("mnd,md->mn", signed, w)), signed)

    return Measured.worst(np.abs(found - _followed(force, start)))


def _single(members: int, loss, slope) -> Measured:
    rng, members = np.random.default_rng(61), min(members, MOST)
    return _linear(members, rng.normal(size=(members, 1, 3)), rng.normal(size=(members, 3)), loss, slope)


def _mirrored(members: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes a and b, and the two samples, (members, 2, 2)."""
    a, ratio = np.random.default_rng(62).uniform(0.3, 1.5, (2, members))
    b = ratio * a
    return a, b, np.stack([np.stack([a, b], axis=-1), np.stack([a, -b], axis=-1)], axis=1)


def _two_point(members: int) -> Measured:
    members = min(members, MOST)
    _, _, signed = _mirrored(members)
    start = np.random.default_rng(63).normal(size=(members, 2)) * [1.0, 0.0]
    return _linear(members, signed, start, dyn.losses.Exponential(), lambda q: np.exp(-q))


def _invariant(members: int) -> Measured:
    members = min(members, MOST)
    a, b, signed = _mirrored(members)
    start = np.random.default_rng(64).normal(size=(members, 2))
    force = lambda w: np.einsum("mn,mnd->md", np.exp(-np.einsum("mnd,md->mn", signed, w)), signed)
    path = _followed(force, start)
    kept = np.asarray(dyn.exact.two_point_invariant(jnp.asarray(path), a[:, None], b[:, None]))
    return Measured.worst(np.abs(kept - kept[:, :1]))


def _starts(members: int) -> tuple[np.ndarray, np.ndarray]:
    """Margins at the start and later, up to 1e6."""
    rng = np.random.default_rng(65)
    start = 10 ** rng.uniform(-3, 1, members)
    return start, start + 10 ** rng.uniform(-2, 6, members)


def _balanced(members: int) -> Measured:
    start, margin = _starts(min(members, MOST))
    gamma, samples, off = 0.4, 5, []
    for depth in DEPTHS:
        found = np.asarray(dyn.exact.balanced_log_time(margin, start, depth=depth, gamma=gamma, samples=samples))
        with mpmath.workdps(25):
            true = [_log_time(v0, v, depth, gamma, samples) for v0, v in zip(start, margin, strict=True)]
            off.append([abs(log - expected) for log, expected in zip(found, true, strict=True)])
    return Measured.worst(np.array(off, float).T / np.maximum(margin, 1.0)[:, None])


def _log_time(start, margin, depth, gamma, samples):
    """The printed integral, by quadrature in mpmath."""
    start, margin, a = mpmath.mpf(start), mpmath.mpf(margin), 2 - mpmath.mpf(2) / depth
    inside = (10 * start, 100 * start, 1000 * start, margin - 100, margin - 40, margin - 10, margin - 2)
    nodes = sorted({start, margin, *(node for node in inside if start < node < margin)})
    integral = mpmath.quad(lambda u: mpmath.exp(u - margin) * u**-a, nodes)
    return margin + mpmath.log(integral / (depth * samples)) - 2 * mpmath.log(gamma) / depth


def _constants(members: int) -> Measured:
    """Loss and norm of balanced nets over their predicted constants at log t from 100 to 1e9."""
    start = _starts(min(members, MOST))[0]
    gamma, samples, log_t = 0.4, 5, np.array([1e2, 1e3, 1e6, 1e9])
    off = []
    for depth in DEPTHS:
        margin = np.asarray(dyn.exact.balanced_margin(log_t, start[:, None], depth=depth, gamma=gamma, samples=samples))
        known = dyn.exact.rate_constants(gamma * depth ** (-depth / 2), depth)
        loss = samples * np.exp(log_t - margin) * log_t ** (2 - 2 / depth) / float(known.loss)
        norm = depth**0.5 * (margin / gamma) ** (1 / depth) / log_t ** (1 / depth) / float(known.norm)
        off.append(np.abs(np.stack([loss, norm], axis=1) - 1))
    at_thousand = {
        f"L = {depth} at log t = 1000": float(values[..., 1].max()) for depth, values in zip(DEPTHS, off, strict=True)
    }
    return Measured.worst(np.max(off, axis=0) * log_t / np.log(log_t), at_thousand)


DUALS: tuple[tuple[Literal["l2", "l1", "linf"], float], ...] = (("l2", 2), ("l1", np.inf), ("linf", 1))


def _max_margin(members: int) -> Measured:
    """The gap between the margin of the direction and the bound by its multipliers."""
    gaps = []
    for member in range(min(members, MOST)):
        rng = np.random.default_rng([66, member])
        inputs, plane = rng.normal(size=(12, 4)), rng.normal(size=4)
        targets = np.sign(inputs @ plane)
        signed = targets[:, None] * inputs
        row = []
        for norm, dual in DUALS:
            best = dyn.exact.max_margin(inputs, targets, norm)
            bound = np.linalg.norm(best.multipliers @ signed, dual)
            row.append(1 - np.min(signed @ best.direction) / bound)
        gaps.append(row)
    return Measured.worst(np.abs(gaps))


def _clusters(members: int) -> Measured:
    """Linear programs over the class means and random directions against 1/(2(sqrt K+ + sqrt K-))."""
    off = []
    for member in range(min(members, MOST)):
        rng = np.random.default_rng([67, member])
        plus, minus = (int(count) for count in rng.integers(1, 6, 2))
        inputs = np.linalg.qr(rng.normal(size=(plus + minus, plus + minus)))[0]
        targets = np.repeat([1.0, -1.0], [plus, minus])
        means = np.stack([inputs[:plus].sum(axis=0), inputs[plus:].sum(axis=0)])
        best = dyn.exact.two_layer_max_margin(inputs, targets, np.vstack([means, rng.normal(size=(60, plus + minus))]))
        off.append([abs(best.margin / dyn.exact.cluster_margin(plus, minus) - 1)])
    return Measured.worst(off)


_LINEAR = ("linear predictor", "any input and start")

EXPERIMENT = Experiment(
    name="homogeneous-anchors",
    family="homogeneous",
    summary="exact answers for homogeneous networks",
    claims=(
        Claim(
            name="anchor-single-exponential",
            id="anchor.single",
            statement="on one sample e^q grows by |x|^2 t, and what is orthogonal to x stays",
            source=SOURCE,
            assumptions=(*_LINEAR, "exponential loss"),
            tolerance=1e-11,
            check=functools.partial(_single, loss=dyn.losses.Exponential(), slope=lambda q: np.exp(-q)),
            limited_by="the integrator",
        ),
        Claim(
            name="anchor-single-logistic",
            id="anchor.single",
            statement="on one sample q + e^q grows by |x|^2 t, and what is orthogonal to x stays",
            source=SOURCE,
            assumptions=(*_LINEAR, "logistic loss"),
            tolerance=1e-11,
            check=functools.partial(_single, loss=dyn.losses.Logistic(), slope=lambda q: 1 / (1 + np.exp(q))),
            limited_by="the integrator",
        ),
        Claim(
            name="anchor-two-point",
            id="anchor.two_point",
            statement="on (a, b) and (a, -b) from w_2 = 0, e^(a w_1) grows by 2 a^2 t",
            source=SOURCE,
            assumptions=("linear predictor", "exponential loss", "w_2 = 0 at the start"),
            tolerance=1e-11,
            check=_two_point,
            limited_by="the integrator",
        ),
        Claim(
            name="anchor-two-point-invariant",
            id="anchor.two_point",
            statement="on (a, b) and (a, -b), sinh(b w_2) e^((b^2/a) w_1) is conserved",
            source=SOURCE,
            assumptions=("linear predictor", "exponential loss", "any start"),
            tolerance=1e-9,
            check=_invariant,
            limited_by="rounding in the force on w_2 once that is small",
        ),
        Claim(
            name="anchor-deep-balanced",
            id="anchor.deep_balanced",
            statement="t = gamma^(-2/L)/(L n) int e^u u^(2/L - 2) du between the margins, in logarithms up to v = 1e6",
            source=SOURCE,
            assumptions=("balanced deep linear net, L = 1 to 4", "equal margins", "exponential loss"),
            tolerance=4e-15,
            check=_balanced,
        ),
        Claim(
            name="anchor-rate-constants",
            id="anchor.rate_constants",
            statement="loss t (log t)^(2 - 2/L) -> L^-2 margin^(-2/L) and norm/(log t)^(1/L) -> margin^(-1/L)",
            source="K. Lyu, J. Li (2020), Theorem 4.3, the orders; the constants derived here",
            assumptions=("balanced deep linear net, L = 1 to 4", "equal margins", "exponential loss"),
            tolerance=6.0,
            check=_constants,
            limited_by="the residual is the relative error times log t/log log t, at log t = 100 to 1e9",
        ),
        Claim(
            name="anchor-max-margin",
            id="anchor.linear_maxmargin",
            statement="the largest margin over a unit ball is the least dual norm of a mean of signed inputs",
            source="convex duality",
            assumptions=("separable samples", "L2, L1 and Linf norms"),
            tolerance=1e-9,
            check=_max_margin,
        ),
        Claim(
            name="anchor-orthonormal-clusters",
            id="anchor.orthoclusters",
            statement="of orthonormal inputs the largest margin over squared norm is 1/(2 (sqrt K+ + sqrt K-))",
            source=SOURCE,
            assumptions=("two-layer ReLU network", "the class means among its directions"),
            tolerance=1e-9,
            check=_clusters,
        ),
    ),
)
