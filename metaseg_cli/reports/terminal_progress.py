"""Progress of long work: a Rich progress bar on a terminal, timestamped plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from metaseg_cli.errors import printable
from metaseg_cli.reports.terminal import counted

_SECONDS_BETWEEN_LINES = 15.0


class TerminalProgress:
    """Shows progress as ``core.progress.Progress`` defines it, on stderr: stdout holds results alone."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._name, self._total, self._done = "", 0, 0
        self._seconds: float | None = None
        self._began = self._last_line = time.monotonic()

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def start(self, task: str, total: int | None, seconds: float | None = None) -> None:
        """Begin a task of *total* steps, or of a given number of *seconds*: a new bar, or a line."""
        self._name, self._total, self._done, self._seconds = task, total or 0, 0, seconds
        self._began = self._last_line = time.monotonic()
        if self.quiet:
            return
        if not self.console.is_terminal:
            length = f"{_minutes(seconds)} min" if seconds else counted(total, "step") if total else ""
            self._line(f"{task}: {length}" if length else task)
            return
        if self._bar is None:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}"),
                TextColumn("[dim]{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("[cyan]{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            self._bar.start()
        elif self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(task, total=seconds or total, note="", rate="", count=self._count(self._began))

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar; without a terminal, print a line at most every 15 seconds."""
        self._done += steps
        if self.quiet:
            return
        now = time.monotonic()
        rate = self._done / max(1e-3, now - self._began)
        if self._bar and self._task is not None:
            shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / max(rate, 1e-3):.1f} s each"
            done = now - self._began if self._seconds else self._done
            self._bar.update(self._task, completed=done, note=printable(note), rate=shown, count=self._count(now))
        elif now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            remaining = (self._total - self._done) / rate if self._total else None
            if self._seconds:
                remaining = max(0.0, self._began + self._seconds - now)
            shown = f"{rate:.1f}/s" + ("" if remaining is None else f", {remaining:.0f} s left")
            self._line(f"{self._name} {self._count(now)} ({shown}) {note}".rstrip())

    def _count(self, now: float) -> str:
        if self._seconds:
            return f"{counted(self._done, 'step')}, {(now - self._began) / 60:.1f}/{_minutes(self._seconds)} min"
        return f"{self._done}/{self._total}" if self._total else str(self._done)

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        text = printable(text)
        if self.quiet:
            return
        if self.console.is_terminal:
            self.console.print(text, highlight=False, markup=False)
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        print(time.strftime("%H:%M:%S"), printable(text), file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}".removesuffix(".0")
