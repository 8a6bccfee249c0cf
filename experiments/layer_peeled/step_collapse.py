"""Minority collapse at any imbalance, exactly: the whole curve, its rate, and the reduction to one sample a class."""

import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.dense import deviation, size_of, stacked
from experiments.shared.imbalanced import drawn, pull_of
from experiments.shared.oracles import column, dense_motion, mode_exponential, moved_by, sides_of
from experiments.shared.steps import CLASSES, DIM, GAMMA, coupling_of, problem_of, rates_of, sigmas_of, sizes_of, state_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Corollary 3, for two class sizes"
WHOLE = (3, 3, 1, 1)
TIMES = np.linspace(0.0, 25.0, 51)


class Draw(NamedTuple):
    """Random imbalances, ratios of rates and starts (class sides over prototypes), undecayed."""

    imbalance: np.ndarray
    ratio: np.ndarray
    start: np.ndarray


@functools.cache
def _draws(members: int) -> Draw:
    rng = np.random.default_rng(42)
    imbalance, ratio = np.exp(rng.uniform(np.log(1.5), np.log(50), members)), 4 ** rng.uniform(-1, 1, members)
    return Draw(imbalance, ratio, rng.normal(size=(members, 2 * CLASSES, DIM)))


@functools.cache
def _formula_program():
    def one(coupling, start, ratio, decay, ts):
        return dyn.exact.flow(problem_of(coupling, decay), state_of(start), rates_of(1.0, ratio), ts, scaled=True)

    return jax.jit(jax.vmap(one))


@functools.cache
def _simulated(members: int):
    """Prototypes of simulated flows of the draws, (members, times, classes, dim)."""
    return np.asarray(_simulation_program()(coupling_of(sizes_of(_draws(members).imbalance)), *_draws(members)[1:]))


@functools.cache
def _simulation_program():
    def one(coupling, ratio, start):
        run = problem_of(coupling, (0.0, 0.0)), state_of(start), rates_of(1.0, ratio), TIMES
        return dyn.flow(*run, rtol=1e-11, atol=1e-11).states.prototypes

    return jax.jit(jax.vmap(one))


def _by_modes(draw: Draw) -> np.ndarray:
    """Prototypes at the times by the four modes, written out: two differences, large against small, and the sum."""
    sizes, start = np.sqrt(sizes_of(draw.imbalance)), draw.start
    left = np.array([[1, -1, 0, 0], [1, 1, -1, -1], [0, 0, 1, -1], [1, 1, 1, 1]]) / np.sqrt([[2], [4], [2], [4]])
    # class sides of a mode: A diag(root n) turns its prototypes into them; the sum has none, its partner is 1/root n
    right = np.concatenate([left[:3] * sizes[:, None], 1 / sizes[:, None]], axis=1)
    sigma = np.concatenate([(1 + GAMMA) / CLASSES * size_of(right[:, :3], 1), np.zeros((len(sizes), 1))], axis=1)
    right = right / size_of(right, 1)[..., None]
    clocks = column(draw.ratio) * TIMES[:, None], np.ones_like(column(draw.ratio)) * TIMES[:, None]
    motion = mode_exponential(sigma[:, None], clocks, (0.0, 0.0))
    g, w = (right @ start[:, :CLASSES])[:, None, :, None], (left @ start[:, CLASSES:])[:, None, :, None]
    return left.T @ moved_by(motion, g, w)[1][..., 0, :]


def _share(prototypes) -> np.ndarray:
    """Norm of the small classes' prototypes over that of the large ones'."""
    return size_of(prototypes[..., 2:, :]) / size_of(prototypes[..., :2, :])


def _cosine(prototypes) -> np.ndarray:
    """Cosine between the small classes' prototypes."""
    first, second = prototypes[..., 2, :], prototypes[..., 3, :]
    return np.sum(first * second, axis=-1) / size_of(first, 1) / size_of(second, 1)


def _worst(errors, draw: Draw) -> Measured:
    errors = np.where(np.isnan(errors), np.inf, errors)
    return Measured(float(errors.max()), errors.size, f"imbalance {draw.imbalance[errors.argmax()]:.3g}")


def _curve(members: int) -> Measured:
    """The worst over time of the distance of prototypes over their norm."""
    draw, ts = _draws(members), np.broadcast_to(TIMES, (members, TIMES.size))
    found = _formula_program()(coupling_of(sizes_of(draw.imbalance)), draw.start, draw.ratio, np.zeros((members, 2)), ts)
    prototypes = column(np.exp(found.log_scale)) * np.asarray(found.states.prototypes)
    return _worst(deviation(prototypes, _by_modes(draw)).max(axis=1), draw)


def _flow(members: int) -> Measured:
    draw, found = _draws(members), _simulated(members)
    exact = _by_modes(draw)
    return _worst(np.max([np.abs(_share(found) / _share(exact) - 1), np.abs(_cosine(found) - _cosine(exact))], (0, 2)), draw)


