"""Image and mask pairs: in sibling folders, in one folder, or in a folder per patient."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.names import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    PICTURES,
    image_files,
    image_key,
    last_number,
    mask_key,
    natural,
    numbered,
    patient_folders,
    split_of,
    stem,
    suffix,
)
from metaseg_cli.errors import Problem


@dataclass(frozen=True)
class _Pair:
    image: Path
    mask: Path
    place: tuple[str, ...]  # folders between root and file, without images/masks
    split: str | None


def looks_like(root: Path) -> str | None:
    """Why *root* is laid out so, or None."""
    pairs, _ = _pairs(root)
    return f"{len(pairs)} images have a mask" if pairs else None


def find(root: Path) -> FoundCases:
    """Pairs grouped into cases and patients."""
    pairs, problems = _pairs(root)
    in_folders = patient_folders(pair.place for pair in pairs)
    cases: list[CaseSource] = []
    unknown = from_names = 0
    by_patient: dict[tuple[tuple[str, ...], str, str | None], list[_Pair]] = defaultdict(list)
    for pair in pairs:
        found = numbered(stem(pair.image))
        if in_folders:
            patient = pair.place[-1]
        elif found and suffix(pair.image) in PICTURES:
            patient = found[0]
            from_names += 1
        else:
            patient = ""
            unknown += 1
        by_patient[pair.place, patient or stem(pair.image), pair.split].append(pair)
    for (_, patient, _), group in by_patient.items():
        pictures = all(suffix(p.image) in PICTURES for p in group)
        group.sort(key=lambda p: (last_number(stem(p.image)), natural(stem(p.image))))
        if pictures and len(group) > 1 and (in_folders or _consecutive(group)):
            cases.append(_case(patient, patient, group))
        else:
            cases += [_case(stem(p.image), patient, [p]) for p in group]
    notes = []
    if in_folders:
        notes.append(f"one folder per patient: {len({c.patient for c in cases})} patients")
    elif from_names:
        notes.append(f"patients were read from the file names: {len({c.patient for c in cases})} patients")
    if unknown and not in_folders:
        notes.append(
            "no patient could be read from the names: every file counts as a patient of its own. If several belong to "
            "one patient, put them in one folder, or the score will flatter"
        )
    return FoundCases(layout="pairs", cases=tuple(_unique(cases, pairs)), problems=tuple(problems), notes=tuple(notes))


def _case(name: str, patient: str, pairs: list[_Pair]) -> CaseSource:
    return CaseSource(
        case=name,
        patient=patient,
        sequences={"image": tuple(p.image for p in pairs)},
        masks=tuple(p.mask for p in pairs),
        slices=suffix(pairs[0].image) in PICTURES,
        split=pairs[0].split,
    )


def _pairs(root: Path) -> tuple[list[_Pair], list[Problem]]:
    """Every image with its mask, and what stayed alone."""
    images: dict[tuple[tuple[str, ...], str], list[Path]] = defaultdict(list)
    masks: dict[tuple[tuple[str, ...], str], list[Path]] = defaultdict(list)
    for path in image_files(root):
        folders = path.relative_to(root).parts[:-1]
        place = tuple(f for f in folders if f.lower() not in IMAGE_FOLDERS | MASK_FOLDERS)
        in_masks = any(f.lower() in MASK_FOLDERS for f in folders)
        in_images = any(f.lower() in IMAGE_FOLDERS for f in folders)
        key = None if in_images and not in_masks else mask_key(stem(path), certain=in_masks)
        if key is not None:
            masks[place, key].append(path)
        else:
            images[place, image_key(stem(path))].append(path)
    pairs: list[_Pair] = []
    problems: list[Problem] = []
    for (place, key), files in images.items():
        own = masks.pop((place, key), [])
        if len(own) == 1 and len(files) == 1:
            pairs.append(_Pair(files[0], own[0], place, split_of(place)))
        elif not own:
            problems += [
                Problem(file=f, reason="no mask of this name", remedy="add one, or remove the image") for f in files
            ]
        else:
            names = ", ".join(p.name for p in [*files, *own])
            problems.append(
                Problem(
                    file=files[0],
                    reason=f"it is not clear what belongs together: {names}",
                    remedy="give each image one mask",
                )
            )
    for files in masks.values():
        problems += [
            Problem(file=f, reason="no image of this name", remedy="add it, or remove the mask") for f in files
        ]
    return sorted(pairs, key=lambda p: natural(str(p.image))), problems


def _consecutive(group: list[_Pair]) -> bool:
    numbers = [last_number(stem(p.image)) for p in group]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _unique(cases: list[CaseSource], pairs: list[_Pair]) -> list[CaseSource]:
    """Names usable in HDF5 and as files; folders in front where a name occurs twice."""
    place = {pair.image: pair.place for pair in pairs}
    counts = Counter(case.case for case in cases)
    result, taken = [], set()
    for case in cases:
        name = case.case.replace("/", "_").strip(". ") or "case"
        if counts[case.case] > 1:
            name = "_".join((*place[case.sequences["image"][0]], name))
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique)
        result.append(dataclasses.replace(case, case=unique))
    return result
