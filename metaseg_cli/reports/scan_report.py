"""The report for the chart of one scan that ``metaseg predict`` has segmented."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from metaseg_cli import PROGRAM
from metaseg_cli.core.atomic import atomic_write_text
from metaseg_cli.core.follow_up import follow
from metaseg_cli.core.inference.predictor import Prediction
from metaseg_cli.core.inference.visit_lesions import VisitLesions, lesions_of
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.reports import lesion_pictures
from metaseg_cli.reports.lesion_colours import lesion_colour_code
from metaseg_cli.reports.pages import and_more
from metaseg_cli.reports.patient_report import MOST_LESIONS, LesionCell, LesionLine, PatientReport, base64_text, page

_COLUMNS = ("Region", "Lesions", "Volume (ml)", "Measurable by RANO-BM", "Sum of targets (mm)")
_DISCLAIMER = "Diameters are those of masks that a model made: not a medical device, and no assessment of a patient."


def save_report(path: Path, prediction: Prediction, card: ModelCard) -> None:
    """Write the report of one volume: the lesions of the model's index region, numbered as in ``lesions.csv``."""
    region = card.index_region
    mask = prediction.masks[list(card.regions).index(region)]
    volume = dataclasses.replace(prediction.source, array=mask[None].astype(np.uint8))
    found = lesions_of(volume, prediction.source, np.eye(4))
    atomic_write_text(path, page(_report(prediction, card, found)))


def _report(prediction: Prediction, card: ModelCard, found: VisitLesions) -> PatientReport:
    course = follow([found.detections])
    pictures = lesion_pictures.thumbnails([found], course)
    lesions = sorted(course.lesions, key=lambda lesion: (not lesion.target, -lesion.at_visits[0].longest_mm))
    lines = [
        LesionLine(
            number=lesion.number,
            colour=lesion_colour_code(lesion.number),
            lines=("target" if lesion.target else "non-target",),
            cells=(
                LesionCell(picture=base64_text(pictures.get((lesion.number, 0), b"")), lines=()),
                _cell(f"{at.longest_mm:.1f} × {at.perpendicular_mm:.1f} mm", f"{at.slices} axial slices"),
                _cell(f"{at.volume_mm3 / 1000:.2f} ml"),
                _cell("measurable" if at.measurable else "not measurable"),
                _cell("x {:.0f}, y {:.0f}, z {:.0f} mm (LPS)".format(*lesion.centre_mm)),
            ),
        )
        for lesion in lesions[:MOST_LESIONS]
        for at in lesion.at_visits
    ]
    return PatientReport(
        title="Brain metastases: one visit",
        facts=(
            ("Scan", prediction.source.source.name),
            ("Measured", card.index_region),
            ("Model", f"{card.name}, {card.dims}D, of {card.program}"),
            ("Program", PROGRAM),
        ),
        visits_title="Lesions by region (nested regions are not added up)",
        visit_columns=_COLUMNS,
        visit_rows=_regions(prediction, card, found, course.visits[0].sum_mm),
        visit_names=("Picture", "Longest axial × perpendicular", "Volume", "RANO-BM", "Centre"),
        lesions=tuple(lines),
        lesion_count=len(lesions),
        more=and_more(len(lesions), len(lines), "lesions.csv"),
        notes=(*prediction.notes, _DISCLAIMER),
    )


def _cell(*lines: str) -> LesionCell:
    return LesionCell(picture="", lines=lines)


def _regions(
    prediction: Prediction, card: ModelCard, found: VisitLesions, sum_mm: float
) -> tuple[tuple[str, ...], ...]:
    """Return a row for each region; targets are those of the index region alone."""
    voxel_ml = float(np.prod(found.spacing_mm)) / 1000
    rows = []
    for region, mask in zip(card.regions, prediction.masks, strict=True):
        own = region == card.index_region
        measurable = sum(each.measurable for each in prediction.measurements[region])
        rows.append(
            (
                f"{region} (measured)" if own else region,
                str(len(prediction.lesions[region])),
                f"{mask.sum() * voxel_ml:.2f}",
                str(measurable) if own else "–",
                f"{sum_mm:.1f}" if own else "–",
            )
        )
    return tuple(rows)
