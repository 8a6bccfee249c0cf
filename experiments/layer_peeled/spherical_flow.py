"""Flow with normalised features: the half-angle law, with and without decay, plain and rescaled rates."""

import functools

import jax
import numpy as np

import dynamics as dyn
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.dense import clock
from experiments.shared.instances import TIMES, Size, worst_of
from experiments.shared.spherical import SHAPES, answers, cosine_rate, gap, planar, pulls, spherical_draws
from experiments.shared.spherical_fan import draw_fan
from experiments.shared.spherical_oracles import cosine, descend, half_angle, integrate, length, pairs, unit, worst

SOURCE = "derived here; On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 7 for the iterates"


@functools.cache
def _integrated(size: Size, members: int, rescaled: bool, decay: bool) -> np.ndarray:
    """The flow by Runge-Kutta steps on the vectors themselves, (members, times, samples, dim)."""
    draw = spherical_draws(size, members, rescaled, decay)
    run = {"rescaled": rescaled, "decay": draw.decay[:, :1, None], "steps": 48 if decay else 32}
    path = integrate(draw.features, pulls(draw, size), cosine_rate(draw), TIMES, **run)
    return np.moveaxis(path, 0, 1)


def _against_integration(size: Size, members: int, rescaled: bool, decay: bool):
    draw = spherical_draws(size, members, rescaled, decay)
    return gap(answers("flow", draw, size, rescaled), _integrated(size, members, rescaled, decay))


def _against_simulation(members: int) -> Measured:
    """One problem of 26 classes and 260 samples, random prototypes; without decay and with: residuals a sample."""
    rng, classes, per_class, dim = np.random.default_rng(14), 26, 10, 6
    prototypes, features = rng.normal(size=(classes, dim)), rng.normal(size=(classes * per_class, dim))
    loss, ts = dyn.losses.Unhinged(0.02), np.linspace(0, 4, 5)
    v = ((1 + 0.02) * prototypes - 0.02 * prototypes.sum(axis=0)).repeat(per_class, axis=0) / features.shape[0]
    turn = 10 ** rng.uniform(np.log10(0.05), np.log10(6), features.shape[0])
    features = unit(features) * np.sqrt(length(v) * ts[-1] / turn)[:, None]

    @jax.jit
    @jax.vmap
    def run(decay):
        fields = {"loss": loss, "decay": dyn.Decay(decay), "normalize": True, "anchored": True}
        problem, state = dyn.LayerPeeled.balanced(classes, per_class, **fields), dyn.Peeled(features, prototypes)
        moved = dyn.flow(problem, state, dyn.Rates.equal(1.0), ts, rtol=1e-10, atol=1e-12)
        return moved.states.features, dyn.exact.flow(problem, state, dyn.Rates.equal(1.0), ts).states.features

    moved, exact = (np.asarray(x) for x in run(np.array([0.0, 0.3])))
    return worst(length(moved - exact) / length(exact))


def _pull_alone_rescaled(members: int) -> Measured:
    """Rates that rescale the pull and not the decay."""
    h, v, eta = pairs(members, alpha=(0.2, 2.0), rescaled=True)
    fade = np.random.default_rng(5).uniform(0.1, 1.0, members)
    run = {"rescaled": True, "decay": (fade / eta)[:, None], "scaled_decay": False, "steps": 120}
    found = integrate(h, v, lambda t: eta[:, None], np.array([0.0, 1.0]), **run)[-1]
    expected = np.exp(-fade)[:, None] * half_angle(h, v, length(v) / length(h) * eta * np.expm1(fade) / fade)
    return worst(length(found - expected) / length(expected))


def _tanh(size: Size, members: int, rescaled: bool):
    """cos(theta), and the distance of directions, against Runge-Kutta steps; the clock by quadrature."""
    draw = spherical_draws(size, members, rescaled, False)
    v, path = pulls(draw, size)[:, None], _integrated(size, members, rescaled, False)
    zeta = (draw.ratio[:, None] * clock(draw, TIMES))[..., None]
    turn = length(v) * zeta / length(draw.features)[:, None] ** (1 if rescaled else 2)
    beta = np.tanh(np.arctanh(cosine(draw.features[:, None], v)) + turn)
    distance = 2 * np.sin(np.arccos(beta) / 2)
    gaps = np.maximum(np.abs(beta - cosine(path, v)), np.abs(distance - length(unit(path) - unit(v))))
    return np.max(gaps[:, :, 3:], axis=(1, 2))  # the first three start where 1 - |beta| has few digits


