"""All experiments. A new one is a file and a row here."""

from experiments.layer_peeled import (
    fig_1,
    fig_4,
    fig_5,
    fig_6,
    fig_7,
    fig_8,
    fig_15,
    unconstrained,
)
from experiments.registry import Experiment

EXPERIMENTS: tuple[Experiment, ...] = tuple(
    module.EXPERIMENT
    for module in (
        unconstrained,
        fig_1,
        fig_4,
        fig_5,
        fig_6,
        fig_7,
        fig_8,
        fig_15,
    )
)

FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(experiment.family for experiment in EXPERIMENTS))
