"""The command line of the experiments: tables, files, exit codes, and one line for wrong input."""

import json

import pytest

from dynamics.verify import Claim, Measured
from experiments import __main__ as cli
from experiments import catalogue
from experiments.registry import Experiment


def claim(name: str, residual: float, finding: str = "") -> Claim:
    return Claim(
        name, "test.id", "a statement", "a source", ("assumed",), 1e-3, lambda members: Measured(residual, members), finding
    )


@pytest.fixture
def two(monkeypatch):
    """Two experiments of two families, one of which can be made to fail."""

    def use(residual: float, finding: str = ""):
        experiments = (
            Experiment("first", "one", "holds", (claim("first-claim", 1e-6),)),
            Experiment("second", "two", "may fail", (claim("second-claim", residual, finding),)),
        )
        monkeypatch.setattr(catalogue, "EXPERIMENTS", experiments)
        monkeypatch.setattr(catalogue, "FAMILIES", ("one", "two"))

    return use


def run(*words) -> int:
    try:
        return cli.main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_verify_prints_one_table_and_writes_verdicts(two, tmp_path, capsys):
    two(1e-4)
    assert run("verify", "--out", tmp_path, "--members", 7) == 0
    out = capsys.readouterr().out
    assert "first-claim" in out and "second-claim" in out and "2 hold, 0 findings, 0 fail" in out
    written = json.loads((tmp_path / "verdicts.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in written["rows"]] == ["first-claim", "second-claim"]
    assert written["rows"][0]["members"] == 7 and written["rows"][0]["holds"] is True
    assert written["environment"]["precision"] == "float64"
    assert [path.name for path in tmp_path.iterdir()] == ["verdicts.json"]


@pytest.mark.parametrize("residual", [2e-3, float("nan"), float("inf")])
def test_a_failing_claim_exits_1_and_says_what_fails(two, tmp_path, capsys, residual):
    two(residual)
    assert run("verify", "--out", tmp_path) == 1
    assert "FAILS" in capsys.readouterr().out
    json.loads((tmp_path / "verdicts.json").read_text(encoding="utf-8"))


def test_a_finding_is_shown_with_its_residual_and_does_not_fail(two, tmp_path, capsys):
    two(2e-3, "known: the printed bound is not met")
    assert run("verify", "--out", tmp_path) == 0
    out = capsys.readouterr().out
    assert "2.0e-03" in out and "finding: known" in out


def test_family_and_name_select(two, tmp_path, capsys):
    two(2e-3)
    assert run("verify", "--family", "one", "--out", tmp_path) == 0
    assert run("run", "second", "--out", tmp_path) == 1
    assert (tmp_path / "second.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["verfy"], "did you mean 'verify'"),
        (["run", "frist"], "did you mean 'first'"),
        (["run", "zzz"], "known: first, second"),
        (["verify", "--family", "tow"], "did you mean 'two'"),
        (["verify", "--members", "0"], "whole number >= 1, got '0'"),
        (["verify", "--members", "many"], "whole number >= 1, got 'many'"),
        (["verify", "--famly", "one"], "--famly"),
        (["run"], "name"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(two, capsys, words, says):
    two(1e-4)
    assert run(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and says in captured.err


def test_an_unwritable_folder_is_one_line_and_exit_code_3(two, tmp_path, capsys):
    two(1e-4)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert run("verify", "--out", tmp_path / "file") == 3
    assert capsys.readouterr().err.startswith("python -m experiments: cannot write")


def test_list_names_every_experiment_and_claim(capsys):
    assert run("list") == 0
    out = capsys.readouterr().out
    for experiment in catalogue.EXPERIMENTS:
        assert experiment.name in out
        assert all(one.name in out for one in experiment.claims + experiment.long_claims)
