"""Progress of long work: a Rich progress bar on a terminal, timestamped plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
)

from metaseg_cli.core.counts import counted
from metaseg_cli.errors import printable

_SECONDS_BETWEEN_LINES = 15.0


@dataclass(frozen=True)
class _Part:
    """How far a step is in itself, and when that began."""

    done: int = 0
    total: int = 0
    unit: str = "window"
    began: float = 0.0

    @property
    def is_shown(self) -> bool:
        return self.total > 1 and 0 < self.done < self.total

    @property
    def fraction(self) -> float:
        return self.done / self.total if self.is_shown else 0.0


class TerminalProgress:
    """Shows progress as ``core.progress.Progress`` defines it, on stderr: stdout holds results alone."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._name, self._unit, self._total, self._done = "", "step", 0, 0
        self._seconds: float | None = None
        self._began = self._last_line = self._last_call = time.monotonic()
        self._part, self._note = _Part(), ""

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def start(self, task: str, total: int | None, seconds: float | None = None, unit: str = "step") -> None:
        """Begin a task of *total* steps, or of a given number of *seconds*: a new bar, or a line."""
        self._name, self._unit, self._total, self._done, self._seconds = task, unit, total or 0, 0, seconds
        self._began = self._last_line = self._last_call = time.monotonic()
        self._part, self._note = _Part(), ""
        if self.quiet:
            return
        if not self.console.is_terminal:
            length = f"{_minutes(seconds)} min" if seconds else counted(total, unit) if total else ""
            self._line(f"{task}: {length}" if length else task)
            return
        if self._bar is None:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}"),
                TextColumn("[dim]{task.fields[rate]}"),
                TextColumn("{task.fields[left]}"),
                TextColumn("[cyan]{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            self._bar.start()
        elif self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(
            task, total=seconds or total, note="", rate="", left="", count=self._count(self._began)
        )

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar; without a terminal, print a line at most every 15 seconds."""
        self._done += steps
        now = self._last_call = time.monotonic()
        self._part = _Part()
        rate = self._done / max(1e-3, now - self._began)
        remaining = (self._total - self._done) / rate if self._total and rate else None
        self._show(now, rate, remaining, note)

    def within(self, done: int, total: int, unit: str = "window") -> None:
        """Move the bar within a step, or print a line as ``advance`` does."""
        now = time.monotonic()
        if done <= self._part.done or total != self._part.total:
            self._part = _Part(began=self._last_call)
        self._part = _Part(done, total, unit, self._part.began)
        self._last_call = now
        if total < 2:
            return
        rate = done / max(1e-3, now - self._part.began)
        steps_left = max(0, self._total - self._done - 1)
        self._show(now, rate, (total - done + steps_left * total) / rate)

    def _show(self, now: float, rate: float, remaining: float | None, note: str | None = None) -> None:
        """Show the counts, *rate* of what is counted last, and the seconds that remain; no *note* keeps the last."""
        if self.quiet:
            return
        shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / max(rate, 1e-3):.1f} s each"
        if self._seconds:
            remaining = max(0.0, self._began + self._seconds - now)
        left = "" if remaining is None else f"{_duration(remaining)} left"
        if self._bar and self._task is not None:
            done = now - self._began if self._seconds else self._done + self._part.fraction
            self._note = self._note if note is None else printable(note)
            count = self._count(now)
            self._bar.update(self._task, completed=done, note=self._note, rate=shown, left=left, count=count)
        elif now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            shown = ", ".join(part for part in (shown, left) if part)
            self._line(f"{self._name} {self._count(now)} ({shown}) {note or ''}".rstrip())

    def _count(self, now: float) -> str:
        part = f"{self._part.unit} {self._part.done}/{self._part.total}" if self._part.is_shown else ""
        if self._seconds:
            whole = f"{counted(self._done, self._unit)}, {(now - self._began) / 60:.1f}/{_minutes(self._seconds)} min"
        elif self._total == 1 and part:
            return part
        else:
            whole = f"{self._done}/{self._total}" if self._total else str(self._done)
        return f"{whole}, {part}" if part else whole

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


def _duration(seconds: float) -> str:
    """Return "45 s", or "12 min" from two minutes on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}".removesuffix(".0")
