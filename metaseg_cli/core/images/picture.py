"""A decoded picture file before its colours are interpreted, and its EXIF orientation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.errors import COPY_AGAIN, InputError

MOST_PIXELS = 2**26  # 8192 × 8192


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The numbers of a picture file, upright.

    ``array`` is ``(C, Z, Y, X)``: grey, colours, or indices into ``palette`` ``(N, 3)`` uint8 if there is one.
    ``alpha`` ``(Z, Y, X)`` is its opacity. ``bits`` are those of a stored number if fewer than 8, else 0.
    ``orientation`` is the EXIF orientation by which it was turned. ``lossy`` compression leaves noise.
    """

    array: NDArray[Any]
    palette: NDArray[np.uint8] | None = None
    alpha: NDArray[Any] | None = None
    bits: int = 0
    orientation: int = 1
    lossy: bool = False
    notes: tuple[str, ...] = ()

    def colours(self) -> NDArray[Any]:
        """Return ``(C, Z, Y, X)`` with the palette's colours in place of its indices."""
        if self.palette is None:
            return self.array
        return np.ascontiguousarray(np.moveaxis(self.palette[self.array[0]], -1, 0))


def check_size(width: int, height: int, path: Path) -> None:
    """Raise InputError for more pixels than any scan has: a small file may announce any number."""
    if width * height > MOST_PIXELS:
        raise InputError(f"too large a picture ({width}×{height})", where=path, remedy="cut it into parts")


def damaged(path: Path, how: str) -> InputError:
    """Return the error for a picture file that is damaged."""
    return InputError(f"damaged ({how})", where=path, remedy=COPY_AGAIN)


def upright(array: NDArray[Any], exif_orientation: int) -> NDArray[Any]:
    """Turn ``(…, Y, X)`` from how a file with that EXIF orientation stores it to how it is meant to be seen."""
    turn = {
        2: lambda a: a[..., ::-1],
        3: lambda a: a[..., ::-1, ::-1],
        4: lambda a: a[..., ::-1, :],
        5: lambda a: a.swapaxes(-1, -2),
        6: lambda a: np.rot90(a, -1, (-2, -1)),
        7: lambda a: a[..., ::-1, ::-1].swapaxes(-1, -2),
        8: lambda a: np.rot90(a, 1, (-2, -1)),
    }
    return np.ascontiguousarray(turn[exif_orientation](array)) if exif_orientation in turn else array


_INVERSE = {6: 8, 8: 6}


def raw_orientation(array: NDArray[Any], exif_orientation: int) -> NDArray[Any]:
    """Undo ``upright``."""
    return upright(array, _INVERSE.get(exif_orientation, exif_orientation))
