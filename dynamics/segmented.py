"""A motion of one member that can be run a few steps at a time."""

from collections.abc import Callable
from typing import NamedTuple


class Segmented(NamedTuple):
    """Five functions of one member, all traceable and fit for `jax.vmap`; a carry is a pytree of arrays.

    - `begin`: (member) or (member, key) to the carry.
    - `advance`: carry to carry, at most a fixed number of steps further; a done carry stays as it is.
    - `done`: carry to whether it has ended, well or not.
    - `steps`: carry to the steps taken so far, rejected ones too.
    - `end`: a done carry to what the run returns.
    """

    begin: Callable
    advance: Callable
    done: Callable
    steps: Callable
    end: Callable
