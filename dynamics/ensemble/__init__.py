"""Many members at once."""

from dynamics.ensemble.batch import Result as Result
from dynamics.ensemble.batch import run as run
