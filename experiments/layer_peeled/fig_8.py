"""Figure 8: decay at the threshold, five ratios of the rates: self-dual limits of different norms."""

from experiments.shared.paper import GAMMA, Setting, threshold
from experiments.shared.paper_figure import Figure, Panel, Row, experiment

RATIOS = (0.01, 0.05, 0.1, 0.5, 1.0)
CURVES = {rf"$s={ratio:g}$": Setting(decay=threshold(GAMMA), rate=0.5, ratio=ratio) for ratio in RATIOS}

NUMBERS = {
    "limit_norm": (222.9, 214.4, 204.7, 150.2, 112.8),
    "feature_distance": (0.91, 5.8e-2, 1.1e-3, 1e-15, 1e-15),
    "prototype_distance": (1e-15, 1e-15, 1e-15, 1e-15, 1e-15),
}

EXPERIMENT = experiment(
    Figure(
        number=8,
        title=r"decay at the threshold, $\eta_2=0.5$, $\eta_1=s\eta_2$, $\gamma=1/(C-1)$",
        curves=CURVES,
        rows=[Row(c, q, v) for q, values in NUMBERS.items() for c, v in zip(CURVES, values, strict=True)],
        panels=(
            Panel("direction of the features", "feature_distance", r"$\|\hat H-\hat{\bar H}\|$"),
            Panel("direction of the prototypes", "prototype_distance", r"$\|\hat W-\hat{\bar W}\|$"),
            Panel("feature norm", "feature_norm", r"$\|H\|$"),
            Panel("prototype norm", "prototype_norm", r"$\|W\|$"),
        ),
        below_rounding=True,
    )
)
