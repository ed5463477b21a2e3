"""BraTS: the sequences of a case in one folder, distinguished by the end of their names."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.naming import image_files, is_predicted, match_names, split_of, stem
from metaseg_cli.core.datasets.sequence_names import case_and_sequence, in_order
from metaseg_cli.core.formats import is_picture
from metaseg_cli.core.words import nfc
from metaseg_cli.errors import Problem

_MASK = re.compile(r"^(?:(?P<case>.+?)[-_. ])?(?:seg|segmentation)$", re.IGNORECASE)
_VISIT = re.compile(r"^(BraTS-[A-Za-z]+-\d+)-\d+$|^(BraTS\d\d_.+)_\d+$", re.IGNORECASE)


def looks_like(root: Path) -> str | None:
    """Return why *root* has this layout, or None."""
    groups, _ = _groups(root)
    whole = [g for g in groups.values() if len(g) > 1 and any(w != "seg" for w in g)]
    if not whole:
        return None
    names = in_order({w for g in whole for w in g if w != "seg"})
    return f"{len(whole)} cases have files that end in {', '.join(names)} or seg"


def find(root: Path) -> FoundCases:
    """Return cases by what precedes the sequence in file names; a visit's number at the end is not the patient's."""
    groups, others = _groups(root)
    cases: list[CaseSource] = []
    problems: list[Problem] = []
    for (folder, case), files in groups.items():
        twice = [paths for paths in files.values() if len(paths) > 1]
        for paths in twice:
            problems.append(
                Problem(
                    file=paths[1],
                    reason=f"a second file of one sequence beside {paths[0].name}",
                    remedy="keep one; the first was read",
                )
            )
        sequences: dict[str, tuple[Path, ...]] = {name: (files[name][0],) for name in in_order(set(files) - {"seg"})}
        if not sequences:
            problems.append(
                Problem(file=files["seg"][0], reason="a mask without any sequence", remedy="add them, or remove it")
            )
            continue
        match = _VISIT.match(case)
        cases.append(
            CaseSource(
                case=case,
                patient=next(filter(None, match.groups())) if match else case,
                sequences=sequences,
                masks=tuple(files["seg"][:1]) if "seg" in files else (),
                split=split_of((*folder.relative_to(root).parts,)),
            )
        )
    problems += [
        Problem(file=p, reason="its name ends in no known sequence", remedy="rename it, or list it in a manifest")
        for p in others
    ]
    notes = []
    patients = len({c.patient for c in cases})
    if patients < len(cases):
        notes.append(f"{len(cases)} visits of {patients} patients, by their names: a patient's visits share a fold")
    return FoundCases(layout="brats", cases=tuple(cases), problems=tuple(problems), notes=tuple(notes))


def _groups(root: Path) -> tuple[dict[tuple[Path, str], dict[str, list[Path]]], list[Path]]:
    """Return (folder, case) → what ("seg" or a sequence) → files; and the volumes that fit no case."""
    groups: dict[tuple[Path, str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    others = []
    for path in image_files(root):
        name = stem(path)
        if is_picture(path) or is_predicted(name, masks=False):
            continue
        folder = nfc(path.parent.name)
        if mask := _MASK.match(name):
            groups[path.parent, mask["case"] or folder]["seg"].append(path)
        elif found := case_and_sequence(name):
            groups[path.parent, found[0] or folder][found[1]].append(path)
        else:
            others.append(path)
    return _with_masks_of_other_case(groups), others


def _with_masks_of_other_case(
    groups: dict[tuple[Path, str], dict[str, list[Path]]],
) -> dict[tuple[Path, str], dict[str, list[Path]]]:
    """Assign a mask without sequences to those whose name differs in case alone: ``case1-seg``, ``CASE1-t1c``."""
    names = {f"{folder}/{case}": (folder, case) for folder, case in groups}
    masks = [name for name, key in names.items() if set(groups[key]) == {"seg"}]
    unmasked = [name for name, key in names.items() if "seg" not in groups[key]]
    for mask, scan in match_names(masks, unmasked).items():
        groups[names[scan]]["seg"] = groups.pop(names[mask])["seg"]
    return groups
