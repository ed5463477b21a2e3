"""One colour for each lesion number, the same in every picture and chart."""

from __future__ import annotations

Colour = tuple[int, int, int]

# Okabe and Ito's palette, which colour-blind readers can tell apart, without its black and its pale yellow.
_PALETTE: tuple[Colour, ...] = (
    (230, 97, 0),
    (86, 180, 233),
    (0, 170, 120),
    (240, 200, 40),
    (204, 121, 167),
    (0, 114, 230),
    (170, 100, 255),
    (150, 200, 60),
)


def lesion_colour(number: int) -> Colour:
    """Return the colour (red, green, blue) of lesion *number*, which counts from 1; they repeat after eight."""
    return _PALETTE[(number - 1) % len(_PALETTE)]


def lesion_colour_code(number: int) -> str:
    """Return ``lesion_colour`` as ``#e66100``."""
    return "#{:02x}{:02x}{:02x}".format(*lesion_colour(number))
