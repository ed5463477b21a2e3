"""One case from its files to masks and lesion rows, in three stages: load, infer, save."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.config import PredictConfig
from metaseg_cli.core.choices import MASK_FORMATS
from metaseg_cli.core.datasets import CaseSource
from metaseg_cli.core.datasets.naming import OVERLAY, OVERVIEW, PREDICTED_MAPS, PREDICTED_MASK, REPORT, predicted_name
from metaseg_cli.core.detection import find_lesions
from metaseg_cli.core.formats import ARCHIVES, is_image_file, is_picture, suffix_of
from metaseg_cli.core.images import (
    MaskToWrite,
    dicom_files,
    is_dicom,
    mask_writer,
    own_suffix,
    unpacked,
    write_volume,
)
from metaseg_cli.core.inference.finished_scans import FinishedScans, result_key
from metaseg_cli.core.inference.inputs import ScanFiles, scan_for, unused_notes
from metaseg_cli.core.inference.lesion_rows import lesion_rows, region_totals
from metaseg_cli.core.inference.predictor import Model, ModelInput, Prediction, RawPrediction, load_model
from metaseg_cli.core.inference.sliding_window import AfterWindow
from metaseg_cli.core.inference.unlike_training import refuse_unlike
from metaseg_cli.core.measurements import sum_of_diameters
from metaseg_cli.core.memory import total_memory
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.results import ScanResult
from metaseg_cli.errors import InputError, Problem, attempt

Result = TypeVar("Result")
# Draws the overlay, and the overview of a volume; this package draws nothing itself.
DrawPictures = Callable[[Prediction, Path, Path | None], None]
WriteReport = Callable[[Path, Prediction, ModelCard], None]  # the report for the chart, of a volume with a spacing


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """One case to predict, as it travels to a worker."""

    source: CaseSource
    name: str
    model: Path
    changed: float  # modification time of the model file: a worker must not use an older one
    config: PredictConfig
    finished: FinishedScans
    draw: DrawPictures
    write_report: WriteReport
    keep: bool = False  # the arrays, in the result


@dataclass(frozen=True, kw_only=True)
class PredictedScan:
    """*result* as it is written; ``kept`` says that an earlier call completed it.

    ``prediction`` holds the arrays, on demand only: they are large.
    """

    result: ScanResult
    prediction: Prediction | None = None
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class OutputFiles:
    """Where the label map goes, and the DICOM SEG or RTSTRUCT of a series; in which formats, and the suffix of maps.

    With a DICOM format alone, both are one file.
    """

    mask: Path
    mask_format: str  # a row of MASK_FORMATS
    segmentation: Path | None
    segmentation_format: str
    maps_suffix: str


@dataclass(frozen=True, kw_only=True)
class PreparedScan:
    """A case that is ready for the network, and where its results go."""

    job: ScanJob
    key: str
    model: Model
    scan: ScanFiles
    series: Sequence[Path]  # the files of a DICOM series
    outputs: OutputFiles
    model_input: ModelInput
    unpacked: ExitStack  # holds the folder of a ZIP until the results, which repeat its headers, are written


@dataclass(frozen=True, kw_only=True)
class InferredScan:
    """A prepared case with what the model found."""

    prepared: PreparedScan
    prediction: Prediction


@lru_cache(maxsize=1)
def _model(path: Path, changed: float, config: PredictConfig) -> Model:
    del changed
    return load_model(
        path,
        config.device,
        tta=config.tta,
        fusion=config.fusion,
        depth=config.depth,
        max_memory=config.max_bytes() or _half_of_memory(),
        backend=config.backend,
        operating_point=config.operating_point,
    )


def _half_of_memory() -> int | None:
    """Return half of what the machine has, not of what is free: that changes, and the windows would with it."""
    total = total_memory()
    return None if total is None else total // 2


def model_of(path: Path, changed: float, config: PredictConfig) -> Model:
    """Return the model with the settings of *config*, loaded once per process."""
    same = dataclasses.replace(config, inputs=("any",), out=Path(), overwrite=False)
    return _model(path, changed, same)


def load(job: ScanJob) -> PreparedScan | PredictedScan | Problem:
    """Read and preprocess a case; whatever can be known to fail fails here, before the network runs.

    A scan that an earlier call completed is returned as that result.
    """
    return _attempt(job, lambda: _load(job))


def infer(
    scan: PreparedScan | PredictedScan | Problem, after_window: AfterWindow | None = None
) -> InferredScan | PredictedScan | Problem:
    """Run the network and postprocess its probabilities; *after_window* is that of ``predict_probabilities``."""
    if not isinstance(scan, PreparedScan):
        return scan
    inferred = _attempt(scan.job, lambda: InferredScan(prepared=scan, prediction=_infer(scan, after_window)))
    if isinstance(inferred, Problem):
        scan.unpacked.close()
    return inferred


def save(scan: InferredScan | PredictedScan | Problem) -> PredictedScan | Problem:
    """Write masks, maps and pictures."""
    if not isinstance(scan, InferredScan):
        return scan
    with scan.prepared.unpacked:
        return _attempt(scan.prepared.job, lambda: _save(scan.prepared, scan.prediction))


def predict_scan(job: ScanJob) -> PredictedScan | Problem:
    """Do all three stages in one process."""
    return save(infer(load(job)))


def _attempt(job: ScanJob, function: Callable[[], Result]) -> Result | Problem:
    return attempt(function, job.source.first_file, job.config.out)


# -- load ------------------------------------------------------------------------------------------------------------


def _load(job: ScanJob) -> PreparedScan | PredictedScan:
    key = result_key(job.source, job.model, job.changed, job.config)
    earlier = job.finished.earlier(job.name)
    same = earlier is not None and earlier.key == key
    completed = earlier.result if earlier is not None and same and not job.config.overwrite else None
    if completed is not None and all(path.exists() for path in completed.files):
        if job.config.strict:
            refuse_unlike(completed.notes, job.source.first_file)
        return PredictedScan(result=completed, kept=True)
    with ExitStack() as stack:
        return _read_files(job, key, stack, may_replace=same or job.config.overwrite)


def _read_files(job: ScanJob, key: str, stack: ExitStack, *, may_replace: bool) -> PreparedScan:
    model = model_of(job.model, job.changed, job.config)
    scan = scan_for(model.card, job.source)
    opened = _opened(scan, job.source.archive, stack)
    series = _series(next(iter(opened.values())) if isinstance(opened, Mapping) else (opened,))
    outputs = _output_files(job, is_series=bool(series))
    if not may_replace:
        overlay = _picture(job, OVERLAY) if job.config.overlay else None
        for path in (outputs.mask, outputs.segmentation, overlay):
            if path is not None and path.exists():
                raise InputError(
                    f"{path} exists already",
                    where=job.source.first_file,
                    remedy="pass --overwrite, or another --out",
                )
    model_input = model.load_input(opened, strict=job.config.strict)
    return PreparedScan(
        job=job,
        key=key,
        model=model,
        scan=scan,
        series=series,
        outputs=outputs,
        model_input=model_input,
        unpacked=stack.pop_all(),
    )


def _output_files(job: ScanJob, *, is_series: bool) -> OutputFiles:
    """Return where results go: in a scan's own format, or for a DICOM series as NIfTI and as SEG."""
    config, first = job.config, job.source.first_file
    inner = next(iter(job.source.sequences.values()))[0]
    chosen = MASK_FORMATS.get(config.format)  # None: auto
    if chosen is not None and chosen.of_series and not is_series:
        raise InputError("not a DICOM series", where=first, remedy="choose another --format")
    if chosen is not None and chosen.one_slice and not is_picture(inner):
        raise InputError(
            f"a volume does not fit into a {config.format.upper()}", where=first, remedy="choose --format nifti"
        )
    own = own_suffix(inner)
    series_format = config.format if chosen is not None and chosen.of_series else "dicom-seg"
    of_series = is_series and (chosen is None or bool(chosen.of_series))
    stem = predicted_name(job.name, PREDICTED_MASK)
    return OutputFiles(
        mask=config.out / f"{stem}{own if chosen is None else chosen.suffix}",
        mask_format="nifti" if chosen is None else config.format,  # its writer goes by the suffix
        segmentation=config.out / f"{stem}{MASK_FORMATS[series_format].suffix}" if of_series else None,
        segmentation_format=series_format,
        maps_suffix=chosen.suffix if chosen is not None and chosen.holds_maps else own,
    )


