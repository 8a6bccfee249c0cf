"""Cross-entropy with both layers free from a symmetric start: the unhinged path at a slower clock."""

import functools

import jax
import mpmath
import numpy as np

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import clock, size_of
from experiments.shared.instances import HORIZON, TIMES, Draw, Size, draws, worst_of
from experiments.shared.nonlinear import annealed, beside, forces, integrate_all, simplex
from experiments.shared.oracles import States, column, dense_motion, pull_matrix, stack

SOURCE = "the gradient flow of cross-entropy from a symmetric start; derived here"
FAR = (1e3, 1e6, 1e9, 1e12)
_SIZES = (Size(2, 3, 2), Size(4, 2, 5))
PRECISE = 6  # members of a size that are judged in extended precision


@functools.cache
def _starts(size: Size, members: int):
    """Corners E, scalars a and b of either sign (some zero), and states with all that stays beside them."""
    rng, draw = np.random.default_rng([31, *size]), draws(size, members)
    corners = simplex(rng, members, size.classes, size.dim)
    a, b = 10 ** rng.uniform(-2, 0.7, (2, members)) * rng.choice([-1.0, 1.0], (2, members))
    a[::16], b[1::16] = 0.0, 0.0
    extra = beside(rng, corners, size.classes * size.per_class).reshape(members, size.classes, size.per_class, size.dim)
    extra = extra - extra.mean(axis=2, keepdims=True) + beside(rng, corners, 1)[:, :, None]
    features = a[:, None, None, None] * corners[:, :, None] + extra
    prototypes = column(b) * corners + rng.normal(size=(members, 1, size.dim))
    biases = np.repeat(rng.normal(size=(members, 1)), size.classes, axis=1)
    return draw, corners, a, b, States(features.reshape(members, -1, size.dim), prototypes, biases)


@functools.cache
def _library(size: Size, members: int):
    """States by formula at TIMES and far away, statuses, and the statuses of random starts."""
    draw, _, _, _, start = _starts(size, members)

    def one(member):
        draw, start = member
        decay = dyn.Decay(biases=draw.decay[2])
        problem = dyn.LayerPeeled.balanced(size.classes, size.per_class, loss=dyn.losses.CrossEntropy(), decay=decay, bias=True)
        rates = dyn.Rates.proportional(dyn.schedules.Cosine(draw.rate, HORIZON, draw.floor), draw.ratio)
        moved = dyn.exact.flow(problem, dyn.Peeled(*start), rates, np.append(TIMES, FAR))
        return States(moved.states.features, moved.states.prototypes, moved.states.biases), moved.status

    run = jax.jit(jax.vmap(one))
    states, status = run((draw, start))
    outside = run((draw, States(draw.features, draw.prototypes, draw.biases)))[1]
    return jax.tree.map(np.asarray, states), np.asarray(status), np.asarray(outside)


def _definition(size: Size, members: int):
    """Against the integrated gradient, biases trained and decayed."""
    draw, _, _, _, start = _starts(size, members)
    labels = np.repeat(np.arange(size.classes), size.per_class)

    def velocity(t, parts):
        force, eta = forces("cross-entropy", States(*parts), labels), annealed(draw, t)
        fading = eta[:, None] * (force.biases - draw.decay[:, 2:] * parts[2])
        return [column(draw.ratio * eta) * force.features, column(eta) * force.prototypes, fading]

    truth = States(*integrate_all(velocity, start, TIMES))
    found = States(*(part[:, : len(TIMES)] for part in _library(size, members)[0]))
    gap = size_of(stack(found) - stack(truth)) / size_of(stack(truth))
    return np.maximum(gap, np.abs(found.biases - truth.biases).max(axis=-1)).max(axis=1)


def _found_scalars(size: Size, members: int):
    """a and b read off the states, (members, times)."""
    _, corners, _, _, start = _starts(size, members)
    states = _library(size, members)[0]
    means = states.features.reshape(*states.features.shape[:2], size.classes, size.per_class, size.dim).mean(axis=3)
    a = np.einsum("mtcd,mcd->mt", means - means.mean(axis=2, keepdims=True), corners) / size.classes
    b = np.einsum("mtcd,mcd->mt", states.prototypes, corners) / size.classes
    return a, b


def _pace(draw: Draw, size: Size, low, high, u, parts):
    """a' and b' while the logarithm of 1 + clock goes from low to high, u from 0 to 1."""
    a, b = parts
    k, clock_rate = size.classes / (size.classes - 1), (high - low) * np.exp(low + (high - low) * u)
    q = 1 / (1 + np.exp(k * a * b) / (size.classes - 1))
    return [
        clock_rate * draw.ratio * k / (size.classes * size.per_class) * b * q,
        clock_rate * k / size.classes * a * q,
    ]


