"""One case from its files to masks, pictures and rows: read, look, write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.commands.predict_inputs import scan_for
from metaseg_cli.commands.predict_records import Records, result_key
from metaseg_cli.commands.predicted_scan import MAPS, PredictedScan
from metaseg_cli.config import PredictConfig
from metaseg_cli.core.datasets import CaseSource
from metaseg_cli.core.datasets.naming import PREDICTED_MASK, predicted_name
from metaseg_cli.core.images import (
    Volume,
    can_write_seg,
    dicom_files,
    is_dicom,
    is_image_file,
    is_picture,
    reorient,
    suffix_of,
    to_canonical,
    unpacked,
    write_mask,
    write_rtstruct,
    write_seg,
    write_volume,
)
from metaseg_cli.core.inference.predictor import Model, ModelInput, Prediction, load_model
from metaseg_cli.core.measurements import sum_of_diameters
from metaseg_cli.core.memory import available_memory, resident_memory
from metaseg_cli.core.metrics import find_lesions
from metaseg_cli.errors import InputError, Problem, attempt
from metaseg_cli.reports import figures

_SUFFIXES = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", "png": ".png"}
_AS_PNG = (".jpg", ".jpeg", ".webp", ".gif")  # a scan of such a kind gets its mask as PNG: theirs loses or lacks labels
_MOST_NUMBERED = 100  # lesions in a picture; more of them hide it
Result = TypeVar("Result")
_OF_SERIES = {"dicom-seg": "DICOM SEG", "rtstruct": "RTSTRUCT"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One case to predict, as it travels to a worker."""

    source: CaseSource
    name: str
    model: Path
    changed: float  # of the model file: a worker must not go on with an older one
    config: PredictConfig
    keep: bool
    records: Records


@dataclass(frozen=True)
class Read:
    """A case that is ready for the network, and where its results go."""

    job: Job
    model: Model
    scan: Any
    series: Sequence[Path]
    suffix: str
    mask: Path
    segmentation: Path | None
    given: ModelInput
    key: str
    unpacked: ExitStack  # holds the folder of a ZIP until the results, which repeat its headers, are written


@lru_cache(maxsize=1)
def _model(path: Path, changed: float, config: PredictConfig) -> Model:
    del changed
    return load_model(
        path,
        config.device,
        tta=config.tta,
        fusion=config.fusion,
        depth=config.depth,
        max_memory=config.max_bytes() or _half_of_what_is_free(),
        backend=config.backend,
    )


def _half_of_what_is_free() -> int | None:
    free = available_memory()
    return None if free is None else resident_memory() + free // 2


def model_of(path: Path, changed: float, config: PredictConfig) -> Model:
    """The model as *config* wants it, loaded once in each process."""
    same = dataclasses.replace(config, inputs=("any",), out=Path(), overwrite=False)
    return _model(path, changed, same)


def read(job: Job) -> Read | PredictedScan | Problem:
    """Read and preprocess; everything that can be known to fail fails here, before the network runs.

    A scan whose result an earlier call finished is that result.
    """
    return _attempt(job, lambda: _read(job))


def look(one: Read | PredictedScan | Problem) -> tuple[Read, Prediction] | PredictedScan | Problem:
    """Ask the network."""
    if not isinstance(one, Read):
        return one
    answer = _attempt(one.job, lambda: (one, _looked(one)))
    if isinstance(answer, Problem):
        one.unpacked.close()
    return answer


def write(one: tuple[Read, Prediction] | PredictedScan | Problem) -> PredictedScan | Problem:
    """Write masks, maps and pictures."""
    if not isinstance(one, tuple):
        return one
    with one[0].unpacked:
        return _attempt(one[0].job, lambda: _written(*one))


def _attempt(job: Job, function: Callable[[], Result]) -> Result | Problem:
    return attempt(function, job.source.first_file, job.config.out)


def _read(job: Job) -> Read | PredictedScan:
    key = result_key(job.source, job.model, job.changed, job.config)
    earlier = job.records.earlier(job.name)
    if earlier.get("key") == key and not job.config.overwrite:
        done = _finished(earlier)
        if done is not None:
            return done
    with ExitStack() as stack:
        return _read_files(job, key, stack, may_replace=job.config.overwrite or earlier.get("key") == key)


def _finished(earlier: Mapping[str, Any]) -> PredictedScan | None:
    """The result that an earlier call left, when it is whole."""
    try:
        done = PredictedScan.from_document(earlier)
    except (KeyError, TypeError, ValueError):
        return None
    return done if all(path.exists() for path in done.files) else None


