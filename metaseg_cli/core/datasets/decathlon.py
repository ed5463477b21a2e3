"""Medical Segmentation Decathlon: imagesTr, labelsTr, and a dataset.json that lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.description import read_description
from metaseg_cli.core.datasets.naming import find_file, image_files, match_names, stem
from metaseg_cli.core.datasets.nnunet import channel_names
from metaseg_cli.core.formats import is_picture
from metaseg_cli.core.paths import path_exists, unusable
from metaseg_cli.errors import Problem


def looks_like(root: Path) -> str | None:
    """Return why *root* has this layout, or None."""
    if (root / "imagesTr").is_dir() and (root / "labelsTr").is_dir():
        return "it holds imagesTr and labelsTr"
    return None


def find(root: Path) -> FoundCases:
    """Return the cases of dataset.json's list, or by equal names without one. Raises InputError for broken JSON."""
    description = read_description(root / "dataset.json")
    notes: list[str] = []
    names = channel_names(description, root / "dataset.json")
    if isinstance(description.get("labels"), dict):
        labels = ", ".join(f"{value} = {label}" for value, label in description["labels"].items())
        notes.append(f"dataset.json names the labels {labels}")
    training = description.get("training")
    if isinstance(training, list) and training:
        listed = [(_listed(root, item, "image"), _listed(root, item, "label")) for item in training]
    else:
        images = image_files(root / "imagesTr")
        labels_by_stem = {stem(p): p for p in image_files(root / "labelsTr")}
        label_of = match_names([stem(image) for image in images], labels_by_stem)
        listed = [
            (image, labels_by_stem.get(label_of.get(stem(image), ""), root / "labelsTr" / image.name))
            for image in images
        ]
        notes.append("no list in dataset.json: images and labels were paired by name")
    # The fourth axis of an image of several modalities holds them in the order of their numbers.
    channels = tuple(names[number] for number in sorted(names)) if len(names) > 1 else ()
    only = next(iter(names.values())) if len(names) == 1 else "image"
    cases, problems = [], []
    for image, label in listed:
        wrong = next(filter(None, (_not_usable(p, root) for p in (image, label))), None)
        if wrong is not None:
            problems.append(wrong)
            continue
        cases.append(
            CaseSource(
                case=stem(image),
                patient=stem(image),
                sequences={only: (image,)},
                masks=(label,),
                channels=channels,
                slices=is_picture(image),
            )
        )
    return FoundCases(layout="decathlon", cases=tuple(cases), problems=tuple(problems), notes=tuple(notes))


def _not_usable(path: Path, root: Path) -> Problem | None:
    """Return why a listed file cannot be used: a list must not name files outside its folder."""
    if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
        return Problem(
            file=path, reason="listed, but outside the folder", remedy="put it into the folder, or use a --manifest"
        )
    wrong = unusable(path)
    if wrong is None or path_exists(path):
        return wrong
    return Problem(file=path, reason="listed, but not there", remedy="restore it, or take it off the list")


def _listed(root: Path, item: Any, key: str) -> Path:
    # Unlabelled test sets list plain strings; a training entry is a pair.
    relative = str(item.get(key, "")) if isinstance(item, dict) else str(item)
    return find_file(root, relative) or root / relative