def _scalars(size: Size, members: int):
    """The two scalars by DOP853 in the logarithm of the clock, up to t = 1e12."""
    draw, _, *path, _ = _starts(size, members)
    marks = np.log1p(clock(draw, np.append(0.0, FAR)))
    found, worst = _found_scalars(size, members), np.zeros(members)
    for j in range(len(FAR)):
        velocity = functools.partial(_pace, draw, size, marks[:, j], marks[:, j + 1])
        path = [part[:, -1] for part in integrate_all(velocity, path, (0.0, 1.0))]
        gap = np.hypot(*(x[:, j - len(FAR)] - y for x, y in zip(found, path, strict=True)))
        worst = np.maximum(worst, gap / np.hypot(*path))
    return worst


def _conserved(size: Size, members: int):
    """The change of N a^2/s - b^2 over its two terms, up to t = 1e12."""
    draw, _, a, b, _ = _starts(size, members)
    weight = (size.per_class / draw.ratio)[:, None]
    found = _found_scalars(size, members)
    change = weight * (found[0] ** 2 - a[:, None] ** 2) - (found[1] ** 2 - b[:, None] ** 2)
    return np.max(np.abs(change) / (weight * found[0] ** 2 + found[1] ** 2 + weight * a[:, None] ** 2), axis=1)


def _spent(size: Size, members: int):
    """How far sqrt(N/s) a + b has grown since the start, as a logarithm: the spent clock, (members, times)."""
    root = np.sqrt(size.per_class / _starts(size, members)[0].ratio)[:, None]
    a, b = _found_scalars(size, members)
    growing = root * a + b
    return np.log(growing / growing[:, :1])


def _unhinged(size: Size, members: int):
    """The states at t = 4 and t = 1e12 against those of the unhinged loss, by the eigenvectors of its generator."""
    draw, *_, start = _starts(size, members)
    labels = np.repeat(np.arange(size.classes), size.per_class)
    pull = pull_matrix(labels, np.full(members, 1 / (size.classes - 1)))
    per_clock = np.sqrt(draw.ratio / size.per_class) / (size.classes - 1)
    states, worst = stack(_library(size, members)[0]), []
    for k in (2, -1):
        reached = np.maximum(_spent(size, members)[:, k] / per_clock, 1e-300)
        truth = dense_motion(pull, stack(start), (draw.ratio * reached, reached), np.zeros((2, members)))
        worst.append(size_of(states[:, k] - truth) / size_of(truth))
    return np.max(worst, axis=0)


def _precise(size: Size, members: int):
    """x + the integral of e^m/(C-1) against the clock, in 25 digits, at t = 10 and 1e12; a few members of each size."""
    draw, _, a, b, _ = _starts(size, members)
    k, gaps = size.classes / (size.classes - 1), np.zeros(members)
    zeta, x = clock(draw, np.append(TIMES, FAR)), _spent(size, members)
    for member in range(1, min(members, PRECISE + 1)):
        with mpmath.workdps(25):
            balance = mpmath.sqrt(mpmath.mpf(draw.ratio[member]) / size.per_class)
            grow, fade = (k * balance / 4 * (a[member] / balance + sign * b[member]) ** 2 for sign in (1, -1))
            margin = lambda x, p=grow, f=fade: p * mpmath.exp(2 * x) - f * mpmath.exp(-2 * x)
            integrand = lambda x, m=margin: mpmath.exp(m(x)) / (size.classes - 1)
            for j in (len(TIMES) - 1, -1):
                end = mpmath.mpf(x[member, j])
                spent = end + mpmath.quad(integrand, mpmath.linspace(0, end, 9), maxdegree=5)
                gap = abs(spent / (k / size.classes * balance * zeta[member, j]) - 1)
                gaps[member] = max(gaps[member], float(gap) / max(1.0, abs(float(margin(end)))))
    return gaps


def _refused(size: Size, members: int):
    """Symmetric starts are inside the assumptions, random ones outside."""
    _, inside, outside = _library(size, members)
    return np.where((inside == dyn.status.OK) & (outside == dyn.status.OUTSIDE_ASSUMPTIONS), 0.0, 1.0)


