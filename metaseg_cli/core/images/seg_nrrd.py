"""The segments that 3D Slicer names in the header of an NRRD file, usually a ``.seg.nrrd``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.formats import NRRD, suffix_of
from metaseg_cli.core.images.structure_names import Structure, choose
from metaseg_cli.core.images.volume import NamedSegment
from metaseg_cli.errors import InputError, decoding

_LONGEST_HEADER = 2**22  # bytes: Slicer stores hundreds of segments with their tags
_KEY = re.compile(r"^Segment(\d+)_(Name|ID|Layer|LabelValue|Tags)\s*:=(.*)$")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment: the voxels of *layer* whose value is *value*."""

    name: str
    layer: int
    value: int
    concept: str = ""


def segments_of(path: Path) -> list[Segment]:
    """Return the segments in the order of their numbers; none where the header names none. Raises InputError.

    The header decides, not the name: a ``.seg.nrrd`` may have been renamed.
    """
    if suffix_of(path) not in NRRD:
        return []
    with decoding(path), path.open("rb") as file:
        head = file.read(_LONGEST_HEADER).split(b"\n\n", 1)[0].split(b"\r\n\r\n", 1)[0]
    fields: dict[int, dict[str, str]] = {}
    for line in head.decode("utf-8", errors="replace").splitlines():
        if match := _KEY.match(line):
            fields.setdefault(int(match[1]), {})[match[2]] = match[3].strip()
    with decoding(path, "its segments' numbers cannot be read"):
        segments = [
            Segment(
                name=each.get("Name") or each.get("ID", ""),
                layer=int(each.get("Layer") or 0),
                # Slicer's older files have no label values: one layer of 0 and 1 for each segment.
                value=int(each.get("LabelValue") or 1),
                concept=_concept(each.get("Tags", "")),
            )
            for _, each in sorted(fields.items())
        ]
    for segment in segments:
        if not 1 <= segment.value <= 255 or segment.layer < 0:
            raise InputError(
                f"its segment {segment.name} has the label {segment.value} in layer {segment.layer}",
                where=path,
                remedy="use labels from 1 to 255",
            )
    return segments


def _concept(tags: str) -> str:
    """Return the type's meaning: Brain of ``…:~SCT^123037004^Anatomical Structure~SCT^12738006^Brain~…``."""
    parts = [part.split("^") for part in tags.split("~")]
    meanings = [part[2] for part in parts if len(part) == 3 and part[2]]
    return meanings[1] if len(meanings) > 1 else ""


def lesion_layers(
    layers: NDArray[Any], segments: Sequence[Segment], wanted: Sequence[str], path: Path, regions: Sequence[str] = ()
) -> tuple[NDArray[Any], list[str], tuple[NamedSegment, ...]]:
    """Return ``(L, Z, Y, X)`` with the lesions' labels alone, notes, and the segments that were taken.

    Raises InputError when none is recognised.
    """
    if max((segment.layer for segment in segments), default=0) >= len(layers):
        raise InputError(
            f"its header names more layers than the {len(layers)} it has", where=path, remedy="save it again"
        )
    named = [Structure(number=i, name=s.name, concept=s.concept) for i, s in enumerate(segments)]
    taken, notes = choose(named, wanted, path, segmentation=True, regions=regions)
    of_lesions = np.zeros_like(layers)
    for i in taken:
        here = layers[segments[i].layer] == segments[i].value
        of_lesions[segments[i].layer][here] = segments[i].value
    listed = ", ".join(f"{segments[i].value} = {segments[i].name}" for i in taken)
    # Voxels that belong to no segment must not vanish silently.
    owned = {(s.layer, s.value) for s in segments}
    stray = {int(v) for n, layer in enumerate(layers) for v in np.unique(layer) if v and (n, int(v)) not in owned}
    if stray:
        notes.append(f"labels that no segment of the header has were left out: {', '.join(map(str, sorted(stray)))}")
    kept = tuple(NamedSegment(name=s.name, value=s.value, layer=s.layer) for s in (segments[i] for i in taken))
    return of_lesions, [f"segments {listed}", *notes], kept
