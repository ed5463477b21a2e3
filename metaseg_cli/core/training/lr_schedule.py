"""The learning rate over a run whose end is a number of steps, a number of minutes, or both."""

from __future__ import annotations

import math

from metaseg_cli.core.choices import SCHEDULES
from metaseg_cli.errors import ConfigError

_POLY_EXPONENT = 0.9  # nnU-Net (Isensee et al. 2021), after DeepLab
_LEAST_FACTOR = 1e-3  # the last steps of a timed run, whose end is an estimate, still learn something


def learning_rate_factor(progress: float, step: int, *, schedule: str, warmup_steps: int) -> float:
    """Return the factor on the base rate; *progress* is the share of the run that is over (0 … 1), by steps or by time.

    A linear warm-up over the first *warmup_steps*, then (1 − progress)^0.9 ("poly"), half a cosine, or a constant.
    Raises ConfigError.
    """
    rest = max(0.0, 1.0 - progress)
    factors = {
        "poly": rest**_POLY_EXPONENT,
        "cosine": 0.5 * (1 + math.cos(math.pi * (1 - rest))),
        "constant": 1.0,
    }
    if schedule not in factors:
        raise ConfigError(f"unknown schedule {schedule!r}", remedy=f"take one of {', '.join(SCHEDULES)}")
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warm * max(factors[schedule], _LEAST_FACTOR)
