"""Every correction agrees with its independent oracle; what is printed does not."""

import json

import numpy as np
import pytest

from experiments import errata
from experiments.errata import base, figures


@pytest.fixture(scope="module")
def rows():
    return {row.erratum.number: row for row in errata.evaluate_all()}


@pytest.mark.parametrize("number", [erratum.number for erratum in errata.ERRATA])
def test_correction_holds_and_print_does_not(rows, number):
    row = rows[number]
    assert row.holds, row.residuals
    assert row.residuals.printed > 10 * row.erratum.tolerance, row.residuals
    assert row.verdict == "corrected"


def test_all_sixteen_are_there_once_and_in_order():
    orders = [erratum.order for erratum in errata.ERRATA]
    assert orders == sorted(set(orders))
    assert {digits for digits, _ in orders} == set(range(1, 17))


def test_table_shows_every_row(rows):
    brief, full = (errata.table(list(rows.values()), verbose) for verbose in (False, True))
    for number, row in rows.items():
        assert any(line.split()[0] == number and row.erratum.where in line for line in brief.splitlines())
        assert row.erratum.printed_text in full and row.erratum.corrected_text in full


def test_rows_are_json(rows):
    for row in rows.values():
        back = json.loads(json.dumps(row.to_json(), allow_nan=False))
        assert back["holds"] is True and back["corrected"] == row.residuals.corrected


def test_a_nan_never_holds():
    erratum = base.Erratum("17", "B", "", "", "", "", "", 1.0, lambda: errata.Residuals(np.inf, np.nan))
    row = erratum.row()
    assert not row.holds and row.refuted and row.verdict == "CORRECTION FAILS"
    assert row.to_json()["corrected"] == "nan" and row.to_json()["printed"] == "inf"


def test_figure_1_is_reproduced_with_its_own_label():
    assert figures.figure1() < 0.1
