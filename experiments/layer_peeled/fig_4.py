"""Figure 4: four decays around the threshold: prototype norm, distance to its limit, balance of the two norms."""

from experiments.shared.paper import GAMMA, Setting, threshold
from experiments.shared.paper_figure import Figure, Panel, Row, experiment

CRITICAL = r"$\lambda=\lambda_{\rm crit}$"
CURVES = {
    CRITICAL: Setting(decay=threshold(GAMMA)),
    r"$\lambda=0.001$": Setting(decay=0.001),
    r"$\lambda=0.002$": Setting(decay=0.002),
    r"$\lambda=0$": Setting(),
}
NORMS = (112.8, 6.6e6, 4.4e4, 9.7e8)

EXPERIMENT = experiment(
    Figure(
        number=4,
        title=r"decay below and at the threshold, $\eta=0.1$, $s=1$, $\gamma=1/(C-1)$",
        curves=CURVES,
        rows=[Row(c, "prototype_norm", v) for c, v in zip(CURVES, NORMS, strict=True)]
        + [Row(CRITICAL, "plain_distance", 1.6e-7)]
        + [Row(c, "plain_distance", v) for c, v in zip(CURVES, NORMS, strict=True) if c != CRITICAL]
        + [Row(c, "log_norm_ratio", 3.9, 0) for c in CURVES]
        + [Row(c, "log_norm_ratio", 0.033, 10_000) for c in CURVES],
        panels=(
            Panel("prototype norm", "prototype_norm", r"$\|W\|$"),
            Panel("distance to the limit at the threshold", "plain_distance", r"$\|W-P\|$"),
            Panel("balance of the norms", "log_norm_ratio", r"$\log(\|H\|/\|W\|)$"),
        ),
        below_rounding=True,
    )
)
