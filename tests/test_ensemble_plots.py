"""Pictures of ensembles: the artists hold the numbers that were put in, and a run folder becomes files."""

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import LogNorm, Normalize

import dynamics as dyn
from dynamics.plotting import COLORS, ensembles, page
from tests.helpers import compiled

xarray = pytest.importorskip("xarray")
pytest.importorskip("pydantic")

from dynamics.cli import config as configuration  # noqa: E402
from dynamics.cli import curves as by_formula  # noqa: E402
from dynamics.cli import plot as pages  # noqa: E402
from dynamics.cli import reading, sweep  # noqa: E402
from dynamics.cli.curves import Curves, Formula  # noqa: E402

TIMES = np.linspace(0.0, 3.0, 7)
LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


def uniform(*shape: int) -> np.ndarray:
    """Numbers between 0 and 1, the same for a shape."""
    return np.random.default_rng(shape).random(shape)


SWEEP = """
name = "demo"
problem = { num_classes = 3, per_class = 2 }
start = { kind = "gaussian", dim = 4 }
rates = { equal = 0.5 }
motion = { verb = "flow", times = [0.0, 1.0, 4.0] }
keep = { observables = ["nc1", "loss"] }
[[sweep]]
axis = "problem.loss.gamma"
name = "gamma"
values = [0.2, 0.5]
[[sweep]]
axis = "start.seed"
name = "draw"
count = 4
"""
CONFIG = configuration.loads(SWEEP)


def axes():
    figure, found = page(1, 1)
    return found[0, 0]


def filled(collection) -> tuple[np.ndarray, np.ndarray]:
    """The lower and the upper edge of a filled band, at its increasing abscissae."""
    vertices = collection.get_paths()[0].vertices
    xs = np.unique(vertices[:, 0])
    ys = [vertices[vertices[:, 0] == x, 1] for x in xs]
    return np.array([y.min() for y in ys]), np.array([y.max() for y in ys])


# ---- the artists ----


def test_a_band_shows_the_median_and_its_quantiles():
    low, median, high = np.array([[0.1] * 7, [0.2] * 7]), np.linspace(1, 2, 7), np.array([[4.0] * 7, [3.0] * 7])
    ax = ensembles.band(axes(), TIMES, median, low, high, color="#D55E00", label="g")
    line = ax.get_legend_handles_labels()[0][0]
    np.testing.assert_array_equal(line.get_data(), [TIMES, median])
    for collection, bottom, top in zip(ax.collections, low, high, strict=True):
        np.testing.assert_array_equal(filled(collection), [bottom, top])
    one = ensembles.band(axes(), TIMES, median, low[0], high[0])
    assert len(one.collections) == 1 and one.get_legend_handles_labels()[1] == []


def test_theory_is_dashed_thin_and_above_the_band():
    ax = ensembles.band(axes(), TIMES, TIMES, TIMES - 1, TIMES + 1)
    wide = max(line.get_linewidth() for line in ax.lines)
    solid = len(ax.lines)
    ensembles.theory(ax, TIMES, TIMES, TIMES - 1, TIMES + 1)
    drawn = ax.lines[solid:]
    np.testing.assert_array_equal([line.get_ydata() for line in drawn], [TIMES - 1, TIMES + 1, TIMES])
    assert all(line.is_dashed() and line.get_linewidth() < wide / 2 for line in drawn)
    assert min(line.get_zorder() for line in drawn) > max(line.get_zorder() for line in ax.lines[:solid])


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_a_log_axis_leaves_out_zeros_and_moves_nothing(scale):
    ax = axes()
    ax.set_yscale(scale)
    ax.set_xscale(scale)
    values = np.array([1.0, 0.0, 2.0, -1.0, np.inf, np.nan, 3.0])
    ensembles.theory(ensembles.band(ax, TIMES, values, values, values), TIMES, values, values, values)
    kept = values > 0 if scale == "log" else np.isfinite(values)
    for line in ax.lines:
        x, y = line.get_data()
        np.testing.assert_array_equal(y, np.where(kept & np.isfinite(values), values, np.nan))
        np.testing.assert_array_equal(x, np.where(TIMES > 0, TIMES, np.nan) if scale == "log" else TIMES)