def _opened(scan: ScanFiles, archive: Path | None, stack: ExitStack) -> Path | dict[str, Sequence[Path]]:
    """Unpack the ZIP of *scan*, or those of its sequences (``t1c=a.zip``), until *stack* is closed."""
    if archive is not None:
        folder = stack.enter_context(unpacked(archive))
        if not isinstance(scan, Mapping):
            return folder / scan
        return {name: tuple(folder / file for file in files) for name, files in scan.items()}
    if not isinstance(scan, Mapping):
        return scan
    found: dict[str, Sequence[Path]] = {}
    for name, files in scan.items():
        packed = len(files) == 1 and suffix_of(files[0]) in ARCHIVES
        found[name] = (packed and dicom_files(stack.enter_context(unpacked(files[0])))) or files
    return found


def _series(files: Sequence[Path]) -> Sequence[Path]:
    """Return the files of the DICOM series that *files* are, or lie in; none for other formats."""
    if files[0].is_dir():
        return dicom_files(files[0])
    return files if not is_image_file(files[0]) and is_dicom(files[0]) else ()


# -- infer -----------------------------------------------------------------------------------------------------------


def _infer(scan: PreparedScan, after_window: AfterWindow | None) -> Prediction:
    config, model = scan.job.config, scan.model
    raw = model.infer(
        scan.model_input, disagreement=config.uncertainty and model.n_passes > 1, after_window=after_window
    )
    settings = model.postprocessing(config.threshold, postprocess=config.postprocess, fill_holes=config.fill_holes)
    prediction = model.postprocess(scan.model_input.volume, raw, settings)
    return dataclasses.replace(prediction, index_region=config.region or prediction.index_region)


def at_threshold(model: Model, prediction: Prediction, threshold: float | None) -> Prediction:
    """Return the same scan at another threshold, without running the network again."""
    raw = RawPrediction(prediction.probabilities)
    return model.postprocess(prediction.source, raw, model.postprocessing(threshold))


# -- save ------------------------------------------------------------------------------------------------------------


def _picture(job: ScanJob, what: str) -> Path:
    return job.config.out / f"{predicted_name(job.name, what)}.png"


def _save(scan: PreparedScan, prediction: Prediction) -> PredictedScan:
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
    overlay = _picture(job, OVERLAY)
    overview = _picture(job, OVERVIEW) if image.shape[0] > 1 and not is_picture(image.source) else None
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
