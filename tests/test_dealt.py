"""Members dealt to devices: the numbers of a plain loop, in the order given, and memory that is used again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.ensemble import Dealt

PROBLEM = dyn.LayerPeeled.balanced(3, 2, loss=dyn.losses.CrossEntropy())
STARTS = jax.vmap(lambda key: dyn.initial.gaussian(PROBLEM, dim=4, key=key))(jax.random.split(jax.random.key(5), 7))


def one(start):
    return {"logits": start.features @ start.prototypes.T, "norm": jnp.sum(start.prototypes**2)}


@pytest.mark.parametrize("reuse", [False, True])
def test_members_come_back_in_their_order(reuse):
    many = Dealt(one, STARTS, cost=lambda start: jnp.sum(start.features**2), reuse=reuse)
    assert sorted(np.concatenate(many.index)) == list(range(7)) and [len(index) for index in many.index] == [4, 3]
    assert [next(iter(jax.tree.leaves(part)[0].devices())) for part in many()] == jax.local_devices()
    found = many.gathered(many())
    pairs = zip(np.asarray(STARTS.features), np.asarray(STARTS.prototypes), strict=True)
    np.testing.assert_allclose(found["logits"], np.stack([h @ w.T for h, w in pairs]), rtol=0, atol=1e-14)
    np.testing.assert_allclose(found["norm"], np.sum(np.asarray(STARTS.prototypes) ** 2, axis=(1, 2)), rtol=1e-14)
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
