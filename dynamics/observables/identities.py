r"""Identities of the flow of networks that a run can carry along, and be judged by while it moves.

A monitor is one row: what is observed, and how its values over times become a residual. `dynamics.verify.watch` turns monitors
into the `observe` of a run, `dynamics.verify.report` judges what came of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dynamics import state as tree
from dynamics.observables import directions, layers, network_margins
from dynamics.problems import Network
from dynamics.problems.activations import IDENTITY


class Monitor(NamedTuple):
    """Something that holds along a run, as a check of it.

    **Arguments:**

    - `name`: what it is called among the observed values.
    - `observe`: an observable, carried along the run.
    - `judge`: takes its values, leading axis times, to a residual for each time, shape (times,). Values after the end of the
      run are NaN.
    - `tolerance`: the largest residual at which it holds; `monitor._replace(tolerance=...)` for another.
    """

    name: str
    observe: Callable[[Network, PyTree], Array]
    judge: Callable[[Array], Array]
    tolerance: float


def _slope_of_margin(problem: Network, state: PyTree) -> Float[Array, " 2"]:
    """L plus the growth of the log of the smoothed margin with the log of the norm, by differentiation and by formula."""
    force, degree = problem.scaled_force(state), problem.degree
    values, slopes = jax.jvp(
        lambda state: (network_margins.smoothed_margin(problem, state), tree.norm(state)), (state,), (force,)
    )
    growth = (slopes[0] / values[0]) / (slopes[1] / values[1])
    ratio = network_margins.gap_factor(problem, state) / directions.gradient_alignment(problem, state) ** 2
    return jnp.stack([growth + degree, degree * ratio])


def _radial_speed(problem: Network, state: PyTree) -> Float[Array, " 3"]:
    """Half the growth of the squared norm in the loss clock, by differentiation and by formula, and how large its terms are."""
    force = problem.scaled_force(state)
    _, speed = jax.jvp(lambda state: 0.5 * tree.norm(state) ** 2, (state,), (force,))
    weights, margins = network_margins.pairs(problem, state)
    terms = problem.degree * weights * margins
    return jnp.stack([speed, jnp.sum(terms), jnp.sum(jnp.abs(terms))])


def _balance(problem: Network, state: PyTree) -> Float[Array, " entries"]:
    """What the flow conserves of the layers, and the squared norm of all weights."""
    linear = getattr(problem.net, "activation", None) == IDENTITY
    kept = (layers.layer_balance if linear else layers.neuron_balance)(problem, state)
    return jnp.append(kept, tree.norm(state) ** 2)


def relative_gap(values: Float[Array, "times columns"]) -> Float[Array, " times"]:
    """The distance of the first two columns, over the last."""
    gap = jnp.abs(values[:, 0] - values[:, 1])
    return jnp.where(gap == 0, 0.0, gap / jnp.abs(values[:, -1]))


def drift(values: Float[Array, "times entries"]) -> Float[Array, " times"]:
    """The largest distance of an entry from the first time, over the largest value of the last entry, which is a scale."""
    away = jnp.max(jnp.abs(values[:, :-1] - values[0, :-1]), axis=1)
    return away / jnp.nanmax(values[:, -1])


def fall(values: Float[Array, " times"]) -> Float[Array, " times"]:
    """By how much a value falls from each time to the next, counted from where it is positive; zero where it does not."""
    before = values[:-1]
    lost = jnp.where(before > 0, jnp.maximum(before - values[1:], 0.0), 0.0)
    # the end of a run shows: the NaN after it are no falls, and no steps without a fall either
    lost = jnp.where(jnp.isnan(values[1:]), jnp.nan, lost)
    return jnp.concatenate([jnp.where(jnp.isnan(values[:1]), jnp.nan, 0.0), lost])


def excess(values: Float[Array, "times 2"]) -> Float[Array, " times"]:
    """By how much the first column is above the second, relative to that; zero where it is not."""
    return jnp.maximum(values[:, 0] / values[:, 1] - 1, 0.0)


MARGIN_IDENTITY = Monitor("margin.identity", _slope_of_margin, relative_gap, 1e-6)
r"""$d\log\tilde\gamma/d\log\rho = L(\kappa/\beta^2 - 1)$ along the flow of a homogeneous network, the left side by
differentiation along the force; an equality where Lyu and Li (2020), lemma 5.1, have an inequality."""

MARGIN_RADIAL = Monitor("margin.radial", _radial_speed, relative_gap, 1e-10)
r"""$\frac12 d\rho^2/dt = L\sum_i -\ell'(q_i) q_i$, both sides over the loss: Euler's identity along the force."""

ALIGN_BALANCE = Monitor("align.balance", _balance, drift, 1e-7)
"""The balance of the layers stays where it started (of deep linear networks as matrices, of networks of ReLU units or their
powers unit by unit), relative to the largest squared norm of all weights."""

MARGIN_MONOTONE = Monitor("margin.smoothed_monotone", network_margins.smoothed_margin, fall, 1e-10)
"""The smoothed margin never falls from where it is positive (Lyu and Li 2020, theorem 4.1), for smooth homogeneous networks to
rounding; explicit fixed steps of ReLU networks keep it to about 1e-6 of its size."""


def modified_margin_monotone(bound: tuple[float, ...], degree: float) -> Monitor:
    """The modified margin of a nearly homogeneous network with the exponential loss never falls from where it is positive; for
    the arguments see `modified_margin`."""
    return Monitor("nearhom.offset", network_margins.modified_margin(bound, degree), fall, 1e-10)


def euler_bound(bound: tuple[float, ...], degree: float) -> Monitor:
    r"""The bound of a nearly homogeneous network on Euler's identity, $|\langle\nabla f,\theta\rangle - Mf| \le
    \sum_i c_i\rho^i$, holds at every sample; for the arguments see `modified_margin`, nothing but zeros is refused."""
    bound = network_margins.checked_bound(bound, degree)
    if not bound:
        raise ValueError("bound must have a positive number: a homogeneous network has no bound to keep")

    def defect(problem: Network, state: PyTree) -> Float[Array, " 2"]:
        size = tree.norm(state)
        allowed = sum(c * size**power for power, c in enumerate(bound))
        return jnp.stack([network_margins.euler_defect(problem, state), jnp.asarray(allowed)])

    return Monitor("nearhom.defect", defect, excess, 1e-10)
