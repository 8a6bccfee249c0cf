"""Squared error over fixed prototypes: every sample relaxes along the prototypes' singular vectors, in flow and in descent."""

import functools

import numpy as np
from scipy.linalg import expm

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim
from experiments.registry import Experiment
from experiments.shared.dense import clock, size_of
from experiments.shared.instances import HORIZON, SIMULATED, SIZES, TIMES, Draw, Size, draws, worst_of
from experiments.shared.nonlinear import annealed, forces, residuals, simplex
from experiments.shared.oracles import States, column

SOURCE = "the gradient flow of the squared error at fixed prototypes, a linear system; derived here"
STEPS = 48
FAR = 1e12
MOMENTA = ((0.0, False), (0.8, False), (0.8, True))
_SIZES = SIMULATED


def _labels(size: Size) -> np.ndarray:
    """Not sorted, classes of different sizes."""
    labels = np.arange(size.classes * size.per_class)[::-1] % size.classes
    return np.where(np.arange(labels.size) == 1, 0, labels)


def _weights(size: Size) -> np.ndarray:
    """Three different sample weights of mean one."""
    weights = 1.0 + 0.5 * (np.arange(size.classes * size.per_class) % 3)
    return weights / weights.mean()


@functools.cache
def _draw(size: Size, members: int) -> Draw:
    """A third of the members at a simplex where there is room for one, a third without decay."""
    draw = draws(size, members)
    prototypes, decay = draw.prototypes.copy(), draw.decay.copy()
    if size.dim >= size.classes - 1:
        third = len(prototypes[::3])
        prototypes[::3] = simplex(np.random.default_rng([11, *size]), third, size.classes, size.dim)
    decay[1::3] = 0.0
    return draw._replace(prototypes=prototypes, decay=decay)


def _problem(size: Size, draw: Draw):
    problem = dyn.LayerPeeled(
        _labels(size),
        num_classes=size.classes,
        loss=dyn.losses.SquaredError(),
        decay=dyn.Decay(features=draw.decay[0]),
        anchored=True,
        sample_weights=_weights(size),
    )
    rates = dyn.Rates(dyn.schedules.Cosine(draw.ratio * draw.rate, HORIZON, draw.ratio * draw.floor), 1.0)
    return problem, dyn.Peeled(draw.features, draw.prototypes, draw.biases), rates


@functools.cache
def _flows(size: Size, members: int):
    """Features by formula, at TIMES and far away, and in the limit."""

    def one(draw):
        instance = _problem(size, draw)
        limit = dyn.exact.limit(*instance)
        settled = limit.direction.features * np.e ** limit.constants["log_norm"]
        return dyn.exact.flow(*instance, np.append(TIMES, FAR)).states.features, settled

    return dyn.ensemble.run(one, _draw(size, members), progress=False).values


def _momenta(draw: Draw) -> np.ndarray:
    """None for a third of the members, else up to 0.9."""
    return np.where(draw.spare[:, 0] < 1 / 3, 0.0, 0.9 * draw.spare[:, 1])


def _steps(draw: Draw, size: Size) -> np.ndarray:
    """Up to 0.65 of the largest stable step of plain descent, 2/((v g/n + lambda) peak rate): Nesterov's with mu = 0.9."""
    largest = np.linalg.svd(draw.prototypes, compute_uv=False)[:, 0] ** 2 * _weights(size).max() / _labels(size).size
    return (0.05 + 0.6 * draw.spare[:, 2]) * 2 / ((largest + draw.decay[:, 0]) * draw.ratio * draw.rate)


