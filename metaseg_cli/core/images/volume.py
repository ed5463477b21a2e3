"""The one value type for a scan with its geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class NamedSegment:
    """What a file names in a mask: the voxels with *value*, in one *layer* of it or (None) in any."""

    name: str
    value: int
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One scan as it lies in its file.

    ``array`` is ``(C, Z, Y, X)``; a picture has Z = 1. ``spacing_mm`` is ``(z, y, x)``, or None when the file
    does not say (a PNG). ``origin_mm`` (x, y, z) and ``direction`` (row-major 3×3) are in ITK's LPS patient
    coordinates. ``source`` is the file, or the folder of a DICOM series. ``exif_orientation`` is the file's EXIF tag;
    ``array`` is already upright. ``nifti_header`` is a NIfTI header as stored: a mask gets the same matrices, so that
    every reader, whichever matrix it trusts, shows it on its scan. ``notes`` say what was assumed while reading.
    ``sequences`` name the channels where a model or its user says what they are; colours have no names.
    ``frame_of_reference`` is the DICOM UID of the coordinates, empty if unknown. ``segments`` are those of a mask whose
    file names them.
    """

    array: NDArray[Any]
    spacing_mm: tuple[float, float, float] | None
    source: Path
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = IDENTITY
    exif_orientation: int = 1
    nifti_header: bytes | None = None
    notes: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    frame_of_reference: str = ""
    segments: tuple[NamedSegment, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(Z, Y, X)``."""
        _, z, y, x = self.array.shape
        return (z, y, x)

    @property
    def affine(self) -> NDArray[np.float64]:
        """4×4: voxel index (x, y, z, 1) → patient coordinates (L, P, S, 1) in mm."""
        matrix = np.eye(4)
        spacing = self.spacing_mm or (1.0, 1.0, 1.0)
        matrix[:3, :3] = np.array(self.direction).reshape(3, 3) * np.array(spacing[::-1])
        matrix[:3, 3] = self.origin_mm
        return matrix

    @property
    def shown(self) -> NDArray[Any]:
        """What people look at: all colours of ``array``, or one of its sequences ``(1, Z, Y, X)``."""
        if not self.sequences:
            return self.array
        channel = shown_channel(self.sequences)
        return self.array[channel : channel + 1]


def is_constant(array: NDArray[Any]) -> bool:
    """Return whether an image shows nothing: one number everywhere."""
    return bool((array == array.flat[0]).all())


def shown_channel(sequences: Sequence[str]) -> int:
    """Return the index of the sequence to look at: T1 with contrast, without which a small metastasis is not visible.

    0 without such a sequence.
    """
    return sequences.index("t1c") if "t1c" in sequences else 0
