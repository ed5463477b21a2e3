"""The one value type for a scan with its geometry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One scan as it lies in its file.

    ``array`` is ``(C, Z, Y, X)``; a picture has Z = 1. ``spacing_mm`` is ``(z, y, x)``, or None when the file
    does not say (a PNG). ``origin_mm`` (x, y, z) and ``direction`` (row-major 3×3) are in ITK's LPS patient
    coordinates. ``exif_orientation`` is what the file's EXIF tag said; ``array`` is already turned upright.
    ``notes`` are sentences on what had to be assumed while reading.
    """

    array: NDArray[Any]
    spacing_mm: tuple[float, float, float] | None
    source: Path
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = IDENTITY
    exif_orientation: int = 1
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(Z, Y, X)``."""
        _, z, y, x = self.array.shape
        return (z, y, x)
