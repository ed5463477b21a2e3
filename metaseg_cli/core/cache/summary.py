"""What a prepared folder holds as a whole: its fingerprint, and what is worth knowing of its masks and sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metaseg_cli.core.cache.records import CaseRecord

_NAMED_CASES = 5  # named in a note; the others are counted


def label_notes(records: Sequence[CaseRecord], regions: dict[str, tuple[int, ...]]) -> list[str]:
    """Compare the labels of the masks with those of the regions."""
    present = sorted({value for r in records for value in r.labels})
    notes = []
    if any(not values for values in regions.values()) and len(present) > 1:
        notes.append(
            f"the masks hold the labels {', '.join(map(str, present))}: all count as one region "
            "(--region NAME=1,2 tells them apart)"
        )
    absent = [name for name, values in regions.items() if values and not set(values) & set(present)]
    if absent and present:
        notes.append(f"no mask holds a label of region {', '.join(absent)}")
    return notes


def sequence_notes(records: Sequence[CaseRecord], sequences: Sequence[str]) -> list[str]:
    """Say which of *sequences* are missing in which cases, and how many cases have no mask."""
    notes = []
    for name in sequences:
        without = [r.case for r in records if name not in r.sequences]
        if without:
            some = ", ".join(without[:_NAMED_CASES]) + (" …" if len(without) > _NAMED_CASES else "")
            notes.append(f"{name} is missing in {len(without)} of {len(records)} cases, which are kept: {some}")
    unlabelled = sum(not r.labelled for r in records)
    if 0 < unlabelled < len(records):
        notes.append(f"{unlabelled} cases have no mask: they are kept, and neither train nor validate")
    return notes


def fingerprint(records: Sequence[CaseRecord]) -> dict[str, Any]:
    """Return statistics of shapes, spacings, sequences and lesions, as ``dataset.json`` has them."""
    shapes = np.array([r.shape for r in records])
    spacings = [r.spacing_mm for r in records if r.spacing_mm]
    lesions = [v for r in records for v in r.lesion_voxels]
    return {
        "cases": len(records),
        "patients": len({r.patient for r in records}),
        "slices": int(shapes[:, 0].sum()),
        "median_shape": np.median(shapes, axis=0).tolist(),
        "median_spacing_mm": np.median(spacings, axis=0).tolist() if spacings else None,
        "lesions": len(lesions),
        "lesion_voxels_percentiles": np.percentile(lesions, (0, 10, 50, 90, 100)).tolist() if lesions else None,
        "sequences": {
            name: sum(name in r.sequences for r in records)
            for name in sorted({s for r in records for s in r.sequences})
        },
        "unlabelled_cases": sum(not r.labelled for r in records),
        "cases_without_lesion": sum(not r.lesion_voxels for r in records),
    }
