"""The colour of each region, the same in every picture and legend."""

from __future__ import annotations

from collections.abc import Sequence

Colour = tuple[int, int, int]

LESION: Colour = (255, 92, 51)
REFERENCE: Colour = (64, 220, 130)
# Distinct on grey, from the lesions' orange, and from the green of references.
_OTHERS: tuple[Colour, ...] = ((86, 156, 255), (255, 206, 64), (200, 120, 255), (64, 220, 220), (255, 130, 190))


def region_colours(regions: Sequence[str], index_region: str) -> dict[str, Colour]:
    """Return a colour per region: orange for the index region, others in their order."""
    others = [name for name in regions if name != index_region]
    colours = {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(others)}
    return {name: colours.get(name, LESION) for name in regions}
