"""Tables go through CSV and back, and no cell runs as a formula."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metaseg_cli.core.csv_text import csv_text, plain_cell
from metaseg_cli.errors import printable

TEXT = st.text(st.sampled_from("'=+-@ \t\r\n,\";a0é∑") | st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.tuples(TEXT, st.integers()), min_size=1, max_size=4))
@example([("'=1", 0)])
@example([("''=1", 0)])
def test_texts_and_numbers_come_back(rows: list[tuple[str, int]]) -> None:
    text = csv_text([{"case": name, "voxels": number} for name, number in rows], ["case", "voxels"])
    read = list(csv.DictReader(io.StringIO(text)))
    assert [(plain_cell(row["case"]), int(row["voxels"])) for row in read] == [(printable(n), v) for n, v in rows]


@given(TEXT)
def test_no_cell_begins_as_a_formula_does(name: str) -> None:
    (row,) = csv.DictReader(io.StringIO(csv_text([{"case": name}], ["case"])))
    assert not row["case"].lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r"))


@pytest.mark.parametrize("name", ["patient 3", "5", "a-b", "'quoted'", "O'Brien"])
def test_harmless_names_stay_as_they_are(name: str) -> None:
    assert csv_text([{"case": name}], ["case"]).splitlines()[1] == name
