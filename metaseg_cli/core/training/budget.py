"""The time that a run may take, and what of it is kept for the last validations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Budget:
    """Seconds of a run, over all its sessions; without *minutes* there is no limit.

    ``validation_reserve`` are the seconds that must be left when training ends, ``previous_sessions`` those that the
    sessions before this one took.
    """

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = 60 * minutes if minutes else math.inf
        self.clock = clock
        self.validation_reserve = 0.0
        self.previous_sessions = 0.0
        self._began = clock()

    def elapsed(self) -> float:
        """Return the seconds used so far."""
        return self.previous_sessions + self.clock() - self._began

    def remaining(self) -> float | None:
        """Return the seconds to the limit; None when there is none."""
        return None if math.isinf(self.limit) else max(0.0, self.limit - self.elapsed())

    def fraction(self) -> float:
        """Return how much of the time for training is over, 0 … 1."""
        return min(1.0, self.elapsed() / max(1.0, self.limit - self.validation_reserve))

    def is_spent(self, elapsed: float) -> bool:
        """Return whether after *elapsed* seconds nothing but the reserve is left."""
        return elapsed >= self.limit - self.validation_reserve
