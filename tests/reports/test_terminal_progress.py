"""Lines of progress without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from metaseg_cli.reports import terminal_progress
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


@pytest.mark.parametrize(("unit", "line"), [("scan", "predicting: 1 scan"), ("case", "predicting: 1 case")])
def test_a_step_has_a_name(capsys: pytest.CaptureFixture[str], unit: str, line: str) -> None:
    with TerminalProgress() as progress:
        progress.start("predicting", 1, unit=unit)
    assert capsys.readouterr().err.split(" ", 1)[1].strip() == line


def test_windows_of_a_scan_are_lines_with_rate_and_time_left_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal_progress.time, "monotonic", lambda: now[0])

    def windows(progress: TerminalProgress, seconds: float) -> None:
        for done in range(1, 21):
            now[0] += seconds
            progress.within(done, 20)

    with TerminalProgress() as progress:
        progress.start("predicting", 2, unit="scan")
        windows(progress, 4.0)
        progress.advance(1, "a")
        windows(progress, 2.0)
        progress.advance(1, "b")
    said = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert said == [
        "predicting: 2 scans",
        "predicting 0/2, window 4/20 (4.0 s each, 2 min left)",
        "predicting 0/2, window 8/20 (4.0 s each, 2 min left)",
        "predicting 0/2, window 12/20 (4.0 s each, 112 s left)",
        "predicting 0/2, window 16/20 (4.0 s each, 96 s left)",
        "predicting 0/2 (4.0 s each, 80 s left)",
        "predicting 1/2, window 8/20 (2.0 s each, 24 s left)",
        "predicting 1/2, window 16/20 (2.0 s each, 8 s left)",
    ]


def test_the_bar_of_a_terminal_moves_within_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with TerminalProgress() as progress:
        progress.console = Console(file=io.StringIO(), force_terminal=True, width=100)
        progress.start("predicting", 1, unit="scan")
        progress.within(1, 4)
        assert progress._bar is not None
        (task,) = progress._bar.tasks
        assert (task.completed, task.fields["count"]) == (0.25, "window 1/4")
        assert task.fields["left"].endswith("s left")
        progress.advance(1, "a.nii.gz")
        assert (task.completed, task.fields["count"]) == (1, "1/1")


def test_a_number_that_is_none_is_a_dash() -> None:
    assert [number_text(value) for value in (None, float("nan"), 0.5, 3)] == ["–", "–", "0.500", "3"]
