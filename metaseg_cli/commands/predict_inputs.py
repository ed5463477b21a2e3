"""What is to be predicted: files, folders and named sequences as cases, and which of their files a model takes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from metaseg_cli.core.datasets import KNOWN, CaseSource, scan_of, scans_under, sequence_name
from metaseg_cli.core.datasets.names import distinct
from metaseg_cli.core.images import is_dicom, is_image_file, stem_of, suffix_of
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.words import same_form
from metaseg_cli.errors import InputError, MetasegError, Problem


def sources_of(inputs: Sequence[str]) -> tuple[list[CaseSource], list[Problem]]:
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
    inside = scans_under(folder)
    if len(inside) == 1 and len(inside[0].files) > 1 and is_dicom(inside[0].first_file):
        return [dataclasses.replace(inside[0], case=folder.resolve().name)]
    return inside


def absolute(source: CaseSource) -> CaseSource:
    sequences = {name: tuple(p.resolve() for p in files) for name, files in source.sequences.items()}
    return dataclasses.replace(source, sequences=sequences)


def output_names(sources: Sequence[CaseSource]) -> list[str]:
    """One stem per case; cases of the same name from several folders get their folder's name in front."""
    count = Counter(same_form(source.case).casefold() for source in sources)
    alone = [count[same_form(source.case).casefold()] == 1 for source in sources]
    return distinct(
        [
            source.case if single else f"{source.first_file.resolve().parent.name}_{source.case}"
            for source, single in zip(sources, alone, strict=True)
        ]
    )


def scan_for(card: ModelCard, source: CaseSource) -> Path | Mapping[str, tuple[Path, ...]]:
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
