"""Progress of a command on a page: how far it is, the seconds that are left, and a button that ends it."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

_SECONDS_BETWEEN = 0.25
_WORTH_ESTIMATING = 2.0  # seconds after which the time left is said


@st.cache_resource
def _turn() -> threading.Lock:
    """Held by the session whose command runs: two at once would only slow each other."""
    return threading.Lock()


class PageProgress:
    """Shows progress as ``core.progress.Progress`` defines it.

    Every sign of life is also where Streamlit ends a run that is no longer wanted: after Cancel, or another upload.
    """

    def __init__(self) -> None:
        self._place = st.empty()
        self._bar = st.empty()
        self._steps, self._done = 0, 0
        self._task = ""
        self._began = self._last = time.monotonic()

    def start(self, task: str, total: int | None, seconds: float | None = None, unit: str = "step") -> None:
        """Begin a task of *total* steps."""
        del seconds, unit
        self._task, self._steps, self._done = task, total or 0, 0
        self._began = time.monotonic()
        self._show(0.0)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report *steps* more."""
        del note
        self._done += steps
        self._show(self._done / max(1, self._steps))

    def within(self, done: int, total: int, unit: str = "window") -> None:
        """Report how far the present step is."""
        del unit
        if time.monotonic() - self._last >= _SECONDS_BETWEEN:
            self._show((self._done + done / max(1, total)) / max(1, self._steps))

    def say(self, text: str) -> None:
        """Ignored: what matters to a reader stands in the result."""

    def status(self, text: str) -> None:
        """Say what is being done, or waited for."""
        self._last = time.monotonic()
        self._place.html(f'<div data-testid="status" role="status">{html.escape(text)}</div>')

    def clear(self) -> None:
        """Take everything off the page."""
        self._place.empty()
        self._bar.empty()

    def _show(self, share: float) -> None:
        spent = time.monotonic() - self._began
        left = f", {spent / share - spent:.0f} s left" if spent > _WORTH_ESTIMATING and 0 < share < 1 else ""
        self.status(f"{self._task[:1].upper()}{self._task[1:]}: {share:.0%}{left}")
        self._bar.progress(min(1.0, share))


@contextmanager
def running(label: str) -> Iterator[PageProgress]:
    """Wait for this session's turn, and show the progress of what runs in this block."""
    progress, turn = PageProgress(), _turn()
    progress.status(label)
    while not turn.acquire(timeout=0.5):
        progress.status("Waiting: another scan is being predicted …")
    try:
        yield progress
    finally:
        turn.release()
    progress.clear()
