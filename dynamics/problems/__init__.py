"""What is trained."""

from dynamics.problems.base import Problem as Problem
from dynamics.problems.base import check_batch_size as check_batch_size
from dynamics.problems.layer_peeled import Decay as Decay
from dynamics.problems.layer_peeled import LayerPeeled as LayerPeeled
from dynamics.problems.layer_peeled import Peeled as Peeled
