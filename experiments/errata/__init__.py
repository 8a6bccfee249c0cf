"""Errata of one paper as runnable comparisons: each printed formula and its correction, against an independent oracle.

The paper: Xiong Zhou, Xianming Liu, Hanzhang Wang, Deming Zhai, Junjun Jiang and Xiangyang Ji, "On the Dynamics Under
the Unhinged Loss and Beyond", JMLR 24 (2023), 23-0771. Theorems, equations and figures are numbered as printed there.

To add one: a function that returns `Residuals`, and a row in `ROWS` of its file.
"""

from experiments.errata import figures, geometry, kernel, rates, regularised, spherical, text
from experiments.errata.base import Erratum as Erratum
from experiments.errata.base import Residuals as Residuals
from experiments.errata.base import Row as Row
from experiments.errata.base import table as table

ERRATA = tuple(
    sorted(
        (row for file in (figures, geometry, kernel, rates, regularised, spherical, text) for row in file.ROWS),
        key=lambda erratum: erratum.order,
    )
)


def evaluate_all() -> list[Row]:
    """Every erratum, evaluated, in order; `[row.to_json() for row in evaluate_all()]` are JSON values."""
    return [erratum.row() for erratum in ERRATA]