def _read_files(job: Job, key: str, stack: ExitStack, *, may_replace: bool) -> Read:
    config, source, name = job.config, job.source, job.name
    first, inner = source.first_file, next(iter(source.sequences.values()))[0]
    # A picture or volume comes back as what it was; a DICOM series as NIfTI and as SEG.
    model = model_of(job.model, job.changed, config)
    scan = scan_for(model.card, source)
    opened = _opened(scan, source.archive, stack)
    series = _series(next(iter(opened.values())) if isinstance(opened, Mapping) else (opened,))
    if config.format in _OF_SERIES and not series:
        raise InputError("it is no DICOM series", where=first, remedy="take another --format")
    suffix = _SUFFIXES.get(config.format) or (suffix_of(inner) if is_image_file(inner) else ".nii.gz")
    suffix = ".png" if suffix in _AS_PNG else suffix
    if suffix == ".png" and not is_picture(inner):
        raise InputError("a volume does not fit into a PNG", where=first, remedy="take --format nifti")
    mask_name = predicted_name(name, PREDICTED_MASK)
    segmentation = config.out / f"{mask_name}.dcm" if series and config.format in ("auto", *_OF_SERIES) else None
    mask = config.out / f"{mask_name}{suffix}"
    if segmentation is not None and config.format in _OF_SERIES:
        mask = segmentation
    if not may_replace:
        overlay = _picture(job, "overlay") if config.overlay else None
        for path in (mask, *(p for p in (segmentation, overlay) if p is not None)):
            if path.exists():
                raise InputError(f"{path} exists already", where=first, remedy="pass --overwrite, or another --out")
    given = model.load_input(opened)
    return Read(job, model, scan, series, suffix, mask, segmentation, given, key, stack.pop_all())


def _looked(one: Read) -> Prediction:
    config = one.job.config
    raw = one.model.infer(one.given, disagreement=config.uncertainty and one.model.n_passes > 1)
    settings = one.model.postprocessing(config.threshold, postprocess=config.postprocess, fill_holes=config.fill_holes)
    return one.model.postprocess(one.given.volume, raw, settings)


def _picture(job: Job, what: str) -> Path:
    return job.config.out / f"{predicted_name(job.name, what)}.png"


def _written(one: Read, prediction: Prediction) -> PredictedScan:
    job, config, source = one.job, one.job.config, one.job.source
    image, regions, first = prediction.source, one.model.card.regions, one.job.source.first_file
    job.records.begin(job.name, one.key)
    maps = _write_maps(one, prediction)
    overlay = _picture(job, "overlay") if config.overlay else None
    volume = image.shape[0] > 1 and not is_picture(image.source)
    overview = _picture(job, "overview") if config.overlay and volume else None
    if overlay is not None:
        _save_pictures(overlay, overview, prediction)
    notes = list(prediction.notes)
    if one.segmentation is not None and (config.format in _OF_SERIES or can_write_seg()):
        segments = _segments(prediction, regions, per_lesion=config.per_lesion)
        try:
            if config.format == "rtstruct":
                write_rtstruct(one.segmentation, segments, one.series, image)
            else:
                write_seg(one.segmentation, segments, one.series)
        except InputError as error:
            if config.format in _OF_SERIES:
                raise
            notes.append(f"no DICOM SEG: {error.what}")
    # The mask last: where it stands, the scan is done.
    if one.mask != one.segmentation:
        write_mask(one.mask, prediction.mask, image)
    used = one.scan if isinstance(one.scan, Mapping) else {next(iter(source.sequences)): (one.scan,)}
    if source.archive is not None:
        used = dict.fromkeys(used, (source.archive,))
    done = PredictedScan(
        name=job.name,
        key=one.key,
        source=first if len(source.files) == 1 or first.is_dir() or is_image_file(first) else first.parent,
        sequences={n: str(files[0] if len(files) == 1 else files[0].parent) for n, files in used.items()},
        mask=one.mask,
        segmentation=one.segmentation if one.segmentation is not None and one.segmentation.exists() else None,
        overlay=overlay,
        overview=overview,
        maps=maps,
        spacing_mm=image.spacing_mm,
        backend=prediction.backend,
        lesions=tuple(lesion_rows(first, prediction)),
        sum_of_diameters_mm={
            region: round(sum_of_diameters(found), 2) for region, found in prediction.measurements.items()
        }
        if image.spacing_mm
        else {},
        notes=tuple(notes),
        prediction=prediction if job.keep else None,
    )
    job.records.finish(job.name, done.document())
    return done


def _write_maps(one: Read, prediction: Prediction) -> dict[str, tuple[Path, ...]]:
    """Probabilities, and how sure they are, a file for each region."""
    config, regions = one.job.config, one.model.card.regions
    wanted: dict[str, NDArray[np.float32] | None] = dict(
        zip(
            MAPS,
            (
                prediction.probabilities if config.probabilities else None,
                prediction.uncertainty if config.uncertainty else None,
                prediction.disagreement,
            ),
            strict=True,
        )
    )
    to = ".png" if one.suffix == ".bmp" else one.suffix
    written: dict[str, tuple[Path, ...]] = {}
    for what, values in wanted.items():
        files = []
        for region, layer in zip(regions, values if values is not None else (), strict=values is not None):
            name = predicted_name(one.job.name, what, region if len(regions) > 1 else "")
            files.append(config.out / f"{name}{to}")
            write_volume(files[-1], layer, prediction.source)
        written[what] = tuple(files)
    return written


