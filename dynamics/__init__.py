"""The dynamics of learning: gradient flow and gradient descent, simulated and by formula, for thousands of starts at once."""

from dynamics import class_sizes as class_sizes
from dynamics import ensemble as ensemble
from dynamics import exact as exact
from dynamics import initial as initial
from dynamics import losses as losses
from dynamics import norms as norms
from dynamics import observables as observables
from dynamics import reduce as reduce
from dynamics import schedules as schedules
from dynamics import status as status
from dynamics import verify as verify
from dynamics.compile_cache import enable_compile_cache as enable_compile_cache
from dynamics.compiled import Program as Program
from dynamics.compiled import ahead_of_time as ahead_of_time
from dynamics.compiled import load_program as load_program
from dynamics.exact import NoClosedForm as NoClosedForm
from dynamics.problems import Decay as Decay
from dynamics.problems import LayerPeeled as LayerPeeled
from dynamics.problems import Network as Network
from dynamics.problems import Peeled as Peeled
from dynamics.problems import nets as nets
from dynamics.rates import Rates as Rates
from dynamics.simulate import clock as clocks  # noqa: F401
from dynamics.simulate import descent as descent
from dynamics.simulate import flow as flow
from dynamics.simulate import segmented_flow as segmented_flow
from dynamics.simulate import step_rules as step_rules
from dynamics.simulate.clock import LogTime as LogTime
from dynamics.simulate.steepest import steepest_descent as steepest_descent
from dynamics.trajectory import Trajectory as Trajectory
from dynamics.verify import compare as compare
