"""Members dealt to devices: the numbers of a plain loop, in the order given, and memory that is used again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.ensemble import Dealt

PROBLEM = dyn.LayerPeeled.balanced(3, 2, loss=dyn.losses.CrossEntropy())
STARTS = jax.vmap(lambda key: dyn.initial.gaussian(PROBLEM, dim=4, key=key))(jax.random.split(jax.random.key(5), 7))
STEPS = 20


def one(start):
    moved = dyn.descent(PROBLEM, start, dyn.Rates.equal(0.3), STEPS, every=10)
    return {"features": moved.states.features, "norm": jnp.sum(moved.states.prototypes**2, axis=(1, 2))}


def plain(member):
    """Descent by hand."""
    h, w = np.asarray(STARTS.features[member]), np.asarray(STARTS.prototypes[member])
    truth, kept = np.eye(3)[PROBLEM.labels], [h]
    for step in range(STEPS):
        soft = np.exp(h @ w.T)
        pull = (truth - soft / soft.sum(axis=1, keepdims=True)) / 6
        h, w = h + 0.3 * pull @ w, w + 0.3 * pull.T @ h
        if step % 10 == 9:
            kept.append(h)
    return np.stack(kept)


@pytest.mark.parametrize("reuse", [False, True])
def test_members_come_back_in_their_order(reuse):
    many = Dealt(one, STARTS, cost=lambda start: jnp.sum(start.features**2), reuse=reuse)
    assert sorted(np.concatenate(many.index)) == list(range(7)) and [len(index) for index in many.index] == [4, 3]
    assert [next(iter(jax.tree.leaves(part)[0].devices())) for part in many()] == jax.local_devices()
    found = many.gathered(many())
    np.testing.assert_allclose(found["features"], np.stack([plain(member) for member in range(7)]), rtol=0, atol=1e-13)
    # the costliest first, in turns
    sizes = np.asarray(jnp.sum(STARTS.features**2, axis=(1, 2)))
    assert [index[0] for index in many.index] == list(np.argsort(-sizes)[:2])


def test_reuse_writes_into_the_memory_of_the_values_before():
    many = Dealt(one, STARTS, reuse=True)
    first = many()
    places = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(first)}
    kept = many.gathered(first)
    second = many()
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(second)} == places
    jax.tree.map(np.testing.assert_array_equal, many.gathered(second), kept)
    with pytest.raises(RuntimeError, match="deleted"):
        many.gathered(first)
    fresh = Dealt(one, STARTS)
    older = fresh()
    fresh()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(older))


def test_what_cannot_be_dealt():
    with pytest.raises(ValueError, match="at least as many as devices, got 1 for 2"):
        Dealt(one, jax.tree.map(lambda leaf: leaf[:1], STARTS))
    with pytest.raises(ValueError, match="one leading axis"):
        Dealt(lambda pair: pair[0] + pair[1], (jnp.zeros(3), jnp.zeros(4)))


def test_a_function_is_traced_once_for_devices_with_equal_parts():
    traces = []

    def counted(start):
        traces.append(start)
        return one(start)

    Dealt(counted, jax.tree.map(lambda leaf: leaf[:6], STARTS))
    assert len(traces) == 1
