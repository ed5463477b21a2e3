"""Segment scans with a trained model and write masks, overlays and the table of lesions."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import metaseg_cli
from metaseg_cli.commands.runs import find_model
from metaseg_cli.config import PredictConfig
from metaseg_cli.core.datasets import KNOWN, CaseSource, Problem, scan_of, scans_under, sequence_name
from metaseg_cli.core.executor import Failure, map_cases
from metaseg_cli.core.images import (
    Volume,
    can_write_seg,
    dicom_files,
    is_dicom,
    is_image_file,
    is_picture,
    stem_of,
    suffix_of,
    turn_to_canonical,
    turned,
    write_mask,
    write_seg,
    write_volume,
)
from metaseg_cli.core.inference.predictor import Model, Prediction, load_model, usual_threshold
from metaseg_cli.core.metrics import find_lesions
from metaseg_cli.core.model_file import ModelCard, read_card
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.whole_file import write_text_whole
from metaseg_cli.errors import InputError, MetasegError
from metaseg_cli.reports import figures

_SUFFIXES = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", "png": ".png"}
_OUR_ENDINGS = ("_mask", "_overlay", "_probability")


@dataclass(frozen=True, kw_only=True)
class PredictedScan:
    """What was found in one scan, and where it was written. ``prediction`` is kept on demand only: it is large."""

    source: Path
    sequences: dict[str, str]
    mask: Path
    segmentation: Path | None
    overlay: Path | None
    probability: tuple[Path, ...]
    spacing_mm: tuple[float, float, float] | None
    lesions: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()
    prediction: Prediction | None = None


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """All scans of one call; ``problems`` are those that gave no mask."""

    model: Path
    card: ModelCard
    out: Path
    threshold: float
    tta: bool
    fusion: str
    scans: tuple[PredictedScan, ...]
    problems: tuple[Problem, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One case to predict, as it travels to a worker."""

    source: CaseSource
    name: str
    model: Path
    changed: float  # of the model file: a worker must not go on with an older one
    config: PredictConfig
    keep: bool


def predict(config: PredictConfig, progress: Progress, *, keep: bool = False) -> PredictResult:
    """Run ``metaseg predict``. One bad scan never stops the others; raises only where nothing can be done at all.

    With *keep* every scan's arrays stay in the result.
    """
    path = find_model(config.model)
    sources, problems = _sources(config.inputs)
    card = read_card(path)
    progress.say(f"model {path}: {card.name}, {card.dims}D, {', '.join(card.sequences)}")
    config.out.mkdir(parents=True, exist_ok=True)
    if config.cluster is not None:  # another computer has another working folder
        path, config = path.resolve(), dataclasses.replace(config, out=config.out.resolve())
        sources = [_absolute(source) for source in sources]
    elif sources:
        _model(
            path, path.stat().st_mtime, config.device, config.tta, config.fusion
        )  # what is wrong with it is said once, not for every scan
    changed = path.stat().st_mtime
    names = _output_names(sources)
    jobs = [
        _Job(source=source, name=name, model=path, changed=changed, config=config, keep=keep)
        for source, name in zip(sources, names, strict=True)
    ]
    done: list[PredictedScan] = []
    progress.start("predicting", len(jobs))
    for job, one in map_cases(_predict_one, jobs, 1, config.cluster):
        if isinstance(one, Failure):
            problems.append(Problem(file=job.source.first_file, reason=one.reason, remedy="predict it again"))
        elif isinstance(one, Problem):
            problems.append(one)
        else:
            done.append(one)
        progress.advance(1, job.name)
    result = PredictResult(
        model=path,
        card=card,
        out=config.out,
        threshold=usual_threshold(card, config.fusion) if config.threshold is None else config.threshold,
        tta=config.tta,
        fusion=config.fusion,
        scans=tuple(done),
        problems=tuple(problems),
    )
    if done:
        _write_tables(result)
    return result


def at_threshold(model: Model, prediction: Prediction, threshold: float) -> Prediction:
    """The same scan at another threshold, without running the network again."""
    return model.interpret(prediction.source, prediction.probabilities, threshold)


# -- what is to be predicted -----------------------------------------------------------------------------------------


