"""The race suite: its table, its verdicts, its files and its truth. Times are never judged."""

import builtins
import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as dyn
from benchmarks import __main__ as command
from benchmarks import compare, figures, members, page, peers, record, reference, report, running, table
from benchmarks.peers import diffrax_flows, scipy_flows
from benchmarks.race import Contest, Counts, Curves, Racer, Skipped, loosest, race
from tests.helpers import ROOT, compiled

WANTED = (
    "FLOW-S FLOW-S-SPREAD FLOW-S-OBS FLOW-S-TIGHT FLOW-L GD-S GD-L UNHINGED-PAPER UNHINGED-OBS SCHEDULES GRAD-S COLD LOCKSTEP "
    "HEAVY-TAIL WORK-PRECISION SCALING ENSEMBLE-GPU"
).split()


def test_table_is_complete():
    assert set(WANTED) <= set(table.names())
    assert len({row.name for row in table.ROWS}) == len(table.ROWS)
    for row in table.ROWS:
        assert callable(table.builder(row)), row.name
        assert row.setting and row.name == row.name.upper()
        if row.target is not None:
            assert row.base and row.gate
            better = row.target if row.stretch is None else row.stretch
            assert better <= row.target if row.counted else better >= row.target


def test_names_in_any_case_and_by_group(capsys):
    assert [row.name for row in table.chosen(["flow-s", "gd-s", "FLOW-S"])] == ["FLOW-S", "GD-S-F32", "GD-S-F64"]
    assert table.chosen([]) == list(table.ROWS)
    assert command.main(["run", "flow-spread"]) == 2
    assert "unknown workload 'flow-spread'; did you mean 'FLOW-S-SPREAD'?" in capsys.readouterr().err
    assert command.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(row.name in listed and row.setting in listed for row in table.ROWS)


