"""By which rules lesions are told apart, matched and counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from numpy.typing import NDArray

from metaseg_cli.errors import ConfigError

MATCHINGS = ("overlap", "one-to-one")
CONNECTIVITIES = (6, 18, 26)
TOLERANCES = (1.0, 2.0)  # mm, or pixels


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The default counts a reference lesion as found when any predicted voxel touches it.

    ``dilation`` steps (18 neighbours; 2D: 8) join reference lesions that come so near to one another, and let predicted
    lesions that come so near count as touching. ``smallest_lesion_mm3``: reference lesions up to this size leave all
    counts and means. ``matching`` "one-to-one" pairs lesions for the largest sum of Dice instead. ``penalty_mm`` stands
    for an infinite distance in means; None: the diagonal of the image. ``split_mm3`` scores lesions from this volume on
    by overlap and smaller ones by detection, where ``hit_dice`` makes a hit.
    """

    name: str = "default"
    connectivity: int = 26
    connectivity_2d: int = 8
    dilation: int = 0
    smallest_lesion_mm3: float = 0.0
    matching: str = "overlap"
    border_voxels: bool = False  # the surface of a lesion; whole masks are always measured by surfels
    penalty_mm: float | None = None
    split_mm3: float | None = None
    hit_dice: float = 0.0
    slices_are_volumes: bool = False  # a volume of one slice has a surface in space, not an outline

    def __post_init__(self) -> None:
        if self.connectivity not in CONNECTIVITIES:
            raise ConfigError(f"lesions by {self.connectivity} neighbours", remedy="take 6, 18 or 26")
        if self.matching not in MATCHINGS:
            raise ConfigError(f"unknown matching {self.matching!r}", remedy=f"take {' or '.join(MATCHINGS)}")

    def is_flat(self, mask: NDArray[Any], spacing_mm: tuple[float, ...] | None) -> bool:
        """Whether *mask* ``(Z, Y, X)`` is measured as a picture: it is one slice, and no volume for this protocol."""
        return len(mask) == 1 and not (self.slices_are_volumes and spacing_mm is not None and len(spacing_mm) == 3)

    def neighbours(self, dims: int) -> int:
        """Connectivity of a mask of *dims* axes."""
        return self.connectivity if dims == 3 else self.connectivity_2d

    def record(self) -> dict[str, Any]:
        """For ``metrics.json``."""
        return asdict(self)


PROTOCOLS = {
    "default": Protocol(),
    # The challenge's code of 2023 (Moawad et al. 2023, "The Brain Tumor Segmentation - Metastases Challenge").
    "brats-mets-2023": Protocol(
        name="brats-mets-2023", dilation=1, smallest_lesion_mm3=2.0, penalty_mm=374.0, slices_are_volumes=True
    ),
    # The challenge's evaluation package 0.0.8 with its mets configuration.
    "brats-mets-2026": Protocol(
        name="brats-mets-2026",
        connectivity_2d=4,
        matching="one-to-one",
        border_voxels=True,
        penalty_mm=373.0,
        split_mm3=27.0,
        hit_dice=0.2,
    ),
}

BRATS_REGIONS: dict[str, dict[str, tuple[int, ...]]] = {
    "brats-mets-2023": {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)},
    "brats-mets-2026": {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,), "RC": (4,)},
}


def find_protocol(name: str | None, **changes: float | str | None) -> Protocol:
    """The protocol of this name (None: the default) with those *changes* that are not None. Raises ConfigError."""
    if (name or "default") not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}", remedy=f"take one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name or "default"]
    wanted: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    if not wanted:
        return protocol
    if "connectivity" in wanted:
        wanted["connectivity_2d"] = 4 if wanted["connectivity"] == 6 else 8
    return replace(protocol, name=f"{protocol.name}, changed", **wanted)
