"""Numbers held against theory."""

from dynamics.verify.claim import Claim as Claim
from dynamics.verify.claim import Measured as Measured
from dynamics.verify.claim import Verdict as Verdict
from dynamics.verify.compare import Comparison as Comparison
from dynamics.verify.compare import compare as compare
from dynamics.verify.monitor import Watched as Watched
from dynamics.verify.monitor import report as report
from dynamics.verify.monitor import watch as watch
from dynamics.verify.order import measured_order as measured_order
