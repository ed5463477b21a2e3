"""Texts that come from outside, names of files above all, do no harm where they are shown."""

from __future__ import annotations

import csv
import io

import pytest

from metaseg_cli.core.csv_text import csv_text, plain_cell
from metaseg_cli.errors import InputError, Problem, printable
from metaseg_cli.reports.pages import template
from metaseg_cli.reports.terminal import escape

EVIL = "a\x1b]0;owned\x07\nb\udcff"


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", " =HYPERLINK()", "plain", "a=b", "", "'x", "−5"]
)
def test_no_cell_is_a_formula_and_every_one_reads_back(cell: str) -> None:
    text = csv_text([{"name": cell, "n": -1.5}], ["name", "n"])
    row = next(csv.DictReader(io.StringIO(text)))
    assert not row["name"].lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r"))
    assert row["n"] == "-1.5"  # numbers stay numbers
    assert plain_cell(row["name"]) == printable(cell)


def test_control_characters_reach_no_message_table_or_page() -> None:
    for shown in (
        printable(EVIL),
        escape(EVIL),
        str(InputError(EVIL, where=EVIL, remedy=EVIL)),
        str(Problem(file=__import__("pathlib").Path(EVIL), reason=printable(EVIL), remedy="")),
    ):
        assert shown.isprintable()
        shown.encode("utf-8")
    page = template("comparison.html.j2").render(
        names=[EVIL], sources={EVIL: EVIL}, patients=1, notes=[EVIL], regions=[], facts=[], problems=[]
    )
    assert "\x1b" not in page
    page.encode("utf-8")
