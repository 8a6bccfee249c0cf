"""Gradient flows of many members: sorted by stiffness, a few at a time, each with its own steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamics import state as tree
from dynamics.simulate.lane_step import Moving, Stepper
from dynamics.simulate.lanes_last import apart, lanes_last
from dynamics.trajectory import floating

FIRST_STEP = 0.01
"""The step that diffrax tries first where it is left to choose."""


class Ends(NamedTuple):
    """How the members ended, leading axis (members,): values at `ts`, NaN after a stop, and what a status is made of.

    `held` counts the steps for which a lane was a member's: its own, and those it then waited for others to end.
    """

    values: PyTree
    steps: Int[Array, " members"]
    t_end: Float[Array, " members"]
    stopped: Bool[Array, " members"]
    finite: Bool[Array, " members"]
    held: Int[Array, " members"]


class Loop(NamedTuple):
    """Between two steps: the members in the lanes, the time each saves next, and the next member in the queue."""

    moving: Moving
    who: Int[Array, " lanes"]
    args: PyTree
    upcoming: Int[Array, " lanes"]
    held: Int[Array, " lanes"]
    values: PyTree
    following: Int[Array, ""]


def lane_flow(
    velocity: Callable,
    look: Callable,
    jumps: Callable,
    starts: PyTree,
    args: PyTree,
    has_lanes: PyTree,
    ts: Float[Array, " times"],
    valid: Bool[Array, " members"],
    norm_cap: Float[Array, " members"],
    key: Float[Array, " members"] | None,
    *,
    solver,
    rtol: float,
    atol: float,
    max_steps: int,
    lanes: int,
) -> Ends:
    """Move all members, `lanes` side by side; where some have ended, the next ones take their lanes.

    A member's numbers do not depend, by one bit, on its neighbours or its lane.

    **Arguments:**

    - `velocity`: (t, state, args) to the motion of one member.
    - `look`: (t, state, args) to what is kept of one member at every time.
    - `jumps`: args to the times, (jumps,), at which the velocity of one member jumps.
    - `starts`: states with leading axis (members,).
    - `args`: a pytree; the leaves marked in `has_lanes` have a leading axis (members,).
    - `ts`: shape (times,), increasing.
    - `valid`: members that are not never start.
    - `norm_cap`: a member stops once its norm passes it.
    - `key`: what members are sorted by, the largest first, as those that need many steps should not start last; None for
      the order given.
    - `solver`, `rtol`, `atol`, `max_steps`: as in `dynamics.flow`; the solver `lane_step.fits`.
    """
    members, times = valid.shape[0], ts.shape[0]
    order = jnp.arange(members) if key is None else jnp.argsort(-key)
    norm_cap = jnp.where(valid, norm_cap, jnp.nan)  # which no norm is below
    everywhere = jax.tree.map(lambda _: True, starts)
    enough = max(1, lanes // 4)  # starting members costs about a step: it waits until so many lanes are free

    one = jax.tree.map(lambda leaf, flag: leaf[0] if flag else leaf, (starts, args), (everywhere, has_lanes))
    kept = jax.eval_shape(lambda *all: floating(look(*all)), ts[0], *one)
    pack, unpack = _packing(kept)

    def floating_look(t, state, args):
        return pack(floating(look(t, state, args)))

    def all_velocities(t, y, mine):
        return lanes_last(velocity, (t, y, mine), (True, everywhere, has_lanes), lanes)

    def of(who, tree, flags):
        return jax.tree.map(lambda leaf, flag: jnp.moveaxis(leaf[who], 0, -1) if flag else leaf, tree, flags)

    def seen(t, y, mine):
        return lanes_last(floating_look, (t, y, mine), (True, everywhere, has_lanes), lanes)

    def stepper(loop: Loop) -> Stepper:
        turns = lanes_last(jumps, (loop.args,), (has_lanes,), lanes).astype(ts.dtype)
        moved = lambda t, y: apart(all_velocities, t, y, loop.args)
        return Stepper(solver, moved, ts[-1], turns, rtol, atol, norm_cap[loop.who])

    def going(moving: Moving):
        return ((ts[-1] - moving.t) - moving.late > 0) & ~moving.stopped & (moving.steps < max_steps)

    def write(values, who, upcoming, new, often: bool = False):
        """`new` of every lane into the row its member saves next; what is done `often` lane by lane without a loop."""
        row = jnp.minimum(upcoming, times - 1).astype(who.dtype)
        new = apart(lambda new: jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), new), new)
        zero = np.zeros((), who.dtype)[()]

        def put(lane, values):
            member, place = (jax.lax.dynamic_index_in_dim(numbers, lane, keepdims=False) for numbers in (who, row))

            def one(all, part):
                part = jax.lax.expand_dims(jax.lax.dynamic_slice_in_dim(part, lane, 1), (0,))
                at = (member, place, *(zero,) * (part.ndim - 2))
                return jax.lax.dynamic_update_slice(all, part, at, allow_negative_indices=False)

            return jax.tree.map(one, values, new)

        if not often:
            return jax.lax.fori_loop(0, lanes, put, values)
        for lane in range(lanes):
            values = put(lane, values)
        return values

    def settle(loop: Loop, ends: Ends) -> Ends:
        """How members stand. A lane without anything to save has written into its next row, or into its last one."""
        moving, who = loop.moving, loop.who
        new = _masked(loop.upcoming == times, seen(moving.t, moving.y, loop.args))
        finite = jnp.all(jnp.stack([_finite(leaf) for leaf in jax.tree.leaves(moving.y)]), axis=0)
        return Ends(
            values=write(loop.values, who, loop.upcoming, new),
            steps=ends.steps.at[who].set(moving.steps),
            t_end=ends.t_end.at[who].set(moving.t),
            stopped=ends.stopped.at[who].set(moving.stopped),
            finite=ends.finite.at[who].set(finite),
            held=ends.held.at[who].set(loop.held),
        )

    def refill(loop: Loop) -> Loop:
        """The next members into the lanes whose members have ended; at first the last one into all that are left over."""
        free = ~going(loop.moving)
        wanted = loop.following + jnp.cumsum(free) - 1
        new, taken = free & (wanted < members), free & ((wanted < members) | (loop.following == 0))
        who = jnp.where(taken, order[jnp.minimum(wanted, members - 1)], loop.who)
        y = tree.select(taken, of(who, starts, everywhere), loop.moving.y)
        loop = loop._replace(who=who, args=of(who, args, has_lanes), following=loop.following + jnp.sum(new))
        moving = tree.select(taken, stepper(loop).at_rest(y, lanes, FIRST_STEP), loop.moving)
        upcoming = jnp.where(taken, (ts[0] == 0).astype(jnp.int32), loop.upcoming)
        # what is there to save at the start; where nothing starts, what the row holds at the end
        valued = ~jnp.isnan(norm_cap[who]) & (taken | (loop.upcoming == times))
        values = write(loop.values, who, jnp.where(taken, 0, upcoming), _masked(valued, seen(moving.t, y, loop.args)))
        return loop._replace(moving=moving, upcoming=upcoming, held=jnp.where(taken, 0, loop.held), values=values)

    def tries(loop: Loop):
        moving, tried = stepper(loop).attempt(loop.moving, going(loop.moving))
        return moving._replace(y=None, k=None), tried._replace(y=None)

    def inside(loop: Loop, tried, upcoming):
        now = ts[jnp.minimum(upcoming, times - 1)]
        return seen(now, stepper(loop).within(tried, now), loop.args)

    def step(loop: Loop) -> Loop:
        y, k = loop.moving.y, loop.moving.k
        moving, tried = apart(tries, loop._replace(values=None))
        tried = tried._replace(y=y)

        def pending(upcoming):
            passed = (ts[jnp.minimum(upcoming, times - 1)] - moving.t) - moving.late <= 0
            return tried.kept & (upcoming < times) & passed

        def save(carry):
            upcoming, values = carry
            new = apart(inside, loop._replace(values=None), tried, upcoming)
            return upcoming + pending(upcoming), write(values, loop.who, upcoming, new, often=True)

        upcoming, values = jax.lax.while_loop(lambda carry: jnp.any(pending(carry[0])), save, (loop.upcoming, loop.values))
        # not before all is saved, which these counts make sure of: then the new state takes the place of the old one
        moving = moving._replace(y=y, k=k).arrived(tried, tried.kept & (upcoming >= 0))
        return loop._replace(moving=moving, upcoming=upcoming, held=loop.held + 1, values=values)

    def round_(carry):
        loop, ends = carry
        loop = refill(loop._replace(values=ends.values))

        def goes_on(loop: Loop):
            """Lanes that started together save together: those that are free wait for the others if these are nearly there."""
            busy = going(loop.moving)
            free = jnp.sum(~busy)
            left = jnp.max(jnp.where(busy, (ts[-1] - loop.moving.t) / loop.moving.h, 0.0))
            waits = (loop.following == members) | (free < enough) | (free * left < PATIENCE * lanes)
            return (free < lanes) & waits

        loop = jax.lax.while_loop(goes_on, step, loop)
        return loop._replace(values=None), settle(loop, ends)

    def room(leaf):
        return jnp.full((members, times, *leaf.shape), jnp.nan, leaf.dtype)

    ends = Ends(
        values=jax.tree.map(room, jax.eval_shape(pack, kept)),
        steps=jnp.zeros(members, jnp.int32),
        t_end=jnp.zeros(members, ts.dtype),
        stopped=jnp.zeros(members, bool),
        finite=jnp.ones(members, bool),
        held=jnp.zeros(members, jnp.int32),
    )
    # every lane begins as one whose member has ended
    first = order[jnp.zeros(lanes, int)]
    nothing = jax.tree.map(jnp.zeros_like, of(first, starts, everywhere))
    zeros = jnp.zeros(lanes, ts.dtype)
    moving = Moving(nothing, nothing, zeros, zeros, zeros, jnp.zeros(lanes, jnp.int32), jnp.ones(lanes, bool))
    none = jnp.zeros(lanes, jnp.int32)
    loop = Loop(moving, first, of(first, args, has_lanes), none, none, None, jnp.zeros((), int))
    _, ends = jax.lax.while_loop(
        lambda carry: (carry[0].following < members) | jnp.any(going(carry[0].moving)), round_, (loop, ends)
    )
    return ends._replace(values=unpack(ends.values))


PATIENCE = 2
"""Steps of a lane that may go by, a lane on average, until all have ended and the next members start together."""

PACKED = 256
"""Up to so many numbers of a member are kept together, and come apart at the end: every array costs a write a lane."""


def _packing(kept: PyTree) -> tuple[Callable, Callable]:
    """Functions that join what is kept of one member, known by its shapes, and that part it with its leading axes."""
    leaves, tree = jax.tree.flatten(kept)
    cuts = np.cumsum([leaf.size for leaf in leaves])
    if len(leaves) == 1 or cuts[-1] > PACKED or len({leaf.dtype for leaf in leaves}) > 1:
        return lambda values: values, lambda values: values

    def unpack(values):
        parts = jnp.split(values, cuts[:-1], axis=-1)
        parts = [part.reshape(*part.shape[:-1], *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(tree, parts)

    return lambda values: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(values)]), unpack


def _finite(leaf) -> Bool[Array, " lanes"]:
    return jnp.all(jnp.isfinite(leaf), axis=tuple(range(leaf.ndim - 1)))


def _masked(flag, values):
    return jax.tree.map(lambda leaf: jnp.where(flag, leaf, jnp.nan), values)
