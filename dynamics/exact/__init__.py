"""The two verbs by formula, and what else is known of a motion: its limit, its minimum, the laws of single modes."""

from dynamics.exact import deep_modes as deep_modes
from dynamics.exact import square_modes as square_modes
from dynamics.exact.closed_form import NoClosedForm as NoClosedForm
from dynamics.exact.limit import Limit as Limit
from dynamics.exact.minimisers.minimiser import Minimiser as Minimiser
from dynamics.exact.minimisers.minimiser import minimiser as minimiser
from dynamics.exact.rotation import rotation as rotation
from dynamics.exact.verbs import descent as descent
from dynamics.exact.verbs import flow as flow
from dynamics.exact.verbs import limit as limit
from dynamics.exact.verbs import max_step as max_step