def _rate(members: int) -> Measured:
    """The slope of the log share against q = sqrt(zeta1 zeta2), where the share is e^-13 to e^-14 of what it began with."""
    draw = _draws(members)
    large, mixed, _ = sigmas_of(draw.imbalance)
    q = np.array([13.0, 14.0]) / (large - mixed)[:, None]
    numbers = coupling_of(sizes_of(draw.imbalance)), draw.start, draw.ratio, np.zeros((members, 2))
    found = _formula_program()(*numbers, q / np.sqrt(draw.ratio)[:, None])
    slope = np.diff(np.log(_share(np.asarray(found.states.prototypes))), axis=1)[:, 0] / np.diff(q, axis=1)[:, 0]
    return _worst(np.abs(slope / (mixed - large) - 1), draw)


def _reduction(members: int) -> Measured:
    """Whole samples by the dense generator, with decay; the library's problem of one sample a class."""
    draw, samples = drawn(WHOLE, members)._replace(gamma=np.full(members, GAMMA)), sum(WHOLE)
    start, clock = stacked(sides_of(draw.features, WHOLE), draw.prototypes), 6.0
    coupling = np.broadcast_to(coupling_of(np.array(WHOLE)), (members, CLASSES, CLASSES))
    ts = np.broadcast_to([clock / 2, clock], (members, 2))
    found = _formula_program()(coupling, start, draw.ratio, draw.decay[:, :2], ts)
    states = stacked(np.asarray(found.states.features), np.asarray(found.states.prototypes))[:, -1]
    clocks = draw.ratio * clock, np.full(members, clock)
    whole = dense_motion(pull_of(draw, WHOLE), stacked(draw.features, draw.prototypes), clocks, draw.decay.T[:2])
    expected = stacked(sides_of(whole[:, :samples], WHOLE), whole[:, samples:])
    errors = deviation(column(np.exp(found.log_scale[:, -1])) * states, expected)
    return Measured(float(errors.max()), members, f"member {int(errors.argmax())}")


def _draw(folder: Path) -> list[Path]:
    rng = np.random.default_rng(44)
    imbalance = np.array([1.0, 2.0, 5.0, 20.0])
    draw = Draw(imbalance, np.ones(4), np.broadcast_to(rng.normal(size=(2 * CLASSES, DIM)), (4, 2 * CLASSES, DIM)))
    found, exact = np.asarray(_simulation_program()(coupling_of(sizes_of(imbalance)), *draw[1:])), _by_modes(draw)
    sheet, axes = plotting.page(1, 2, title="Minority collapse under step imbalance, no decay", panel=(4.4, 3.2))
    y = r"$\|W_{\mathrm{small}}\|/\|W_{\mathrm{large}}\|$"
    plotting.label(axes[0, 0], "the minority vanishes beside the majority", "$t$", y, log=True)
    plotting.label(axes[0, 1], "its prototypes merge", "$t$", "cosine between them")
    for panel, of in zip(axes[0], (_share, _cosine), strict=True):
        for k, color in enumerate(plotting.COLORS[:4]):
            plotting.simulated(TIMES, of(found)[k], ax=panel, color=color, label=f"imbalance {imbalance[k]:g}")
            plotting.theory(TIMES, of(exact)[k], ax=panel, color=color)
    plotting.legend(sheet, axes[0, 0])
    return plotting.save(sheet, folder, "step-collapse")


_claim = functools.partial(
    Claim,
    id="beyond.imbalance",
    source=SOURCE,
    assumptions=("two classes of each size", "gamma = 1/(C-1)", "no decay", "any imbalance in (1.5, 50)"),
)

EXPERIMENT = Experiment(
    name="step-collapse",
    family="beyond",
    summary="minority collapse at any imbalance",
    claims=(
        _claim(
            name="collapse-reduction",
            statement="class sides and prototypes of classes of any sizes = the problem with one sample a class",
            assumptions=("class sizes 3, 3, 1, 1", "gamma = 1/(C-1)", "any decays"),
            tolerance=2e-13,
            check=_reduction,
        ),
        _claim(
            name="collapse-curve",
            statement="prototypes at all times: formula = the four modes of step imbalance, written out",
            tolerance=2e-13,
            check=_curve,
        ),
        _claim(
            name="collapse-flow",
            statement="ratio of norms and cosine of the minority at all times: simulated flow = the four modes",
            tolerance=1e-7,
            check=_flow,
        ),
        _claim(
            name="collapse-rate",
            statement="minority over majority falls as exp(-(sigma_maj - sigma_mix) q), q^2 = zeta1 zeta2",
            tolerance=1e-8,
            check=_rate,
        ),
    ),
    draw=_draw,
)
