"""Give every case of a prepared folder its fold and its part: training, validation or test."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli.core.cache.records import CaseRecord
from metaseg_cli.core.datasets import split_folds
from metaseg_cli.errors import Problem


@dataclass(frozen=True, kw_only=True)
class FoldAssignment:
    """Cases with fold and split, with notes and problems."""

    records: list[CaseRecord]
    notes: list[str]
    problems: list[Problem]


def assign_folds(
    records: Sequence[CaseRecord], same_patient: dict[str, str], raw: Path, *, folds: int, seed: int
) -> FoldAssignment:
    """Assign *folds* folds. A validation folder is fold 0; test cases and cases that only train have none.

    *same_patient* maps patients who share images to the one with whom they count as one. A patient who lies in several
    of the parts that the folder *raw* names trains with all cases.
    """
    patients = {r.case: same_patient.get(r.patient, r.patient) for r in records}
    mixed = _in_several_parts(records, patients)
    split = {r.case: "train" if patients[r.case] in mixed else r.split for r in records}
    labelled = [r for r in records if r.labelled]
    notes = [] if labelled else ["no case has a mask: there is nothing to train on"]
    if "val" in split.values():
        notes.append("the folder names its own validation cases: they are fold 0, the only one")
        fold = {r.case: 0 for r in records if split[r.case] == "val"}
    else:
        pool = [r for r in labelled if split[r.case] != "test"]
        burden = [float(sum(r.lesion_voxels)) for r in pool]
        numbers = split_folds([patients[r.case] for r in pool], burden, folds, seed)
        fold = {r.case: number for r, number in zip(pool, numbers, strict=True)}
        used = len(set(numbers))
        if used == 1:
            notes.append("one patient only: a model cannot be validated on this folder")
            fold = {}
        elif 0 < used < folds:
            notes.append(f"{used} patients: {used} folds instead of {folds}")
    return FoldAssignment(
        records=[dataclasses.replace(r, split=split[r.case], fold=fold.get(r.case)) for r in records],
        notes=notes,
        problems=[_mixed(patient, raw) for patient in sorted(mixed)],
    )


def _in_several_parts(records: Sequence[CaseRecord], patients: dict[str, str]) -> set[str]:
    parts: dict[str, set[str | None]] = {}
    for record in records:
        parts.setdefault(patients[record.case], set()).add(record.split)
    return {patient for patient, names in parts.items() if len(names) > 1}


def _mixed(patient: str, raw: Path) -> Problem:
    return Problem(
        file=raw,
        reason=f"patient {patient} lies in several of the train, validation and test folders",
        remedy="all of the patient's cases train, so that no score is flattered; move them to one folder",
    )
