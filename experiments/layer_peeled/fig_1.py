"""Figure 1: no decay, five weights gamma: which direction the state tends to, and how fast."""

from experiments.shared.paper import GAMMA, Setting
from experiments.shared.paper_figure import Figure, Panel, Row, experiment

CURVES = {
    r"$\gamma=0$": Setting(gamma=0.0),
    r"$\gamma=0.001$": Setting(gamma=0.001),
    r"$\gamma=0.005$": Setting(gamma=0.005),
    r"$\gamma=0.05$": Setting(gamma=0.05),
    r"$\gamma=1/(C-1)$": Setting(gamma=GAMMA),
}

NUMBERS = {
    "distance": (1.03e-1, 2.1e-2, 3.8e-5, 1.414, 5.0e-7),
    "norm": (10**9.07, 10**9.07, 10**9.10, 10**28.3, 10**9.14),
    "loss": (-2.2e15, -2.2e15, -2.5e15, -2.8e54, -3.0e15),
    "accuracy": (1.0, 1.0, 1.0, 0.01, 1.0),
}

EXPERIMENT = experiment(
    Figure(
        number=1,
        title=r"gradient descent without decay, $\eta=0.1$, $s=1$",
        curves=CURVES,
        rows=[Row(c, q, v) for q, values in NUMBERS.items() for c, v in zip(CURVES, values, strict=True)]
        + [Row(r"$\gamma=1/(C-1)$", "accuracy", 0.77, 100), Row(r"$\gamma=1/(C-1)$", "accuracy", 0.996, 200)],
        panels=(
            Panel("distance to the limit direction", "distance", r"$\|\hat Z-\hat{\bar Z}\|$"),
            Panel("norm", "norm", r"$\|Z\|$"),
            Panel("minus the loss", "descent", r"$-L$"),
            Panel("accuracy", "accuracy", "fraction right", log=False),
        ),
        drawn_by_verify=True,
    )
)
