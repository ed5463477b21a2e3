"""nnU-Net raw: imagesTr/<case>_0000.nii.gz …, labelsTr/<case>.nii.gz, and a dataset.json that names the channels."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.core.datasets.description import read_description
from metaseg_cli.core.datasets.naming import image_files, match_names, stem
from metaseg_cli.core.datasets.sequence_names import sequence_name
from metaseg_cli.core.formats import is_picture
from metaseg_cli.errors import InputError, Problem

_CHANNEL = re.compile(r"^(.+)_(\d{4})$")


def looks_like(root: Path) -> str | None:
    """Return why *root* has this layout, or None."""
    if not (root / "imagesTr").is_dir() or not (root / "labelsTr").is_dir():
        return None
    first = next((p for p in image_files(root / "imagesTr")), None)
    if first is None or not _CHANNEL.match(stem(first)):
        return None
    return f"imagesTr holds numbered channels such as {first.name}"


def find(root: Path) -> FoundCases:
    """Return the cases of imagesTr with labelsTr, and of imagesTs where there is a labelsTs. Raises InputError."""
    description = read_description(root / "dataset.json")
    names = channel_names(description, root / "dataset.json")
    notes: list[str] = ["nnU-Net's layout does not know patients: every case counts as a patient of its own"]
    if isinstance(description.get("labels"), dict):
        labels = ", ".join(f"{label} = {value}" for label, value in description["labels"].items())
        notes.append(f"dataset.json names the labels {labels}")
    cases: list[CaseSource] = []
    problems: list[Problem] = []
    for images, labels_folder, split in (("imagesTr", "labelsTr", None), ("imagesTs", "labelsTs", "test")):
        if not (root / labels_folder).is_dir() or not (root / images).is_dir():
            continue
        masks = {stem(p): p for p in image_files(root / labels_folder)}
        found = numbered_channels(root / images)
        label_of = match_names(found, masks)
        for case, channels in sorted(found.items()):
            unnamed = sorted(set(channels) - set(names)) if names else []
            if unnamed or (not names and len(channels) > 1):
                raise InputError(
                    f"dataset.json does not name channel {unnamed[0] if unnamed else sorted(channels)[0]}",
                    where=root / "dataset.json",
                    remedy='add it, as in "channel_names": {"0": "T1c", "1": "FLAIR"}',
                )
            if case not in label_of:
                file = next(iter(channels.values()))
                problems.append(Problem(file=file, reason="no label of this name", remedy="add it, or remove it"))
                continue
            mask = masks.pop(label_of[case])
            slices = is_picture(mask)
            sequences: dict[str, tuple[Path, ...]] = {names.get(n, "image"): (channels[n],) for n in sorted(channels)}
            cases.append(
                CaseSource(case=case, patient=case, sequences=sequences, masks=(mask,), slices=slices, split=split)
            )
        problems += [
            Problem(file=p, reason="no image of this name", remedy="add it, or remove the label")
            for p in masks.values()
        ]
    return FoundCases(layout="nnunet", cases=tuple(cases), problems=tuple(problems), notes=tuple(notes))


def channel_names(description: dict[str, Any], path: Path) -> dict[int, str]:
    """Return channel number → sequence, from ``channel_names`` (2.x) or ``modality`` (1.x). Raises InputError."""
    named = description.get("channel_names") or description.get("modality") or {}
    try:
        names = {int(number): sequence_name(str(name)) for number, name in dict(named).items()}
    except (ValueError, TypeError):
        raise InputError("channel_names is not a table of numbers", where=path, remedy="correct it") from None
    if len(set(names.values())) < len(names):
        # Two channels of one name (or both noNorm) are distinguished by their number.
        names = {number: f"{name}_{number}" for number, name in names.items()}
    return names


def numbered_channels(folder: Path) -> dict[str, dict[int, Path]]:
    """Return case → channel number → file, of the files named ``<case>_0000.<suffix>`` in *folder*."""
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in image_files(folder):
        match = _CHANNEL.match(stem(path))
        if match:
            found[match.group(1)][int(match.group(2))] = path
    return found
