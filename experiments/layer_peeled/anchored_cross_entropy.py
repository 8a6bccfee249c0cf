"""Cross-entropy over the fixed vertices of a simplex: margins by Lambert's W, however unequal the samples."""

import functools

import jax
import mpmath
import numpy as np
from scipy.special import wrightomega

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import clock, size_of
from experiments.shared.instances import HORIZON, TIMES, Draw, Size, draws, worst_of
from experiments.shared.nonlinear import annealed, beside, forces, integrate_all, simplex
from experiments.shared.oracles import States, column

SOURCE = "the gradient flow of cross-entropy at fixed prototypes of a simplex; derived here"
FAR = (1e3, 1e6, 1e9, 1e12)
_SIZES = (Size(3, 2, 4), Size(2, 3, 2))


def _labels(size: Size) -> np.ndarray:
    """Not sorted, classes of different sizes."""
    labels = np.arange(size.classes * size.per_class)[::-1] % size.classes
    return np.where(np.arange(labels.size) == 1, 0, labels)


def _weights(size: Size) -> np.ndarray:
    """Three different sample weights of mean one."""
    weights = 1.0 + 0.5 * (np.arange(size.classes * size.per_class) % 3)
    return weights / weights.mean()


@functools.cache
def _starts(size: Size, members: int) -> tuple[Draw, States]:
    """Starts with equal wrong logits: a simplex off the origin, any biases; of two classes anything at all."""
    rng, draw = np.random.default_rng([21, *size]), draws(size, members)
    if size.classes == 2:
        return draw, States(draw.features, draw.prototypes, draw.biases)
    corners = simplex(rng, members, size.classes, size.dim)
    length = rng.uniform(0.2, 3, (members, 1, 1))
    # what makes up for different biases, then any multiple of the own prototype and anything orthogonal
    even = -(draw.biases - draw.biases.mean(axis=1, keepdims=True))[:, None] @ corners
    even = even * (size.classes - 1) / size.classes / length
    labels = _labels(size)
    own = rng.normal(size=(members, labels.size, 1)) * corners[:, labels]
    features = even + own + beside(rng, corners, labels.size)
    return draw, States(features, length * corners + rng.normal(size=(members, 1, size.dim)), draw.biases)


@functools.cache
def _library(size: Size, members: int):
    """Features by formula at TIMES and far away, and the statuses: of the starts, and of others that are not symmetric."""
    draw, start = _starts(size, members)
    other = start._replace(prototypes=draw.prototypes)

    def one(member):
        draw, start = member
        problem = dyn.LayerPeeled(
            _labels(size),
            num_classes=size.classes,
            loss=dyn.losses.CrossEntropy(),
            anchored=True,
            sample_weights=_weights(size),
        )
        rates = dyn.Rates(dyn.schedules.Cosine(draw.ratio * draw.rate, HORIZON, draw.ratio * draw.floor), 1.0)
        moved = dyn.exact.flow(problem, dyn.Peeled(*start), rates, np.append(TIMES, FAR))
        return moved.states.features, moved.status

    run = jax.jit(jax.vmap(one))
    return *map(np.asarray, run((draw, start))), np.asarray(run((draw, other))[1])


def _definition(size: Size, members: int):
    """Against the integrated gradient."""
    draw, start = _starts(size, members)

    def velocity(t, parts):
        force = forces("cross-entropy", start._replace(features=parts[0]), _labels(size), _weights(size))
        return [column(annealed(draw, t) * draw.ratio) * force.features]

    (truth,) = integrate_all(velocity, [start.features], TIMES)
    found = _library(size, members)[0][:, : len(TIMES)]
    return np.max(size_of(found - truth) / size_of(truth), axis=1)


def _margins(size: Size, start: States, features) -> np.ndarray:
    """Label's logit minus the mean of the others, (members, ..., samples)."""
    extra = (1,) * (features.ndim - 3)
    w = start.prototypes.reshape(-1, *extra, *start.prototypes.shape[1:])
    logits = features @ np.swapaxes(w, -1, -2) + start.biases.reshape(-1, *extra, 1, size.classes)
    own = np.take_along_axis(logits, np.broadcast_to(_labels(size)[:, None], (*logits.shape[:-1], 1)), -1)[..., 0]
    return own - (logits.sum(axis=-1) - own) / (size.classes - 1)


