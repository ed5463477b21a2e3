"""What the terminal shows of long work: a Rich progress bar, or plain lines with a time where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class TerminalProgress:
    """Listens as core.progress.Progress; everything goes to stderr, so that stdout holds results alone."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._name, self._total, self._done = "", 0, 0
        self._began = self._spoke = time.monotonic()

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def start(self, task: str, total: int | None) -> None:
        """A new bar (terminal) or line (elsewhere)."""
        self._name, self._total, self._done = task, total or 0, 0
        self._began = self._spoke = time.monotonic()
        if self.quiet:
            return
        if not self.console.is_terminal:
            self._line(f"{task}: {total if total is not None else '?'} steps")
            return
        if self._bar is None:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("[dim]{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("[cyan]{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            self._bar.start()
        elif self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(task, total=total, note="", rate="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar; without a terminal, speak at most every 15 seconds."""
        self._done += steps
        if self.quiet:
            return
        now = time.monotonic()
        rate = self._done / max(1e-3, now - self._began)
        if self._bar and self._task is not None:
            shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / max(rate, 1e-3):.1f} s each"
            self._bar.update(self._task, advance=steps, note=note, rate=shown)
        elif now - self._spoke > 15:
            self._spoke = now
            left = f", {(self._total - self._done) / rate:.0f} s left" if self._total else ""
            self._line(f"{self._name} {self._done}/{self._total or '?'} ({rate:.1f}/s{left}) {note}".rstrip())

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.quiet:
            return
        if self.console.is_terminal:
            self.console.print(text, highlight=False, markup=False)
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
