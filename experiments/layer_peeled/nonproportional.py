"""Rates whose ratio changes: generators at different times do not commute, and two 2x2 systems are integrated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import expm

import dynamics as dyn
from dynamics.losses.base import SymmetricCoupling
from dynamics.verify import Claim, Measured, measured_order
from experiments.dense import deviation, size_of, stacked
from experiments.instances import SIZES, Draw, Size, draws, worst_of
from experiments.oracles import column, generator, integrate, pull_matrix, stack
from experiments.registry import Experiment

SOURCE = (
    "On the Dynamics Under the Unhinged Loss and Beyond, JMLR 24 (2023), Theorem 4, for rates that are not proportional; "
    "S. Blanes, F. Casas, J. A. Oteo, J. Ros, The Magnus expansion and some of its applications (2009)"
)
SIZE = SIZES[0]
TS = np.linspace(0.0, 10.0, 6)
HOST = 9
FAST = 6.0
KINDS = ("cosine against constant", "constant against steps", "warm-up against constant")


class _Shape:
    """Numbers of a pair of rates, (members,) each: features warm up, then anneal by a cosine; weights go by three steps.

    Member k is of kind k mod 3; where a kind has no warm-up, cosine or step, the numbers on its two sides are equal.
    """