def test_scales_are_chosen_by_the_spacing_of_the_values():
    even = ensembles.spread_evenly_in_log
    assert even(np.geomspace(1e-3, 1, 10)) and even([0, *np.geomspace(1, 100, 9)]) and even([1, 2, 5, 10, 20, 50])
    assert (
        not even(np.linspace(0, 1, 10))
        and not even(np.geomspace(1, 5, 10))
        and not even([1, 100])
        and not even([-1, 1, 10, 100])
    )
    assert ensembles.over_decades([0, 1e-3, 1]) and ensembles.over_decades([1e-3, np.nan, np.inf, 1])
    assert (
        not ensembles.over_decades([1, 99])
        and not ensembles.over_decades([-1, 1e-3, 1])
        and not ensembles.over_decades([0, np.nan])
    )


def test_few_groups_cycle_and_many_follow_a_scale():
    assert ensembles.colors(np.arange(6)) == list(COLORS[:6])
    many = np.array(ensembles.colors(np.geomspace(0.1, 10, 64)))
    brightness = many[:, :3] @ [0.299, 0.587, 0.114]
    assert np.all(np.diff(brightness) > 0)
    # even in the log of the values: the middle one has the colour half-way along the scale
    np.testing.assert_allclose(ensembles.colors(np.geomspace(0.1, 10, 9))[4], matplotlib.colormaps["viridis"](0.46), atol=0.01)
    ax = ensembles.color_bar(axes(), np.geomspace(0.1, 10, 64), "peak")
    bar = ax.figure.axes[-1]
    assert bar.get_title(loc="left") == "peak" and bar.get_yscale() == "log"
    texts = [f"kind {i}" for i in range(9)]
    ticks = ensembles.color_bar(axes(), texts, "kind").figure.axes[-1].get_yticklabels()
    assert [tick.get_text() for tick in ticks][:2] == ["kind 0", "kind 1"]


def test_a_phase_map_puts_each_value_around_its_point():
    x, y = np.geomspace(0.01, 10, 4), np.array([0.0, 0.5, 1.0])
    values = uniform(3, 4) - 0.5
    values[1, 2] = np.nan
    ax = ensembles.phase_map(axes(), x, y, values, label="median of nc1")
    mesh = ax.collections[0]
    shown = mesh.get_array()
    np.testing.assert_array_equal(shown.mask, np.isnan(values))
    np.testing.assert_array_equal(shown.compressed(), values[~np.isnan(values)])
    corners = mesh.get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], 10.0 ** np.array([-2.5, -1.5, -0.5, 0.5, 1.5]), rtol=1e-12)
    np.testing.assert_allclose(corners[:, 0, 1], [-0.25, 0.25, 0.75, 1.25])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert type(mesh.norm) is Normalize and ax.patch.get_hatch()
    assert ax.figure.axes[-1].get_ylabel() == "median of nc1"


def test_a_phase_map_is_coloured_in_log_over_decades():
    def norm(values):
        return type(ensembles.phase_map(axes(), np.arange(2), np.arange(2), values).collections[0].norm)

    assert norm([[1e-3, 1e-2], [np.nan, 1.0]]) is LogNorm
    for values in ([[0.0, 1e-2], [1e-3, 1.0]], [[-1e-3, 1e-2], [0.1, 1.0]], [[1.0, 2.0], [3.0, 99.0]], np.full((2, 2), np.nan)):
        assert norm(values) is Normalize
    named = ensembles.phase_map(axes(), np.array(["4, 4", "8, 2"]), np.array([1.0, 2.0]), np.eye(2))
    assert [tick.get_text() for tick in named.get_xticklabels()] == ["4, 4", "8, 2"]


