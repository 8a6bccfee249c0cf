"""Which closed form applies, or why none does."""

from dynamics.exact.anchored import ANCHORED
from dynamics.exact.anchored_cross_entropy import ANCHORED_CROSS_ENTROPY
from dynamics.exact.anchored_square import ANCHORED_SQUARE
from dynamics.exact.balanced_linear_net import BALANCED_LINEAR_NET
from dynamics.exact.closed_form import ClosedForm, NoClosedForm
from dynamics.exact.joint_cross_entropy import JOINT_CROSS_ENTROPY
from dynamics.exact.linear import MODES
from dynamics.exact.linear_predictor import LINEAR_PREDICTOR
from dynamics.exact.spherical import SPHERICAL
from dynamics.exact.square_loss import SQUARE_LOSS
from dynamics.problems import Problem
from dynamics.rates import Rates, check_rates

CLOSED_FORMS: tuple[ClosedForm, ...] = (
    MODES,
    ANCHORED,
    SPHERICAL,
    SQUARE_LOSS,
    ANCHORED_SQUARE,
    ANCHORED_CROSS_ENTROPY,
    JOINT_CROSS_ENTROPY,
    LINEAR_PREDICTOR,
    BALANCED_LINEAR_NET,
)


def choose(problem: Problem, rates: Rates) -> ClosedForm:
    """The first closed form without obstacles; decided by types, None-ness and static fields, never by values."""
    check_rates(rates)
    reasons = []
    for form in CLOSED_FORMS:
        obstacles = form.obstacles(problem, rates)
        if not obstacles:
            return form
        reasons.append(f"- {form.name}: {'; '.join(obstacles)}")
    raise NoClosedForm("no known closed form applies:\n" + "\n".join(reasons))
