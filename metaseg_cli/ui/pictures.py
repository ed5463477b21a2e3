"""The pictures that the app shows, from arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaseg_cli.reports import figures

_MIN_WIDTH = 512
COLOUR = (255, 92, 51)


def grey_or_colour(image: NDArray[Any], z: int) -> NDArray[np.uint8]:
    """Return slice *z* of ``(C, Z, Y, X)`` as RGB ``(Y, X, 3)``, in the contrast that all slices share."""
    return figures.to_rgb(image[:, z], figures.contrast(image))


def enlarged(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Enlarge *picture* to at least 512 pixels by a whole factor, so that a browser does not blur it."""
    factor = max(1, -(-_MIN_WIDTH // picture.shape[1]))
    if factor == 1:
        return picture
    height, width = picture.shape[0] * factor, picture.shape[1] * factor
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def blended(picture: NDArray[np.uint8], mask: NDArray[np.bool_], opacity: float) -> NDArray[np.uint8]:
    """Draw *mask* ``(Y, X)`` over the enlarged *picture*: filled with *opacity*, and outlined."""
    factor = picture.shape[0] // mask.shape[0]
    large = np.kron(mask, np.ones((factor, factor), dtype=bool)).astype(bool)
    filled = figures.overlay(picture, large, COLOUR, opacity)
    return figures.outline(filled, large, COLOUR, 2)
