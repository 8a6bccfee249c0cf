"""Losses of logits and labels."""

from dynamics.losses.base import Loss as Loss
from dynamics.losses.base import SymmetricCoupling as SymmetricCoupling
from dynamics.losses.linear import Linear as Linear
from dynamics.losses.linear import Unhinged as Unhinged
from dynamics.losses.linear import label_noise as label_noise
from dynamics.losses.linear import label_smoothing as label_smoothing
from dynamics.losses.margins import Exponential as Exponential
from dynamics.losses.margins import Logistic as Logistic
from dynamics.losses.margins import MarginLoss as MarginLoss
from dynamics.losses.nonlinear import CrossEntropy as CrossEntropy
from dynamics.losses.nonlinear import SquaredError as SquaredError
