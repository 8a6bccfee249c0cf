"""What is trained."""

from dynamics.problems import nets as nets
from dynamics.problems.base import Problem as Problem
from dynamics.problems.base import check_minibatches as check_minibatches
from dynamics.problems.layer_peeled import Decay as Decay
from dynamics.problems.layer_peeled import LayerPeeled as LayerPeeled
from dynamics.problems.layer_peeled import Peeled as Peeled
from dynamics.problems.nets import Net as Net
from dynamics.problems.network import Network as Network
