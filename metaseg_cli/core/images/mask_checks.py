"""Checks of a mask that could be read: is it inverted, or turned against its image?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.images.picture import raw_orientation, upright
from metaseg_cli.core.images.volume import Volume

_NEARLY_ALL = 0.95  # share of an image that lesions never exceed


def inverted_mask(label: NDArray[np.uint8], foreground: Sequence[int] = ()) -> str | None:
    """Return why labels ``(Z, Y, X)`` may be inverted: they cover nearly everything, or the whole border; else None.

    *foreground* are the labels of lesions; empty: every label but 0.
    """
    lesion = np.isin(label, foreground) if len(foreground) else label != 0
    share = float(lesion.mean())
    if share > _NEARLY_ALL:
        return f"covers {share:.1%} of its image"
    border = (lesion[:, 0], lesion[:, -1], lesion[:, :, 0], lesion[:, :, -1])
    if all(edge.all() for edge in border):
        return f"covers the whole border of its image ({share:.0%} of it in all)"
    return None


def orient_like_image(mask: Volume, image: Volume) -> tuple[Volume, str | None]:
    """Orient *mask* like *image* where their EXIF orientations differ; also return why that is doubtful, or None.

    A mask may have been drawn on the stored pixels. Its size tells, unless it fits both ways.
    """
    if mask.exif_orientation == image.exif_orientation:
        return mask, None
    orientations = f"its EXIF orientation is {mask.exif_orientation}, its image's {image.exif_orientation}"
    as_stored = upright(raw_orientation(mask.array, mask.exif_orientation), image.exif_orientation)
    stored_fits, shown_fits = as_stored.shape[1:] == image.shape, mask.shape == image.shape
    if stored_fits and not shown_fits:
        note = f"{orientations}: it was drawn on the stored pixels, and turned like the image"
        return dataclasses.replace(
            mask, array=as_stored, exif_orientation=image.exif_orientation, notes=(*mask.notes, note)
        ), None
    if stored_fits and shown_fits:
        return mask, f"{orientations}, and it fits either way: taken as it is shown"
    return mask, None