@functools.cache
def _descents(size: Size, members: int):
    """Features by formula over a descent, heavy ball and Nesterov."""

    def one(member):
        draw, mu, dt = member
        run = functools.partial(dyn.exact.descent, *_problem(size, draw), STEPS, every=STEPS // 4, dt=dt, momentum=mu)
        return [run(nesterov=nesterov).states.features for nesterov in (False, True)]

    draw = _draw(size, members)
    return dyn.ensemble.run(one, (draw, _momenta(draw), _steps(draw, size)), progress=False).values


def _flow(size: Size, members: int):
    """Against exponentials of the affine systems, which are first held against the gradient of the objective."""
    draw, labels, weights = _draw(size, members), _labels(size), _weights(size)
    wanted = (np.eye(size.classes)[labels] - draw.biases[:, None]) @ draw.prototypes
    square = np.swapaxes(draw.prototypes, 1, 2) @ draw.prototypes
    force = forces("square", States(draw.features, draw.prototypes, draw.biases), labels, weights, draw.decay[:, 0]).features
    zeta, found = draw.ratio[:, None] * clock(draw, TIMES), _flows(size, members)[0]
    worst, dim = [], size.dim
    for weight in np.unique(weights):
        own, share = weights == weight, weight / labels.size
        matrix = np.zeros((members, 2 * dim, 2 * dim))
        matrix[:, :dim, :dim] = -share * square - column(draw.decay[:, 0]) * np.eye(dim)
        matrix[:, :dim, dim:] = np.eye(dim)
        h, c = draw.features[:, own], share * wanted[:, own]
        lifted = np.swapaxes(np.concatenate([h, c], axis=-1), 1, 2)
        worst.append(size_of(np.swapaxes((matrix @ lifted)[:, :dim], 1, 2) - force[:, own]) / size_of(force))
        for k in (2, 5):
            truth = np.swapaxes((expm(column(zeta[:, k]) * matrix) @ lifted)[:, :dim], 1, 2)
            worst.append(size_of(found[:, k][:, own] - truth) / np.maximum(size_of(truth), size_of(h)))
    return np.max(worst, axis=0)


def _descent(size: Size, members: int):
    """Against plain loops, relative to the largest size so far."""
    draw, labels, weights = _draw(size, members), _labels(size), _weights(size)
    worst, mu, dt = [], column(_momenta(draw)), _steps(draw, size)
    for nesterov, found in zip((False, True), _descents(size, members), strict=True):
        features, velocity, peak = draw.features, 0.0, size_of(draw.features)
        for k in range(STEPS):
            state = States(features, draw.prototypes, draw.biases)
            force = forces("square", state, labels, weights, draw.decay[:, 0]).features
            velocity = mu * velocity + force
            move = mu * velocity + force if nesterov else velocity
            features = features + column(dt * draw.ratio * annealed(draw, k * dt)) * move
            peak = np.maximum(peak, size_of(features))
            if (k + 1) % (STEPS // 4) == 0:
                worst.append(size_of(found[:, (k + 1) * 4 // STEPS] - features) / peak)
    return np.max(worst, axis=0)


def _settled(size: Size, members: int):
    """The limit and the clock of 1e12 against least squares, ridge or nearest to the start, times the condition number."""
    draw, labels = _draw(size, members), _labels(size)
    share = _weights(size) / labels.size
    wanted = np.eye(size.classes)[labels] - draw.biases[:, None]
    flow, limit = _flows(size, members)
    worst = np.zeros(members)
    for member in range(members):
        w, decay = draw.prototypes[member], draw.decay[member, 0]
        if decay > 0:
            ridge = np.concatenate([w, np.eye(size.dim)])
            pulls = np.sqrt(
                np.concatenate([np.repeat(share[:, None], size.classes, 1), np.full((labels.size, size.dim), decay)], 1)
            )
            goals = np.concatenate([wanted[member], np.zeros((labels.size, size.dim))], 1)
            pairs = zip(pulls, goals, strict=True)
            truth = np.stack([np.linalg.lstsq(pull[:, None] * ridge, pull * goal)[0] for pull, goal in pairs])
        else:
            start = draw.features[member]
            truth = start + (wanted[member] - start @ w.T) @ np.linalg.pinv(w, rcond=1e-13).T
        sizes = np.linalg.svd(w, compute_uv=False)
        condition = sizes[0] / sizes[sizes > 1e-13 * sizes[0]][-1]
        gaps = [size_of(found - truth) / size_of(truth) for found in (flow[member, -1], limit[member])]
        worst[member] = max(gaps) / condition
    return worst


def _simplex(size: Size, members: int):
    """Eigenvalues of W W^T for a simplex ETF of norm |w|: zero, and C/(C-1) |w|^2 for all the others."""
    rng = np.random.default_rng([12, *size])
    norm = rng.uniform(0.1, 5, (members, 1, 1))
    corners = norm * simplex(rng, members, size.classes, size.dim)
    found = np.linalg.eigvalsh(corners @ np.swapaxes(corners, 1, 2))
    expected = size.classes / (size.classes - 1) * norm[:, 0] ** 2 * (np.arange(size.classes) > 0)
    return np.abs(found - expected).max(axis=1) / expected.max(axis=1)


def _draw_figure(folder):
    """Residuals of one class along each singular vector, simulated and by formula."""
    problem = dyn.LayerPeeled.balanced(4, 3, loss=dyn.losses.SquaredError(), decay=dyn.Decay(features=0.002), anchored=True)
    rng = np.random.default_rng(3)
    frame, other = np.linalg.qr(rng.normal(size=(4, 4)))[0], np.linalg.qr(rng.normal(size=(6, 6)))[0]
    sizes = np.array([3.0, 1.5, 0.75, 0.375])
    prototypes = (frame * sizes) @ other[:4]
    state = dyn.Peeled(rng.normal(size=(12, 6)), prototypes)
    rates = dyn.Rates(dyn.schedules.Constant(1.0), 1.0)
    ts = np.append(0.0, np.geomspace(0.1, 3e3, 120))
    moved = dyn.flow(problem, state, rates, ts, rtol=1e-9, atol=1e-12).states.features
    exact = dyn.exact.flow(problem, state, rates, ts).states.features
    sheet, axes = plotting.page(1, 2, title="Squared error over fixed prototypes", panel=(4.6, 3.3))
    labels, axis = problem.labels, axes[0, 0]
    for k, color in zip(range(4), plotting.COLORS, strict=False):
        along = [
            np.linalg.norm(residuals("square", np.asarray(h) @ prototypes.T, labels) @ frame[:, k], axis=1)
            for h in (moved, exact)
        ]
        plotting.simulated(ts[1:], along[0][1:], ax=axis, color=color, label=rf"$\sigma = {sizes[k]:g}$")
        plotting.theory(ts[1:], along[1][1:], ax=axis, color=color)
    plotting.label(axis, "logit residual along each singular vector", r"clock $\zeta_1$", r"$\|(Y - HW^T)u_k\|$", log=True)
    axis.set_xscale("log")
    axis = axes[0, 1]
    for (mu, nesterov), name, color in zip(MOMENTA, ("plain", "heavy ball", "Nesterov"), plotting.COLORS[4:], strict=True):
        run = {"every": 5, "dt": 0.4, "momentum": mu, "nesterov": nesterov}
        for verb, curve in ((dyn.descent, plotting.simulated), (dyn.exact.descent, plotting.theory)):
            features = np.asarray(verb(problem, state, rates, 400, **run).states.features)
            loss = np.linalg.norm(residuals("square", features @ prototypes.T, labels), axis=(1, 2))
            label = f"{name}, $\\mu = {mu:g}$" if verb is dyn.descent else None
            curve(5 * np.arange(81), loss, ax=axis, color=color, label=label)
    plotting.label(axis, "gradient descent", "step", r"$\|Y - HW^T\|$", log=True)
    axis.legend(loc="upper right")
    plotting.legend(sheet, axes[0, 0])
    return plotting.save(sheet, folder, "anchored-square")


_claim = functools.partial(Claim, id="beyond.anchored_losses", source=SOURCE)
_ANY = ("prototypes and biases fixed", "any class sizes, sample weights, rates and decay of the features")

EXPERIMENT = Experiment(
    name="anchored-square",
    family="beyond",
    summary="squared error over fixed prototypes: exact flow and descent",
    claims=(
        _claim(
            name="anchored-square-flow",
            statement="H' = -eta1 [(v/n)(H W^T + b - Y) W + lambda H] along the singular vectors of W = matrix exponential",
            assumptions=_ANY,
            tolerance=5e-14,
            check=functools.partial(worst_of, _flow, sizes=_SIZES),
        ),
        _claim(
            name="anchored-square-descent",
            statement="the same for iterates, plain, heavy ball and Nesterov, of an annealed rate",
            assumptions=_ANY,
            tolerance=5e-14,
            check=functools.partial(worst_of, _descent, sizes=SIZES[2:]),
        ),
        _claim(
            name="anchored-square-limit",
            statement="features end at ridge regression of the labels on the prototypes, or at the fit nearest to the start: "
            "the limit, and the state at t = 1e12 (residual over the condition number of W)",
            assumptions=_ANY,
            tolerance=5e-14,
            check=functools.partial(worst_of, _settled, sizes=_SIZES),
        ),
        _claim(
            name="anchored-square-simplex",
            statement="for a simplex ETF W W^T has the eigenvalue C/(C-1) |w|^2, C - 1 times, and 0",
            assumptions=("prototypes of a simplex ETF",),
            tolerance=1e-14,
            check=functools.partial(worst_of, _simplex, sizes=SIZES[:2]),
        ),
    ),
    draw=_draw_figure,
)
