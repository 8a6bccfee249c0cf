"""Uniform label noise: the expected loss shrinks one singular value, and at the best gamma only slows the clock."""

import functools
from pathlib import Path

import jax
import numpy as np

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.couplings import (
    SIZES,
    dense_states,
    flow_program,
    loss_residuals,
    noise_matrix,
    pull_of,
    smoothing_matrix,
    spectrum_residuals,
    unhinged_matrix,
    worst_found,
)
from experiments.shared.dense import deviation
from experiments.shared.imbalanced import drawn
from experiments.shared.oracles import labels_of, stack

SOURCE = "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 4, for any linear loss"
DRAWS = 4000
EXCHANGED = (4, 4, 4)


def _slow_clock(members: int) -> Measured:
    """At gamma = 1/(C-1): the library's motion under noise, against the dense motion without it at a slowed clock.

    Past rate (C-1)/C the slowed clock runs backwards.
    """

    draw, classes, rate = drawn(SIZES, members), len(SIZES), drawn(SIZES, members).spare[:, 1]
    draw = draw._replace(decay=np.zeros((members, 3)), ratio=draw.ratio**0.5)
    pull = pull_of(unhinged_matrix(SIZES, np.full(members, 1 / (classes - 1))), SIZES)
    unit = np.linalg.svd(pull, compute_uv=False)[:, 0]
    found = flow_program(SIZES, _noisy)(draw, (rate,), unit)
    expected = dense_states(draw, pull, unit, 1 - rate * classes / (classes - 1))
    return worst_found({f"class sizes {SIZES}": deviation(stack(found), expected).max(axis=1)})


def _noisy(rate):
    return dyn.losses.label_noise(dyn.losses.Unhinged(), rate, len(SIZES))


def _monte_carlo(members: int) -> Measured:
    """The mean over drawn labels of the objective, and of the pull on a random direction, in standard errors."""
    sizes, classes = SIZES, len(SIZES)
    draw, rng, labels = drawn(sizes, members), np.random.default_rng(20), labels_of(sizes)
    ways = rng.normal(size=draw.features.shape)

    def one(draw, way):
        loss = dyn.losses.label_noise(dyn.losses.Unhinged(draw.gamma), draw.spare[1], classes)
        problem = dyn.LayerPeeled(labels, num_classes=classes, loss=loss)
        state = dyn.Peeled(draw.features, draw.prototypes, draw.biases)
        return problem.objective(state), (problem.force(state).features * way).sum()

    expected = np.stack(jax.jit(jax.vmap(one))(draw, ways), axis=1)
    # of each sample, for each label it may be given: its loss, and its pull along the direction
    logits = draw.features @ draw.prototypes.swapaxes(1, 2)
    by_label = [
        -x @ unhinged_matrix(sizes, draw.gamma) / len(labels)
        for x in (logits + draw.biases[:, None], -ways @ draw.prototypes.swapaxes(1, 2))
    ]
    errors = np.zeros(members)
    for k in range(members):
        moved = rng.random((DRAWS, len(labels))) < draw.spare[k, 1]
        given = np.where(moved, (labels + rng.integers(1, classes, moved.shape)) % classes, labels)
        for part, table in enumerate(by_label):
            values = table[k][np.arange(len(labels)), given].sum(axis=1)
            error = abs(values.mean() - expected[k, part]) / (values.std(ddof=1) / DRAWS**0.5)
            errors[k] = max(errors[k], error)
    return Measured(float(errors.max()), members, f"member {int(errors.argmax())}", {"mean": float(errors.mean())})


def _exchanged(members: int) -> tuple[np.ndarray, np.ndarray]:
    """Given labels of balanced classes, two samples of different classes exchanged; and who was."""
    labels, rng = labels_of(EXCHANGED), np.random.default_rng(21)
    given = np.tile(labels, (members, 1))
    for row in given:
        first, second = rng.choice(3, 2, replace=False)
        a, b = 4 * first + rng.integers(4), 4 * second + rng.integers(4)
        row[a], row[b] = row[b], row[a]
    return given, given != labels


