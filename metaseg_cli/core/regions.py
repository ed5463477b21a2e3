"""What a region is, by its name: its kind, its coded concept in DICOM, and which region lesions are counted in.

The kind decides what is said of a region everywhere: counts and follow-up use the index region, DICOM SEG the concept,
and pictures the colour of its place among the regions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
# Kinds that make up a region: a segment of one of them belongs to it.
_PARTS: Mapping[RegionKind, frozenset[RegionKind]] = {
    "metastasis": frozenset({"metastasis", "core", "enhancing", "non-enhancing", "necrosis"}),
    "core": frozenset({"core", "enhancing", "non-enhancing", "necrosis"}),
    "whole": frozenset({"whole", "core", "enhancing", "non-enhancing", "necrosis", "oedema", "metastasis"}),
}
_VOCABULARY = frozenset().union(*(names for _, names in _WORDS)) | {"tumor", "tumour", "non"}
_NOT_COUNTED: frozenset[RegionKind] = frozenset({"oedema", "necrosis", "non-enhancing", "cavity"})


def region_kind(name: str) -> RegionKind:
    """Return what a region is by its *name*: ``ET``, ``enhancing tumour``, ``edema`` …"""
    said = words(name, _VOCABULARY)
    if "non" in said and "enhancing" in said:
        return "non-enhancing"
    return next((kind for kind, names in _WORDS if names & set(said)), "unknown")


def belongs(segment: str, region: str) -> bool:
    """Return whether a segment is a region, or a part of it, by their names: ``ET 2`` belongs to ET, TC and WT."""
    if _without_number(segment) == _without_number(region):
        return True
    of_segment, of_region = region_kind(segment), region_kind(region)
    return of_segment != "unknown" and of_segment in _PARTS.get(of_region, frozenset({of_region}))


def names_decide(segments: Sequence[str], regions: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether the names of a mask's segments, not their numbers, say which region each belongs to.

    They do where a name is that of a region, or says a kind that one of the regions is (enhancing, oedema …). They do
    not for one region of every label, nor where all segments are lesions, which only their numbers tell apart.
    """
    if not any(regions.values()):
        return False
    same = {_without_number(name) for name in segments} & {_without_number(name) for name in regions}
    kinds = {region_kind(name) for name in regions} - {"unknown", "metastasis"}
    return bool(same) or any(
        region_kind(region) in kinds and belongs(segment, region) for region in regions for segment in segments
    )


def _without_number(name: str) -> str:
    """Return a name without case and the number of a lesion: ``ET 2`` → ``et``."""
    return " ".join(name.casefold().rstrip(" 0123456789_-").split())


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


def lesion_definition(regions: Mapping[str, tuple[int, ...]]) -> str:
    """Return in words what the lesions of a prepared case are: connected parts of all its regions together."""
    names = list(regions)
    return f"connected parts of {names[0]}" if len(names) == 1 else f"connected parts of {', '.join(names)} together"


def _narrowest(names: list[str], regions: Mapping[str, tuple[int, ...]]) -> str:
    return min(names, key=lambda name: len(regions[name]) or 256)
