"""Neural collapse along the exact flow of the square loss with slaved biases: all measures over time, and the plateau."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import dynamics as dyn
from dynamics import plotting
from dynamics.verify import Claim, Measured
from experiments.registry import Experiment
from experiments.shared.squares import Shape, Starts, deviation, exact, gram, integrated, pull, rows_of

SOURCE = "V. Papyan, X. Y. Han, D. Donoho (2020), on the exact flow; the numbers: derived here"
SHAPE = Shape((5, 5, 5, 5), 6, True)
SCALE = 0.05
MOST = 256
TABLE = {
    0: (3.93, 0.815, 0.37497),
    20: (0.0459, 0.483, 0.351),
    30: (4.74e-3, 0.423, 0.228),
    40: (5.05e-4, 0.201, 0.0497),
    60: (5.76e-6, 4.1e-3, 3.2e-5),
    100: (7.5e-10, 5.4e-7, 7.1e-8),
}
"""At each time: NC1 = tr(S_W S_B^+)/C, the largest |cos + 1/3| between class means, the loss."""
COLUMNS = ("nc1", "angles", "loss")
TS = np.linspace(0, 100, 51)
DRAWN = 3


@dyn.observables.observable(scale_invariant=True)
def _angles(problem, state):
    """The largest |cos + 1/(C-1)| between centred class means."""
    means = problem.data.class_means(state.features)
    means = means - means.mean(axis=0)
    unit = means / jnp.linalg.norm(means, axis=1, keepdims=True)
    first, second = np.triu_indices(SHAPE.classes, 1)
    return jnp.abs(jnp.sum(unit[first] * unit[second], axis=1) + 1 / (SHAPE.classes - 1)).max()


OBSERVE = {
    "nc1": dyn.observables.nc1,
    "nc2": dyn.observables.nc2,
    "nc3": dyn.observables.nc3,
    "angles": _angles,
    "loss": dyn.observables.loss,
}


def _problem() -> dyn.LayerPeeled:
    return dyn.LayerPeeled(SHAPE.labels, num_classes=SHAPE.classes, loss=dyn.losses.SquaredError(), bias="slaved")


@functools.cache
def _starts() -> tuple[np.ndarray, np.ndarray]:
    """Features and prototypes: all singular values 0.05, singular vectors uniform, those of features of mean zero."""
    rng = np.random.default_rng(9)
    classes, samples, dim = SHAPE.classes, sum(SHAPE.sizes), SHAPE.dim
    right = np.linalg.qr(rng.normal(size=(MOST, dim, classes)))[0].swapaxes(1, 2)
    left = rng.normal(size=(MOST, samples, classes))
    left = np.linalg.qr(left - left.mean(axis=1, keepdims=True))[0]
    turn = np.linalg.qr(rng.normal(size=(MOST, classes, classes)))[0]
    return SCALE * left @ right, SCALE * turn @ right


@functools.cache
def _run(verb) -> dyn.Trajectory:
    """What is observed over time by `dyn.exact.flow` or `dyn.flow`; the latter for the few starts that are drawn."""
    options = {} if verb is dyn.exact.flow else {"rtol": 1e-9, "atol": 1e-12}
    most = MOST if verb is dyn.exact.flow else DRAWN

    def one(features, prototypes):
        state = dyn.Peeled(features, prototypes)
        return verb(_problem(), state, dyn.Rates.equal(1.0), TS, observe=OBSERVE, **options)

    return jax.jit(jax.vmap(one))(*(x[:most] for x in _starts()))


def _table(members: int) -> Measured:
    """By how much (in logarithm) an entry leaves the range of all starts; its place in the range as a quantile."""
    moved = _run(dyn.exact.flow)
    worst, where, numbers = -1.0, "", {}
    for t, row in TABLE.items():
        for name, value in zip(COLUMNS, row, strict=True):
            found = np.asarray(moved.observed[name][:, t // 2])
            low, high = np.quantile(found, [0.01, 0.99])
            numbers[f"{name}@{t} median"] = float(np.median(found))
            numbers[f"{name}@{t} quantile of the table"] = float(np.mean(found < value))
            gap = max(np.log(low / value), np.log(value / high), 0.0)
            if gap > worst:
                worst, where = gap, f"{name} at t = {t}: {value:g} in [{low:.3g}, {high:.3g}]"
    return Measured(worst, MOST, where, numbers)


def _plateau(members: int) -> Measured:
    """NC1 when the loss has lost a tenth, over NC1 at the start."""
    moved = _run(dyn.exact.flow)
    loss, nc1 = np.asarray(moved.observed["loss"]), np.asarray(moved.observed["nc1"])
    falls = np.argmax(loss < 0.9 * loss[:, :1], axis=1)
    fallen = nc1[np.arange(MOST), falls] / nc1[:, 0]
    return Measured(float(np.median(fallen)), MOST, f"median; times {TS[falls.min()]:g} to {TS[falls.max()]:g}")


def _integrated(members: int) -> Measured:
    """Gram matrices at t = 60 against DOP853."""
    features, prototypes = _starts()
    zero, one = np.zeros(MOST), np.ones(MOST)
    rows = Starts(prototypes, features, one, zero, zero)
    ts = np.tile([0.0, 60.0], (MOST, 1))
    reference = integrated(lambda x: pull(SHAPE, rows, x), rows.rows, ts)[:, -1]

    found = rows_of(exact(SHAPE, rows, ts))[:, -1]
    values = deviation(gram(found), gram(reference))
    return Measured(float(values.max()), MOST, f"member {int(values.argmax())}")


def _draw(folder: Path) -> list[Path]:
    formula, moved = _run(dyn.exact.flow), _run(dyn.flow)
    figure, axes = plotting.page(2, 2, title="Square loss with slaved biases: collapse inside the plateau of the loss")
    panels = (
        ("within-class variability falls at once", "nc1", r"NC1, $\mathrm{tr}(S_W S_B^+)/C$"),
        ("the loss waits", "loss", "loss"),
        ("class means form a simplex late", "nc2", "NC2, distance from a simplex"),
        ("prototypes meet class means", "nc3", "NC3, self-duality"),
    )
    colors = [matplotlib.colormaps["viridis"](x) for x in np.linspace(0.05, 0.85, DRAWN)]
    loss = np.asarray(formula.observed["loss"])
    falls = np.argmax(np.median(loss, axis=0) < 0.9 * np.median(loss[:, 0]))
    for ax, (title, name, y) in zip(axes.ravel(), panels, strict=True):
        plotting.label(ax, title, "time $t$", y, log=True)
        ax.axvspan(0, TS[falls], color="0.5", alpha=0.12, linewidth=0)
        plotting.band(TS, formula.observed[name], ax=ax, color="0.4")
        for k, color in enumerate(colors):
            plotting.simulated(TS, moved.observed[name][k], ax=ax, color=color)
            plotting.theory(TS, formula.observed[name][k], ax=ax, color="0.15")
        ax.set_xlim(0, TS[-1])
    for ax, name in ((axes[0, 0], "nc1"), (axes[0, 1], "loss")):
        column = COLUMNS.index(name)
        ax.plot(list(TABLE), [row[column] for row in TABLE.values()], "o", color="#D55E00", markersize=5, zorder=4)
    axes[0, 0].plot([], [], "o", color="#D55E00", markersize=5, label="one tabulated start")
    axes[0, 0].text(1.0, 2e-9, "plateau: the loss is\nwithin 10 % of its start", fontsize=8.5, color="0.35")
    plotting.legend(figure, axes[0, 0], band=f"5-95 % over {MOST} starts")
    return plotting.save(figure, folder, "square-collapse")


_claim = functools.partial(Claim, id="mse.riccati + bias", source=SOURCE)
_SETTING = ("slaved biases", "C = 4, n = 5, dim = 6", "W^T W = H^T H, singular values 0.05")

EXPERIMENT = Experiment(
    name="square-collapse",
    family="square-loss",
    summary="neural collapse along the exact flow, inside the plateau of the loss",
    claims=(
        _claim(
            name="square-collapse-table",
            statement="NC1, the angles of class means and the loss at t = 0..100 lie within 1-99 % of random starts (residual: "
            "by which factor not, in logarithm)",
            assumptions=_SETTING,
            tolerance=1e-12,
            check=_table,
        ),
        _claim(
            name="square-collapse-integrator",
            statement="at t = 60 the formula and the integrator have the same Gram matrices",
            assumptions=_SETTING,
            tolerance=2.1e-13,
            check=_integrated,
        ),
        _claim(
            name="square-collapse-plateau",
            statement="NC1 has fallen a hundredfold when the loss has lost a tenth (residual: median of NC1 over its start)",
            assumptions=_SETTING,
            tolerance=0.01,
            check=_plateau,
        ),
    ),
    draw=_draw,
)