def _spent(size: Size, members: int):
    """Margins at the start, over log(C-1), and what X = l + e^l gains until each time: (v/n) kappa zeta."""
    draw, start = _starts(size, members)
    begin = _margins(size, start, start.features) - np.log(size.classes - 1)
    apart = start.prototypes - start.prototypes.mean(axis=1, keepdims=True)
    kappa = (size.classes / (size.classes - 1)) ** 2 * np.mean(np.sum(apart**2, axis=-1), axis=-1)
    zeta = draw.ratio[:, None] * clock(draw, np.append(TIMES, FAR))
    share = _weights(size) / (size.classes * size.per_class)
    return begin, (kappa[:, None] * zeta)[..., None] * share


def _omega(size: Size, members: int):
    """Margins against the Wright omega function, at all times: omega + log omega = X."""
    _, start = _starts(size, members)
    begin, gained = _spent(size, members)
    truth = np.log(wrightomega((begin + np.exp(begin))[:, None] + gained))
    found = _margins(size, start, _library(size, members)[0]) - np.log(size.classes - 1)
    return np.max(np.abs(found - truth) / np.maximum(1, np.abs(found) + np.abs(begin[:, None])), axis=(1, 2))


def _precise(size: Size, members: int):
    """One sample of a member at t = 1e12 and at the last of TIMES, by Lambert's W in 40 digits."""
    _, start = _starts(size, members)
    begin, gained = _spent(size, members)
    found = _margins(size, start, _library(size, members)[0]) - np.log(size.classes - 1)
    worst = np.zeros(members)
    with mpmath.workdps(40):
        for member in range(members):
            for k in (len(TIMES) - 1, gained.shape[1] - 1):
                first = mpmath.mpf(begin[member, 0])
                x = first + mpmath.exp(first) + mpmath.mpf(gained[member, k, 0])
                # past a range where e^X is worth forming the equation itself is solved
                if x < 1e4:
                    truth = x - mpmath.lambertw(mpmath.exp(x)).real
                else:
                    truth = mpmath.findroot(lambda y, x=x: y + mpmath.exp(y) - x, mpmath.log(x))
                gap = abs(found[member, k, 0] - float(truth))
                worst[member] = max(worst[member], gap / max(1.0, abs(float(truth)), abs(begin[member, 0])))
    return worst


def _asymptote(size: Size, members: int):
    """At t >= 1e6, wherever X > 1; residual: by how much log(X - log X) <= l <= log X is missed."""
    _, start = _starts(size, members)
    begin, gained = _spent(size, members)
    found = (_margins(size, start, _library(size, members)[0]) - np.log(size.classes - 1))[:, -3:]
    x = ((begin + np.exp(begin))[:, None] + gained)[:, -3:]
    log = np.log(np.maximum(x, 1.0))
    missed = np.where(x > 1, np.maximum(found - log, np.log(np.maximum(x, 1.0) - log) - found), 0.0)
    return np.max(missed / np.maximum(log, 1.0), axis=(1, 2))


def _refused(size: Size, members: int):
    """Random prototypes: outside the assumptions with three classes, and inside with two; the starts are inside."""
    _, inside, other = _library(size, members)
    wanted = dyn.status.OUTSIDE_ASSUMPTIONS if size.classes > 2 else dyn.status.OK
    return np.where((inside == dyn.status.OK) & (other == wanted), 0.0, 1.0)


