"""Figure 15: anchored random prototypes, six decays: features relax to what the prototypes pull them to."""

from experiments.shared.paper import Setting
from experiments.shared.paper_figure import Figure, Panel, Row, experiment

DECAYS = (0.0, 0.001, 0.005, 0.01, 0.05, 0.1)
CURVES = {rf"$\lambda={decay:g}$": Setting(decay=decay) for decay in DECAYS}

NUMBERS = {
    "feature_distance": (0.195, 6.7e-3, 6.8e-11, 1e-15, 1e-15, 1e-15),
    "feature_norm": (3684.0, 718.0, 144.5, 72.2, 14.4, 7.2),
    "loss": (-2610.0, -518.0, -104.0, -52.0, -10.4, -5.2),
}

EXPERIMENT = experiment(
    Figure(
        number=15,
        title=r"anchored random prototypes, $\eta=0.1$, $\gamma=1/(C-1)$",
        curves=CURVES,
        rows=[Row(c, q, v) for q, values in NUMBERS.items() for c, v in zip(CURVES, values, strict=True)],
        panels=(
            Panel("direction of the features", "feature_distance", r"$\|\hat H-\hat{\bar H}\|$"),
            Panel("feature norm", "feature_norm", r"$\|H\|$"),
            Panel("minus the loss", "descent", r"$-L$"),
            Panel("accuracy", "accuracy", "fraction right", log=False),
        ),
        anchored=True,
        below_rounding=True,
    )
)
