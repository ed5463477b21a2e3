"""Find the cases of a folder, check and cache them, assign folds, and report what was read and what was not."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli import PROGRAM
from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.atomic import atomic_write_text
from metaseg_cli.core.cache import (
    BuiltCases,
    CacheSettings,
    CaseRecord,
    ChosenSettings,
    PrepareResult,
    ShownNames,
    assign_folds,
    build_shards,
    choose_settings,
    commit_index,
    dataset_warnings,
    exclusive_cache_writer,
    file_channels,
    fingerprint,
    label_notes,
    open_prepared,
    sequence_notes,
    settings_record,
)
from metaseg_cli.core.counts import counted
from metaseg_cli.core.datasets import FoundCases, find_cases, manifest_template, read_manifest
from metaseg_cli.core.preprocessing import Preprocessing
from metaseg_cli.core.progress import Progress
from metaseg_cli.errors import InputError, Problem
from metaseg_cli.reports.prepare_page import write_prepare_page


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """What the prepared folder will list."""

    records: list[CaseRecord]
    problems: list[Problem]
    notes: tuple[str, ...]


def prepare(config: PrepareConfig, progress: Progress) -> PrepareResult:
    """Run ``metaseg prepare``. Raises InputError when nothing usable is found, or with *strict* on any problem."""
    if config.write_manifest is not None:
        return _write_manifest(config, config.write_manifest)
    if config.cluster is not None:  # other computers have other working folders
        config = dataclasses.replace(config, raw=config.raw.resolve(), out=config.out.resolve())
    names = ShownNames(_find(config), config)
    if names.key is not None:
        progress.say(f"{names.key} tells which patient has which random name: keep it apart, and do not pass it on")
    progress.say(
        f"{config.raw}: {len(names.found.cases)} cases, layout {names.found.layout} ({names.found.why})",
    )
    chosen = choose_settings(names.found, config)
    found, settings = chosen.found, dataclasses.replace(chosen.settings, secret=names.secret)
    if config.dry_run:
        return _result(found, settings, config, notes=(*found.notes, *chosen.notes))
    if config.strict:
        _refuse_problems(found.problems)
    with exclusive_cache_writer(config.out):
        built = build_shards(found, settings, config, progress, names.log_folder)
        contents = _check(built, chosen, names, config)
        _commit(contents, found, settings, config)
    prepared = open_prepared(config.out)
    progress.start("drawing the report", None)
    write_prepare_page(prepared, found, contents.problems, contents.notes)
    return dataclasses.replace(
        _result(found, settings, config, notes=contents.notes),
        out=config.out,
        cases=prepared.cases,
        problems=tuple(contents.problems),
        folds=prepared.folds,
        reused=built.reused,
        found=() if names.key is not None else found.cases,
        key=names.key,
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


def _write_manifest(config: PrepareConfig, path: Path) -> PrepareResult:
    """Write a manifest of what a layout finds, or of the images alone where none fits."""
    if path.exists():
        raise InputError("it exists already", where=path, remedy="choose another name for --write-manifest")
    try:
        found = find_cases(config.raw, config.layout)
    except InputError:
        if not config.raw.is_dir():
            raise
        found = FoundCases(layout="unknown", cases=(), why="no layout fits")
    atomic_write_text(path, manifest_template(config.raw, found.cases))
    settings = CacheSettings(kind="volumes", preprocessing=Preprocessing(), sequences=())
    return dataclasses.replace(_result(found, settings, config, found.notes), manifest=path)


def _check(built: BuiltCases, chosen: ChosenSettings, names: ShownNames, config: PrepareConfig) -> _Contents:
    """Check the cases as a whole and assign folds. Raises InputError when there are none, or with *strict*."""
    found, settings, regions = chosen.found, chosen.settings, config.regions()
    problems = [*found.problems, *names.problems(built.problems)]
    if not built.records:
        raise _nothing_read(problems, config.raw)
    warnings, same_patient = dataset_warnings(built.records, settings.kind, regions)
    problems += warnings
    if config.strict:
        _refuse_problems(problems)
    assigned = assign_folds(built.records, same_patient, config.raw, folds=config.folds, seed=config.seed)
    problems += names.problems(assigned.problems)
    names.save()
    notes = [
        *found.notes,
        *chosen.notes,
        *label_notes(assigned.records, regions),
        *sequence_notes(assigned.records, settings.sequences),
        *_counted(names.notes(built.notes)),
        *assigned.notes,
    ]
    return _Contents(records=assigned.records, problems=problems, notes=tuple(notes))


def _commit(contents: _Contents, found: FoundCases, settings: CacheSettings, config: PrepareConfig) -> None:
    identity = settings.secret + str(config.raw.resolve())
    description = {
        "program": PROGRAM,
        "id": hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16],
        "layout": found.layout,
        "kind": settings.kind,
        "preprocessing": settings.preprocessing.record(),
        "sequences": settings.sequences,
        "file_channels": file_channels(found, settings),
        "regions": config.regions(),
        "folds": max((r.fold for r in contents.records if r.fold is not None), default=0) + 1,
        "fingerprint": fingerprint(contents.records),
        "settings": settings_record(config),
        "notes": contents.notes,
        "problems": [dataclasses.asdict(p) | {"file": str(p.file)} for p in contents.problems],
    }
    commit_index(config.out, contents.records, description)


def _counted(notes: Sequence[str]) -> list[str]:
    return [f"{text} ({count} times)" if count > 1 else text for text, count in Counter(notes).items()]


def _result(found: FoundCases, settings: CacheSettings, config: PrepareConfig, notes: Sequence[str]) -> PrepareResult:
    """Return what is known before any case is read."""
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


def _nothing_read(problems: Sequence[Problem], raw: Path) -> InputError:
    first = problems[0] if problems else None
    return InputError(
        "not one case could be read" + (f"; the first: {first.file}: {first.reason}" if first else ""),
        where=raw,
        remedy=first.remedy if first else "check the folder",
    )


def _refuse_problems(problems: Sequence[Problem]) -> None:
    if problems:
        first = problems[0]
        what = f"{counted(len(problems), 'problem')}, the first: {first.reason}"
        raise InputError(what, where=first.file, remedy=first.remedy)