def _norms(size: Size, members: int, rescaled: bool):
    draw = spherical_draws(size, members, rescaled, False)
    start = length(draw.features)[:, None]
    return np.max(np.abs(length(_integrated(size, members, rescaled, False)) / start - 1), axis=(1, 2))


def _descents(members: int):
    """Pairs, and descents to A = 1.5 by steps of alpha_0 = .02, .01, .005."""
    h, v, _ = pairs(members, theta=(0.2, 3.0))
    counts = np.array([75, 150, 300])
    paths = [descend(h, v, np.repeat([1.5 * (length(h) ** 2 / length(v))[:, None] / k], k, axis=0)) for k in counts]
    return h, v, counts, [path[-1] for path in paths]


def _order(members: int) -> Measured:
    h, v, _, ends = _descents(members)
    flow = half_angle(h, v, np.full(members, 1.5))
    errors = np.array([length(end - flow) for end in ends])
    ratios = errors[:-1] / errors[1:]
    return worst(np.abs(ratios[-1] - 2), smallest_ratio=float(ratios.min()), largest_ratio=float(ratios.max()))


def _growth(members: int) -> Measured:
    h, v, counts, ends = _descents(members)
    grown = [length(end) ** 2 / length(h) ** 2 - 1 for end in ends]
    first = [1.5 / k * (cosine(end, v) - cosine(h, v)) for k, end in zip(counts, ends, strict=True)]
    ratios = np.array(grown) / np.array(first)
    largest = {f"largest at {1.5 / k}": float(r.max()) for k, r in zip(counts, ratios, strict=True)}
    return worst(np.abs(ratios[-1] - 1), **largest)


def _digits(members: int) -> Measured:
    """tan(theta/2) against 80-bit numbers, times the distance of the start from the opposite: coordinates carry no more.

    What artanh(beta) would give, as a number.
    """
    rng = np.random.default_rng([13, members])
    size, strength = 10 ** rng.uniform(-1, 1, members), rng.uniform(0.5, 2, members)
    theta = np.where(rng.random(members) < 0.5, 10 ** rng.uniform(-12, 0, members), np.pi - 10 ** rng.uniform(-8, 0, members))
    problem, state = planar(strength, theta, size)
    ts, rate = np.array([0.0, 1.0, 4.0, 16.0, 64.0]), 10.0 / float(np.max(strength / size**2))
    run = jax.jit(lambda rate: dyn.exact.flow(problem, state, dyn.Rates.equal(rate), ts).states.features)
    moved = np.asarray(run(rate))
    across, ahead = moved[..., 1], moved[..., 0] > 0
    size_now = np.hypot(moved[..., 0], across)
    found = np.where(ahead, across, size_now - moved[..., 0]) / np.where(ahead, size_now + moved[..., 0], across)

    coupling = problem.label_coupling
    assert coupling is not None
    a, b = np.asarray(state.features, np.longdouble).T
    norm = np.sqrt(a**2 + b**2)
    tangent = np.where(a > 0, b, norm - a) / np.where(a > 0, norm + a, b)
    pull = np.asarray(coupling.pull_features(state.prototypes))[:, 0].astype(np.longdouble)
    turn = pull * np.longdouble(rate) * ts[:, None].astype(np.longdouble) / norm**2
    exact = tangent * np.exp(-turn)
    off = np.abs(found / exact - 1).max(axis=0) * np.minimum(1, np.pi - theta)

    with np.errstate(divide="ignore"):
        beta = np.tanh(np.arctanh((a / norm).astype(float)) + turn.astype(float))
    near = (exact > 1e-7) & (exact < 1e-5)
    lost = np.abs(np.sqrt((1 - beta) / (1 + beta)) / exact - 1)[near].max(initial=0.0)
    return worst(off.astype(float), artanh_form=float(lost))


