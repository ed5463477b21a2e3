"""Image and mask pairs: in sibling folders, in one folder, or in a folder per patient."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.naming import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    are_parts,
    distinct_names,
    image_files,
    image_key,
    is_predicted,
    last_number,
    mask_key,
    match_names,
    natural,
    numbered,
    numbered_mask,
    patient_folders,
    split_of,
    stem,
)
from metaseg_cli.core.formats import is_picture
from metaseg_cli.core.words import nfc
from metaseg_cli.errors import Problem

_SHOWN = 5  # examples in a note


@dataclass(frozen=True)
class _Pair:
    image: Path
    masks: tuple[Path, ...]  # several are united
    place: tuple[str, ...]  # folders between root and file, without images/masks
    split: str | None


def looks_like(root: Path) -> str | None:
    """Return why *root* has this layout, or None."""
    pairs, _ = _pairs(root)
    return f"{len(pairs)} images have a mask" if pairs else None


def find(root: Path) -> FoundCases:
    """Return the pairs grouped into cases and patients."""
    pairs, problems = _pairs(root)
    in_folders = patient_folders(pair.place for pair in pairs)
    cases: list[CaseSource] = []
    unknown = from_names = 0
    by_patient: dict[tuple[tuple[str, ...], str, str | None], list[_Pair]] = defaultdict(list)
    for pair in pairs:
        found = numbered(stem(pair.image))
        if in_folders:
            patient = pair.place[-1]
        elif found and is_picture(pair.image):
            patient = found[0]
            from_names += 1
        else:
            patient = ""
            unknown += 1
        by_patient[pair.place, patient or stem(pair.image), pair.split].append(pair)
    for (_, patient, _), group in by_patient.items():
        pictures = all(is_picture(p.image) for p in group)
        group.sort(key=lambda p: (last_number(stem(p.image)), natural(stem(p.image))))
        if pictures and len(group) > 1 and (in_folders or _consecutive(group)):
            cases.append(_case(patient, patient, group))
        else:
            cases += [_case(stem(p.image), patient, [p]) for p in group]
    notes = _about_united(pairs)
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
        masks=tuple(p.masks[0] for p in pairs),
        extra_masks={i: p.masks[1:] for i, p in enumerate(pairs) if len(p.masks) > 1},
        slices=is_picture(pairs[0].image),
        split=pairs[0].split,
    )


def _about_united(pairs: list[_Pair]) -> list[str]:
    several = [pair for pair in pairs if len(pair.masks) > 1]
    if not several:
        return []
    some = "; ".join(f"{p.image.name}: {', '.join(m.name for m in p.masks)}" for p in several[:_SHOWN])
    more = " …" if len(several) > _SHOWN else ""
    return [f"{len(several)} image(s) have several masks, which were united: {some}{more}"]


@dataclass(frozen=True)
class _File:
    path: Path
    place: tuple[str, ...]
    in_masks: bool
    in_images: bool


def _pairs(root: Path) -> tuple[list[_Pair], list[Problem]]:
    """Return every image with its masks, and a Problem for each file without a partner."""
    files = [_file(path, root) for path in image_files(root)]
    files = [f for f in files if not is_predicted(stem(f.path), masks=False)]
    images: dict[str, list[_File]] = defaultdict(list)
    masks: dict[str, list[_File]] = defaultdict(list)
    maybe_numbered = []
    for file in files:
        name = stem(file.path)
        only_image = file.in_images and not file.in_masks
        key = None if only_image else mask_key(name, certain=file.in_masks)
        if not only_image and numbered_mask(name):
            maybe_numbered.append(file)
        elif key is not None:
            masks[_key(file.place, key)].append(file)
        else:
            images[_key(file.place, image_key(name))].append(file)
    problems = _assign_numbered(maybe_numbered, images, masks)
    pairs: list[_Pair] = []
    partner = match_names(images, masks)
    for key, own_images in images.items():
        own = masks.pop(partner[key], []) if key in partner else []
        if not own:
            problems += [_alone(f.path, "no mask of this name", "add one, or remove the image") for f in own_images]
        elif len(own_images) == 1 and (len(own) == 1 or are_parts([stem(f.path) for f in own])):
            first = own_images[0]
            paths = sorted((f.path for f in own), key=lambda p: natural(stem(p)))
            pairs.append(_Pair(first.path, tuple(paths), first.place, split_of(first.place)))
        else:
            names = ", ".join(f.path.name for f in [*own_images, *own])
            reason = f"it is not clear what belongs together: {names}"
            problems.append(_alone(own_images[0].path, reason, "give each image one mask"))
    for own in masks.values():
        problems += [_alone(f.path, "no image of this name", "add it, or remove the mask") for f in own]
    return sorted(pairs, key=lambda p: natural(str(p.image))), problems


def _file(path: Path, root: Path) -> _File:
    folders = path.relative_to(root).parts[:-1]
    place = tuple(nfc(f) for f in folders if f.lower() not in IMAGE_FOLDERS | MASK_FOLDERS)
    in_masks = any(f.lower() in MASK_FOLDERS for f in folders)
    return _File(path, place, in_masks, any(f.lower() in IMAGE_FOLDERS for f in folders))


def _key(place: tuple[str, ...], name: str) -> str:
    return "/".join((*place, name))


def _alone(file: Path, reason: str, remedy: str) -> Problem:
    return Problem(file=file, reason=reason, remedy=remedy)


def _assign_numbered(
    files: list[_File], images: dict[str, list[_File]], masks: dict[str, list[_File]]
) -> list[Problem]:
    """Assign ``a_mask_1`` to ``a`` or to ``a_1``, whichever exists; otherwise its folder decides what it is."""
    there = {key.casefold() for key in images}
    problems = []
    for file in files:
        name = stem(file.path)
        found = numbered_mask(name)
        assert found is not None
        whole = [_key(file.place, found.key)]
        single = [_key(file.place, f"{found.key}{sign}{found.number}") for sign in "_- "]
        same = [_key(file.place, image_key(name))] if file.in_masks else []
        options = [key for key in same if key.casefold() in there] or [
            key for key in (*whole, *single) if key.casefold() in there
        ]
        if len(options) > 1:
            reason = f"it may belong to several images: {', '.join(key.split('/')[-1] for key in options)}"
            problems.append(_alone(file.path, reason, "rename it"))
        elif options:
            masks[options[0]].append(file)
        elif file.in_masks:
            masks[_key(file.place, image_key(name))].append(file)
        else:
            images[_key(file.place, image_key(name))].append(file)
    return problems


def _consecutive(group: list[_Pair]) -> bool:
    numbers = [last_number(stem(p.image)) for p in group]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _unique(cases: list[CaseSource], pairs: list[_Pair]) -> list[CaseSource]:
    """Make names usable in HDF5 and as files; repeated names get their folders in front."""
    place = {pair.image: pair.place for pair in pairs}
    counts = Counter(case.case.casefold() for case in cases)
    names = []
    for case in cases:
        name = case.case.replace("/", "_").strip(". ") or "case"
        if counts[case.case.casefold()] > 1:
            name = "_".join((*place[case.sequences["image"][0]], name))
        names.append(name)
    return [dataclasses.replace(case, case=name) for case, name in zip(cases, distinct_names(names), strict=True)]
