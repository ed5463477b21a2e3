"""Lines of progress without a terminal."""

from __future__ import annotations

import pytest

from metaseg_cli.reports.terminal import number_text
from metaseg_cli.reports.terminal_progress import TerminalProgress


@pytest.mark.parametrize(
    ("total", "seconds", "line"),
    [
        (1, None, "predicting: 1 step"),
        (5, None, "predicting: 5 steps"),
        (0, None, "predicting"),
        (None, None, "predicting"),
        (100, 90.0, "predicting: 1.5 min"),
    ],
)
def test_a_task_begins_with_its_length_in_words(
    capsys: pytest.CaptureFixture[str], total: int | None, seconds: float | None, line: str
) -> None:
    with TerminalProgress() as progress:
        progress.start("predicting", total, seconds)
    assert capsys.readouterr().err.split(" ", 1)[1].strip() == line


def test_a_number_that_is_none_is_a_dash() -> None:
    assert [number_text(value) for value in (None, float("nan"), 0.5, 3)] == ["–", "–", "0.500", "3"]