@functools.cache
def _memorised_program(clocks):
    def one(draw, coupling):
        loss = dyn.losses.Linear(coupling)
        problem = dyn.LayerPeeled.balanced(3, 4, loss=loss)
        return dyn.exact.flow(
            problem, dyn.Peeled(draw.features, draw.prototypes), dyn.Rates.equal(1.0), np.array(clocks), scaled=True
        ).states

    return jax.jit(jax.vmap(one))


def _memorised(members: int) -> Measured:
    """Distance of the features to the unit prototypes of their given labels, over the features, at a clock of 300.

    The numbers give the least distance of a wrongly labelled feature to its true class.
    """
    given, wrong = _exchanged(members)
    coupling = np.where(given[..., None] == np.arange(3), 1.0, -0.5)
    draw = drawn(EXCHANGED, members)
    states = _memorised_program((300.0,))(draw, coupling)
    h, w = (np.asarray(x)[:, 0] for x in (states.features, states.prototypes))
    h, w = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (h, w))
    to = lambda labels: np.linalg.norm(h - np.take_along_axis(w, labels[..., None], axis=1), axis=-1)
    true = to(np.tile(labels_of(EXCHANGED), (members, 1)))
    errors = to(given).max(axis=1)
    return Measured(
        float(errors.max()), members, f"member {int(errors.argmax())}", {"least to the true class": float(true[wrong].min())}
    )


def _draw(folder: Path) -> list[Path]:
    sheet, axes = plotting.page(2, 2, title="Label noise and label smoothing under a linear loss", panel=(4.6, 3.2))
    rates, ts, classes = (0.0, 0.2, 0.4, 0.55), np.linspace(0.0, 60.0, 61), 3
    draw = drawn(EXCHANGED, 1)
    state = dyn.Peeled(0.5 * draw.features[0], 0.5 * draw.prototypes[0])

    @jax.jit
    @jax.vmap
    def both(rate):
        loss = dyn.losses.label_noise(dyn.losses.Unhinged(), rate, classes)
        run = dyn.LayerPeeled.balanced(classes, 4, loss=loss), state, dyn.Rates.equal(1.0), ts
        watch = {"nc1": dyn.observables.nc1}
        return dyn.flow(*run, observe=watch).observed["nc1"], dyn.exact.flow(*run, observe=watch).observed["nc1"]

    flows = [np.asarray(x) for x in both(np.array(rates))]
    for panel, slowed in zip(axes[0], (False, True), strict=True):
        title, x = ("slowed clock: one curve", r"$(1-\rho C/(C-1))\,t$") if slowed else ("noisy labels collapse later", "$t$")
        plotting.label(panel, title, x, "NC1", log=True)
        for k, (rate, color) in enumerate(zip(rates, plotting.COLORS, strict=False)):
            clock = (1 - rate * classes / (classes - 1) if slowed else 1) * ts
            plotting.simulated(clock, flows[0][k], ax=panel, color=color, label=rf"$\rho={rate:g}$")
            plotting.theory(clock, flows[1][k], ax=panel, color=color)
    axes[0, 1].set_xlim(axes[0, 0].get_xlim())
    _draw_spectrum(axes[1, 0])
    _draw_memory(axes[1, 1])
    plotting.legend(sheet, axes[0, 0])
    return plotting.save(sheet, folder, "label-noise")


def _draw_spectrum(panel) -> None:
    sizes, gamma, shares = (4, 4, 4, 4), np.array([0.15]), np.linspace(0, 1, 21)
    plotting.label(panel, r"singular values, $C=4$, $\gamma=0.15$", r"noise $\rho$ or smoothing $\epsilon$", r"$|\sigma|$")
    first, second = (1 + 0.15) / 8, (1 - 3 * 0.15) / 8
    for name, mixing, factor, color in (
        (r"$\sigma_1$, noise", noise_matrix, 4 / 3, plotting.COLORS[1]),
        (r"$\sigma_1$, smoothing", smoothing_matrix, 1.0, plotting.COLORS[0]),
    ):
        spectra = np.linalg.svd(pull_of(mixing(4, shares) @ unhinged_matrix(sizes, gamma), sizes), compute_uv=False)
        # C - 1 equal values belong to the zero-sum directions: the middle one is always among them
        panel.plot(shares, spectra[:, 1], "o", color=color, markersize=4.5, alpha=0.5, label=name)
        plotting.theory(shares, np.abs(1 - factor * shares) * first, ax=panel, color=color)
    common = spectra.sum(axis=1) - 3 * spectra[:, 1]
    panel.plot(shares, common, "o", color=plotting.COLORS[2], markersize=4.5, alpha=0.5, label=r"$\sigma_2$, either")
    plotting.theory(shares, np.full(21, second), ax=panel, color=plotting.COLORS[2])
    panel.set_ylim(0, None)
    panel.legend(fontsize=8.5, frameon=False)


