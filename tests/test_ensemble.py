"""Many members: the values of a plain loop, whatever the chunks, the order and the neighbours."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.ensemble import run
from tests.helpers import draw, refused

MEMBERS = {"x": draw(11, 3), "scale": np.arange(11.0)}
KEY = jax.random.key(7)


def mix(member):
    """A small function whose value depends on every number of its member."""
    return {"a": jnp.tanh(member["x"]) * member["scale"], "b": (jnp.sum(jnp.sin(member["x"])), member["scale"] > 4)}


def noise(member, key):
    return member["scale"] + jax.random.normal(key, (2,))


@pytest.mark.parametrize("chunk", [None, 1, 4, 11, 1000])
def test_values_of_a_plain_loop(chunk):
    result = run(mix, MEMBERS, chunk=chunk, progress=False)
    x, scale = MEMBERS["x"], MEMBERS["scale"]
    assert isinstance(result.values["a"], np.ndarray) and result.values["a"].shape == (11, 3)  # no padding
    np.testing.assert_allclose(result.values["a"], [np.tanh(x[i]) * scale[i] for i in range(11)], rtol=1e-12)
    np.testing.assert_allclose(result.values["b"][0], [np.sin(x[i]).sum() for i in range(11)], rtol=1e-12)
    np.testing.assert_array_equal(result.values["b"][1], scale > 4)
    np.testing.assert_array_equal(result.index, np.arange(11))
    assert result.ok.all() and result.status.shape == (11,)


def test_a_key_is_the_members_own_whatever_the_chunks_and_the_order():
    alone = np.stack([noise({"scale": i}, jax.random.fold_in(KEY, i)) for i in range(11)])
    for options in ({}, {"chunk": 4, "cost": lambda member: -member["scale"]}):
        result = run(noise, MEMBERS, key=KEY, progress=False, **options)
        np.testing.assert_allclose(result.values, alone, rtol=1e-14)


def test_cost_orders_the_runs_and_not_the_result(tmp_path):
    cost = draw(11)
    members = {**MEMBERS, "cost": cost}
    ordered = run(mix, members, cost=lambda member: member["cost"], chunk=4, lanes=4, store=tmp_path, progress=False)
    plain = run(mix, members, chunk=4, lanes=4, progress=False)
    for one, other in zip(jax.tree.leaves(ordered[:3]), jax.tree.leaves(plain[:3]), strict=True):
        np.testing.assert_array_equal(one, other)  # same chunk size: to the bit
    ran = np.concatenate([np.load(path)["index"] for path in sorted((tmp_path / "chunks").iterdir())])
    np.testing.assert_array_equal(ran, np.argsort(-cost))  # the hardest first


def test_status_from_finiteness():
    spoiled = MEMBERS["x"].copy()
    spoiled[3, 1], spoiled[10, 0] = np.nan, np.inf
    result = run(lambda m: (jnp.sum(m), jnp.arange(2)), spoiled, chunk=4, progress=False)
    assert np.flatnonzero(~result.ok).tolist() == [3, 10]
    assert set(result.status[~result.ok]) == {dyn.status.NON_FINITE}


def test_status_of_a_returned_trajectory():
    def one(scale):
        ended = jnp.where(scale > 8, dyn.status.NORM_CAP, dyn.status.OK)
        moved = dyn.Trajectory(jnp.zeros(1), None, {"a": jnp.full(1, jnp.nan)}, ended, {"t_end": scale})
        return {"first": 1.0, "moved": moved}

    result = run(one, MEMBERS["scale"], chunk=4, progress=False)
    assert np.flatnonzero(result.status == dyn.status.NORM_CAP).tolist() == [9, 10]
    assert result.values["moved"].summary() == "2 of 11 failed (2 norm_cap); first: member 9, norm_cap at t = 9"


def test_chunks_are_stored_and_not_computed_again(tmp_path):
    folder = tmp_path / "new" / "folder"
    result = run(mix, MEMBERS, chunk=4, lanes=4, store=folder, progress=False)
    paths = sorted((folder / "chunks").iterdir())
    assert [path.name for path in paths] == ["chunk-000000.npz", "chunk-000001.npz", "chunk-000002.npz"]
    chunks = [np.load(path) for path in paths]
    assert set(chunks[0]) == {"index", "status", "values['a']", "values['b'][0]", "values['b'][1]"}
    for name, expected in (("index", result.index), ("status", result.status), ("values['a']", result.values["a"])):
        np.testing.assert_array_equal(np.concatenate([chunk[name] for chunk in chunks]), expected)
    stamps = [path.stat().st_mtime_ns for path in paths]
    again = run(mix, MEMBERS, chunk=4, lanes=4, store=folder, progress=False)
    jax.tree.map(np.testing.assert_array_equal, again.values, result.values)
    assert [path.stat().st_mtime_ns for path in paths] == stamps


@pytest.mark.parametrize("spoil", [pathlib.Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-7])])
def test_a_missing_or_torn_chunk_is_computed_again(tmp_path, spoil):
    result = run(mix, MEMBERS, chunk=4, lanes=4, store=tmp_path, progress=False)
    whole = (tmp_path / "chunks" / "chunk-000001.npz").read_bytes()
    spoil(tmp_path / "chunks" / "chunk-000001.npz")
    again = run(mix, MEMBERS, chunk=4, lanes=4, store=tmp_path, progress=False)
    jax.tree.map(np.testing.assert_array_equal, again.values, result.values)
    assert (tmp_path / "chunks" / "chunk-000001.npz").read_bytes() == whole


def test_another_run_is_refused(tmp_path):
    run(mix, MEMBERS, chunk=4, lanes=4, store=tmp_path, progress=False)
    for members, options, words in (
        ({**MEMBERS, "x": MEMBERS["x"] * (1 + 1e-15)}, {}, ("members",)),
        (MEMBERS, {"chunk": 3, "lanes": 3}, ("chunk",)),
        (MEMBERS, {"keep": None}, ("outcome",)),
    ):
        usual = {"chunk": 4, "lanes": 4, "store": tmp_path, "progress": False}
        refused(lambda m=members, o={**usual, **options}: run(mix, m, **o), *words)
    refused(lambda: run(lambda m: {**mix(m), "a": mix(m)["a"] * 2}, MEMBERS, **usual), "one")


def test_progress_goes_to_stderr(capsys, monkeypatch):
    spoiled = np.where(np.arange(11) == 2, np.nan, MEMBERS["scale"])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run(jnp.sin, spoiled, chunk=4, lanes=4)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [part.split(" failed")[0] for part in shown.err.split("\r")[1:]]
    assert len(lines) == 3 and lines[-1] == "11/11 members, 1"  # devices finish their chunks in any order
    assert shown.err.endswith("\n")
    run(jnp.sin, spoiled, chunk=4, lanes=4, progress=False)
    run(jnp.sin, spoiled)  # a single chunk
    assert capsys.readouterr().err == ""


def test_refusals():
    for chunk in (0, -1, 1.5, True):
        refused(lambda chunk=chunk: run(mix, MEMBERS, chunk=chunk), "chunk", "integer" if chunk in (1.5, True) else ">= 1")
    for members in ({"x": np.ones(3), "y": np.ones(4)}, np.ones((0, 2)), np.float64(1.0), {}):
        refused(lambda members=members: run(mix, members), "members", "one common leading axis")
    refused(lambda: run(mix, MEMBERS, cost=lambda member: member["x"]), "cost", "scalar", "(3,)")
