"""What is to be predicted: files, folders and named sequences as cases, and which of their files a model takes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from metaseg_cli.core.datasets import KNOWN, CaseSource, FoundCases, scan_of, scans_under, sequence_name, unread
from metaseg_cli.core.datasets.naming import distinct_names
from metaseg_cli.core.formats import ARCHIVES, is_image_file, stem_of, suffix_of
from metaseg_cli.core.images import is_dicom, unpacked
from metaseg_cli.core.inference.channels import check_known
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.paths import file_name, odd_name_below, path_exists, unusable
from metaseg_cli.core.words import nfc
from metaseg_cli.errors import ConfigError, InputError, Problem, attempt

# A file or folder, or the files of each sequence.
ScanFiles = Path | Mapping[str, tuple[Path, ...]]


@dataclass
class _Found:
    """What the inputs hold so far."""

    sources: list[CaseSource] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dicom_files: Counter[Path] = field(default_factory=Counter)  # that were named one by one, by their folder


def sources_of(
    inputs: Sequence[str], log_folder: Path | None = None, takes: Sequence[str] = ()
) -> tuple[list[CaseSource], list[Problem], list[str]]:
    """Return the cases that *inputs* mean, in order and once each, what cannot be used of them, and what was assumed.

    ``t1c=a.nii.gz t2f=b.nii.gz`` are the sequences of one case, which is called after the first file that the model
    *takes*; folders mean the scans under them. Raises ConfigError for the name of a sequence that does not exist.
    """
    found = _Found()
    named: list[tuple[str, Path]] = []
    for text in inputs:
        sequence, path = _named(str(text))
        problem = unusable(path)
        if problem is not None:
            found.problems.append(problem)
        elif sequence:
            named.append((sequence, path))
        elif path.is_dir() or (path.is_file() and suffix_of(path) in ARCHIVES):
            _add_several(path, found, log_folder)
        else:
            _add_file(path, found)
    found.notes += [
        f"{folder}: {count} DICOM files were named one by one, each a scan of its own; for a volume name the folder"
        for folder, count in found.dicom_files.items()
        if count > 1
    ]
    if named:
        found.sources.append(case_of_named(named, takes))
    unique: dict[tuple[str, ...], CaseSource] = {}
    for source in found.sources:
        unique.setdefault(_identity(source), source)
    return list(unique.values()), found.problems, found.notes


def _named(text: str) -> tuple[str, Path]:
    """Split ``t1c=a.nii.gz`` into sequence and path; the sequence is empty where *text* is a path alone."""
    sequence, sign, rest = text.partition("=")
    if sign and not path_exists(text) and sequence.isidentifier():
        return sequence, Path(rest)
    return "", Path(text)


def case_of_named(named: Sequence[tuple[str, Path]], takes: Sequence[str]) -> CaseSource:
    """Return the case of files that are *named* by their sequences, called after the first one that the model *takes*.

    Raises ConfigError for a sequence that is unknown, or named twice.
    """
    sequences: dict[str, tuple[Path, ...]] = {}
    for typed, path in named:
        name = sequence_name(typed)
        check_known([name], takes, typed)
        if name in sequences:
            raise ConfigError(
                f"{name} is named twice: {sequences[name][0]} and {path}", remedy="name one file or folder for it"
            )
        sequences[name] = (path,)
    case = name_of(first_taken(sequences, takes))
    return CaseSource(case=case, patient=case, sequences=sequences)


def first_taken(sequences: Mapping[str, tuple[Path, ...]], takes: Sequence[str]) -> Path:
    """Return the first file of a sequence that the model *takes*; the first of all where it takes none."""
    return next((files for name, files in sequences.items() if name in takes), next(iter(sequences.values())))[0]


def name_of(path: Path) -> str:
    """Return what a case of this file or folder is called."""
    return path.resolve().name if path.is_dir() else stem_of(path)


def _add_several(path: Path, found: _Found, log_folder: Path | None) -> None:
    """Add the cases in a folder or ZIP."""
    inside = attempt(partial(_in_folder if path.is_dir() else _in_archive, path), path, log_folder)
    if isinstance(inside, Problem):
        found.problems.append(inside)
        return
    if not inside.cases and not inside.problems:
        what = "folder" if path.is_dir() else "ZIP"
        found.problems.append(Problem(file=path, reason=f"no image in this {what}", remedy="name one with scans"))
    found.sources += inside.cases
    found.problems += inside.problems
    found.notes += inside.notes
    found.problems += unread(path) if path.is_dir() else []


def _add_file(path: Path, found: _Found) -> None:
    """Add one file as a scan."""
    if not is_image_file(path) and not is_dicom(path):
        found.problems.append(
            Problem(
                file=path,
                reason="not an image format that metaseg reads",
                remedy="convert it to one of PNG, JPEG, TIFF, BMP, WebP, GIF, NIfTI, NRRD, MHA, DICOM",
            )
        )
        return
    found.sources.append(scan_of(path))
    found.dicom_files[path.parent] += not is_image_file(path)


def _identity(source: CaseSource) -> tuple[str, ...]:
    """Return what is equal for cases of the same files; several cases of one ZIP differ by what is inside it."""
    inside = [str(f) for files in source.sequences.values() for f in files] if source.archive else []
    return tuple(sorted([*map(str, source.files), *inside]))


def _in_folder(folder: Path) -> FoundCases:
    """Return the cases under *folder*, also in ZIPs; the only one of a DICOM folder is named after the folder."""
    parts = [scans_under(folder)]
    archives = (p for p in folder.rglob("*") if suffix_of(p) == ".zip" and p.is_file())
    for archive in sorted(p for p in archives if odd_name_below(p, folder) is None):
        inside = attempt(partial(_in_archive, archive), archive, None)
        if isinstance(inside, Problem):
            inside = FoundCases(layout="zip", cases=(), problems=(inside,))
        parts.append(inside)
    found = FoundCases(
        layout="scans",
        cases=tuple(c for part in parts for c in part.cases),
        problems=tuple(p for part in parts for p in part.problems),
        notes=tuple(n for part in parts for n in part.notes),
    )
    cases = found.cases
    if len(cases) == 1 and cases[0].archive is None and len(cases[0].files) > 1 and is_dicom(cases[0].first_file):
        return dataclasses.replace(found, cases=(dataclasses.replace(cases[0], case=folder.resolve().name),))
    return found


def _in_archive(path: Path) -> FoundCases:
    """Return the cases in a ZIP: the only one is named after it; of several, each has the ZIP's name in front."""
    with unpacked(path) as folder:
        found = scans_under(folder)
        cases = [case.packed_in(path, folder) for case in found.cases]
        problems = [
            dataclasses.replace(p, file=path / p.file.relative_to(folder) if p.file.is_relative_to(folder) else path)
            for p in (*found.problems, *unread(folder))
        ]
    names = [stem_of(path) if len(cases) == 1 else f"{stem_of(path)}_{case.case}" for case in cases]
    named = (dataclasses.replace(case, case=name) for case, name in zip(cases, names, strict=True))
    return dataclasses.replace(found, cases=tuple(named), problems=tuple(problems))


