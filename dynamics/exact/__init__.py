"""The two verbs by formula, and what else is known of a motion: its limit, its minimum, the laws of single modes."""

from dynamics.exact import deep_modes as deep_modes
from dynamics.exact import square_modes as square_modes
from dynamics.exact.balanced_linear_net import balanced_log_time as balanced_log_time
from dynamics.exact.balanced_linear_net import balanced_margin as balanced_margin
from dynamics.exact.closed_form import NoClosedForm as NoClosedForm
from dynamics.exact.limit import Limit as Limit
from dynamics.exact.linear_predictor import single_sample as single_sample
from dynamics.exact.linear_predictor import two_point_invariant as two_point_invariant
from dynamics.exact.max_margin import MaxMargin as MaxMargin
from dynamics.exact.max_margin import cluster_margin as cluster_margin
from dynamics.exact.max_margin import max_margin as max_margin
from dynamics.exact.max_margin import two_layer_max_margin as two_layer_max_margin
from dynamics.exact.minimisers.minimiser import Minimiser as Minimiser
from dynamics.exact.minimisers.minimiser import minimiser as minimiser
from dynamics.exact.rate_constants import RateConstants as RateConstants
from dynamics.exact.rate_constants import rate_constants as rate_constants
from dynamics.exact.rotation import rotation as rotation
from dynamics.exact.verbs import descent as descent
from dynamics.exact.verbs import flow as flow
from dynamics.exact.verbs import limit as limit
from dynamics.exact.verbs import max_step as max_step
