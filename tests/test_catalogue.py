"""The registry of experiments: every result has its claims, stated in full; cheap ones are run, figures are drawn small."""

import pkgutil

import matplotlib.image
import numpy as np
import pytest

from experiments import cross_entropy, homogeneous, layer_peeled, square_loss
from experiments.catalogue import EXPERIMENTS
from experiments.shared import paper, paper_figure

CLAIMS = [claim for experiment in EXPERIMENTS for claim in experiment.claims + experiment.long_claims]

IDS = (
    """unhinged.loss unhinged.bounds unhinged.minimiser unhinged.eigenspaces unhinged.projections unhinged.unconstrained
unhinged.unconstrained.limit unhinged.regularised unhinged.regularised.limit unhinged.anchored unhinged.ntk unhinged.insights
unhinged.spherical.gd beyond.classmean beyond.gd beyond.nonproportional beyond.logspace beyond.imbalance
beyond.sphericalflow beyond.anchored_losses beyond.sgd beyond.labelcoupling beyond.sensitivity beyond.balance
mse.balance mse.riccati mse.riccati_rotation mse.final_state mse.nc1_rate mse.leftover mse.ntk mse.sharpness
mse.saxe_mode mse.hyperbolic_mode mse.deep_mode mse.minimiser mse.bias_transition mse.minority mse.deep_minimiser
ce.minimiser ufm.origin_threshold ce.layer_peeled ce.minority_ridge ce.minority_constrained mse.mpp_linear mse.mpp_subspace
mse.decomposition mse.central_loss mse.central_omega
anchor.single anchor.two_point anchor.deep_balanced anchor.rate_constants anchor.linear_maxmargin anchor.orthoclusters
margin.loss_based_lr sgd.euler sgd.limit steepest.monotone steepest.bregman steepest.linear
clock.equivalence time.quasistatic margin.smoothed_monotone margin.rates margin.identity margin.eps_identity
margin.delta_bound margin.beta_integral margin.kkt margin.relu_sliding nearhom.offset logreg.direction
align.direction align.gradient align.balance align.rank1 align.layers align.maxmargin align.imbalance_rate align.margin_value
recipe.imbalance recipe.rlr fig.1 fig.4 fig.5 fig.6 fig.7 fig.8 fig.9 fig.15""".split()
    + ["mse.riccati + bias"]
)
FOLDERS = (layer_peeled, square_loss, cross_entropy, homogeneous)


def test_every_file_of_the_families_is_listed():
    files = [module.name for folder in FOLDERS for module in pkgutil.iter_modules(folder.__path__)]
    assert len(EXPERIMENTS) == len(files)


def test_every_result_has_a_claim():
    assert set(IDS) <= {claim.id for claim in CLAIMS}


def test_names_are_unique_and_speakable():
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)
    assert len({experiment.name for experiment in EXPERIMENTS}) == len(EXPERIMENTS)
    assert all(name == name.lower() and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_a_claim_states_everything(claim):
    assert claim.statement and claim.source and isinstance(claim.assumptions, tuple)  # an identity assumes nothing
    assert "\n" not in claim.statement
    assert 0 <= claim.tolerance < float("inf")


@pytest.mark.slow
def test_a_figure_shows_iterates_under_the_formula(tmp_path, monkeypatch):
    """The whole path of a figure at toy length: real iterates, formula, bands, files that open."""
    monkeypatch.setattr(
        paper_figure, "path", lambda seed, setting, **kw: paper.path(seed, setting, **{**kw, "steps": 40, "every": 20})
    )
    monkeypatch.setattr(paper_figure, "STEPS", 40)
    figure = paper_figure.Figure(
        1, "toy", {"a": paper.Setting(), "b": paper.Setting(gamma=0.05)}, (), (paper_figure.Panel("p", "distance", "y"),)
    )
    experiment = paper_figure.experiment(figure)
    assert experiment.long_claims[0].verdict(1).holds
    assert experiment.draw is not None
    png, pdf = experiment.draw(tmp_path)
    assert matplotlib.image.imread(png).std() > 0.01
    assert pdf.read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure-01.pdf", "figure-01.png"]


def test_the_reduced_iterates_are_the_full_ones():
    """A few steps at the paper's own size, class means against all 1000 features."""
    import dynamics as dyn

    setting = paper.Setting(gamma=0.02, decay=1e-3)
    begin = paper.start(0)
    full = dyn.descent(paper.problem(setting), begin.full, paper.rates(setting), 6, every=6)
    short = paper.path(0, setting, by_formula=False, steps=6, every=6)
    last = np.asarray(full.states.features[-1]), np.asarray(full.states.prototypes[-1])
    assert np.isclose(np.linalg.norm(last[0]), short.feature_norm[-1], rtol=1e-12)
    assert np.isclose(np.linalg.norm(last[1]), short.prototype_norm[-1], rtol=1e-12)


@pytest.mark.slow
def test_all_fifty_thousand_full_iterates_agree_with_the_formula():
    """Figure 5 at gamma = 1/(C-1), every sample's feature moved by itself; about two minutes."""
    import dynamics as dyn

    setting = paper.Setting(decay=paper.threshold(paper.GAMMA))
    begin = paper.start(0)
    limit = (begin.reduced.features + begin.reduced.prototypes) / 2
    limit = limit - limit.mean(0)
    limit = dyn.Peeled(np.repeat(limit, paper.PER_CLASS, axis=0), limit)
    parts = ("features", "prototypes")
    watch = {f"{part} distance": dyn.observables.distance_to(limit, part) for part in parts}
    watch |= {"features norm": dyn.observables.feature_norm, "prototypes norm": dyn.observables.prototype_norm}
    moved = dyn.descent(paper.problem(setting), begin.full, paper.rates(setting), paper.STEPS, every=10_000, observe=watch)
    exact = paper.path(0, setting, by_formula=True, every=10_000)
    for part, short in zip(parts, ("feature", "prototype"), strict=True):
        np.testing.assert_allclose(moved.observed[f"{part} norm"], getattr(exact, f"{short}_norm"), rtol=1e-8)
        # rounding of the iterates, 1e-16 of the norm, is more than 1e-8 of the smallest distances (1.4e-9)
        np.testing.assert_allclose(
            moved.observed[f"{part} distance"], getattr(exact, f"{short}_distance"), rtol=1e-8, atol=2e-16
        )