def _draw_figure(folder):
    """The two scalars from three starts over decades of time, and all starts on their hyperbolas."""
    sheet, axes = plotting.page(1, 3, title="Cross-entropy, both layers, from a symmetric start", panel=(3.9, 3.3))
    problem = dyn.LayerPeeled.balanced(3, 4, loss=dyn.losses.CrossEntropy())
    corners, rates = np.asarray(dyn.initial.simplex_etf(3, 2)), dyn.Rates(1.0, 1.0)
    ts = np.append(0.0, np.geomspace(1e-1, 1e6, 141))
    begins = ((0.02, 0.05), (1.2, -0.3), (-0.3, 1.8))

    def run(a, b):
        state = dyn.Peeled(a * corners[problem.labels], b * corners)
        moved = dyn.flow(problem, state, rates, ts, rtol=1e-9, atol=1e-9).states
        return [
            (s.features[:, 0] @ corners[0], s.prototypes[:, 0] @ corners[0])
            for s in (moved, dyn.exact.flow(problem, state, rates, ts).states)
        ]

    paths = jax.jit(jax.vmap(run))(*np.array(begins).T)
    for m, ((a, b), color) in enumerate(zip(begins, plotting.COLORS, strict=False)):
        for (x, y), curve in zip(paths, (plotting.simulated, plotting.theory), strict=True):
            name = {"label": f"a = {a:g}, b = {b:g}"} if curve is plotting.simulated else {}
            curve(ts[1:], 2 * x[m, 1:], ax=axes[0, 0], color=color, **name)
            curve(ts[1:], y[m, 1:], ax=axes[0, 1], color=color)
            curve(y[m], 2 * x[m], ax=axes[0, 2], color=color)
        axes[0, 2].plot(b, 2 * a, "o", color=color, markersize=5)
    for axis, title in zip(axes[0], (r"class means $\sqrt{N/s}\,a$", "prototypes b"), strict=False):
        plotting.label(axis, title, r"clock $\zeta_2$", "")
        axis.set_xscale("log")
    plotting.label(axes[0, 2], r"hyperbolas $Na^2/s - b^2$", "b", r"$\sqrt{N/s}\,a$")
    axes[0, 2].axline((0, 0), slope=1, color="0.5", linewidth=0.8, linestyle=":")
    plotting.legend(sheet, axes[0, 0])
    return plotting.save(sheet, folder, "joint-cross-entropy")


_claim = functools.partial(Claim, id="beyond.anchored_losses", source=SOURCE)
_check = functools.partial(functools.partial, worst_of, sizes=_SIZES)
_SYMMETRIC = (
    "balanced classes, rates of constant ratio s, no decay of features and prototypes",
    "centred class means a E and prototypes b E of one simplex, equal biases; beside them anything orthogonal to E",
)

EXPERIMENT = Experiment(
    name="joint-cross-entropy",
    family="beyond",
    summary="cross-entropy with both layers free from a symmetric start",
    claims=(
        _claim(
            name="joint-ce-flow",
            statement="the formula = the integrated gradient, biases included",
            assumptions=_SYMMETRIC,
            tolerance=6e-12,
            check=_check(_definition),
        ),
        _claim(
            name="joint-ce-scalars",
            statement="a' = eta1 (k/n) b q, b' = eta2 (k/C) a q, k = C/(C-1), q = 1/(1 + e^{kab}/(C-1)), until t = 1e12",
            assumptions=_SYMMETRIC,
            tolerance=6e-12,
            check=_check(_scalars),
        ),
        _claim(
            name="joint-ce-conserved",
            statement="N a^2/s - b^2 is conserved, until t = 1e12",
            assumptions=_SYMMETRIC,
            tolerance=1e-13,
            check=_check(_conserved),
        ),
        _claim(
            name="joint-ce-unhinged-path",
            statement="the states are those of the unhinged loss at an earlier clock x, t = 4 and 1e12",
            assumptions=_SYMMETRIC,
            tolerance=6e-12,
            check=_check(_unhinged),
        ),
        _claim(
            name="joint-ce-quadrature",
            statement="x + int_0^x e^m/(C-1) = k sqrt(s/N) zeta2/C in 25 digits, t = 10 and 1e12 (6 members of each size)",
            assumptions=_SYMMETRIC,
            tolerance=6e-12,
            check=_check(_precise),
        ),
        _claim(
            name="joint-ce-refusal",
            statement="random starts are outside the assumptions, symmetric ones inside (residual: any member's status)",
            assumptions=("random features and prototypes",),
            tolerance=0.0,
            check=_check(_refused),
        ),
    ),
    draw=_draw_figure,
)
