"""What a region is, by its name: its kind, its coded concept in DICOM, and which region lesions are counted in.

The kind decides what is said of a region everywhere: counts and follow-up use the index region, DICOM SEG the concept,
and pictures the colour of its place among the regions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from metaseg_cli.core.words import words

RegionKind = Literal[
    "metastasis", "enhancing", "core", "whole", "necrosis", "non-enhancing", "oedema", "cavity", "unknown"
]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A coded concept of DICOM: ``keyword`` is its name in the *scheme* of pydicom's code dictionary."""

    scheme: str
    keyword: str


# Of CID 7159 (lesion segmentation types) and CID 645; whole and core are nested, so each has a concept of its own.
CONCEPTS: Mapping[RegionKind, Concept] = {
    "metastasis": Concept(scheme="SCT", keyword="Metastasis"),
    "enhancing": Concept(scheme="NCIt", keyword="EnhancingLesion"),
    "core": Concept(scheme="SCT", keyword="NeoplasmSecondary"),
    "whole": Concept(scheme="SCT", keyword="LesionOfBrain"),
    "necrosis": Concept(scheme="SCT", keyword="Necrosis"),
    "non-enhancing": Concept(scheme="NCIt", keyword="NonEnhancingLesion"),
    "oedema": Concept(scheme="SCT", keyword="Edema"),
    "cavity": Concept(scheme="SCT", keyword="Lesion"),
    "unknown": Concept(scheme="SCT", keyword="Lesion"),
}
_WORDS: tuple[tuple[RegionKind, frozenset[str]], ...] = (  # the first that a name has decides
    ("cavity", frozenset({"rc", "cavity", "resection", "bed"})),
    ("oedema", frozenset({"ed", "edema", "oedema", "odem", "oedem", "oedeme", "snfh", "infiltration", "flair"})),
    ("non-enhancing", frozenset({"netc", "net", "nonenhancing", "ncrnet"})),
    ("necrosis", frozenset({"ncr", "necrosis", "necrotic", "nekrose", "necrose", "necrosi"})),
    ("enhancing", frozenset({"et", "enhancing", "enhancement", "enhanced"})),
    ("core", frozenset({"tc", "core", "kern"})),
    ("whole", frozenset({"wt", "whole", "complete"})),
    (
        "metastasis",
        frozenset(
            {"metastasis", "metastases", "met", "mets", "brainmet", "brainmets", "bm", "lesion", "lesions", "gtv"}
        ),
    ),
)
_VOCABULARY = frozenset().union(*(names for _, names in _WORDS)) | {"tumor", "tumour", "non"}
_NOT_COUNTED: frozenset[RegionKind] = frozenset({"oedema", "necrosis", "non-enhancing", "cavity"})


def region_kind(name: str) -> RegionKind:
    """Return what a region is by its *name*: ``ET``, ``enhancing tumour``, ``edema`` …"""
    said = words(name, _VOCABULARY)
    if "non" in said and "enhancing" in said:
        return "non-enhancing"
    return next((kind for kind, names in _WORDS if names & set(said)), "unknown")


def index_region(regions: Mapping[str, tuple[int, ...]]) -> str:
    """Return the region that lesion counts, follow-up and numbering refer to.

    That is the metastasis, else the enhancing tumour, else the narrowest region (fewest labels) that is not oedema,
    necrosis or a cavity. *regions* are names with their label values; an empty tuple means every label.
    """
    kinds = {name: region_kind(name) for name in regions}
    for wanted in ("metastasis", "enhancing"):
        if found := [name for name in regions if kinds[name] == wanted]:
            return _narrowest(found, regions)
    solid = [name for name in regions if kinds[name] not in _NOT_COUNTED]
    return _narrowest(solid or list(regions), regions)


def _narrowest(names: list[str], regions: Mapping[str, tuple[int, ...]]) -> str:
    return min(names, key=lambda name: len(regions[name]) or 256)
