"""Numbers with their noun, in singular or plural, and sizes with the letters of their axes."""

from __future__ import annotations

from collections.abc import Iterable


def counted(count: float, noun: str) -> str:
    """Return "1 lesion", "2 lesions", "1.5 minutes"."""
    number = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{number} {noun}{'' if count == 1 else 's'}"


def sizes_with_axes(sizes: Iterable[float]) -> str:
    """Format whole numbers along ``(Z, Y, X)`` or ``(Y, X)`` with the letters of the axes: 64×64×32 (x × y × z)."""
    numbers = [str(int(size)) for size in sizes][::-1]
    return f"{'×'.join(numbers)} ({' × '.join('xyz'[: len(numbers)])})"