def _opened(scan: Any, archive: Path | None, stack: ExitStack) -> Any:
    """*scan* where its ZIP, or those of its sequences (``t1c=a.zip``), are unpacked for as long as *stack* holds."""
    if archive is not None:
        folder = stack.enter_context(unpacked(archive))
        if not isinstance(scan, Mapping):
            return folder / scan
        return {name: tuple(folder / file for file in files) for name, files in scan.items()}
    if not isinstance(scan, Mapping):
        return scan
    found: dict[str, Sequence[Path]] = {}
    for name, files in scan.items():
        packed = len(files) == 1 and suffix_of(files[0]) == ".zip"
        found[name] = (packed and dicom_files(stack.enter_context(unpacked(files[0])))) or files
    return found


def _series(files: Sequence[Path]) -> Sequence[Path]:
    """The files of the DICOM series that *files* are, or lie in; none for other formats."""
    if files[0].is_dir():
        return dicom_files(files[0])
    return files if not is_image_file(files[0]) and is_dicom(files[0]) else ()


def _segments(
    prediction: Prediction, regions: Mapping[str, tuple[int, ...]], *, per_lesion: bool
) -> list[tuple[str, NDArray[np.bool_]]]:
    """What a SEG holds: a segment for each region, or for each lesion."""
    masks = dict(zip(regions, prediction.masks, strict=True))
    if not per_lesion:
        return list(masks.items())
    return [
        (f"{name} {lesion.number}", numbers == lesion.number)
        for name, mask in masks.items()
        for numbers, lesions in (find_lesions(mask),)
        for lesion in lesions
    ] or list(masks.items())


def _save_pictures(overlay: Path, overview: Path | None, prediction: Prediction) -> None:
    """Outlined and numbered lesions, a volume's slices as radiologists see them: axial, the right side on the left.

    *overview* shows a volume from three sides.
    """
    image, mask = prediction.source, prediction.mask
    found = next(iter(prediction.lesions.values()), [])
    largest = sorted(found, key=lambda lesion: -lesion.voxels)[:_MOST_NUMBERED]
    numbered = [(lesion.number, lesion.centroid_voxel) for lesion in largest]
    if not is_picture(image.source) and image.shape[0] > 1:
        turn = to_canonical(image)
        numbered = [(n, _turned_point(centre, image, reorient(image, turn))) for n, centre in numbered]
        image, mask = reorient(image, turn), turn.apply(mask)
    lesions = [(number, *centre, "") for number, centre in numbered]
    figures.save_overlay(overlay, image.shown, mask > 0, lesions)
    if overview is not None:
        figures.save_overview(overview, image.shown, mask > 0, lesions, image.spacing_mm)


def _turned_point(zyx: tuple[float, float, float], before: Volume, after: Volume) -> tuple[float, float, float]:
    """A voxel's coordinates in the turned volume."""
    index = np.linalg.inv(after.affine) @ before.affine @ np.array([*zyx[::-1], 1.0])
    return (float(index[2]), float(index[1]), float(index[0]))


def lesion_rows(scan: Path, prediction: Prediction) -> list[dict[str, Any]]:
    """One row per lesion, as ``lesions.csv`` has them; sizes in mm where the scan says its spacing, else in pixels."""
    unit = "mm" if prediction.source.spacing_mm else "px"
    affine = prediction.source.affine if prediction.source.spacing_mm else None
    return [
        {
            "scan": str(scan),
            "region": region,
            "lesion": lesion.number,
            "voxels": lesion.voxels,
            "volume_mm3": lesion.volume_mm3,
            f"diameter_{unit}": round(lesion.equivalent_diameter, 2),
            f"longest_axial_{unit}": round(lengths.longest, 2),
            f"perpendicular_{unit}": round(lengths.perpendicular, 2),
            f"feret_{unit}": round(lengths.feret, 2),
            "axial_slices": lengths.slices[1] - lengths.slices[0] + 1,
            "measurable": lengths.measurable if unit == "mm" else None,
            "z": round(lesion.centroid_voxel[0], 1),
            "y": round(lesion.centroid_voxel[1], 1),
            "x": round(lesion.centroid_voxel[2], 1),
            **_place_mm(lesion.centroid_voxel, affine),
            "confidence": None if lesion.confidence is None else round(lesion.confidence, 3),
        }
        for region, found in prediction.lesions.items()
        for lesion, lengths in zip(found, prediction.measurements[region], strict=True)
    ]


def _place_mm(zyx: tuple[float, float, float], affine: NDArray[np.float64] | None) -> dict[str, float]:
    """Patient coordinates (LPS), as DICOM has them; none for pictures."""
    if affine is None:
        return {}
    place = affine @ np.array([*zyx[::-1], 1.0])
    return {name: round(float(value), 2) for name, value in zip(("x_mm", "y_mm", "z_mm"), place, strict=False)}