def _sources(inputs: Sequence[str]) -> tuple[list[CaseSource], list[Problem]]:
    """The cases that *inputs* mean, in order and once each.

    ``t1c=a.nii.gz t2f=b.nii.gz`` are the sequences of one case; folders stand for the scans under them.
    """
    sources: list[CaseSource] = []
    problems: list[Problem] = []
    named: dict[str, tuple[Path, ...]] = {}
    for text in inputs:
        sequence, sign, rest = str(text).partition("=")
        path = Path(text)
        if sign and not path.exists() and sequence.isidentifier():
            path = Path(rest)
            if path.exists():
                named[sequence_name(sequence)] = (path,)
            else:
                problems.append(Problem(file=path, reason="no such file", remedy="check the path"))
        elif path.is_dir():
            try:
                inside = _in_folder(path)
            except MetasegError as error:
                problems.append(Problem(file=path, reason=error.what, remedy=error.remedy))
                continue
            if not inside:
                problems.append(Problem(file=path, reason="no image in this folder", remedy="name a folder with scans"))
            sources += inside
        elif not path.exists():
            problems.append(Problem(file=path, reason="no such file", remedy="check the path"))
        elif not is_image_file(path) and suffix_of(path) != ".zip" and not is_dicom(path):
            problems.append(
                Problem(
                    file=path,
                    reason="not an image format that metaseg reads",
                    remedy="PNG, JPEG, TIFF, BMP, NIfTI, NRRD, MHA, DICOM",
                )
            )
        else:
            sources.append(scan_of(path))
    if named:
        first = next(iter(named.values()))[0]
        sources.append(CaseSource(case=stem_of(first), patient=stem_of(first), sequences=named))
    unique = {tuple(sorted(map(str, source.files))): source for source in reversed(sources)}
    return list(reversed(unique.values())), problems


def _in_folder(folder: Path) -> list[CaseSource]:
    """The cases under *folder*; the only one of a DICOM folder is named after the folder."""
    inside = scans_under(folder, _OUR_ENDINGS)
    if len(inside) == 1 and len(inside[0].files) > 1 and is_dicom(inside[0].first_file):
        return [dataclasses.replace(inside[0], case=folder.resolve().name)]
    return inside


def _absolute(source: CaseSource) -> CaseSource:
    sequences = {name: tuple(p.resolve() for p in files) for name, files in source.sequences.items()}
    return dataclasses.replace(source, sequences=sequences)


def _output_names(sources: Sequence[CaseSource]) -> list[str]:
    """One stem per case; cases of the same name from several folders get their folder's name in front."""
    count: dict[str, int] = {}
    for source in sources:
        count[source.case.lower()] = count.get(source.case.lower(), 0) + 1
    names: list[str] = []
    taken: set[str] = set()
    for source in sources:
        alone = count[source.case.lower()] == 1
        name = source.case if alone else f"{source.first_file.resolve().parent.name}_{source.case}"
        number, unique = 2, name
        while unique.lower() in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique.lower())
        names.append(unique)
    return names


def _scan_for(card: ModelCard, source: CaseSource) -> Path | Mapping[str, tuple[Path, ...]]:
    """What of *source* the model takes, by the names of the sequences. Raises InputError rather than guess."""
    known = {name: source.sequences[name] for name in card.sequences if name in source.sequences}
    if known:
        missing = [name for name in card.sequences if name not in known]
        if missing and not card.presence:
            raise InputError(f"{', '.join(missing)} is missing", where=source.first_file, remedy="name its file too")
        return known
    if len(source.sequences) > 1:
        raise InputError(
            f"it has the sequences {', '.join(source.sequences)}, the model wants {', '.join(card.sequences)}",
            where=source.first_file.parent,
            remedy=f"say which is meant, as in {card.sequences[0]}=FILE",
        )
    (name, files), wanted = next(iter(source.sequences.items())), card.sequences[0]
    if name in KNOWN and wanted in KNOWN:
        raise InputError(
            f"by its name it is {name}, the model wants {', '.join(card.sequences)}",
            where=files[0],
            remedy=f"if the name is wrong, insist with {wanted}={files[0]}",
        )
    if len(card.sequences) == 1 and not source.slices:
        return {wanted: files}
    return files[0]  # a picture in colour, or a file whose channels are the sequences


# -- one case --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _model(path: Path, changed: float, device: str, tta: bool, fusion: str) -> Model:
    """The model, loaded once in each process."""
    del changed
    return load_model(path, device, tta=tta, fusion=fusion)


def _predict_one(job: _Job) -> PredictedScan | Problem:
    scan = job.source.first_file
    try:
        return _predicted(job)
    except MetasegError as error:
        where = error.where if isinstance(error.where, Path) else scan
        return Problem(file=where, reason=error.what, remedy=error.remedy)
    except OSError as error:
        return Problem(file=scan, reason=f"not written: {error.strerror}", remedy="check --out")


