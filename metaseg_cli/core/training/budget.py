"""The time that a run may take, and what of it is kept for the last validations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Budget:
    """Seconds of a run, over all its sessions; without *minutes* there is no end.

    ``reserved`` are those that must be left when training ends.
    """

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = 60 * minutes if minutes else math.inf
        self.clock = clock
        self.reserved = 0.0
        self.earlier = 0.0  # what the sessions before this one took
        self._began = clock()

    def elapsed(self) -> float:
        """Seconds so far."""
        return self.earlier + self.clock() - self._began

    def left(self) -> float | None:
        """Seconds to the end; None when there is none."""
        return None if math.isinf(self.limit) else max(0.0, self.limit - self.elapsed())

    def share(self) -> float:
        """How much of the time for training is over, 0 … 1."""
        return min(1.0, self.elapsed() / max(1.0, self.limit - self.reserved))

    def trained_out(self, elapsed: float) -> bool:
        """After *elapsed* seconds there is time for nothing but what is reserved."""
        return elapsed >= self.limit - self.reserved
