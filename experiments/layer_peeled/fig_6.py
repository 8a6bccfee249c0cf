"""Figure 6: decay at the threshold, five rates: larger steps converge faster, to the same limit."""

from experiments.shared.paper import GAMMA, Setting, threshold
from experiments.shared.paper_figure import Figure, Panel, Row, experiment

RATES = (0.001, 0.01, 0.1, 0.2, 0.5)
CURVES = {rf"$\eta={rate}$": Setting(decay=threshold(GAMMA), rate=rate) for rate in RATES}

NUMBERS = {
    "feature_distance": (1.17, 0.84, 7.0e-7, 8e-14, 2e-15),
    "prototype_distance": (0.31, 5.9e-3, 1.5e-9, 3e-15, 2e-15),
    "feature_norm": (611.0, 181.0, 112.8, 112.8, 112.8),
    "prototype_norm": (33.0, 108.0, 112.8, 112.8, 112.8),
}

EXPERIMENT = experiment(
    Figure(
        number=6,
        title=r"decay at the threshold, $s=1$, $\gamma=1/(C-1)$",
        curves=CURVES,
        rows=[Row(c, q, v) for q, values in NUMBERS.items() for c, v in zip(CURVES, values, strict=True)],
        panels=(
            Panel("direction of the features", "feature_distance", r"$\|\hat H-\hat H_1^+\|$"),
            Panel("direction of the prototypes", "prototype_distance", r"$\|\hat W-\hat W_1^+\|$"),
            Panel("feature norm", "feature_norm", r"$\|H\|$"),
            Panel("prototype norm", "prototype_norm", r"$\|W\|$"),
        ),
        below_rounding=True,
    )
)