def _predicted(job: _Job) -> PredictedScan:
    config, source, name = job.config, job.source, job.name
    first = source.first_file
    # A picture or volume comes back as what it was; a DICOM series as NIfTI and as SEG.
    model = _model(job.model, job.changed, config.device, config.tta, config.fusion)
    scan = _scan_for(model.card, source)
    series = _series(next(iter(scan.values())) if isinstance(scan, Mapping) else (scan,))
    if config.format == "dicom-seg" and not series:
        raise InputError("it is no DICOM series", where=first, remedy="take another --format")
    suffix = _SUFFIXES.get(config.format) or (suffix_of(first) if is_image_file(first) else ".nii.gz")
    if suffix == ".png" and not is_picture(first):
        raise InputError("a volume does not fit into a PNG", where=first, remedy="take --format nifti")
    segmentation = config.out / f"{name}_mask.dcm" if series and config.format in ("auto", "dicom-seg") else None
    mask = config.out / f"{name}_mask{suffix}"
    if segmentation is not None and config.format == "dicom-seg":
        mask = segmentation
    overlay = config.out / f"{name}_overlay.png"
    if not config.overwrite:
        for path in (mask, *(p for p in (segmentation, overlay if config.overlay else None) if p is not None)):
            if path.exists():
                raise InputError(f"{path} exists already", where=first, remedy="pass --overwrite, or another --out")
    prediction = model.predict(scan, config.threshold)
    image = prediction.source
    probabilities: list[Path] = []
    if config.probabilities:
        for region, probability in zip(model.card.regions, prediction.probabilities, strict=True):
            ending = f"_{region}" if len(model.card.regions) > 1 else ""
            to = ".png" if suffix in (".jpg", ".jpeg", ".bmp") else suffix
            path = config.out / f"{name}_probability{ending}{to}"
            write_volume(path, probability, image)
            probabilities.append(path)
    if config.overlay:
        _save_overlay(overlay, prediction)
    notes = list(prediction.notes)
    if segmentation is not None and (config.format == "dicom-seg" or can_write_seg()):
        segments = _segments(prediction, model.card.regions, per_lesion=config.per_lesion)
        try:
            write_seg(segmentation, segments, series)
        except InputError as error:
            if config.format == "dicom-seg":
                raise
            notes.append(f"no DICOM SEG: {error.what}")
    # The mask last: where it stands, the scan is done.
    if mask != segmentation:
        write_mask(mask, prediction.mask, image)
    used = scan if isinstance(scan, Mapping) else {next(iter(source.sequences)): (scan,)}
    return PredictedScan(
        source=first if len(source.files) == 1 or is_image_file(first) else first.parent,
        sequences={n: str(files[0] if len(files) == 1 else files[0].parent) for n, files in used.items()},
        mask=mask,
        segmentation=segmentation if segmentation is not None and segmentation.exists() else None,
        overlay=overlay if config.overlay else None,
        probability=tuple(probabilities),
        spacing_mm=image.spacing_mm,
        lesions=tuple(lesion_rows(first, prediction)),
        notes=tuple(notes),
        prediction=prediction if job.keep else None,
    )


def _series(files: Sequence[Path]) -> Sequence[Path]:
    """The files of the DICOM series that *files* are, or lie in; none for other formats."""
    if files[0].is_dir():
        return dicom_files(files[0])
    return files if suffix_of(files[0]) != ".zip" and not is_image_file(files[0]) and is_dicom(files[0]) else ()


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


def _save_overlay(path: Path, prediction: Prediction) -> None:
    """The picture, a volume's slices as radiologists see them: axial, the patient's right on the left."""
    image, mask = prediction.source, prediction.mask
    numbered = [(x.number, x.centroid_voxel) for found in list(prediction.lesions.values())[:1] for x in found]
    if not is_picture(image.source) and image.shape[0] > 1:
        turn = turn_to_canonical(image)
        numbered = [(n, _turned_point(centre, image, turned(image, turn))) for n, centre in numbered]
        image, mask = turned(image, turn), turn.apply(mask)
    lesions = [(number, *centre, "") for number, centre in numbered]
    figures.save_overlay(path, image.array, mask > 0, lesions)


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


def as_document(result: PredictResult) -> dict[str, Any]:
    """The result as ``predictions.json`` and ``--json`` have it."""
    return {
        "schema": 1,
        "program": f"metaseg {metaseg_cli.__version__}",
        "out": str(result.out),
        "model": str(result.model),
        "architecture": result.card.name,
        "threshold": result.threshold,
        "tta": result.tta,
        "fusion": result.fusion,
        "smallest_lesion_voxels": result.card.smallest_lesion_voxels,
        "regions": {name: list(values) for name, values in result.card.regions.items()},
        "scans": [
            {
                "scan": str(scan.source),
                "mask": str(scan.mask),
                "segmentation": str(scan.segmentation) if scan.segmentation else None,
                "overlay": str(scan.overlay) if scan.overlay else None,
                "probability": [str(p) for p in scan.probability],
                "sequences": scan.sequences,
                "spacing_mm": scan.spacing_mm,
                "notes": list(scan.notes),
                "lesions": list(scan.lesions),
            }
            for scan in result.scans
        ],
        "problems": [{"file": str(p.file), "reason": p.reason, "remedy": p.remedy} for p in result.problems],
    }


def _write_tables(result: PredictResult) -> None:
    columns = [
        "scan",
        "region",
        "lesion",
        "voxels",
        "volume_mm3",
        "diameter_mm",
        "diameter_px",
        "longest_axial_mm",
        "longest_axial_px",
        "perpendicular_mm",
        "perpendicular_px",
        "feret_mm",
        "feret_px",
        "axial_slices",
        "measurable",
        "z",
        "y",
        "x",
        "x_mm",
        "y_mm",
        "z_mm",
        "confidence",
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(row for scan in result.scans for row in scan.lesions)
    write_text_whole(result.out / "lesions.csv", text.getvalue())
    write_text_whole(result.out / "predictions.json", json.dumps(as_document(result), indent=1, allow_nan=False))
