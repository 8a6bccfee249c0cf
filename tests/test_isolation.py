"""In a batch nothing raises: a bad, runaway or stiff member ends with its own status and changes no bit of its neighbours."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.status import BAD_INPUT, MAX_STEPS, NON_FINITE, NORM_CAP, OK
from tests.helpers import draw, spoiled

VERBS = {
    "flow": lambda start, m: dyn.flow(*start, m["ts"], max_steps=300, norm_cap=1e3),
    "exact.flow": lambda start, m: dyn.exact.flow(*start, m["ts"]),
    "descent": lambda start, m: dyn.descent(*start, 20, every=10, dt=m["dt"], momentum=m["momentum"], norm_cap=1e3),
    "exact.descent": lambda start, m: dyn.exact.descent(*start, 20, every=10, dt=m["dt"], momentum=m["momentum"]),
}
FLOWS, DESCENTS, EVERY = ("flow", "exact.flow"), ("descent", "exact.descent"), tuple(VERBS)
FEATURES = draw(6, 4)


class Spoiled(NamedTuple):
    """A number of a member that is replaced, and how that ends; verbs that are not named end well."""

    field: str
    value: object
    ends: dict[str, int]


TABLE = {
    "good": Spoiled("gamma", 0.4, {}),
    "start not a number": Spoiled("features", spoiled(FEATURES, np.nan), dict.fromkeys(EVERY, BAD_INPUT)),
    "start infinite": Spoiled("features", spoiled(FEATURES, np.inf), dict.fromkeys(EVERY, BAD_INPUT)),
    "good, in between": Spoiled("gamma", 0.2, {}),
    "runaway": Spoiled("rate", 3e3, {"flow": NORM_CAP, "exact.flow": NON_FINITE, "descent": NORM_CAP}),
    "runaway by far": Spoiled(
        "rate", 1e80, {"flow": NON_FINITE, "exact.flow": NON_FINITE, "descent": NORM_CAP, "exact.descent": NON_FINITE}
    ),
    "stiff": Spoiled("decay", 1e6, {"flow": MAX_STEPS, "descent": NORM_CAP}),
    "rate negative": Spoiled("rate", -0.1, dict.fromkeys(EVERY, BAD_INPUT)),
    "gamma not a number": Spoiled("gamma", np.nan, dict.fromkeys(EVERY, BAD_INPUT)),
    "gamma negative": Spoiled("gamma", -0.1, dict.fromkeys(EVERY, BAD_INPUT)),
    "decay not a number": Spoiled("decay", np.nan, dict.fromkeys(EVERY, BAD_INPUT)),
    "decay negative": Spoiled("decay", -0.1, dict.fromkeys(EVERY, BAD_INPUT)),
    "times unsorted": Spoiled("ts", [0.0, 1.0, 0.5, 3.0], dict.fromkeys(FLOWS, BAD_INPUT)),
    "times duplicated": Spoiled("ts", [0.0, 1.0, 1.0, 3.0], dict.fromkeys(FLOWS, BAD_INPUT)),
    "times negative": Spoiled("ts", [-1.0, 0.5, 1.0, 3.0], dict.fromkeys(FLOWS, BAD_INPUT)),
    "times not numbers": Spoiled("ts", [0.0, 0.5, np.nan, 3.0], dict.fromkeys(FLOWS, BAD_INPUT)),
    "dt negative": Spoiled("dt", -0.1, dict.fromkeys(DESCENTS, BAD_INPUT)),
    "dt not a number": Spoiled("dt", np.nan, dict.fromkeys(DESCENTS, BAD_INPUT)),
    "momentum negative": Spoiled("momentum", -0.1, dict.fromkeys(DESCENTS, BAD_INPUT)),
    "momentum one": Spoiled("momentum", 1.0, dict.fromkeys(DESCENTS, BAD_INPUT)),
    "good, at the end": Spoiled("gamma", 0.1, {}),
}
SIZE = len(TABLE)


def crowd() -> dict[str, np.ndarray]:
    """A chunk of good members, then the same spoiled, each in its own way."""
    good = {
        "features": np.broadcast_to(FEATURES, (SIZE, 6, 4)),
        "ts": np.broadcast_to([0.0, 1e-3, 1.0, 3.0], (SIZE, 4)),
        **{name: np.full(SIZE, value) for name, value in (("gamma", 0.4), ("rate", 0.3), ("decay", 0.1))},
        **{name: np.full(SIZE, value) for name, value in (("dt", 1.0), ("momentum", 0.5))},
    }
    members = {name: np.concatenate([values, values]) for name, values in good.items()}
    for i, row in enumerate(TABLE.values()):
        for member in (SIZE + i, *([i] if not row.ends else [])):
            members[row.field][member] = row.value
    return members


def moved_by(verb: str):
    def one(member):
        problem = dyn.LayerPeeled.balanced(
            3, 2, loss=dyn.losses.Unhinged(member["gamma"]), decay=dyn.Decay(member["decay"]), bias=True
        )
        rates = dyn.Rates.proportional(dyn.schedules.Cosine(member["rate"], 5.0), 2.0)
        return VERBS[verb]((problem, dyn.Peeled(member["features"], np.ones((3, 4))), rates), member)

    return dyn.ensemble.run(one, crowd(), chunk=SIZE, progress=False)


@pytest.mark.parametrize(
    "verb", [verb if verb != "exact.descent" else pytest.param(verb, marks=pytest.mark.slow) for verb in VERBS]
)
def test_members_end_by_themselves(verb):
    result = moved_by(verb)
    expected = {name: dyn.status.name(row.ends.get(verb, OK)) for name, row in TABLE.items()}
    ended = [dyn.status.name(code) for code in result.status]
    assert ended[:SIZE] == ["ok"] * SIZE
    assert dict(zip(TABLE, ended[SIZE:], strict=True)) == expected

    moved = result.values
    for member in (i for i, row in enumerate(TABLE.values()) if not row.ends):
        for leaf in jax.tree.leaves(moved):
            assert leaf[member].tobytes() == leaf[SIZE + member].tobytes()

    shown = np.isfinite(moved.states.features).all(axis=(2, 3))
    assert all(np.isnan(part[~shown]).all() for part in (moved.states.features, moved.states.prototypes, moved.states.biases))
    t_end = moved.stats["t_end"]
    bad, well = result.status == BAD_INPUT, result.status == OK
    np.testing.assert_array_equal(shown[~bad], moved.ts[~bad] <= t_end[~bad, None])
    assert not shown[bad].any() and np.all(t_end[bad] == 0)
    assert np.all(t_end[well] == moved.ts[well, -1])
    stopped = ~bad & ~well
    assert shown[stopped, 0].all() and not shown[stopped, -1].any() and np.all(t_end[stopped] < moved.ts[stopped, -1])
    if verb == "flow":
        assert moved.stats["steps"][SIZE + list(TABLE).index("stiff")] == 300


def test_two_batches_of_one_size_agree_to_the_bit():
    """Other members, the same place or another: a member's numbers are its own."""
    features = draw(4, 6, 4)
    problem = dyn.LayerPeeled.balanced(3, 2)

    @jax.jit
    @jax.vmap
    def run(h):
        return dyn.descent(problem, dyn.Peeled(h, np.ones((3, 4))), dyn.Rates.equal(0.3), 50, every=50).states

    first = run(features)
    second = run(jnp.asarray(features)[np.array([2, 0, 0, 1])].at[1].set(jnp.nan))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.asarray(one)[[2, 0, 1]].tobytes() == np.asarray(other)[[0, 2, 3]].tobytes()
