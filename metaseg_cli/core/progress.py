"""How the core reports progress, without knowing the listener (a terminal, a browser, a log, a test)."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what long work reports; every method may be called from the working thread only."""

    def start(self, task: str, total: int | None, seconds: float | None = None, unit: str = "step") -> None:
        """Begin a new task of *total* steps (None: unknown), or of *seconds* if they end first.

        *unit* is what a step is called: a scan, a case.
        """

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report *steps* more; *note* (short: a loss, a file name) replaces the previous one."""

    def within(self, done: int, total: int, unit: str = "window") -> None:
        """Report how far the present step is: *done* of *total* units."""

    def say(self, text: str) -> None:
        """Report a sentence for the reader, such as what was assumed."""


class Silent:
    """A listener that ignores everything."""

    def start(self, task: str, total: int | None, seconds: float | None = None, unit: str = "step") -> None:
        """Ignored."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Ignored."""

    def within(self, done: int, total: int, unit: str = "window") -> None:
        """Ignored."""

    def say(self, text: str) -> None:
        """Ignored."""
