"""Find the cases of a folder, check and cache them, split them into folds, and say what was read and what was not."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import metaseg_cli
from metaseg_cli.commands.prepare_names import ShownNames, settings_record
from metaseg_cli.commands.prepare_settings import file_channels, settings_for
from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.atomic import atomic_write_text
from metaseg_cli.core.cache import (
    CacheSettings,
    CaseRecord,
    Prepared,
    ShardJob,
    WrittenCase,
    case_key,
    commit_index,
    dataset_warnings,
    exclusive_cache_writer,
    open_prepared,
    reusable_cases,
    shard_jobs,
    write_shard,
)
from metaseg_cli.core.datasets import (
    CaseSource,
    FoundCases,
    find_cases,
    read_manifest,
    split_folds,
    template,
)
from metaseg_cli.core.executor import default_workers, map_cases
from metaseg_cli.core.images import (
    spacing_text,
)
from metaseg_cli.core.preprocessing import Preprocessing
from metaseg_cli.core.progress import Progress
from metaseg_cli.errors import InputError, MetasegError, Problem
from metaseg_cli.reports import figures, pages

_TILES = 40


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    """What was read (``cases``), what was left out or is doubtful (``problems``), what was assumed (``notes``)."""

    out: Path | None
    layout: str
    why: str
    cases: tuple[CaseRecord, ...]
    found: tuple[CaseSource, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    sequences: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    folds: int
    reused: int
    spacing_mm: tuple[float, float, float] | None = None
    manifest: Path | None = None
    key: Path | None = None  # of a pseudonymised folder


def prepare(config: PrepareConfig, progress: Progress) -> PrepareResult:
    """Run ``metaseg prepare``. Raises InputError when nothing usable is found, or with *strict* on any problem."""
    if config.write_manifest is not None:
        return _manifest_only(config, config.write_manifest)
    if config.cluster is not None:  # another computer has another working folder
        config = dataclasses.replace(config, raw=config.raw.resolve(), out=config.out.resolve())
    shown = ShownNames(_find(config), config)
    found = shown.found
    if shown.key is not None:
        progress.say(f"{shown.key} tells which patient has which random name: keep it apart, and do not pass it on")
    progress.say(f"{config.raw}: {len(found.cases)} cases, layout {found.layout} ({found.why})")
    settings, notes, found = settings_for(found, config)
    settings = dataclasses.replace(settings, secret=shown.secret)
    regions = config.regions()
    if config.dry_run:
        return _result(found, settings, config, notes=(*found.notes, *notes))
    if config.strict and found.problems:
        raise _strict(found.problems)
    with exclusive_cache_writer(config.out):
        records, problems, case_notes, reused = _cache(found, settings, config, progress, shown.log_folder)
        problems = [*found.problems, *shown.problems(problems)]
        if not records:
            first = problems[0] if problems else None
            raise InputError(
                "not one case could be read" + (f"; the first: {first.file}: {first.reason}" if first else ""),
                where=config.raw,
                remedy=first.remedy if first else "check the folder",
            )
        doubtful, same_patient = dataset_warnings(records, settings.kind, regions)
        problems += doubtful
        if config.strict and problems:
            raise _strict(problems)
        records, fold_notes, fold_problems = _with_folds(records, config, same_patient)
        problems += shown.problems(fold_problems)
        shown.save()
        notes += _about_labels(records, regions)
        notes += _about_sequences(records, settings)
        notes += [
            f"{text} ({count} times)" if count > 1 else text for text, count in Counter(shown.notes(case_notes)).items()
        ]
        all_notes = (*found.notes, *notes, *fold_notes)
        folds = max((r.fold for r in records if r.fold is not None), default=0) + 1
        commit_index(
            config.out,
            records,
            {
                "program": f"metaseg {metaseg_cli.__version__}",
                "id": hashlib.sha256(
                    (shown.secret + str(config.raw.resolve())).encode("utf-8", "surrogateescape")
                ).hexdigest()[:16],
                "layout": found.layout,
                "kind": settings.kind,
                "preprocessing": settings.preprocessing.record(),
                "sequences": settings.sequences,
                "file_channels": file_channels(found, settings),
                "regions": regions,
                "folds": folds,
                "fingerprint": _fingerprint(records),
                "settings": settings_record(config),
                "notes": all_notes,
                "problems": [dataclasses.asdict(p) | {"file": str(p.file)} for p in problems],
            },
        )
    prepared = open_prepared(config.out)
    progress.start("drawing the report", None)
    _report(prepared, found, problems, all_notes)
    return dataclasses.replace(
        _result(found, settings, config, notes=all_notes),
        out=config.out,
        cases=prepared.cases,
        problems=tuple(problems),
        folds=prepared.folds,
        reused=reused,
        found=() if shown.key is not None else found.cases,
        key=shown.key,
    )


def _result(found: FoundCases, settings: CacheSettings, config: PrepareConfig, notes: Sequence[str]) -> PrepareResult:
    return PrepareResult(
        out=None,
        layout=found.layout,
        why=found.why,
        cases=(),
        found=found.cases,
        problems=found.problems,
        notes=tuple(notes),
        sequences=settings.sequences,
        regions=config.regions(),
        folds=config.folds,
        reused=0,
        spacing_mm=settings.preprocessing.spacing_mm,
    )


def _find(config: PrepareConfig) -> FoundCases:
    if config.manifest is None:
        return find_cases(config.raw, config.layout)
    if not config.raw.is_dir():
        raise InputError("no such folder", where=config.raw, remedy="name the folder that the manifest's paths are in")
    found = read_manifest(config.manifest, config.raw)
    if not found.cases:
        first = found.problems[0]
        raise InputError(
            f"not one case of it can be used; the first: {first.file}: {first.reason}",
            where=config.manifest,
            remedy=first.remedy,
        )
    return found


def _manifest_only(config: PrepareConfig, path: Path) -> PrepareResult:
    """Write a manifest of what a layout finds, or of the images alone where none fits."""
    if path.exists():
        raise InputError("it exists already", where=path, remedy="choose another name for --write-manifest")
    try:
        found = find_cases(config.raw, config.layout)
    except InputError:
        if not config.raw.is_dir():
            raise
        found = FoundCases(layout="unknown", cases=(), why="no layout fits")
    atomic_write_text(path, template(config.raw, found.cases))
    settings = CacheSettings(kind="volumes", preprocessing=Preprocessing(), sequences=())
    return dataclasses.replace(_result(found, settings, config, found.notes), manifest=path)


def _cache(
    found: FoundCases, settings: CacheSettings, config: PrepareConfig, progress: Progress, log_folder: Path | None
) -> tuple[list[CaseRecord], list[Problem], list[str], int]:
    """Write what is new or changed; take the rest from the shards that are there."""
    kept = reusable_cases(config.out)
    keys = {source.case: case_key(source, settings) for source in found.cases}
    done = [each for source in found.cases for each in kept.get(keys[source.case], ())]
    reused = len(done)
    fresh = [source for source in found.cases if keys[source.case] not in kept]
    if reused:
        progress.say(f"{reused} cases are unchanged and taken from {config.out}")
    problems: list[Problem] = []
    apart: list[ShardJob] = []
    progress.start("preparing", len(fresh))
    workers = config.workers or default_workers()
    jobs = shard_jobs(config.out, fresh, settings, len(found.cases))
    for job, written in _written(jobs, workers, config, log_folder):
        if not isinstance(written, Problem):
            done += written
        elif len(job.sources) == 1:
            problems.append(written)
        else:  # one of its cases killed the worker: the others are done without it
            apart += [dataclasses.replace(job, sources=(source,)) for source in job.sources]
            continue
        progress.advance(len(job.sources))
    for _, written in _written(apart, max(2, workers), config, log_folder):
        if isinstance(written, Problem):
            problems.append(written)
        else:
            done += written
        progress.advance(1)
    records = sorted((each.record for each in done if each.record), key=lambda r: (r.patient, r.case))
    problems += [p for each in done for p in each.problems]
    return records, problems, [n for each in done for n in each.notes], reused


def _written(
    jobs: Sequence[ShardJob], workers: int, config: PrepareConfig, log_folder: Path | None
) -> Iterator[tuple[ShardJob, list[WrittenCase] | Problem]]:
    """Write shards, by several processes."""
    return map_cases(
        write_shard, jobs, workers, config.cluster, file_of=lambda job: job.sources[0].first_file, log_folder=log_folder
    )


def _with_folds(
    records: Sequence[CaseRecord], config: PrepareConfig, same_patient: dict[str, str]
) -> tuple[list[CaseRecord], list[str], list[Problem]]:
    """Give every case its fold. A validation folder is fold 0; test cases and cases that only train have none.

    *same_patient* names, for patients who share images, the one with whom they count as one.
    """
    notes: list[str] = []
    problems: list[Problem] = []
    who = {r.case: same_patient.get(r.patient, r.patient) for r in records}
    splits: dict[str, set[str | None]] = {}
    for record in records:
        splits.setdefault(who[record.case], set()).add(record.split)
    mixed = {patient for patient, names in splits.items() if len(names) > 1}
    for patient in sorted(mixed):
        problems.append(
            Problem(
                file=config.raw,
                reason=f"patient {patient} lies in several of the train, validation and test folders",
                remedy="all of the patient's cases train, so that no score is flattered; move them to one folder",
            )
        )
    split = {r.case: "train" if who[r.case] in mixed else r.split for r in records}
    labelled = [r for r in records if r.labelled]
    if not labelled:
        notes.append("no case has a mask: there is nothing to train on")
    if "val" in split.values():
        notes.append("the folder names its own validation cases: they are fold 0, the only one")
        fold = {r.case: 0 if split[r.case] == "val" else None for r in records}
    else:
        pool = [r for r in labelled if split[r.case] != "test"]
        numbers = split_folds(
            [who[r.case] for r in pool], [float(sum(r.lesion_voxels)) for r in pool], config.folds, config.seed
        )
        fold = {r.case: number for r, number in zip(pool, numbers, strict=True)}
        used = len(set(numbers))
        if used == 1:
            notes.append("one patient only: a model cannot be validated on this folder")
            fold = {}
        elif 0 < used < config.folds:
            notes.append(f"{used} patients: {used} folds instead of {config.folds}")
    return [dataclasses.replace(r, split=split[r.case], fold=fold.get(r.case)) for r in records], notes, problems


def _about_labels(records: Sequence[CaseRecord], regions: dict[str, tuple[int, ...]]) -> list[str]:
    present = sorted({value for r in records for value in r.labels})
    notes = []
    if any(not values for values in regions.values()) and len(present) > 1:
        notes.append(
            f"the masks hold the labels {', '.join(map(str, present))}: all count as one region "
            "(--region NAME=1,2 tells them apart)"
        )
    absent = [n for n, values in regions.items() if values and not set(values) & set(present)]
    if absent and present:
        notes.append(f"no mask holds a label of region {', '.join(absent)}")
    return notes


def _about_sequences(records: Sequence[CaseRecord], settings: CacheSettings) -> list[str]:
    notes = []
    for name in settings.sequences:
        without = [r.case for r in records if name not in r.sequences]
        if without:
            some = ", ".join(without[:5]) + (" …" if len(without) > 5 else "")
            notes.append(f"{name} is missing in {len(without)} of {len(records)} cases, which are kept: {some}")
    unlabelled = sum(not r.labelled for r in records)
    if 0 < unlabelled < len(records):
        notes.append(f"{unlabelled} cases have no mask: they are kept, and neither train nor validate")
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
        "sequences": {
            name: sum(name in r.sequences for r in records)
            for name in sorted({s for r in records for s in r.sequences})
        },
        "unlabelled_cases": sum(not r.labelled for r in records),
        "cases_without_lesion": sum(not r.lesion_voxels for r in records),
    }


def _report(prepared: Prepared, found: FoundCases, problems: Sequence[Problem], notes: Sequence[str]) -> None:
    records = prepared.cases
    shown = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, min(_TILES, len(records))).astype(int))]
    tiles = []
    for record in shown:
        label = prepared.label(record)
        z = int(label.reshape(len(label), -1).astype(bool).sum(axis=1).argmax()) if label.any() else len(label) // 2
        image = prepared.image(record, (slice(z, z + 1), slice(None), slice(None)))[:, 0].astype(np.float32)
        title = record.case if len(label) == 1 else f"{record.case} · {z + 1}/{len(label)}"
        tiles.append((title, prepared.shown(record, image), label[z] > 0))
    sheet = prepared.folder / "contact_sheet.png"
    figures.save_contact_sheet(sheet, tiles)
    print_ = prepared.fingerprint
    facts = [
        ("cases", str(print_["cases"])),
        ("patients", str(print_["patients"])),
        ("slices", str(print_["slices"])),
        ("lesions", str(print_["lesions"])),
        ("layout", f"{found.layout}: {found.why}"),
        ("sequences", ", ".join(prepared.sequences)),
        ("regions", ", ".join(f"{n} = {', '.join(map(str, v)) or 'every label'}" for n, v in prepared.regions.items())),
        ("folds", str(prepared.folds)),
    ]
    if prepared.kind == "volumes":
        spacing = prepared.preprocessing.spacing_mm
        facts.append(("voxel size", f"{spacing_text(spacing)} mm" if spacing else "every case's own"))
    rows = [
        {
            "case": r.case,
            "patient": r.patient,
            "size": "×".join(map(str, reversed(r.shape))),
            "spacing (mm)": spacing_text(r.spacing_mm) if r.spacing_mm else "unknown",
            "sequences": ", ".join(r.sequences),
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
        problems=[(str(p.file), p.reason, p.remedy, p.left_out) for p in problems],
        cases=rows,
        pictures=[sheet],
    )


def _strict(problems: Sequence[Problem]) -> MetasegError:
    first = problems[0]
    return InputError(f"{len(problems)} problem(s), the first: {first.reason}", where=first.file, remedy=first.remedy)
