"""The time that a run may take: what training may use of it, and what is kept for the validations at the end."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

# Of the whole time, what the validations at the end may take before cases or slices are left out, and what is kept for
# them at most: a machine that becomes slower must not take the training's half too.
_VALIDATION_SHARE = 1 / 3
_LARGEST_RESERVE = 1 / 2
_SAFETY = 1.25  # factor on what a validation is expected to take; larger after one that took longer than expected
_LARGEST_SAFETY = 3.0
# Training ends for the end to fit into the limit; what is then slower than expected may exceed it by so much (a share
# of it, and seconds) before cases are left out. A run is promised to end within a tenth more and 20 s.
_GRACE_SHARE, _GRACE_SECONDS = 0.05, 10.0
_SHORTEST = 1.0  # seconds of a part
_RECENT_STEPS = 5  # whose median says how fast the machine is now


class Budget:
    """Seconds of a run, over all its sessions; without *minutes* there is no limit.

    The time begins at *began* on the *clock*, now by default. ``previous_sessions`` are the seconds that the sessions
    before this one took. What validation costs is measured, and follows the speed of the steps: of a machine that
    becomes slower, more time is kept for the end.
    """

    def __init__(
        self, minutes: float | None, clock: Callable[[], float] = time.monotonic, began: float | None = None
    ) -> None:
        self.limit = 60 * minutes if minutes else math.inf
        self.clock = clock
        self.previous_sessions = 0.0
        self.voxels_at_end = 0.0  # that all validations after the last step predict together
        self.bookkeeping = 0.0  # seconds from a validation to the next step: files, curves, pictures
        self.seconds_per_voxel = 0.0  # of a validation, when it was measured last; 0: not yet
        self._began = clock() if began is None else began
        self._safety = _SAFETY
        self._steps: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._step_when_measured = 0.0

    def part(self, fraction: float, kept: float) -> Budget:
        """Return a budget, from now on, of a *fraction* of what is left but for the share *kept* of the whole."""
        part = Budget(None, self.clock)
        if self.limited:
            part.limit = max(_SHORTEST, fraction * (self.limit - self.elapsed() - kept * self.limit))
        return part

    @property
    def minutes(self) -> float:
        """The limit in minutes."""
        return self.limit / 60

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return math.isfinite(self.limit)

    def elapsed(self) -> float:
        """Return the seconds used so far."""
        return self.previous_sessions + self.clock() - self._began

    def remaining(self) -> float | None:
        """Return the seconds to the limit; None when there is none."""
        return max(0.0, self.limit - self.elapsed()) if self.limited else None

    def reserve(self) -> float:
        """Return the seconds that must be left for another step to be taken."""
        if not self.limited:
            return 0.0
        end = self.validation_seconds(self.voxels_at_end) + self.bookkeeping
        return min(_LARGEST_RESERVE * self.limit, end) + self._recent_step()

    def is_time_for(self, elapsed: float, seconds: float) -> bool:
        """Return whether what takes *seconds* may begin after *elapsed* seconds; also a little after the limit."""
        return elapsed + seconds <= self.limit * (1 + _GRACE_SHARE) + _GRACE_SECONDS

    def fraction(self) -> float:
        """Return how much of the time for training is over, 0 … 1."""
        return min(1.0, self.elapsed() / max(1.0, self.limit - self.reserve())) if self.limited else 0.0

    def step_took(self, seconds: float) -> None:
        """Take note of the seconds of a training step."""
        self._steps.append(seconds)
        # The first steps warm up and compile: what is slow is measured by those that follow.
        self._step_when_measured = min(self._step_when_measured, self._recent_step())

    def validation_took(self, seconds: float, voxels: float, expected: float = 0.0) -> None:
        """Take note of the seconds in which *voxels* were predicted and scored.

        *expected* is what ``validation_seconds_per_voxel`` said before; from its error follows how safe to be.
        """
        self.seconds_per_voxel = seconds / voxels
        self._step_when_measured = self._recent_step()
        if expected:
            self._safety = min(_LARGEST_SAFETY, _SAFETY * max(1.0, self.seconds_per_voxel / expected))

    def validation_seconds_per_voxel(self) -> float:
        """Return what predicting and scoring a voxel is expected to take, at the speed of the last steps."""
        return self.seconds_per_voxel * self._slowdown()

    def validation_seconds(self, voxels: float) -> float:
        """Return the seconds that predicting and scoring *voxels* is expected to take now, on the safe side."""
        return self._safety * self.validation_seconds_per_voxel() * voxels

    def validation_voxels(self, passes: int) -> float:
        """Return how many voxels each of *passes* validations may predict within their share of the time."""
        if not self.limited or not self.seconds_per_voxel:
            return math.inf
        return _VALIDATION_SHARE * self.limit / passes / self.validation_seconds(1.0)

    def resume(self, previous: float, reserve: float) -> None:
        """Continue after *previous* seconds; the *reserve* is granted even where they used up the time."""
        self.previous_sessions = previous
        self.limit = max(self.limit, previous + reserve)

    def _recent_step(self) -> float:
        return statistics.median(self._steps) if self._steps else 0.0

    def _slowdown(self) -> float:
        """Return how many times slower steps are than when validation was measured; at least 1."""
        return max(1.0, self._recent_step() / self._step_when_measured) if self._step_when_measured else 1.0