def absolute(source: CaseSource) -> CaseSource:
    """Return *source* with absolute paths."""
    return source.located(Path.resolve)


def output_names(sources: Sequence[CaseSource]) -> list[str]:
    """Return one valid file stem per case; cases of one name from several folders get their folder's name in front."""
    count = Counter(nfc(source.case).casefold() for source in sources)
    alone = [count[nfc(source.case).casefold()] == 1 for source in sources]
    return distinct_names(
        [
            file_name(source.case if single else f"{source.first_file.resolve().parent.name}_{source.case}")
            for source, single in zip(sources, alone, strict=True)
        ]
    )


def scan_for(card: ModelCard, source: CaseSource) -> ScanFiles:
    """Return what of *source* the model takes, by the names of the sequences. Raises InputError rather than guess."""
    known = {name: source.sequences[name] for name in card.sequences if name in source.sequences}
    if known:
        missing = [name for name in card.sequences if name not in known]
        if missing and not card.presence:
            raise InputError(f"{', '.join(missing)} is missing", where=source.first_file, remedy="name its file too")
        return known
    if len(source.sequences) > 1:
        raise InputError(
            f"it has the sequences {', '.join(source.sequences)}, the model requires {', '.join(card.sequences)}",
            where=source.first_file.parent,
            remedy=f"name the one that is meant, as in {card.sequences[0]}=FILE",
        )
    (name, files), wanted = next(iter(source.sequences.items())), card.sequences[0]
    if name in KNOWN and wanted in KNOWN:
        raise InputError(
            f"by its name it is {name}, the model requires {', '.join(card.sequences)}",
            where=source.first_file,
            remedy=f"if the name is wrong, insist with {wanted}={source.archive or files[0]}",
        )
    if len(card.sequences) == 1 and not source.slices:
        return {wanted: files}
    return files[0]  # a picture in colour, or a file whose channels are the sequences


def unused_notes(scan: ScanFiles, source: CaseSource) -> list[str]:
    """Return a note on the sequences of *source* that the model does not take; *scan* is what it takes."""
    if not isinstance(scan, Mapping) or len(scan) == len(source.sequences):
        return []
    others = {name: files for name, files in source.sequences.items() if name not in scan}
    named = (f"{name} ({(f[0] if len(f) == 1 else f[0].parent).name})" for name, f in others.items())
    return [f"not used, the model does not take it: {', '.join(named)}"]
