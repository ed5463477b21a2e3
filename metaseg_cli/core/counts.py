"""Numbers with their noun, in singular or plural."""

from __future__ import annotations


def counted(count: float, noun: str) -> str:
    """Return "1 lesion", "2 lesions", "1.5 minutes"."""
    number = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{number} {noun}{'' if count == 1 else 's'}"
