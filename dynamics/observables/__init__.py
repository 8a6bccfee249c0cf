"""What to watch: pure functions of (problem, state)."""

from dynamics.observables.alignment import direction_gap as direction_gap
from dynamics.observables.alignment import distance_to as distance_to
from dynamics.observables.alignment import self_duality as self_duality
from dynamics.observables.base import observable as observable
from dynamics.observables.collapse import nc1 as nc1
from dynamics.observables.collapse import nc2 as nc2
from dynamics.observables.collapse import nc2_angles as nc2_angles
from dynamics.observables.collapse import nc2_norms as nc2_norms
from dynamics.observables.collapse import nc3 as nc3
from dynamics.observables.collapse import nc4 as nc4
from dynamics.observables.conserved import balance as balance
from dynamics.observables.margins import average_margin as average_margin
from dynamics.observables.margins import margin as margin
from dynamics.observables.margins import normalized_margin as normalized_margin
from dynamics.observables.norms import accuracy as accuracy
from dynamics.observables.norms import bias_norm as bias_norm
from dynamics.observables.norms import feature_norm as feature_norm
from dynamics.observables.norms import gradient_norm as gradient_norm
from dynamics.observables.norms import loss as loss
from dynamics.observables.norms import objective as objective
from dynamics.observables.norms import prototype_norm as prototype_norm
from dynamics.observables.spectra import effective_rank as effective_rank
from dynamics.observables.spectra import stable_rank as stable_rank
from dynamics.observables.summary import Collapse as Collapse
from dynamics.observables.summary import Summary as Summary
