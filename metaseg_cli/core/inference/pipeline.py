"""One case from its files to masks and lesion rows, in three stages: load, infer, save."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from metaseg_cli.config import PredictConfig
from metaseg_cli.core.choices import MASK_FORMATS
from metaseg_cli.core.datasets.naming import OVERLAY, PREDICTED_MASK, predicted_name
from metaseg_cli.core.formats import ARCHIVES, is_image_file, is_picture, suffix_of
from metaseg_cli.core.images import (
    dicom_files,
    is_dicom,
    own_suffix,
    unpacked,
)
from metaseg_cli.core.inference.finished_scans import result_key
from metaseg_cli.core.inference.inputs import ScanFiles, scan_for
from metaseg_cli.core.inference.predictor import Model, Prediction, RawPrediction, load_model
from metaseg_cli.core.inference.saving import save_results
from metaseg_cli.core.inference.scan_job import InferredScan, OutputFiles, PredictedScan, PreparedScan, ScanJob
from metaseg_cli.core.inference.sliding_window import AfterWindow
from metaseg_cli.core.inference.unlike_training import refuse_unlike
from metaseg_cli.core.memory import total_memory
from metaseg_cli.errors import InputError, Problem, attempt

Result = TypeVar("Result")


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
        return _attempt(scan.prepared.job, lambda: save_results(scan.prepared, scan.prediction))


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
        overlay = job.picture(OVERLAY) if job.config.overlay else None
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
