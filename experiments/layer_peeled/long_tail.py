"""Long-tailed and step imbalance: what class sizes do to the motion, and the weights that undo it."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.dense import clock, deviation, stacked
from experiments.shared.imbalanced import drawn, moved, pull_of, weights_of
from experiments.shared.instances import TIMES
from experiments.shared.oracles import column, dense_motion, labels_of, mode_exponential, moved_by, pull_matrix, sides_of

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 4, for long-tailed class sizes"
LATE = (2, 5)  # indices into TIMES


def _sizes(labels: np.ndarray) -> tuple[int, ...]:
    return tuple(np.bincount(labels).tolist())


TAIL = _sizes(dyn.class_sizes.long_tailed(4, 9, 9))


def _profiles(members: int):
    """Random classes, largest size and ratio."""
    rng = np.random.default_rng(31)
    for _ in range(members):
        classes, largest = int(rng.integers(2, 11)), int(rng.integers(1, 200))
        yield rng, classes, largest, float(np.exp(rng.uniform(0, np.log(largest))))


def _tail_sizes(members: int) -> Measured:
    """How far a size is from its profile beyond rounding, written out class by class; labels in order, none missing."""
    errors = []
    for _, classes, largest, ratio in _profiles(members):
        labels = dyn.class_sizes.long_tailed(classes, largest, ratio)
        exact = np.array([largest * np.exp(-np.log(ratio) * c / (classes - 1)) for c in range(classes)])
        apart = np.abs(np.bincount(labels, minlength=classes) - exact).max() - 0.5
        errors.append(np.inf if np.any(np.diff(labels) < 0) or not np.all(np.isin(range(classes), labels)) else apart)
    return Measured.worst(np.maximum(errors, 0.0))


def _step_sizes(members: int) -> Measured:
    """The same for steps, of half of the classes and of any number."""
    errors = []
    for rng, classes, largest, ratio in _profiles(members):
        minority = None if rng.random() < 0.3 else int(rng.integers(1, classes))
        sizes = np.bincount(dyn.class_sizes.step(classes, largest, ratio, minority), minlength=classes)
        small = classes // 2 if minority is None else minority
        wrong = [abs(n - largest) for n in sizes[: classes - small]] + [abs(n - largest / ratio) - 0.5 for n in sizes[-small:]]
        errors.append(max(wrong) if sizes.size == classes else np.inf)
    return Measured.worst(np.maximum(errors, 0.0))


def _against_dense(members: int, power: float) -> Measured:
    """Samples weighted by class size to a power: the formula against all eigenvectors of the dense generator."""
    draw = drawn(TAIL, members)
    found = moved(draw, TAIL, TIMES, power)
    states = column(np.exp(found.log_norms)) * found.directions
    start, pull, weights = stacked(draw.features, draw.prototypes), pull_of(draw, TAIL, power), clock(draw, TIMES)
    expected = [dense_motion(pull, start, (draw.ratio * weights[:, k], weights[:, k]), draw.decay.T[:2]) for k in LATE]
    return Measured.worst(np.max([deviation(states[:, k], z) for k, z in zip(LATE, expected, strict=True)], axis=0))


def _restored_motion(members: int) -> Measured:
    """Weights n_c^{-1/2}: class sides and prototypes by the balanced formula, sigma1 = (1+gamma) v sqrt(n_c)/n."""
    draw = drawn(TAIL, members)
    found = moved(draw, TAIL, TIMES, -0.5)
    states = column(np.exp(found.log_norms)) * found.directions
    samples, classes = sum(TAIL), len(TAIL)
    weight = weights_of(TAIL, -0.5)[0] * np.sqrt(TAIL[0]) / samples
    g0, w0 = sides_of(draw.features, TAIL), draw.prototypes
    worst = []
    for k in LATE:
        weights = clock(draw, TIMES)[:, k]
        expected = []
        for sigma, part in (
            ((1 + draw.gamma) * weight, lambda x: x - x.mean(axis=1, keepdims=True)),
            ((1 + draw.gamma - draw.gamma * classes) * weight, lambda x: 0 * x + x.mean(axis=1, keepdims=True)),
        ):
            motion = mode_exponential(sigma, (draw.ratio * weights, weights), draw.decay.T[:2])
            expected.append(stacked(*moved_by(motion, part(g0), part(w0))))
        sides = stacked(sides_of(states[:, k, :samples], TAIL), states[:, k, samples:])
        worst.append(deviation(sides, sum(expected)))
    return Measured.worst(np.max(worst, axis=0))


def _restored_spectrum(members: int) -> Measured:
    """C - 1 equal singular values, and the common one, of random long tails of up to ten classes."""
    errors = []
    for rng, classes, largest, ratio in _profiles(members):
        sizes = _sizes(dyn.class_sizes.long_tailed(classes, largest, ratio))
        top = 2 / (classes - 2) if classes > 2 else 2.0
        gamma = 1 / (classes - 1) if rng.random() < 0.5 else top * rng.uniform(0.02, 0.98)
        weights = weights_of(sizes, -0.5)
        sigma = np.sort(np.linalg.svd(pull_matrix(labels_of(sizes), np.array(gamma), weights), compute_uv=False))
        expected = np.full(classes, (1 + gamma) * weights[0] * np.sqrt(sizes[0]) / sum(sizes))
        expected[-1] *= abs(1 + gamma - gamma * classes) / (1 + gamma)
        errors.append(np.abs(sigma - np.sort(expected)).max() / expected[0])
    return Measured.worst(np.array(errors))


def _separate(members: int) -> Measured:
    """The part of random long tails, at gamma = 1/(C-1), for which it is not so, to rounding."""
    wrong = 0
    for _, classes, largest, ratio in _profiles(members):
        sizes = np.array(_sizes(dyn.class_sizes.long_tailed(classes, largest, ratio)))
        pull = pull_matrix(labels_of(sizes), np.array(1 / (classes - 1)))
        _, sigma, right = np.linalg.svd(pull, full_matrices=False)
        scaled = (sigma * sizes.sum() * (classes - 1) / classes)[:-1] ** 2
        between = np.all(scaled <= sizes[:-1] * (1 + 1e-12)) and np.all(scaled >= sizes[1:] * (1 - 1e-12))
        opposed = sizes[0] == sizes[1] or np.all(right[0, 0] * right[0, 1:] < 0)
        wrong += not (between and opposed)
    return Measured(wrong / members, members)


def _cosines(problem, state):
    """Mean cosine between prototypes of the three largest of six classes, and of the three smallest."""
    unit = state.prototypes / jnp.linalg.norm(state.prototypes, axis=1, keepdims=True)
    gram = unit @ unit.T
    return jnp.stack([(jnp.sum(block) - 3) / 6 for block in (gram[:3, :3], gram[3:, 3:])])


def _tails(labels: np.ndarray, powers: tuple[float, ...], ts):
    """Those cosines over time, (powers, starts, times, 2), simulated and by formula; samples weighted by n_c^power.

    Weights multiply the rows of the coupling, which may vary from member to member: one program for all of them.
    """
    rng, watch = np.random.default_rng(33), {"cosines": _cosines}
    starts = rng.normal(size=(8, labels.size, 6)), rng.normal(size=(8, 6, 6))

    @jax.jit
    def both(coupling, features, prototypes):
        problem = dyn.LayerPeeled(labels, num_classes=6, loss=dyn.losses.Linear(coupling))
        run = problem, dyn.Peeled(features, prototypes), dyn.Rates.equal(1.0), ts
        return dyn.flow(*run, observe=watch).observed["cosines"], dyn.exact.flow(*run, observe=watch).observed["cosines"]

    rows = labels.size * pull_matrix(labels, np.array(0.2))
    couplings = np.stack([rows * weights_of(_sizes(labels), power)[:, None] for power in powers])
    over_starts = jax.vmap(both, (None, 0, 0))
    return [np.asarray(x) for x in jax.vmap(over_starts, (0, None, None))(couplings, *starts)]


def _draw(folder: Path) -> list[Path]:
    labels, ts = dyn.class_sizes.long_tailed(6, 60, 20.0), np.linspace(0.0, 120.0, 121)
    simulated, exact = _tails(labels, (0.0, -0.5, -1.0), ts)
    sizes = np.bincount(labels)
    title = f"A long tail: classes of {', '.join(map(str, sizes[:-1]))} and {sizes[-1]} samples; cosines between prototypes"
    sheet, axes = plotting.page(1, 3, title=title, panel=(4.0, 3.2))
    titles = "plain: the tail collapses", r"weights $n_c^{-1/2}$: balanced again", r"weights $n_c^{-1}$: the head collapses"
    for panel, title, moving, formula in zip(axes[0], titles, simulated, exact, strict=True):
        plotting.label(panel, title, "$t$", "mean cosine within the group")
        for k, group in enumerate(("the three largest classes", "the three smallest")):
            color = plotting.COLORS[k]
            plotting.band(ts, moving[:, :, k], ax=panel, color=color)
            plotting.simulated(ts, moving[0, :, k], ax=panel, color=color, label=group)
            plotting.theory(ts, formula[0, :, k], ax=panel, color=color)
        panel.set_ylim(-0.55, 1.05)
    plotting.legend(sheet, axes[0, 0], band="5-95 % over 8 starts")
    return plotting.save(sheet, folder, "long-tail")


_claim = functools.partial(
    Claim, id="beyond.imbalance", source=SOURCE, assumptions=(f"class sizes {', '.join(map(str, TAIL))}", "any decays")
)
_RECIPE = dict(id="recipe.imbalance", source="Y. Cui et al. (2019), Section 5.1; M. Buda et al. (2018), Section 3.1")

EXPERIMENT = Experiment(
    name="long-tail",
    family="beyond",
    summary="long-tailed and step imbalance",
    claims=(
        _claim(
            **_RECIPE,
            name="sizes-long-tailed",
            statement="n_c = n_1 rho^{-c/(C-1)} to the nearest whole number (residual: samples beyond a half)",
            assumptions=("any classes, largest size and ratio",),
            tolerance=1e-9,
            check=_tail_sizes,
        ),
        _claim(
            **_RECIPE,
            name="sizes-step",
            statement="the last classes, half of them or as many as given, have n_1/rho samples (residual as above)",
            assumptions=("any classes, largest size and ratio",),
            tolerance=1e-9,
            check=_step_sizes,
        ),
        _claim(
            name="long-tail-dense",
            statement="formula = motion by all eigenvectors of the dense generator",
            tolerance=2e-13,
            check=functools.partial(_against_dense, power=0.0),
        ),
        _claim(
            name="long-tail-spectrum",
            statement="singular values (C-1)/C n sigma_c squared lie between neighbouring class sizes; in the leading mode "
            "one largest class stands against all others (residual: exceptions)",
            assumptions=("any long tail", "gamma = 1/(C-1)"),
            tolerance=0.0,
            check=_separate,
        ),
        _claim(
            name="long-tail-root-weights",
            statement="samples weighted by n_c^{-1/2}: the balanced spectrum",
            assumptions=("any long tail", "0 < gamma < 2/(C-2)"),
            tolerance=1e-14,
            check=_restored_spectrum,
        ),
        _claim(
            name="long-tail-restored",
            statement="samples weighted by n_c^{-1/2}: class sides and prototypes move by the balanced formula",
            tolerance=2e-13,
            check=_restored_motion,
        ),
    ),
    draw=_draw,
)