def _draw_memory(panel) -> None:
    count, ts = 200, np.linspace(0.0, 40.0, 81)
    given, wrong = _exchanged(count)
    draw, coupling = drawn(EXCHANGED, count), np.where(given[..., None] == np.arange(3), 1.0, -0.5)
    states = _memorised_program(tuple(ts))(draw, coupling)
    h, w = (np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True) for x in (states.features, states.prototypes))
    cosines = np.einsum("mtid,mtcd->mtic", h, w)
    plotting.label(panel, "labels actually drawn: wrong ones are learned", "$t$", "cosine of feature and prototype")
    for name, labels, color in (("given label", given, 1), ("true label", np.tile(labels_of(EXCHANGED), (count, 1)), 0)):
        values = np.take_along_axis(cosines, labels[:, None, :, None], axis=3)[..., 0]
        values = np.moveaxis(values, 2, 1)[wrong]
        plotting.band(ts, values, ax=panel, color=plotting.COLORS[color])
        panel.plot(ts, np.median(values, axis=0), color=plotting.COLORS[color], label=f"{name} of the mislabelled")
    panel.set_ylim(-1.05, 1.05)
    panel.legend(loc="center right", fontsize=8.5, frameon=False)


_claim = functools.partial(Claim, id="beyond.labelcoupling", source=SOURCE, assumptions=())
_SLOW = ("any class sizes", "no decay", "constant ratio of rates")

EXPERIMENT = Experiment(
    name="label-noise",
    family="beyond",
    summary="label noise slows the clock",
    claims=(
        _claim(
            name="noise-loss",
            statement="label_noise is (1-rho) loss(y) + rho/(C-1) sum_{k != y} loss(k)",
            tolerance=1e-14,
            check=functools.partial(loss_residuals, transform=dyn.losses.label_noise, mixing=noise_matrix),
        ),
        _claim(
            name="noise-sigma",
            statement="uniform label noise: sigma1 -> (1 - rho C/(C-1)) sigma1, sigma2 unchanged",
            assumptions=("balanced classes", "unhinged loss", "expected loss"),
            tolerance=1e-14,
            check=functools.partial(
                spectrum_residuals, mixing=noise_matrix, factor_of=lambda classes, rate: 1 - rate * classes / (classes - 1)
            ),
        ),
        _claim(
            name="noise-slows-the-clock",
            statement="gamma = 1/(C-1): the motion under noise is that without at (1 - rho C/(C-1)) times the clock",
            assumptions=(*_SLOW, "gamma = 1/(C-1)", "expected loss"),
            tolerance=2e-14,
            check=_slow_clock,
        ),
        _claim(
            name="noise-monte-carlo",
            statement="objective and pull, mean over 4000 draws of noisy labels = those of the expected loss "
            "(residual in standard errors)",
            assumptions=("any class sizes", "any gamma"),
            tolerance=4.0,
            check=_monte_carlo,
        ),
        _claim(
            name="noise-memorised",
            statement="labels actually drawn: free features tend to the prototype of the label given, true or not",
            assumptions=("as many wrong labels into every class as out of it", "gamma = 1/(C-1)", "no decay"),
            tolerance=1e-14,
            check=_memorised,
            finding="not the formula but the rounding of LAPACK's singular vectors, which depends on the processor: 5.6e-15 "
            "with OpenBLAS's AVX2 kernels (OPENBLAS_CORETYPE=Haswell), 1.3e-14 with those for AVX-512",
        ),
    ),
    draw=_draw,
)
