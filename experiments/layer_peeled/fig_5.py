"""Figure 5: decay at the threshold, five weights gamma: directions of features and prototypes, and their norms."""

from experiments.shared.paper import GAMMA, Setting, threshold
from experiments.shared.paper_figure import Figure, Panel, Row, experiment

GAMMAS = {
    r"$\gamma=0$": 0.0,
    r"$\gamma=0.001$": 0.001,
    r"$\gamma=0.01$": 0.01,
    r"$\gamma=1/(C-1)$": GAMMA,
    r"$\gamma=0.1$": 0.1,
}
CURVES = {label: Setting(gamma=gamma, decay=threshold(gamma)) for label, gamma in GAMMAS.items()}

NUMBERS = {
    "feature_distance": (0.103, 0.0213, 7.0e-7, 7.0e-7, 1.414),
    "prototype_distance": (0.103, 0.0213, 4.1e-9, 1.5e-9, 1.414),
}

EXPERIMENT = experiment(
    Figure(
        number=5,
        title=r"decay at the threshold, $\eta=0.1$, $s=1$",
        curves=CURVES,
        rows=[Row(c, q, v) for q, values in NUMBERS.items() for c, v in zip(CURVES, values, strict=True)]
        + [Row(r"$\gamma=1/(C-1)$", q, 112.8) for q in ("feature_norm", "prototype_norm")]
        + [Row(r"$\gamma=0$", q, 113.4) for q in ("feature_norm", "prototype_norm")]
        + [Row(r"$\gamma=1/(C-1)$", "feature_norm", 716.0, 0), Row(r"$\gamma=1/(C-1)$", "prototype_norm", 14.1, 0)],
        panels=(
            Panel("direction of the features", "feature_distance", r"$\|\hat H-\hat H_1^+\|$"),
            Panel("direction of the prototypes", "prototype_distance", r"$\|\hat W-\hat W_1^+\|$"),
            Panel("feature norm", "feature_norm", r"$\|H\|$"),
            Panel("prototype norm", "prototype_norm", r"$\|W\|$"),
        ),
        drawn_by_verify=True,
        below_rounding=True,
    )
)
