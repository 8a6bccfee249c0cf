"""Which closed form applies, or why none does."""

from dynamics.exact.anchored import ANCHORED
from dynamics.exact.closed_form import ClosedForm, NoClosedForm
from dynamics.exact.linear import MODES
from dynamics.problems import Problem
from dynamics.rates import Rates, check_rates

CLOSED_FORMS: tuple[ClosedForm, ...] = (MODES, ANCHORED)


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
