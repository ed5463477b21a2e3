"""What the training cases looked like, for the model's card: a scan unlike them is said when it is predicted."""

from __future__ import annotations

from collections.abc import Sequence

from metaseg_cli.core.cache import CaseRecord, Prepared
from metaseg_cli.core.input_statistics import CaseInput, InputStatistics, input_statistics


def seen_inputs(prepared: Prepared, records: Sequence[CaseRecord]) -> InputStatistics | None:
    """Return statistics of *records*; None for a folder of an older version, without a description of its images."""
    return input_statistics([_case_input(prepared, record) for record in records], prepared.sequences)


def _case_input(prepared: Prepared, record: CaseRecord) -> CaseInput:
    z, y, x = record.shape
    volume = prepared.preprocessing.oriented
    head = None
    if volume and record.spacing_mm is not None:
        sz, sy, sx = record.spacing_mm
        head = (z * sz, y * sy, x * sx)
    return CaseInput(
        patient=record.patient,
        voxel_mm=prepared.cropped_spacing_mm(record) if volume else None,
        head_mm=head,
        picture_px=None if volume else (1.0, float(y), float(x)),
        rows=prepared.descriptors(record),
    )
