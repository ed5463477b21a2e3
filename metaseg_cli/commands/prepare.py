"""Find the cases of a folder, check and cache them, split them into folds, and say what was read and what was not."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import metaseg_cli
from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.cache import (
    CacheSettings,
    CaseRecord,
    Prepared,
    case_key,
    open_prepared,
    publish,
    reusable_cases,
    shard_jobs,
    write_shard,
    writing,
)
from metaseg_cli.core.datasets import CaseSource, FoundCases, Problem, find_cases, split_folds
from metaseg_cli.core.executor import Failure, default_workers, map_cases
from metaseg_cli.core.images import channels_are_equal, read_image, suffix_of
from metaseg_cli.core.preprocessing import Normalisation
from metaseg_cli.core.progress import Progress
from metaseg_cli.errors import InputError, MetasegError
from metaseg_cli.reports import figures, pages

_LOOKED_AT = 32  # pictures opened to tell grey from colour before anything is written
_TILES = 40
_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    """What was read (``cases``), what was left out (``problems``), what was assumed (``notes``)."""

    out: Path | None
    layout: str
    cases: tuple[CaseRecord, ...]
    found: tuple[CaseSource, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    sequences: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    folds: int
    reused: int


def prepare(config: PrepareConfig, progress: Progress) -> PrepareResult:
    """Run ``metaseg prepare``. Raises InputError when nothing usable is found, or with *strict* on any problem."""
    found = find_cases(config.raw, config.layout)
    progress.say(f"{config.raw}: {len(found.cases)} cases, layout {found.layout}")
    settings, notes = _settings(found)
    regions = config.regions()
    if config.dry_run:
        return PrepareResult(
            out=None,
            layout=found.layout,
            cases=(),
            found=found.cases,
            problems=found.problems,
            notes=(*found.notes, *notes),
            sequences=settings.channels,
            regions=regions,
            folds=config.folds,
            reused=0,
        )
    if config.strict and found.problems:
        raise _strict(found.problems)
    with writing(config.out):
        records, problems, case_notes, reused = _cache(found, settings, config, progress)
        problems = [*found.problems, *problems]
        if not records:
            first = problems[0] if problems else None
            raise InputError(
                "not one case could be read" + (f"; the first: {first.file}: {first.reason}" if first else ""),
                where=config.raw,
                remedy=first.remedy if first else "check the folder",
            )
        if config.strict and problems:
            raise _strict(problems)
        records, fold_notes, fold_problems = _with_folds(records, config)
        problems += fold_problems
        notes += _undeclared_labels(records, regions)
        notes += [f"{text} ({count} files)" if count > 1 else text for text, count in Counter(case_notes).items()]
        all_notes = (*found.notes, *notes, *fold_notes)
        folds = max((r.fold for r in records if r.fold is not None), default=0) + 1
        publish(
            config.out,
            records,
            {
                "program": f"metaseg {metaseg_cli.__version__}",
                "id": hashlib.sha256(str(config.raw.resolve()).encode()).hexdigest()[:16],
                "layout": found.layout,
                "kind": settings.kind,
                "normalisation": settings.normalisation,
                "sequences": settings.channels,
                "regions": regions,
                "folds": folds,
                "fingerprint": _fingerprint(records),
                "settings": {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)},
                "notes": all_notes,
                "problems": [{"file": str(p.file), "reason": p.reason, "remedy": p.remedy} for p in problems],
            },
        )
    prepared = open_prepared(config.out)
    progress.start("drawing the report", None)
    _report(prepared, found, problems, all_notes)
    return PrepareResult(
        out=config.out,
        layout=found.layout,
        cases=prepared.cases,
        found=found.cases,
        problems=tuple(problems),
        notes=all_notes,
        sequences=prepared.sequences,
        regions=prepared.regions,
        folds=prepared.folds,
        reused=reused,
    )


def _settings(found: FoundCases) -> tuple[CacheSettings, list[str]]:
    """Pictures or volumes, grey or colour: decided on a few files spread over the folder, for all."""
    cases = found.cases
    names = tuple(cases[0].sequences)
    first = next(iter(cases[0].sequences.values()))[0]
    kind = "pictures" if suffix_of(first) in _PICTURES else "volumes"
    notes: list[str] = []
    images = [file for case in cases for files in case.sequences.values() for file in files]
    sample = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, _LOOKED_AT).astype(int))]
    channels: list[int] = []
    grey = True
    for path in sample:
        try:
            image = read_image(path)
        except InputError:
            continue  # reported when its case is read
        channels.append(image.array.shape[0])
        grey = grey and (image.array.shape[0] == 1 or (image.array.shape[0] == 3 and channels_are_equal(image)))
    count = Counter(channels).most_common(1)[0][0] if channels else 1
    if len(names) > 1:
        return CacheSettings(kind=kind, normalisation="case", channels=names, grey=False), notes
    if kind == "pictures" and grey:
        if count == 3:
            notes.append("the pictures are grey but saved in colour: read as one channel")
        sequences: tuple[str, ...] = ("grey",)
    elif kind == "pictures" and count == 3:
        sequences = ("red", "green", "blue")
        notes.append("pictures in colour: red, green and blue are three sequences")
    else:
        sequences = names if count == 1 else tuple(f"{names[0]}_{i}" for i in range(count))
    normalisation: Normalisation = "slice" if kind == "pictures" else "case"
    return CacheSettings(
        kind=kind, normalisation=normalisation, channels=sequences, grey=kind == "pictures" and grey
    ), notes


def _cache(
    found: FoundCases, settings: CacheSettings, config: PrepareConfig, progress: Progress
) -> tuple[list[CaseRecord], list[Problem], list[str], int]:
    """Write what is new or changed; take the rest from the shards that are there."""
    kept = reusable_cases(config.out)
    done = [each for source in found.cases for each in kept.get(case_key(source, settings), ())]
    reused = len(done)
    fresh = [source for source in found.cases if case_key(source, settings) not in kept]
    if reused:
        progress.say(f"{reused} cases are unchanged and taken from {config.out}")
    problems: list[Problem] = []
    progress.start("preparing", len(fresh))
    for job, written in map_cases(
        write_shard, shard_jobs(config.out, fresh, settings), config.workers or default_workers()
    ):
        if isinstance(written, Failure):
            problems += [
                Problem(file=next(iter(s.sequences.values()))[0], reason=written.reason, remedy="run prepare again")
                for s in job.sources
            ]
        else:
            done += written
        progress.advance(len(job.sources))
    records = sorted((each.record for each in done if each.record), key=lambda r: (r.patient, r.case))
    problems += [p for each in done for p in each.problems]
    return records, problems, [n for each in done for n in each.notes], reused


def _with_folds(
    records: Sequence[CaseRecord], config: PrepareConfig
) -> tuple[list[CaseRecord], list[str], list[Problem]]:
    """Give every case its fold. A validation folder is fold 0; test cases and cases that only train have none."""
    notes: list[str] = []
    problems: list[Problem] = []
    splits: dict[str, set[str | None]] = {}
    for record in records:
        splits.setdefault(record.patient, set()).add(record.split)
    mixed = {patient for patient, names in splits.items() if len(names) > 1}
    for patient in sorted(mixed):
        problems.append(
            Problem(
                file=config.raw,
                reason=f"patient {patient} lies in several of the train, validation and test folders",
                remedy="all of the patient's cases train, so that no score is flattered; move them to one folder",
            )
        )
    split = {r.case: "train" if r.patient in mixed else r.split for r in records}
    if "val" in split.values():
        notes.append("the folder names its own validation cases: they are fold 0, the only one")
        fold = {r.case: 0 if split[r.case] == "val" else None for r in records}
    else:
        pool = [r for r in records if split[r.case] != "test" and r.labelled]
        numbers = split_folds(
            [r.patient for r in pool], [float(sum(r.lesion_voxels)) for r in pool], config.folds, config.seed
        )
        fold = {r.case: number for r, number in zip(pool, numbers, strict=True)}
        used = len(set(numbers))
        if used == 1:
            notes.append("one patient only: a model cannot be validated on this folder")
            fold = {}
        elif used < config.folds:
            notes.append(f"{used} patients: {used} folds instead of {config.folds}")
    return [dataclasses.replace(r, split=split[r.case], fold=fold.get(r.case)) for r in records], notes, problems


def _undeclared_labels(records: Sequence[CaseRecord], regions: dict[str, tuple[int, ...]]) -> list[str]:
    present = sorted({value for r in records for value in r.labels})
    notes = []
    if any(not values for values in regions.values()) and len(present) > 1:
        notes.append(
            f"the masks hold the labels {', '.join(map(str, present))}: all count as one region "
            "(--region NAME=1,2 tells them apart)"
        )
    declared = {value for values in regions.values() for value in values}
    unused = [value for value in present if declared and value not in declared]
    if unused:
        notes.append(f"the masks hold labels in no region: {', '.join(map(str, unused))}; they count as background")
    return notes


def _fingerprint(records: Sequence[CaseRecord]) -> dict[str, Any]:
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
        "cases_without_lesion": sum(not r.lesion_voxels for r in records),
    }


def _report(prepared: Prepared, found: FoundCases, problems: Sequence[Problem], notes: Sequence[str]) -> None:
    records = prepared.cases
    shown = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, min(_TILES, len(records))).astype(int))]
    tiles = []
    for record in shown:
        label = prepared.label(record)
        z = int(label.reshape(len(label), -1).astype(bool).sum(axis=1).argmax()) if label.any() else len(label) // 2
        image = prepared.image(record, (slice(z, z + 1), slice(None), slice(None)))
        title = record.case if len(label) == 1 else f"{record.case} · {z + 1}/{len(label)}"
        tiles.append((title, image[:, 0].astype(np.float32), label[z] > 0))
    sheet = prepared.folder / "contact_sheet.png"
    figures.save_contact_sheet(sheet, tiles)
    print_ = prepared.fingerprint
    facts = [
        ("cases", str(print_["cases"])),
        ("patients", str(print_["patients"])),
        ("slices", str(print_["slices"])),
        ("lesions", str(print_["lesions"])),
        ("layout", found.layout),
        ("sequences", ", ".join(prepared.sequences)),
        ("regions", ", ".join(f"{n} = {', '.join(map(str, v)) or 'every label'}" for n, v in prepared.regions.items())),
        ("folds", str(prepared.folds)),
    ]
    rows = [
        {
            "case": r.case,
            "patient": r.patient,
            "size": "×".join(map(str, reversed(r.shape))),
            "spacing (mm)": "×".join(f"{s:.2f}" for s in reversed(r.spacing_mm)) if r.spacing_mm else "unknown",
            "lesions": str(len(r.lesion_voxels)) if r.labelled else "no mask",
            "fold": "–" if r.fold is None else str(r.fold),
            "split": r.split or "",
        }
        for r in records
    ]
    pages.write_prepare_report(
        prepared.folder / "report.html",
        title=f"Prepared: {prepared.folder.resolve().name}",
        facts=facts,
        notes=list(notes),
        problems=[(str(p.file), p.reason, p.remedy) for p in problems],
        cases=rows,
        pictures=[sheet],
    )


def _strict(problems: Sequence[Problem]) -> MetasegError:
    first = problems[0]
    return InputError(f"{len(problems)} problem(s), the first: {first.reason}", where=first.file, remedy=first.remedy)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
