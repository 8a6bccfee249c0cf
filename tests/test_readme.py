"""The examples of the README and of the guide to sweeps run as they are printed, and the files they link exist."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import ROOT

README, SWEEPS, FAULTS = ROOT / "README.md", ROOT / "docs" / "sweeps.md", ROOT / "docs" / "faults.md"
NETWORKS = ROOT / "docs" / "networks.md"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def executed(path: Path, code: str) -> dict:
    names: dict = {}
    exec(compile(code, path.name, "exec"), names)
    return names


def test_the_example_runs_and_theory_agrees(capsys):
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    names = executed(README, code)
    assert names["result"].ok.all()
    assert names["result"].values.max() < 1e-7
    assert "worst relative error" in capsys.readouterr().out


def test_the_sweep_of_the_readme_is_one():
    from dynamics.cli import config, sweep

    pytest.importorskip("pydantic")
    (text,) = blocks(README, "toml")
    assert sweep.build(config.loads(text)).design.size == 600


@pytest.mark.slow
def test_a_sweep_from_a_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, static, _ = blocks(SWEEPS, "python")
    names = executed(SWEEPS, script + static)
    assert len(names["structure"].groups()) == 2
    result, again = names["result"], names["again"]
    assert result.ok.all() and result.ok.size == 24
    found = result.reduced["nc1_quantile"]
    assert found.dims == ("peak_cell", "quantile") and found.values.shape == (3, 5, 5)
    values = result.values.observed["nc1"].reshape(3, 8, 5)
    np.testing.assert_allclose(found.values[:, 2], np.sort(values, axis=1)[:, 3], rtol=2.0**-9)  # rank ceil(8 / 2)
    np.testing.assert_array_equal(again.values.observed["nc1"], result.values.observed["nc1"])


def test_a_sweep_from_a_file(tmp_path, monkeypatch, capsys):
    for module in ("pydantic", "xarray", "netCDF4"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    executed(SWEEPS, blocks(SWEEPS, "python")[2])
    assert "('peak_cell', 'decay_cell', 'time')" in capsys.readouterr().out


@pytest.mark.slow
def test_the_guide_to_networks(tmp_path, monkeypatch, capsys):
    """Every example, one after the other; what they find against what the theory says."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names = executed(NETWORKS, "".join(blocks(NETWORKS, "python")))
    printed = capsys.readouterr().out
    assert "not of the declared degree 2" in printed
    assert names["many"].ok.all() and np.nanmax(names["many"].log_t) == pytest.approx(1000)
    assert 0.95 * names["limit"] < np.min(names["last"]) and np.max(names["last"]) <= names["limit"]
    assert all(abs(ratio - 1) < 5e-3 for ratio in names["ratios"].values())
    assert all(found.held for found in names["dyn"].verify.report(names["carried"], names["monitors"]).values())
    np.testing.assert_allclose(names["simulated"].log_t, names["times"], rtol=1e-6)
    assert names["draw"]("margins")[0].exists()


@pytest.mark.slow
def test_the_sweep_of_the_guide_to_networks_is_one():
    from dynamics.cli import config, sweep

    pytest.importorskip("pydantic")
    (text,) = blocks(NETWORKS, "toml")
    assert sweep.build(config.loads(text)).design.size == 128


@pytest.mark.parametrize("page", [README, SWEEPS, FAULTS, NETWORKS], ids=lambda path: path.name)
def test_every_file_it_links_exists(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (page.parent / link).exists(), link
