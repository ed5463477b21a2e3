"""Scans to predict: what the files and folders given on a command line mean."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from metaseg_cli.core.datasets import bids, brats, dicom, nnunet
from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.description import read_description
from metaseg_cli.core.datasets.naming import scans_in, stem
from metaseg_cli.core.datasets.sequence_names import case_and_sequence
from metaseg_cli.core.formats import ARCHIVES, image_suffix, is_picture


def scan_of(path: Path) -> CaseSource:
    """Return one file as a case; its sequence is what its name ends in, or ``image``."""
    name = stem(path) if image_suffix(path) or path.suffix in (*ARCHIVES, ".dcm") else path.name
    known = None if is_picture(path) else case_and_sequence(name)
    sequence = known[1] if known else "image"
    return CaseSource(case=name, patient=name, sequences={sequence: (path,)}, slices=is_picture(path))


def scans_under(folder: Path) -> FoundCases:
    """Return the visits to predict under *folder*, without masks and without what ``predict`` wrote.

    ``problems`` and ``notes`` are those of the layouts. Raises InputError for a broken dataset.json.
    """
    if bids.looks_like(folder):
        return _without_masks(bids.find(folder))
    files = scans_in(folder)
    cases: list[CaseSource] = []
    parts: list[FoundCases] = []
    numbered = nnunet.numbered_channels(folder)
    description = next((p for p in (folder / "dataset.json", folder.parent / "dataset.json") if p.exists()), None)
    if numbered and description is not None:
        names = nnunet.channel_names(read_description(description), description)
        for case, channels in sorted(numbered.items()):
            sequences: dict[str, tuple[Path, ...]] = {names[n]: (p,) for n, p in sorted(channels.items()) if n in names}
            if sequences:
                cases.append(CaseSource(case=case, patient=case, sequences=sequences))
    elif brats.looks_like(folder):
        parts.append(brats.find(folder))
    used = {f for case in (*cases, *(c for part in parts for c in part.cases)) for f in case.files}
    cases += [scan_of(p) for p in files if p not in used]
    if dicom.looks_like(folder):
        parts.append(dicom.find(folder))
    return _without_masks(
        FoundCases(
            layout="scans",
            cases=(*cases, *(c for part in parts for c in part.cases)),
            problems=tuple(p for part in parts for p in part.problems),
            notes=tuple(n for part in parts for n in part.notes),
        )
    )


def _without_masks(found: FoundCases) -> FoundCases:
    cases = (CaseSource(case=c.case, patient=c.patient, sequences=c.sequences, slices=c.slices) for c in found.cases)
    return dataclasses.replace(found, cases=tuple(cases))
