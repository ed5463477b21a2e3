"""Warnings about the cases of a folder as a whole, after each could be read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metaseg_cli.core.cache.records import CaseRecord
from metaseg_cli.core.images import spacing_text
from metaseg_cli.errors import Problem

_OUTLIER = 2.0  # a spacing above this many times the median, or below its inverse


def dataset_warnings(
    records: Sequence[CaseRecord], kind: str, regions: dict[str, tuple[int, ...]]
) -> tuple[list[Problem], dict[str, str]]:
    """Return warnings, which exclude nothing, and patient → the one with whom images are shared, for the folds."""
    repeated, same = _repeated_images(records)
    problems = [*repeated, *_undeclared_labels(records, regions)]
    if kind == "volumes":
        problems += [*_empty_masks(records), *_spacing_outliers(records)]
    else:
        problems += _all_empty(records)
    return problems, same


def _warning(record: CaseRecord, reason: str, remedy: str) -> Problem:
    return Problem(file=Path(record.file), reason=reason, remedy=remedy, left_out=False)


def _repeated_images(records: Sequence[CaseRecord]) -> tuple[list[Problem], dict[str, str]]:
    """Find images that several patients share: these count as one patient, so that no fold sees them twice."""
    holders: dict[str, list[CaseRecord]] = defaultdict(list)
    for record in records:
        for image in set(record.images):
            holders[image].append(record)
    leader = {record.patient: record.patient for record in records}

    def root(patient: str) -> str:
        while leader[patient] != patient:
            patient = leader[patient]
        return patient

    problems: list[Problem] = []
    said: set[tuple[str, str]] = set()
    for group in holders.values():
        first = group[0]
        for other in group[1:]:
            pair = (first.case, other.case)
            if pair in said:
                continue
            said.add(pair)
            shared = len(set(first.images) & set(other.images))
            if first.patient != other.patient:
                leader[root(other.patient)] = root(first.patient)
                remedy = "they share a fold now, so that no score is flattered; remove one if they are one visit"
                whose = f"of patient {first.patient}"
            else:
                remedy, whose = "remove one", "of the same patient"
            problems.append(
                _warning(other, f"{shared} image(s) with the same content as case {first.case}, {whose}", remedy)
            )
    return problems, {patient: root(patient) for patient in leader if root(patient) != patient}


def _undeclared_labels(records: Sequence[CaseRecord], regions: dict[str, tuple[int, ...]]) -> list[Problem]:
    if any(not values for values in regions.values()):
        return []
    declared = {value for values in regions.values() for value in values}
    found: dict[int, list[CaseRecord]] = defaultdict(list)
    for record in records:
        for value in set(record.labels) - declared:
            found[value].append(record)
    return [
        _warning(
            cases[0],
            f"label {value} ({len(cases)} case(s)) is in no region: it counts as background",
            "name it with --region or --labels if it is lesion",
        )
        for value, cases in sorted(found.items())
    ]


def _empty_masks(records: Sequence[CaseRecord]) -> list[Problem]:
    return [
        _warning(r, f"the mask of {r.case} is empty", "fine for a patient without lesions; otherwise draw it")
        for r in records
        if r.labelled and not r.lesion_voxels
    ]


def _all_empty(records: Sequence[CaseRecord]) -> list[Problem]:
    """Warn when all masks of a folder of pictures are empty: the masks were probably not understood."""
    labelled = [r for r in records if r.labelled]
    if not labelled or any(r.labels for r in labelled):
        return []
    reason = f"all masks are empty ({len(labelled)} case(s))"
    return [_warning(labelled[0], reason, "check that lesions are not 0 in them, and that they are the right files")]


def _spacing_outliers(records: Sequence[CaseRecord]) -> list[Problem]:
    spaced = [r for r in records if r.source_spacing_mm]
    if len(spaced) < 3:
        return []
    # Sorted within a scan: which axis is the coarse one may differ.
    spacings = np.sort(np.array([r.source_spacing_mm for r in spaced]), axis=1)
    ratio = spacings / np.median(spacings, axis=0)
    far = (np.maximum(ratio, 1 / ratio) > _OUTLIER).any(axis=1)
    middle = "×".join(f"{s:.2f}" for s in np.median(spacings, axis=0))
    return [
        _warning(
            r,
            f"its spacing, {spacing_text(r.source_spacing_mm or ())} mm (x × y × z), is far from the others' "
            f"({middle} mm, the finest axis first)",
            "check the header; it is resampled with the rest",
        )
        for r, outlier in zip(spaced, far, strict=True)
        if outlier
    ]
