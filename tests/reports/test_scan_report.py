"""The report of one scan: what it says of lesions whose sizes are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from metaseg_cli.core.detection import find_lesions
from metaseg_cli.core.images import Volume
from metaseg_cli.core.inference.predictor import Prediction
from metaseg_cli.core.measurements import measure
from metaseg_cli.reports.scan_report import save_report
from tests.common import small_card


def prediction(masks: np.ndarray, regions: tuple[str, ...]) -> Prediction:
    """A prediction of *masks* ``(R, Z, Y, X)`` with voxels of 1 mm."""
    found = {region: find_lesions(mask, (1.0, 1.0, 1.0)) for region, mask in zip(regions, masks, strict=True)}
    return Prediction(
        mask=np.asarray(masks.any(axis=0), np.uint8),
        masks=masks,
        probabilities=masks.astype(np.float32),
        lesions={region: lesions for region, (_, lesions) in found.items()},
        measurements={
            region: [measure(numbers == lesion.number, (1.0, 1.0, 1.0)) for lesion in lesions]
            for region, (numbers, lesions) in found.items()
        },
        index_region="ET",
        source=Volume(
            array=np.random.default_rng(0).random((1, *masks.shape[1:])).astype(np.float32),
            spacing_mm=(1.0, 1.0, 1.0),
            source=Path("p1_t1c.nii.gz"),
        ),
        notes=("predicted without t2f: expect less of it",),
    )


def test_it_says_diameters_volumes_and_regions(tmp_path: Path) -> None:
    masks = np.zeros((3, 10, 40, 40), bool)
    masks[0, 2:6, 10:18, 10:22] = True  # 12 × 8 × 4 mm
    masks[1, 2:6, 8:20, 8:24] = True
    masks[2, 1:8, 4:30, 4:30] = True
    save_report(tmp_path / "report.html", prediction(masks, ("ET", "TC", "WT")), small_card())
    page = (tmp_path / "report.html").read_text()
    # Outlines run midway between voxels: the longest chord of a box of 12 × 8 is √(12² + 7²) = 13.9.
    for text in ("ET (measured)", "13.9 ×", "0.38 ml", "measurable", "target", "size: A4", "not a medical device"):
        assert text in page
    for volume in (384, 768, 4732):  # of ET, TC and WT, which are not added up
        assert f"<td>{volume / 1000:.2f}</td>" in page
    assert "predicted without t2f" in page
    assert page.count("data:image/png;base64,") == 1  # one lesion of the index region


def test_names_in_it_are_escaped_and_nothing_found_is_said(tmp_path: Path) -> None:
    empty = prediction(np.zeros((3, 4, 8, 8), bool), ("ET", "TC", "WT"))
    source = dataclasses.replace(empty.source, source=Path("<b>.nii.gz"))
    save_report(tmp_path / "report.html", dataclasses.replace(empty, source=source), small_card())
    page = (tmp_path / "report.html").read_text()
    assert "No lesion was found" in page
    assert "<b>.nii" not in page
