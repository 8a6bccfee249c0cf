"""The two verbs by formula."""

from dynamics.exact.closed_form import NoClosedForm as NoClosedForm
from dynamics.exact.limit import Limit as Limit
from dynamics.exact.verbs import descent as descent
from dynamics.exact.verbs import flow as flow
from dynamics.exact.verbs import limit as limit
from dynamics.exact.verbs import max_step as max_step