_claim = functools.partial(Claim, id="beyond.sphericalflow", source=SOURCE)


def _check(one, rescaled: bool, **fields):
    """Rescaled rates with two classes, plain ones with fewer dimensions than a simplex needs."""
    return functools.partial(
        worst_of, functools.partial(one, rescaled=rescaled, **fields), sizes=SHAPES[int(not rescaled) :][:1]
    )


_ANY = ("anchored prototypes, any W", "normalised features", "any schedule", "starts close to and opposite to the pull")
_VARIANTS = (
    ("plain", False, False, "tan(theta/2) = tan(theta_0/2) e^{-A}, A = |v| zeta/|h0|^2; |h| stays", 1e-12),
    (
        "decay",
        False,
        True,
        "with decay A = |v| (e^{2 lambda zeta} - 1)/(2 lambda |h0|^2), |h| = |h0| e^{-lambda zeta}",
        1e-10,
    ),
    ("rescaled", True, False, "rescaled rates: the same with A = |v| zeta/|h0|; |h| stays", 1e-12),
    (
        "rescaled-decay",
        True,
        True,
        "rescaled rates, decay: A = |v| (zeta/|h0| + lambda zeta^2/2), |h| = |h0|/(1 + lambda |h0| zeta)",
        1e-10,
    ),
)

EXPERIMENT = Experiment(
    name="spherical-flow",
    family="spherical",
    summary="exact flow with normalised features: the half-angle law",
    claims=(
        *(
            _claim(
                name=f"spherical-flow-{name}",
                statement=statement,
                assumptions=_ANY,
                tolerance=tolerance,
                check=_check(_against_integration, rescaled, decay=decay),
            )
            for name, rescaled, decay, statement, tolerance in _VARIANTS
        ),
        _claim(
            name="spherical-flow-pull-rescaled",
            statement="rates that rescale the pull and not the decay: A = |v| (e^{lambda zeta} - 1)/(lambda |h0|)",
            assumptions=("anchored prototypes", "normalised features", "the loss, not the step, is multiplied by |h|"),
            tolerance=1e-10,
            check=_pull_alone_rescaled,
        ),
        _claim(
            name="spherical-flow-simulated",
            statement="simulated flow = half-angle law, with and without decay",
            assumptions=_ANY,
            tolerance=1e-7,
            check=_against_simulation,
        ),
        *(
            _claim(
                name=f"spherical-flow-tanh{name}",
                statement="cos(theta) = tanh(artanh(beta_0) + A) and |h/|h| - v/|v|| = 2 sin(theta/2)",
                assumptions=("anchored prototypes, any W", "normalised features", "any schedule", "angles in [.05, 3]"),
                tolerance=1e-12,
                check=_check(_tanh, rescaled),
            )
            for name, rescaled in (("", False), ("-rescaled", True))
        ),
        *(
            _claim(
                name=f"spherical-flow-norm{name}",
                statement="without decay every sample's norm is conserved",
                assumptions=_ANY,
                tolerance=1e-12,
                check=_check(_norms, rescaled),
            )
            for name, rescaled in (("", False), ("-rescaled", True))
        ),
        _claim(
            name="spherical-flow-order",
            statement="descent deviates from the flow at first order: half the step, half the error (residual: ratio - 2)",
            assumptions=("A = 1.5", "alpha_0 = .01 and .005", "angles in [.2, 3]"),
            tolerance=0.03,
            check=_order,
        ),
        _claim(
            name="spherical-flow-growth",
            statement="descent makes |h|^2 grow by |h0|^2 alpha_0 (beta_end - beta_0) to leading order (residual: ratio - 1)",
            assumptions=("A = 1.5", "alpha_0 = .005", "angles in [.2, 3]"),
            tolerance=4e-3,
            check=_growth,
        ),
        _claim(
            name="spherical-flow-digits",
            statement="tan(theta/2) is right relative to itself down to e^{-640} (residual: times pi - theta_0)",
            assumptions=("pull along an axis", "theta_0 from 1e-12 to pi - 1e-8"),
            tolerance=1e-12,
            check=_digits,
        ),
    ),
    draw=draw_fan,
)
