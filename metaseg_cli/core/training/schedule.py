"""Learning rate over a run whose end is a number of steps, a number of minutes, or both."""

from __future__ import annotations

import math

from metaseg_cli.errors import ConfigError

SCHEDULES = ("poly", "cosine", "constant")


def learning_rate_factor(progress: float, step: int, *, schedule: str, warmup_steps: int) -> float:
    """Factor on the base rate. *progress* is the share of the run that is over (0 … 1), by steps or by time.

    A linear warm-up over the first *warmup_steps*, then (1 − progress)^0.9, half a cosine, or nothing.
    """
    rest = max(0.0, 1.0 - progress)
    factors = {"poly": rest**0.9, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - rest))), "constant": 1.0}
    if schedule not in factors:
        raise ConfigError(f"unknown schedule {schedule!r}", remedy=f"take one of {', '.join(SCHEDULES)}")
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warm * max(factors[schedule], 1e-3)