def test_missing_peer_is_skipped_with_its_reason(monkeypatch):
    from benchmarks import flow_small

    real = builtins.__import__

    def without_torch(name, *rest, **more):
        if name.split(".")[0].startswith("torch"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(peers.importlib, "import_module", without_torch)
    made = flow_small.Setting(*[None] * 7)
    racers, skipped = flow_small.torch_peers(made, 1e-6, 8)
    assert racers == [] and [one.name for one in skipped] == ["torchdiffeq dopri5, one shared step", "torchode Tsit5"]
    assert "torch cannot be imported" in skipped[0].reason and "dynamics[bench]" in skipped[0].reason

    row = table.ROWS[0]._replace(beat=("torchode Tsit5",))
    entry = record.entry(row, *_raced(skipped=skipped), scaled=False)
    assert entry["beaten"] == {"torchode Tsit5": None}
    assert "skipped: torch cannot be imported" in "\n".join(report.lines("FLOW-S", entry))
    assert "against torchode Tsit5: not raced" in report.verdict(entry)


def _racer(name: str, error: float = 0.0, floor: bool = False) -> Racer:
    return Racer(name, lambda: np.ones(3), lambda _: error, "numpy", floor=floor)


def _raced(product_error: float = 1e-7, skipped=()):
    """A contest of three racers, and their laps with known seconds."""
    contest = Contest(
        [_racer("diffrax, vmap", 1e-6), _racer("a floor", floor=True), _racer("dynamics.flow", product_error)],
        1e-6,
        "largest absolute error",
        {"members": 4},
        list(skipped),
    )
    laps = race(contest.racers, 3)
    for lap, seconds in zip(laps, ([8.0, 10.0, 12.0], [0.1, 0.1, 0.1], [1.0, 1.0, 1.5]), strict=True):
        lap["seconds"], lap["quartiles"] = seconds, np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
        lap["ratio"] = float(np.median(np.divide([8.0, 10.0, 12.0], seconds)))
    return contest, laps


def _result() -> dict:
    """A whole result, made up."""
    rows = {row.name: row for row in table.ROWS}
    workloads = {
        "FLOW-S": record.entry(rows["FLOW-S"], *_raced(skipped=[Skipped("torchode Tsit5", "not here")]), scaled=False),
        "LOCKSTEP": record.entry(rows["LOCKSTEP"], Counts({"diffrax, vmap": 7.6, "dynamics.flow": 1.2}, {}), [], scaled=False),
        "WORK-PRECISION": record.entry(
            rows["WORK-PRECISION"], Curves(_CURVES, {"members": 4, "tolerances": [1e-4]}), [], False
        ),
        "ENSEMBLE-GPU": {"kind": "unavailable", "setting": "large", "reason": "there is no GPU", "scaled": False},
    }
    header = {
        "device": "cpu", "devices": 2, "cpu": "a processor", "cores": 2, "python": "3.11", "versions": {"jax": "0.10.2"},
        "precision": "float64", "threads": {"NPROC": "4"}, "date": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return {"version": record.VERSION, "header": header, "workloads": workloads}


_POINTS = [{"tolerance": 10.0**-k, "error": 10.0**-k, "seconds_per_member": 1e-4 * k} for k in (4, 6, 8)]
_CURVES = {"curves": {"SciPy RK45, a loop": _POINTS, "dynamics.flow": _POINTS[::-1]}, "skipped": {}}


def test_verdicts():
    entry = record.entry(table.ROWS[0], *_raced(), scaled=False)
    assert entry["ratio"] == 8.0 and entry["best"] == "dynamics.flow"
    assert entry["reached"] == {"target": True, "stretch": False} and entry["gate"]["missed"] == []
    scaled = record.entry(table.ROWS[0], *_raced(), scaled=True)
    assert scaled["reached"] is None and "[scaled down" in "\n".join(report.lines("FLOW-S", scaled))
    missed = record.entry(table.ROWS[0], *_raced(product_error=2e-6), scaled=False)
    assert missed["gate"]["missed"] == ["dynamics.flow"] and missed["best"] is None
    assert missed["reached"] == {"target": False, "stretch": False}
    assert "MISSED by dynamics.flow" in "\n".join(report.lines("FLOW-S", missed))
    counted = _result()["workloads"]["LOCKSTEP"]
    assert counted["reached"] == {"target": True, "stretch": False} and counted["value"] == 1.2


def test_a_racer_that_breaks_is_no_win_and_takes_nobody_along():
    def broken():
        raise RuntimeError("out of luck")

    racers = [_racer("diffrax, vmap", 1e-6), _racer("dynamics.flow")._replace(run=broken), _racer("dynamics.ensemble")]
    laps = race(racers, 2)
    assert [lap["status"] for lap in laps] == ["ran", "ran", "failed"]
    entry = record.entry(table.ROWS[0], Contest(racers, 1e-6, "", {}), laps, False)
    assert entry["gate"]["missed"] == ["dynamics.flow"] and entry["best"] == "dynamics.ensemble"
    assert "failed: RuntimeError: out of luck" in "\n".join(report.lines("FLOW-S", entry))


def test_quick_calls_run_several_times_in_a_turn():
    made = {"quick": 0, "slow": 0}

    def racer(name, seconds):
        def run():
            made[name] += 1
            time.sleep(seconds)

        return Racer(name, run, lambda _: 0.0, "none")

    laps = race([racer("slow", 0.05), racer("quick", 0.001)], 2)
    assert made["slow"] == 4 and made["quick"] >= 1 + 2 + 2 * 3  # the first, those that tell how quick it is, two turns
    assert [len(lap["seconds"]) for lap in laps] == [2, 2]


def test_loosest_tolerance_within_the_limit():
    def at(tolerance):
        return _racer(f"dynamics at {tolerance}", 3 * tolerance)

    assert loosest(at, (1e-4, 1e-5, 1e-6), 4e-5).name == "dynamics at 1e-05"
    assert loosest(at, (1e-4, 1e-5, 1e-6), 1e-9).name == "dynamics at 1e-06"
    assert loosest(at, (1e-4, 1e-5), 4e-5, trial=lambda tolerance: tolerance).begun is None


def test_a_missed_gate_ends_in_one_and_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "settle", lambda: None)
    monkeypatch.setattr(running, "builder", lambda row: lambda quick, members: _raced(2e-6)[0])
    out = tmp_path / "result.json"
    assert command.main(["run", "FLOW-S", "--repeats", "2", "--out", str(out)]) == 1
    assert "gate missed: FLOW-S: dynamics.flow" in capsys.readouterr().err
    entry = record.read(out)["workloads"]["FLOW-S"]
    assert len(entry["racers"][0]["seconds"]) == 2 and entry["scaled"]  # fewer than five rounds count for nothing

    full = record.read(out)
    full["workloads"]["FLOW-S"]["scaled"] = False
    record.write(out, full)
    assert command.main(["run", "FLOW-S", "--quick", "--out", str(out)]) == 2
    assert "holds full measurements of FLOW-S" in capsys.readouterr().err
    assert record.read(out) == full


def test_what_is_not_here_says_so_and_ends_in_zero(tmp_path, monkeypatch, capsys):
    from benchmarks import elsewhere

    def nowhere(quick, members):
        raise elsewhere.Unavailable("there is no GPU")

    monkeypatch.setattr(command, "settle", lambda: None)
    monkeypatch.setattr(running, "builder", lambda row: nowhere)
    assert command.main(["run", "ensemble-gpu", "--out", str(tmp_path / "result.json")]) == 0
    assert "not run: there is no GPU" in capsys.readouterr().out


def test_result_file_is_whole_and_of_one_machine(tmp_path, monkeypatch):
    out = tmp_path / "folder" / "result.json"
    result = _result()
    record.write(out, result)
    before = out.read_bytes()
    assert [entry.name for entry in out.parent.iterdir()] == ["result.json"]
    assert record.read(out) == json.loads(before)
    monkeypatch.setattr(os, "replace", _no_space)
    with pytest.raises(OSError, match="result.json"):
        record.write(out, result | {"workloads": {}})
    assert out.read_bytes() == before and len(list(out.parent.iterdir())) == 1

    assert record.opened(out, result["header"] | {"date": "later"})["workloads"].keys() == result["workloads"].keys()
    with pytest.raises(record.BadRecord, match="measured otherwise .*cores: 2 and 64"):
        record.opened(out, result["header"] | {"cores": 64})
    with pytest.raises(record.BadRecord, match="no JSON"):
        (tmp_path / "broken.json").write_text("{")
        record.read(tmp_path / "broken.json")
    with pytest.raises(record.BadRecord, match="benchmarks run"):
        record.read(tmp_path / "none.json")


def _no_space(*_):
    raise OSError(28, "No space left on device")


def test_numbers_that_json_does_not_hold(tmp_path):
    entry = record.entry(table.ROWS[0], *_raced(product_error=np.inf), scaled=False)
    record.write(tmp_path / "result.json", _result() | {"workloads": {"FLOW-S": entry}})
    again = record.read(tmp_path / "result.json")["workloads"]["FLOW-S"]
    assert again["racers"][2]["error"] == "inf"
    assert report.lines("FLOW-S", again) and again["gate"]["missed"] == ["dynamics.flow"]


def test_report_draws_beside_the_result(tmp_path, capsys):
    record.write(tmp_path / "result.json", _result())
    assert command.main(["report", str(tmp_path / "result.json")]) == 0
    printed = capsys.readouterr().out
    assert "best: dynamics.flow at 8; target 6 reached; stretch 12 NOT reached" in printed
    assert "not run: there is no GPU" in printed and "skipped: not here" in printed
    drawn = sorted(path.name for path in tmp_path.glob("*.png"))
    assert drawn == ["result-ratios.png", "result-work-precision.png"]
    assert figures.draw(_result() | {"workloads": {}}, tmp_path, "empty") == []


def test_compare(tmp_path, capsys):
    old, new = _result(), _result()
    new["workloads"]["FLOW-S"]["racers"][2]["quartiles"] = [0.4, 0.5, 0.6]
    new["workloads"]["LOCKSTEP"]["racers"][1]["value"] = 1.3
    said = "\n".join(compare.compared(old, new))
    assert "dynamics.flow" in said and "2.000x" in said and said.count("FASTER") == 1 and said.count("CHANGED") == 1
    elsewhere = old | {"header": old["header"] | {"cpu": "another"}}
    for name, result in (("old", old), ("elsewhere", elsewhere)):
        record.write(tmp_path / f"{name}.json", result)
    paths = [str(tmp_path / f"{name}.json") for name in ("old", "elsewhere")]
    assert command.main(["compare", *paths]) == 2
    assert "different devices (cpu: 'a processor' and 'another')" in capsys.readouterr().err
    assert command.main(["compare", *paths, "--force"]) == 0


def test_page(tmp_path):
    written = page.write(_result(), tmp_path)
    text = (tmp_path / "performance.md").read_text()
    assert text == page.text(json.loads(json.dumps(_result())))
    for name in written[1:]:
        assert f"({name.name})" in text
    assert "| FLOW-S | diffrax, vmap | dynamics.flow | **8** (" in text and "Not in this run: there is no GPU" in text


def test_the_committed_page_is_that_of_the_committed_result():
    result, written = ROOT / "benchmarks/results/cpu.json", ROOT / "docs/performance.md"
    if not result.exists() and not written.exists():
        pytest.skip("nothing has been measured yet")
    assert written.read_text(encoding="utf-8") == page.text(record.read(result))
    entries = record.read(result)["workloads"]
    assert not [name for name, entry in entries.items() if entry.get("gate", {}).get("missed")]
    assert not [name for name, entry in entries.items() if entry["scaled"]]


# ---- what is true ----


@pytest.mark.slow
def test_truth_against_the_library_and_its_own_derivative():
    problem, labels = members.cross_entropy(3, 2), np.repeat(np.arange(3), 2)
    state = jax.tree.map(lambda leaf: leaf[0], members.starts(problem, 5, 2, 0.8))
    pair = (np.asarray(state.features), np.asarray(state.prototypes))
    force = reference.cross_entropy_force(labels, 3, members.DECAY)
    expected = problem.force(state)
    np.testing.assert_allclose(force(*pair)[0], expected.features, atol=1e-15)
    np.testing.assert_allclose(force(*pair)[1], expected.prototypes, atol=1e-15)
    objective = members.plain_objective(labels)
    np.testing.assert_allclose(objective(pair), problem.objective(state), rtol=1e-14)
    functions = reference.library_observables()
    for loss, kind in (("cross-entropy", dyn.losses.CrossEntropy()), ("unhinged", dyn.losses.Unhinged())):
        decay = dyn.Decay(members.DECAY, members.DECAY)
        problem = dyn.LayerPeeled.balanced(3, 2, loss=kind, decay=decay)
        seen = reference.observed(*pair, labels, members.DECAY, loss)
        known = compiled(lambda problem, state: {name: f(problem, state) for name, f in functions.items()})(problem, state)
        for name, value in known.items():
            np.testing.assert_allclose(seen[name], value, rtol=1e-12, err_msg=f"{loss} {name}")


@pytest.mark.slow
def test_a_real_race_of_two_members():
    problem, ts = members.cross_entropy(2, 2), np.linspace(1.0, 4.0, 3)
    sizes = np.array([0.3, 1.0])
    starts = members.starts(problem, 3, 2, sizes)
    pair = (starts.features, starts.prototypes)
    force = reference.cross_entropy_force(problem.labels, 2, members.DECAY)
    truth = reference.flows(force, members.picked(pair, (0, 1)), ts, ("test",))
    assert truth[0].shape == (2, 3, 4, 3)
    loop = scipy_flows.loop(force, ts, 1e-10, "RK45")
    assert reference.largest_difference(loop(jax.device_get(pair)), truth) < 1e-8

    def error(saved):
        return reference.largest_difference(saved, truth)

    def product(tolerance):
        @compiled
        @jax.vmap
        def moved(start):
            path = dyn.flow(problem, start, dyn.Rates.equal(1.0), jnp.asarray(ts), rtol=tolerance, atol=tolerance).states
            return path.features, path.prototypes

        return Racer("dynamics.flow", lambda: moved(starts), error, "jax", tolerance=tolerance)

    motion = diffrax_flows.vmapped(members.plain_objective(problem.labels), jnp.asarray(ts), 1e-5)
    base = Racer("diffrax, vmap", lambda: motion(pair), error, "diffrax", tolerance=1e-5)
    laps = race([base, product(1e-7)], 2)
    assert 0 < laps[1]["error"] < laps[0]["error"] < 1e-3
    assert all(len(lap["seconds"]) == 2 and min(lap["seconds"]) > 0 and lap["compile_seconds"] > 0 for lap in laps)
    assert laps[0]["ratio"] == 1.0


def test_checked_members_hold_the_largest():
    sizes = members.scales(100)
    rows = members.checked(100, sizes)
    assert len(rows) == len(set(rows)) == 40 and set(np.argsort(sizes)[-8:]) <= set(rows)
    assert len(members.checked(1024)) == 40 and members.checked(3) == (0, 1, 2)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("name", WANTED)
def test_every_workload_runs_in_small(name, tmp_path):
    words = ["-m", "benchmarks", "run", name, "--quick", "--repeats", "1", "--out", str(tmp_path / "small.json")]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for entry in record.read(tmp_path / "small.json")["workloads"].values():
        assert entry["scaled"] or entry["kind"] == "unavailable"
        assert all(racer["status"] != "failed" for racer in entry.get("racers", [])), entry