def _draw_figure(folder):
    """Margins over decades of time, and the fan of samples in the plane of three prototypes."""
    labels, weights = np.repeat(np.arange(3), 4), np.tile([0.1, 0.5, 1.4, 2.0], 3)
    problem = dyn.LayerPeeled(labels, num_classes=3, loss=dyn.losses.CrossEntropy(), anchored=True, sample_weights=weights)
    prototypes = np.asarray(dyn.initial.simplex_etf(3, 2))
    begin = np.tile([-2.0, 0.5, -4.0, -1.0], 3)
    state = dyn.Peeled(begin[:, None] * prototypes[labels], prototypes)
    rates = dyn.Rates.equal(1.0)
    ts = np.append(0.0, np.geomspace(1e-1, 1e9, 161))
    near = ts[ts <= 1e4]
    moved = dyn.flow(problem, state, rates, near, rtol=1e-9, atol=1e-9).states.features
    exact = dyn.exact.flow(problem, state, rates, ts).states.features
    gap = lambda h: 1.5 * np.sum(np.asarray(h)[:, :4] * prototypes[0], axis=-1)
    sheet, axes = plotting.page(1, 2, title="Cross-entropy over a fixed simplex", panel=(4.6, 3.3))
    axis, kappa = axes[0, 0], 2.25
    for i, color in zip(range(4), plotting.COLORS, strict=False):
        plotting.simulated(near[1:], gap(moved)[1:, i], ax=axis, color=color, label=f"sample weight {weights[i]:g}")
        plotting.theory(ts[1:], gap(exact)[1:, i], ax=axis, color=color)
        far = ts[ts * weights[i] > 2e2]
        axis.plot(far, np.log(2 * kappa * weights[i] * far / 12), color="0.5", linewidth=0.8, linestyle=":", zorder=1)
    plotting.label(axis, r"margins: $\log\zeta_1$ in the end (dotted)", r"clock $\zeta_1$", "margin")
    axis.set_xscale("log")
    axis = axes[0, 1]
    for i, color in zip(range(4), plotting.COLORS, strict=False):
        plotting.simulated(near[1:], 1 / (1 + np.exp(gap(moved)[1:, i]) / 2), ax=axis, color=color)
        plotting.theory(ts[1:], 1 / (1 + np.exp(gap(exact)[1:, i]) / 2), ax=axis, color=color)
    plotting.label(axis, r"$1 - $ probability of the label: $1/\zeta_1$ in the end", r"clock $\zeta_1$", "error", log=True)
    axis.set_xscale("log")
    plotting.legend(sheet, axes[0, 0])
    return plotting.save(sheet, folder, "anchored-cross-entropy")


_claim = functools.partial(Claim, id="beyond.anchored_losses", source=SOURCE)
_check = functools.partial(functools.partial, worst_of, sizes=_SIZES)
_SIMPLEX = (
    "prototypes a simplex ETF of any size and mean, biases fixed",
    "wrong logits of a sample equal at the start (two classes: any prototypes, any start)",
    "any class sizes, sample weights and rates; no decay of the features",
)

EXPERIMENT = Experiment(
    name="anchored-cross-entropy",
    family="beyond",
    summary="cross-entropy over a fixed simplex: Lambert's W",
    claims=(
        _claim(
            name="anchored-ce-flow",
            statement="the formula = the integrated gradient, every sample with its own start and weight",
            assumptions=_SIMPLEX,
            tolerance=1e-12,
            check=_check(_definition),
        ),
        _claim(
            name="anchored-ce-omega",
            statement="margin m: l = m - log(C-1) solves l + e^l = l0 + e^l0 + (v/n) kappa zeta1 (Wright's omega), t to 1e12",
            assumptions=_SIMPLEX,
            tolerance=1e-12,
            check=_check(_omega),
        ),
        _claim(
            name="anchored-ce-lambert",
            statement="l = X - W(e^X) in 40 digits, at t = 10 and 1e12",
            assumptions=_SIMPLEX,
            tolerance=1e-12,
            check=_check(_precise),
        ),
        _claim(
            name="anchored-ce-asymptote",
            statement="log(X - log X) <= l <= log X: margins grow like log zeta1 (residual: by how much it is missed)",
            assumptions=(*_SIMPLEX, "t >= 1e6, X > 1"),
            tolerance=1e-14,
            check=_check(_asymptote),
        ),
        _claim(
            name="anchored-ce-refusal",
            statement="random prototypes are outside the assumptions unless there are two classes (residual: any member)",
            assumptions=("no simplex",),
            tolerance=0.0,
            check=_check(_refused),
        ),
    ),
    draw=_draw_figure,
)
