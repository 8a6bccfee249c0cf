"""What is trained."""

from dynamics.problems.base import Problem as Problem
from dynamics.problems.base import check_minibatches as check_minibatches
from dynamics.problems.layer_peeled import Decay as Decay
from dynamics.problems.layer_peeled import LayerPeeled as LayerPeeled
from dynamics.problems.layer_peeled import Peeled as Peeled