def test_the_status_bar_is_as_long_as_there_are_members():
    ax = ensembles.status_bar(axes(), {"ok": 12000, "bad_input": 0, "norm_cap": 40, "max_steps": 2})
    bars = [(bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert bars == [(0, 12000), (12000, 40), (12040, 2)] and ax.get_xlim() == (0, 12042)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["12\u2009000 ok", "40 norm_cap", "2 max_steps"]
    assert len({bar.get_facecolor() for bar in ax.patches}) == 3


def test_a_histogram_has_its_counts_between_its_edges():
    for edges, scale in ((np.geomspace(1e-6, 1, 13), "log"), (np.linspace(-1, 1, 13), "linear")):
        counts = (9 * uniform(12)).astype(int)
        ax = ensembles.histogram(axes(), edges, counts)
        for stairs in ax.patches:
            np.testing.assert_array_equal(stairs.get_data().values, counts)
            np.testing.assert_array_equal(stairs.get_data().edges, edges)
        ensembles.histogram(ax, edges, 10 * counts)
        assert ax.get_xscale() == scale and ax.get_ylim()[0] == 0 and ax.get_ylim()[1] >= 10 * counts.max()


def test_a_text_is_drawn_as_it_stands():
    """A lone formula sign must not stop a picture, nor a character that the font lacks."""
    assert ensembles.printable("naïve λ 训 $x^$") == "naïve λ ? \\$x^\\$"
    ax = axes()
    ax.set_title(ensembles.printable("训练 $x^$"))
    ax.figure.canvas.draw()


# ---- the pages of a run ----


def written(folder, variables: dict, coordinates: dict | None = None, **attributes):
    """A run folder with a result of these variables."""
    found = {"time": ("time", TIMES, {"long_name": "time of the flow", "units": "1 / learning rate"}), **(coordinates or {})}
    about = {"title": "Überraschung", "name": "demo", "config": "nothing to read = true", **attributes}
    xarray.Dataset(variables, found, about).to_netcdf(folder / "result.nc", engine="netcdf4")
    return folder


def of_members(count: int, **per_member) -> dict:
    """Coordinates of members: their numbers and the swept axes."""
    return {
        "member": np.arange(count),
        "quantile": LEVELS,
        **{name: ("member", np.asarray(v)) for name, v in per_member.items()},
    }


@pytest.fixture
def drawn(monkeypatch):
    """The figures instead of the files, by name."""
    figures = {}
    monkeypatch.setattr(pages, "save", lambda figure, folder, name: figures.setdefault(name, figure) and [])
    return figures


@pytest.fixture
def formula(monkeypatch):
    """Closed forms that a test puts in the place of the real one."""
    found = {}
    monkeypatch.setattr(pages, "_configuration", lambda data: (CONFIG, ""))
    monkeypatch.setattr(pages, "closed_form", lambda *given: Formula(found, "closed form of 5 of 9 members", ""))
    return found


def labels(figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_run_becomes_png_and_pdf(tmp_path):
    quantiles = np.sort(uniform(5, 7), axis=0)
    status = np.array([0, 0, 0, 3], np.int8)
    variables = {"nc1_quantile": (("quantile", "time"), quantiles), "status": ("member", status)}
    before = dict(matplotlib.rcParams)
    paths = pages.plot(written(tmp_path, variables, of_members(4)), theory=False)
    assert paths == [tmp_path / "figures" / "nc1.png", tmp_path / "figures" / "nc1.pdf"]
    assert paths[0].read_bytes()[:4] == b"\x89PNG" and paths[1].read_bytes()[:4] == b"%PDF"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["nc1.pdf", "nc1.png", "result.nc"]
    assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == before


def test_quantiles_are_drawn_over_time_with_the_closed_form(tmp_path, drawn, formula):
    quantiles = np.sort(uniform(5, 7), axis=0) * 10.0 ** -(2 * TIMES)
    low, middle, high = quantiles[:2] * 2, quantiles[2] * 2, quantiles[:2:-1] * 2
    formula["nc1"] = Curves(middle, low, high, "median", ())
    final = 10.0 ** -(6 * uniform(50))
    final[:3] = np.nan, 0.0, 1e9
    status = np.zeros(50, np.int8)
    status[2] = 3  # its last value is not the end of the others
    variables = {
        "nc1_quantile": (("quantile", "time"), quantiles),
        "nc1_final": ("member", final),
        "status": ("member", status),
    }
    pages.plot(written(tmp_path, variables, of_members(50)))
    figure = drawn["nc1"]
    ax, beside, strip = figure.axes
    solid = [line for line in ax.lines if not line.is_dashed()]
    dashed = [line for line in ax.lines if line.is_dashed()]
    widest = max(solid, key=lambda line: line.get_linewidth())
    np.testing.assert_array_equal(widest.get_data(), [TIMES, quantiles[2]])
    for band, (bottom, top) in zip(ax.collections, ((0, 4), (1, 3)), strict=True):
        np.testing.assert_array_equal(filled(band), quantiles[[bottom, top]])
    np.testing.assert_array_equal(max(dashed, key=lambda line: line.get_linewidth()).get_ydata(), middle)
    assert ax.get_yscale() == "log" and ax.get_xlabel() == "time (1 / learning rate)" and ax.get_ylabel() == "nc1"
    counts = beside.patches[0].get_data().values
    assert counts.sum() == 47 and beside.get_xscale() == "log"
    assert [bar.get_width() for bar in strip.patches] == [49, 1]
    assert labels(figure) == ["simulated, median", "5–95 % of members, 25–75 % of members", "closed form of 5 of 9 members"]
    assert figure.get_suptitle().startswith("Überraschung – demo\n50 members, gradient flow of the unhinged loss")


@pytest.mark.parametrize("groups", [3, 9])
def test_statistics_by_an_axis_are_drawn_for_each_of_its_values(tmp_path, drawn, formula, groups):
    gamma = np.geomspace(0.1, 10, groups)
    quantiles = np.sort(uniform(groups, 5, 7), axis=1)
    formula["nc1"] = Curves(quantiles[:, 2] + 1, quantiles[None, :, 0] + 1, quantiles[None, :, 4] + 1, "median", ())
    coordinates = {**of_members(groups), "gamma_cell": gamma}
    pages.plot(written(tmp_path, {"nc1_quantile": (("gamma_cell", "quantile", "time"), quantiles)}, coordinates))
    ax = drawn["nc1"].axes[0]
    width = 3.2 if groups == 3 else 1.6
    medians = [line for line in ax.lines if line.get_linewidth() == width]
    np.testing.assert_array_equal([line.get_ydata() for line in medians], quantiles[:, 2])
    dashed = [line.get_ydata() for line in ax.lines if line.is_dashed() and line.get_linewidth() > 1]
    if groups == 3:
        assert labels(drawn["nc1"])[:3] == ["gamma = 0.1", "gamma = 1", "gamma = 10"]
        np.testing.assert_array_equal(dashed, quantiles[:, 2] + 1)
        assert len(ax.collections) == 3
    else:
        np.testing.assert_array_equal(dashed, quantiles[[0, 2, 3, 5, 6, 8], 2] + 1)
        assert any(other.get_title(loc="left") == "gamma" for other in drawn["nc1"].axes) and not ax.collections


def test_a_second_axis_of_statistics_makes_panels(tmp_path, drawn):
    quantiles = np.sort(uniform(2, 5, 5, 7), axis=2)
    coordinates = {**of_members(4), "gamma_cell": [0.1, 0.2], "peak_cell": np.arange(5.0)}
    counts = (9 * uniform(2, 5, 3, 7)).astype(int)
    variables = {
        "nc1_quantile": (("gamma_cell", "peak_cell", "quantile", "time"), quantiles),
        "nc1_histogram": (("gamma_cell", "peak_cell", "nc1_bin", "time"), counts, {"edges": [0.0, 1.0, 2.0, 3.0]}),
    }
    pages.plot(written(tmp_path, variables, coordinates), theory=False)
    *panels, beside, _ = drawn["nc1"].axes
    assert [ax.get_title() for ax in panels] == ["peak = 0", "peak = 2", "peak = 4"]
    for ax, peak in zip(panels, (0, 2, 4), strict=True):
        wide = [line.get_ydata() for line in ax.lines if line.get_linewidth() == 3.2]
        np.testing.assert_array_equal(wide, quantiles[:, peak, 2])
    shown = [stairs.get_data().values for stairs in beside.patches[::2]]
    np.testing.assert_array_equal(shown, counts[..., -1].sum(axis=1))


def test_without_quantiles_the_mean_and_one_deviation(tmp_path, drawn):
    mean, variance = 1 + uniform(7), uniform(7)
    pages.plot(written(tmp_path, {"nc1_mean": ("time", mean), "nc1_variance": ("time", variance)}, of_members(3)), theory=False)
    ax = drawn["nc1"].axes[0]
    np.testing.assert_array_equal(max(ax.lines, key=lambda line: line.get_linewidth()).get_ydata(), mean)
    np.testing.assert_array_equal(filled(ax.collections[0]), [mean - variance**0.5, mean + variance**0.5])
    assert labels(drawn["nc1"]) == ["simulated, mean", "one standard deviation"]


def test_without_statistics_the_quantiles_of_the_members(tmp_path, drawn):
    values = uniform(40, 7)
    values[:10, 3] = np.nan
    values[:, 6] = np.nan
    pages.plot(written(tmp_path, {"nc1": (("member", "time"), values)}, of_members(40)), theory=False)
    ax = drawn["nc1"].axes[0]
    wide = max(ax.lines, key=lambda line: line.get_linewidth()).get_ydata()
    finite = [sorted(v for v in column if np.isfinite(v)) for column in values.T]
    exact = [column[-(-len(column) // 2) - 1] if column else np.nan for column in finite]  # of rank ceil(n / 2)
    np.testing.assert_array_equal(wide, exact)


def swept(tmp_path, **more):
    """Three axes: 4 x 3 crossed with 2 starts; members with large `peak` and `gamma` fail."""
    peak, gamma, seed = (
        grid.ravel() for grid in np.meshgrid(np.geomspace(0.01, 10, 4), [0.0, 0.5, 1.0], [5, 6], indexing="ij")
    )
    final = uniform(24)
    status = np.where((peak > 0.5) & (gamma + 0.1 * seed > 1.05), 4, 0).astype(np.int8)
    variables = {"nc1_final": ("member", final), "status": ("member", status), **more}
    folder = written(tmp_path, variables, of_members(24, peak=peak, gamma=gamma, zipped=peak * 2, seed=seed))
    return folder, peak, gamma, final, status


def test_maps_hold_medians_and_the_fraction_that_failed(tmp_path, drawn):
    folder, peak, gamma, final, status = swept(tmp_path)
    pages.plot(folder, theory=False)
    assert list(drawn) == ["nc1", "phase-nc1-peak-gamma"]
    figure = drawn["phase-nc1-peak-gamma"]
    median, failed = (ax.collections[0].get_array() for ax in figure.axes[:2])
    for row, g in enumerate((0.0, 0.5, 1.0)):
        for column, p in enumerate(np.geomspace(0.01, 10, 4)):
            here = (peak == p) & (gamma == g)
            good = [v for v, s in zip(final[here], status[here], strict=True) if s == 0]
            assert failed[row, column] == 1 - len(good) / 2
            if good:
                assert median[row, column] == sum(good) / len(good)  # of one or two
            else:
                assert median.mask[row, column]
    assert median.mask.any() and not median.mask.all() and {0.0, 0.5, 1.0} == set(failed.ravel())
    assert labels(figure) == ["no member ended well"]
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes[:2]] == [("peak", "gamma")] * 2
    pages.plot(folder, theory=False, axes=("gamma", "seed"))
    assert "phase-nc1-gamma-seed" in drawn


def test_one_swept_axis_has_no_map(tmp_path, drawn):
    variables = {"nc1_final": ("member", uniform(6)), "status": ("member", np.zeros(6, np.int8))}
    pages.plot(written(tmp_path, variables, of_members(6, peak=[1, 1, 2, 2, 3, 3], seed=[1, 2] * 3)), theory=False)
    assert list(drawn) == ["nc1"]


def test_wrong_names_are_told_the_nearest(tmp_path, drawn):
    folder, *_ = swept(tmp_path, nc2_quantile=(("quantile", "time"), np.ones((5, 7))))
    for options, words in (
        ({"observables": ["nc3"]}, "unknown 'nc3'; did you mean 'nc"),
        ({"axes": ("peek", "gamma")}, "unknown 'peek'; did you mean 'peak'"),
        ({"axes": ("peak", "peak")}, "two different"),
        ({"axes": ("peak", "zipped")}, "peak and zipped are swept together"),
        ({"axes": ("peak", "gamma"), "observables": ["nc2"]}, "no last values of nc2"),
        ({"theory_members": 0}, "theory_members must be >= 1"),
    ):
        with pytest.raises(ValueError, match=words):
            pages.plot(folder, **options)
    assert not drawn
    with pytest.raises(FileNotFoundError, match="dynamics resume"):
        pages.plot(tmp_path / "elsewhere")
    pages.plot(folder, observables=["nc2"], theory=False)
    assert list(drawn) == ["nc2"]


# ---- the closed form ----


@pytest.mark.parametrize("error", [dyn.NoClosedForm("it is rotated"), configuration.ConfigError("motion.by: it is rotated")])
def test_why_there_is_no_closed_form_is_said(tmp_path, drawn, monkeypatch, error):
    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(configuration, "loads", lambda text: CONFIG)
    monkeypatch.setattr(by_formula.sweeps, "build", refuse)
    variables = {"nc1_mean": ("time", TIMES), "nc1_variance": ("time", TIMES)}
    pages.plot(written(tmp_path, variables, of_members(3)))
    assert labels(drawn["nc1"])[-1].startswith("no closed form: ") and "it is rotated" in labels(drawn["nc1"])[-1]
    assert not any(line.is_dashed() for line in drawn["nc1"].axes[0].lines)


def test_members_of_the_closed_form_meet_no_axis_in_step():
    """Every fifth of 100 000 members would have one value of an axis of five that varies fastest."""
    chosen = by_formula.spread(100_000, 20_000)
    assert chosen is not None and 19_000 < chosen.size <= 20_000 and np.all(np.diff(chosen) > 0)
    assert 0 <= chosen[0] and chosen[-1] < 100_000
    assert np.all(np.bincount(chosen % 5, minlength=5) > 3500) and np.all(np.bincount(chosen // 10_000) > 1900)
    assert by_formula.spread(20_000, 20_000) is None


@pytest.mark.slow
def test_the_closed_form_is_that_of_each_member():
    """Quantiles of the run by formula against members moved one by one."""
    text = SWEEP.replace('verb = "flow", times = [0.0, 1.0, 4.0]', 'verb = "descent", steps = 8, every = 4')
    config = configuration.loads(text, ["keep.observables=['loss']"])
    found = by_formula.closed_form(config, ["loss"], ["gamma"], LEVELS, 1000)
    assert found.text == "closed form" and found.why == "" and found.curves["loss"].shaded[0] == "5\u201395 % of members"

    @compiled
    def moved(gamma, seed):
        problem = dyn.LayerPeeled.balanced(3, 2, loss=dyn.losses.Unhinged(gamma))
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), seed), sweep.START)
        start = dyn.initial.gaussian(problem, dim=4, key=key)
        observe = {"loss": dyn.observables.loss}
        return dyn.exact.descent(problem, start, dyn.Rates.equal(0.5), 8, every=4, observe=observe).observed["loss"]

    for cell, gamma in enumerate((0.2, 0.5)):
        ordered = np.sort([moved(gamma, seed) for seed in range(4)], axis=0)
        curves = found.curves["loss"]
        np.testing.assert_allclose(curves.middle[cell], ordered[1], rtol=2.0**-9)
        np.testing.assert_allclose(curves.low[0, cell], ordered[0], rtol=2.0**-9)
        np.testing.assert_allclose(curves.high[0, cell], ordered[3], rtol=2.0**-9)


def test_maps_are_over_the_first_axes_of_the_file_that_do_not_draw_starts():
    grid = np.indices((2, 2, 2)).reshape(3, -1)
    names = ("draw", "gamma", "peak")  # in the order of the alphabet
    data = xarray.Dataset(coords=of_members(8, **dict(zip(names, grid, strict=True))))
    assert reading.pair(data, None, CONFIG) == ("gamma", "peak")
    peak_first = configuration.loads(SWEEP, ["sweep.0={axis='rates.equal', name='peak', values=[0.1, 0.2]}"])
    assert reading.pair(data, None, peak_first) == ("peak", "gamma")
    assert reading.pair(data, ("draw", "gamma"), CONFIG) == ("draw", "gamma")
    assert reading.pair(data, None, None) == ("draw", "gamma")
    assert reading.pair(data.rename(draw="seed"), None, None) == ("gamma", "peak")


@pytest.mark.parametrize("groups", [2, 5])
def test_a_long_note_stands_beside_the_groups(groups):
    figure, over_time, *_ = ensembles.sheet(1, last=True, title="demo")
    for number in range(groups):
        over_time[0].plot(TIMES, TIMES, label=f"momentum = {number}")
    ensembles.key(figure, over_time[0], wide="simulated", note="no closed form: " + "of many words " * 40)
    figure.canvas.draw()
    left, right = (legend.get_window_extent() for legend in figure.legends)
    assert left.x1 <= right.x0 and right.x1 <= figure.bbox.x1


def test_descents_are_drawn_over_iterations(tmp_path, drawn):
    iterations = ("time", TIMES, {"long_name": "iteration", "units": "1"})
    variables = {"nc1_mean": ("time", TIMES), "nc1_variance": ("time", TIMES)}
    pages.plot(written(tmp_path, variables, {**of_members(3), "time": iterations}), theory=False)
    assert drawn["nc1"].axes[0].get_xlabel() == "iteration"
