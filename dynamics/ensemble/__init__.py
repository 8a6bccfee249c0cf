"""Many members at once: designs of sweeps, chunks over devices and processes, statistics over members, files."""

from dynamics.ensemble.batch import Result as Result
from dynamics.ensemble.batch import run as run
from dynamics.ensemble.dealt import Dealt as Dealt
from dynamics.ensemble.design import Axis as Axis
from dynamics.ensemble.design import Design as Design
from dynamics.ensemble.engine import Ensemble as Ensemble
from dynamics.ensemble.engine import OutOfMemory as OutOfMemory
from dynamics.ensemble.engine import Report as Report
from dynamics.ensemble.reductions import Histogram as Histogram
from dynamics.ensemble.reductions import Moments as Moments
from dynamics.ensemble.reductions import Quantiles as Quantiles
from dynamics.ensemble.reductions import Reduced as Reduced
from dynamics.ensemble.reductions import Reduction as Reduction
from dynamics.ensemble.store import CorruptFile as CorruptFile
from dynamics.ensemble.store import ForeignRun as ForeignRun
from dynamics.ensemble.store import Locked as Locked
from dynamics.ensemble.store import Store as Store
