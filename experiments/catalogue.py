"""All experiments, in the order they are shown. A new one is a file in a folder and its name here."""

import importlib

from experiments.registry import Experiment

FILES: dict[str, str] = {
    "layer_peeled": """
        loss bounds minimiser minimiser_formula eigenspaces projections
        unconstrained unconstrained_path unconstrained_limit unconstrained_gamma
        regularised regularised_biases regularised_limit regularised_threshold
        anchored kernel kernel_theorem insights
        classmean gd gd_ratio gd_direction momentum stability stochastic
        nonproportional magnus logspace balance
        imbalance_spectrum imbalance imbalance_collapse step_collapse long_tail phase_diagram
        label_coupling label_noise sensitivity design schedule_design
        spherical_gd spherical_limit spherical_flow spherical_descent adjusted
        anchored_square joint_square_modes anchored_cross_entropy joint_cross_entropy
        fig_1 fig_4 fig_5 fig_6 fig_7 fig_8 fig_9 fig_15
    """,
    "square_loss": """
        balance riccati riccati_bias rotation final_state collapse_trajectory
        modes deep_modes collapse_rates leftover sharpness mixon_linear mixon central_path
        minimiser bias_transition minority deep_minimiser origin
    """,
    "cross_entropy": """
        minimiser layer_peeled minority
    """,
    "homogeneous": """
        anchors
        clocks margins margin_rates direction deep_linear relu_sliding near_homogeneous logistic_direction
        loss_based late_descent steepest_linear steepest_deep digits
    """,
}

_NAMES = [f"experiments.{folder}.{name}" for folder, names in FILES.items() for name in names.split()]
EXPERIMENTS: tuple[Experiment, ...] = tuple(importlib.import_module(name).EXPERIMENT for name in _NAMES)

FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(experiment.family for experiment in EXPERIMENTS))
