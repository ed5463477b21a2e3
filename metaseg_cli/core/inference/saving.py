"""The files of a predicted case: masks, maps, pictures, DICOM SEG or RTSTRUCT, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.choices import MASK_FORMATS
from metaseg_cli.core.datasets.naming import OVERLAY, OVERVIEW, PREDICTED_MAPS, REPORT, predicted_name
from metaseg_cli.core.detection import find_lesions
from metaseg_cli.core.formats import is_image_file, is_picture
from metaseg_cli.core.images import (
    MaskToWrite,
    mask_writer,
    write_volume,
)
from metaseg_cli.core.inference.inputs import unused_notes
from metaseg_cli.core.inference.lesion_rows import lesion_rows, region_totals
from metaseg_cli.core.inference.predictor import Prediction
from metaseg_cli.core.inference.scan_job import PredictedScan, PreparedScan, ScanJob
from metaseg_cli.core.measurements import sum_of_diameters
from metaseg_cli.core.results import ScanResult
from metaseg_cli.errors import InputError


def save_results(scan: PreparedScan, prediction: Prediction) -> PredictedScan:
    """Write masks, maps, pictures and the report of a case. Raises InputError."""
    job, image = scan.job, prediction.source
    job.finished.begin(job.name, scan.key)
    maps = _save_maps(scan, prediction)
    overlay, overview = _save_pictures(job, prediction)
    report = _save_report(scan, prediction)
    segmentation, notes = _save_segmentation(scan, prediction)
    # The mask last: where it exists, the scan is complete.
    if scan.outputs.mask != scan.outputs.segmentation:
        to_write = MaskToWrite(label=prediction.mask, structures=(), image=image)
        mask_writer(scan.outputs.mask_format)(scan.outputs.mask, to_write)
    first = job.source.first_file
    result = ScanResult(
        scan=first if len(job.source.files) == 1 or first.is_dir() or is_image_file(first) else first.parent,
        name=job.name,
        key=scan.key,
        mask=scan.outputs.mask,
        segmentation=segmentation,
        overlay=overlay,
        overview=overview,
        report=report,
        **maps,
        sequences=_sequences(scan),
        spacing_mm=image.spacing_mm,
        backend=prediction.backend,
        notes=(*prediction.notes, *unused_notes(scan.scan, job.source), *notes),
        sum_of_diameters_mm={
            region: round(sum_of_diameters(found), 2) for region, found in prediction.measurements.items()
        }
        if image.spacing_mm
        else {},
        totals=region_totals(prediction),
        lesions=lesion_rows(first, prediction),
    )
    job.finished.finish(result)
    return PredictedScan(result=result, prediction=prediction if job.keep else None)


def _save_maps(scan: PreparedScan, prediction: Prediction) -> dict[str, tuple[Path, ...]]:
    """Write probabilities, and how certain they are, one file per region."""
    config, regions = scan.job.config, scan.model.card.regions
    layers = (
        prediction.probabilities if config.probabilities else None,
        prediction.uncertainty if config.uncertainty else None,
        prediction.disagreement,
    )
    suffix = ".png" if scan.outputs.maps_suffix == ".bmp" else scan.outputs.maps_suffix
    written: dict[str, tuple[Path, ...]] = {}
    for what, values in zip(PREDICTED_MAPS, layers, strict=True):
        files = []
        for region, layer in zip(regions, values if values is not None else (), strict=values is not None):
            name = predicted_name(scan.job.name, what, region if len(regions) > 1 else "")
            files.append(config.out / f"{name}{suffix}")
            write_volume(files[-1], layer, prediction.source)
        written[what] = tuple(files)
    return written


def _save_pictures(job: ScanJob, prediction: Prediction) -> tuple[Path | None, Path | None]:
    if not job.config.overlay:
        return None, None
    image = prediction.source
    overlay = job.picture(OVERLAY)
    overview = job.picture(OVERVIEW) if image.shape[0] > 1 and not is_picture(image.source) else None
    job.draw(prediction, overlay, overview)
    return overlay, overview


def _save_report(scan: PreparedScan, prediction: Prediction) -> Path | None:
    image, job = prediction.source, scan.job
    if not job.config.overlay or image.spacing_mm is None or image.shape[0] == 1 or is_picture(image.source):
        return None
    path = job.config.out / f"{predicted_name(job.name, REPORT)}.html"
    job.write_report(path, prediction, scan.model.card)
    return path


def _save_segmentation(scan: PreparedScan, prediction: Prediction) -> tuple[Path | None, list[str]]:
    """Write the DICOM SEG or RTSTRUCT of a series; return its path, if it exists, and notes."""
    config, path = scan.job.config, scan.outputs.segmentation
    if path is None:
        return None, []
    notes: list[str] = []
    name = scan.outputs.segmentation_format
    to_write = MaskToWrite(
        label=prediction.mask,
        structures=_segments(prediction, scan.model.card.regions, per_lesion=config.per_lesion),
        image=prediction.source,
        series=scan.series,
    )
    try:
        mask_writer(name)(path, to_write)
    except InputError as error:
        if config.format == name:
            raise
        notes.append(f"no {MASK_FORMATS[name].of_series}: {error.what}")
    return path if path.exists() else None, notes


def _segments(
    prediction: Prediction, regions: Mapping[str, tuple[int, ...]], *, per_lesion: bool
) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return the segments of a SEG: one per region, or one per lesion."""
    masks = dict(zip(regions, prediction.masks, strict=True))
    if not per_lesion:
        return list(masks.items())
    return [
        (f"{name} {lesion.number}", numbers == lesion.number)
        for name, mask in masks.items()
        for numbers, lesions in (find_lesions(mask),)
        for lesion in lesions
    ] or list(masks.items())


def _sequences(scan: PreparedScan) -> dict[str, str]:
    """Return the file, or the folder of a series, of each sequence that was used."""
    source = scan.job.source
    used = scan.scan if isinstance(scan.scan, Mapping) else {next(iter(source.sequences)): (scan.scan,)}
    if source.archive is not None:
        return dict.fromkeys(used, str(source.archive))
    return {name: str(files[0] if len(files) == 1 else files[0].parent) for name, files in used.items()}
