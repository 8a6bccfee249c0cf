"""Comparisons, measured orders, claims and verdicts, on numbers made by hand."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from dynamics.verify import Claim, Measured, compare, measured_order
from tests.helpers import draw, refused

TS = np.array([0.0, 1.0, 2.5, 4.0])


def trajectory(features=None, prototypes=None, ts=TS, observed=None, log_scale=None, members=()) -> dyn.Trajectory:
    """A trajectory of the given states or observed values; `members`: its leading axes."""
    states = None if features is None else dyn.Peeled(features, prototypes, jnp.zeros((*members, 4, 2)))
    ts = np.broadcast_to(ts, (*members, ts.size))
    ended = jnp.zeros(members, jnp.int32)
    return dyn.Trajectory(ts, states, observed or {}, ended, {"steps": ended, "t_end": ts[..., -1]}, log_scale)


H, W = draw(4, 3, 2), draw(4, 2, 2)


def test_compare_finds_the_worst_time_and_part():
    shift = np.zeros((4, 3, 2))
    shift[2, 1] = (3e-3, 4e-3)
    other = trajectory(H + shift, W + 1e-4)
    gap = compare(other, trajectory(H, W))
    size = np.sqrt(np.sum(H**2, axis=(1, 2)) + np.sum(W**2, axis=(1, 2)))
    np.testing.assert_allclose(gap.residuals, [2e-4 / size[0], 2e-4 / size[1], 5e-3 / size[2], 2e-4 / size[3]], rtol=1e-9)
    assert float(gap.worst) == pytest.approx(5e-3 / size[2], rel=1e-9)
    assert float(gap.time) == 2.5 and gap.parts[int(gap.where)] == "features"
    assert "in features at t = 2.5" in str(gap) and "member" not in str(gap)


def test_compare_of_equals_is_zero_also_where_the_state_is():
    zero = trajectory(0 * H, 0 * W)
    assert float(compare(zero, zero).worst) == 0.0
    assert float(compare(trajectory(H, W), trajectory(H, W)).worst) == 0.0
    assert float(compare(trajectory(H, W), zero).worst) == np.inf


def test_compare_never_passes_what_is_not_finite():
    for spoiled in (np.nan, np.inf):
        broken = np.where(np.arange(4)[:, None, None] == 3, spoiled, H)
        for pair in ((broken, H), (H, broken), (broken, broken)):
            gap = compare(trajectory(pair[0], W), trajectory(pair[1], W))
            assert float(gap.worst) == np.inf and float(gap.time) == 4.0


def test_compare_of_a_batch_names_the_member():
    h, w = np.stack([H, 2 * H, 3 * H]), np.stack([W, 2 * W, 3 * W])
    moved = h.copy()
    moved[1, 3] *= 1.01
    gap = compare(trajectory(moved, w, members=(3,)), trajectory(h, w, members=(3,)))
    assert gap.residuals.shape == (3, 4) and int(gap.member) == 1 and float(gap.time) == 4.0
    assert "of member 1" in str(gap)
    assert np.count_nonzero(gap.residuals) == 1


def test_compare_of_observed_values_takes_each_by_itself():
    watched = {"small": 1e-6 * np.ones(4), "large": 1e6 * np.ones((4, 2))}
    off = {"small": watched["small"] * np.array([1, 1, 1.1, 1]), "large": watched["large"] * (1 + 1e-4)}
    gap = compare(trajectory(observed=off), trajectory(observed=watched))
    assert gap.parts[int(gap.where)] == "small" and float(gap.worst) == pytest.approx(0.1, rel=1e-9)
    np.testing.assert_allclose(gap.residuals, [1e-4, 1e-4, 0.1, 1e-4], rtol=1e-6)


def test_compare_of_scaled_trajectories_compares_the_log_of_the_norm():
    logs = np.array([0.0, 10.0, 1e5, 1e9])
    gap = compare(trajectory(H, W, log_scale=logs + [0, 0, 2e-3, 0]), trajectory(H, W, log_scale=logs))
    assert gap.parts[int(gap.where)] == "log_scale" and float(gap.worst) == pytest.approx(2e-3, rel=1e-6)
    assert float(gap.time) == 2.5


def test_compare_refuses_unlike_trajectories():
    one = trajectory(H, W)
    refused(lambda: compare(one, trajectory(H[:2], W[:2], ts=TS[:2])), "ts", "(4,)", "(2,)")
    refused(lambda: compare(one, trajectory(H, W, ts=TS + 1)), "ts", "different times")
    refused(lambda: compare(one, trajectory(observed={"a": TS})), "keeps states", "observed values")
    refused(lambda: compare(one, trajectory(H, W, log_scale=TS)), "scaled")
    refused(lambda: compare(trajectory(observed={"a": TS}), trajectory(observed={"b": TS})), "['a']", "['b']")


def test_measured_order():
    steps = np.array([0.4, 0.2, 0.1, 0.05])
    for order in (1, 2, 5):
        assert measured_order(steps, 3.0 * steps**order) == pytest.approx(order, rel=1e-12)
    floored = np.maximum(steps**2, 3e-2)
    assert measured_order(steps, floored, floor=3e-2) == pytest.approx(2, rel=1e-12)
    assert measured_order(steps, [0.16, 0.04, np.nan, 0.0]) == pytest.approx(2, rel=1e-12)
    refused(lambda: measured_order(steps, np.zeros(4)), "two errors", "floor")
    refused(lambda: measured_order(steps, np.ones(3)), "(4,)", "(3,)")
    refused(lambda: measured_order(-steps, np.ones(4)), "steps must be finite, > 0 and different", "-0.4")
    refused(lambda: measured_order([0.1, 0.1], np.ones(2)), "steps must be finite, > 0 and different", "0.1")


def claim(residual, **fields) -> Claim:
    measured = Measured(residual, 8, "member 3", {"rate": 0.5, "far": float("inf")})
    return Claim("a-claim", "family.id", "x is y", "A. Author, 2023", ("balanced",), 1e-7, lambda n: measured, **fields)


@pytest.mark.parametrize(
    ("residual", "holds"),
    [(0.0, True), (1e-7, True), (1.0000001e-7, False), (float("nan"), False), (float("inf"), False), (jnp.nan, False)],
)
def test_verdict(residual, holds):
    verdict = claim(residual).verdict(8)
    assert verdict.holds is holds
    assert (verdict.members, verdict.where, verdict.tolerance, verdict.finding) == (8, "member 3", 1e-7, "")
    assert verdict.seconds >= 0
    row = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert row["holds"] is holds and row["numbers"] == {"rate": 0.5, "far": "inf"}
    assert row["residual"] == (float(residual) if np.isfinite(residual) else str(float(residual)))
    assert set(row) == {field.name for field in dataclasses.fields(verdict)}


def test_a_finding_is_shown_and_still_fails():
    verdict = claim(1.0, finding="off by one").verdict(8)
    assert verdict.finding == "off by one" and not verdict.holds


def test_the_check_is_told_how_many_members():
    asked = []
    counted = dataclasses.replace(claim(0.0), check=lambda n: asked.append(n) or Measured(0.0, n))
    assert counted.verdict(17).members == 17 and asked == [17]
    refused(lambda: counted.verdict(0), "members must be at least 1", "0")
