"""Figure 7: five decays: with equal rates the directions coincide, the norms do not."""

from experiments.shared.paper import GAMMA, Setting, threshold
from experiments.shared.paper_figure import Figure, Panel, Row, experiment

DECAYS = {"10^{-5}": 1e-5, "10^{-4}": 1e-4, "10^{-3}": 1e-3, r"0.005": 5e-3, r"\lambda_{\rm crit}": threshold(GAMMA)}
CURVES = {rf"$\lambda={label}$": Setting(decay=decay) for label, decay in DECAYS.items()}
NORMS = (9.2e8, 5.9e8, 6.6e6, 1.35e-2, 112.8)

EXPERIMENT = experiment(
    Figure(
        number=7,
        title=r"five decays, $\eta=0.1$, $s=1$, $\gamma=1/(C-1)$",
        curves=CURVES,
        rows=[Row(c, q, v) for q in ("feature_norm", "prototype_norm") for c, v in zip(CURVES, NORMS, strict=True)]
        + [Row(c, "feature_distance", 7.0e-7) for c in CURVES],
        panels=(
            Panel("direction of the features", "feature_distance", r"$\|\hat H-\hat H_1^+\|$"),
            Panel("direction of the prototypes", "prototype_distance", r"$\|\hat W-\hat W_1^+\|$"),
            Panel("feature norm", "feature_norm", r"$\|H\|$"),
            Panel("prototype norm", "prototype_norm", r"$\|W\|$"),
        ),
        below_rounding=True,
    )
)
