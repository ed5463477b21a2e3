"""BIDS: sub-<id>/[ses-<id>/]anat/*_T1w.nii.gz, with masks in derivatives."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.naming import image_files, is_predicted, stem
from metaseg_cli.core.datasets.sequence_names import in_order, sequence_name
from metaseg_cli.errors import Problem

_SUBJECT = re.compile(r"^sub-[A-Za-z0-9]+")
_MASK = re.compile(r"_(?:mask|dseg|seg|roi)$|_label-[A-Za-z0-9]+_", re.IGNORECASE)
_NO_LESION = re.compile(r"brain|skull|gm\b|wm\b|csf|tissue|ventric|(?:desc|label)-(?:aseg|aparc)", re.IGNORECASE)
_NAMES_LESION = re.compile(r"lesion|tumou?r|met|gtv", re.IGNORECASE)


def looks_like(root: Path) -> str | None:
    """Return why *root* has this layout, or None."""
    subjects = [p for p in root.glob("sub-*") if p.is_dir() and any(p.glob("**/anat/*.nii*"))]
    return f"{len(subjects)} folders sub-… hold anat" if subjects else None


def find(root: Path) -> FoundCases:
    """Return one case per subject and session; a subject is a patient."""
    images: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    masks: dict[str, list[Path]] = defaultdict(list)
    notes: list[str] = []
    for path in image_files(root):
        name = stem(path)
        visit = _visit(name)
        if visit is None or is_predicted(name, masks=False):
            continue
        parts = path.relative_to(root).parts
        if _MASK.search(name):
            if not _NO_LESION.search(name):
                masks[visit].append(path)
        elif parts[0] != "derivatives" and "anat" in parts:
            images[visit][_sequence(name)].append(path)
    cases: list[CaseSource] = []
    problems: list[Problem] = []
    for visit, sequences in sorted(images.items()):
        for sequence, paths in sequences.items():
            if len(paths) > 1:
                notes.append(f"{visit}: {len(paths)} images are {sequence}, {paths[0].name} was taken")
        own = masks.pop(visit, [])
        named = [p for p in own if _NAMES_LESION.search(p.name)]
        own = named or own
        if len(own) > 1:
            names = ", ".join(p.name for p in own)
            problems.append(Problem(file=own[0], reason=f"several masks of one visit: {names}", remedy="keep one"))
            continue
        cases.append(
            CaseSource(
                case=visit,
                patient=visit.split("_")[0],
                sequences={s: (sequences[s][0],) for s in in_order(set(sequences))},
                masks=tuple(own),
            )
        )
    problems += [
        Problem(file=p, reason="no image of this visit", remedy="add it, or remove the mask")
        for paths in masks.values()
        for p in paths
    ]
    return FoundCases(layout="bids", cases=tuple(cases), problems=tuple(problems), notes=tuple(notes))


def _visit(name: str) -> str | None:
    """Return subject and session: ``sub-01_ses-02`` of ``sub-01_ses-02_acq-x_T1w``; None for other names."""
    if not _SUBJECT.match(name):
        return None
    return "_".join(part for part in name.split("_") if part.startswith(("sub-", "ses-")))


def _sequence(name: str) -> str:
    *entities, ending = name.split("_")
    sequence = sequence_name(ending)
    return "t1c" if sequence == "t1n" and any(e.startswith("ce-") for e in entities) else sequence
