"""Medical Segmentation Decathlon: imagesTr, labelsTr, and a dataset.json that lists them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases, Problem
from metaseg_cli.core.datasets.names import image_files, stem
from metaseg_cli.errors import InputError


def looks_like(root: Path) -> str | None:
    """Why *root* is laid out so, or None."""
    if (root / "imagesTr").is_dir() and (root / "labelsTr").is_dir():
        return "it holds imagesTr and labelsTr"
    return None


def find(root: Path) -> FoundCases:
    """Cases by dataset.json's list, or by equal names when there is none. Raises InputError for broken JSON."""
    description = _description(root / "dataset.json")
    notes: list[str] = []
    channels = description.get("modality") or description.get("channel_names") or {}
    name = _sequence_name(channels)
    if isinstance(description.get("labels"), dict):
        labels = ", ".join(f"{value} = {label}" for value, label in description["labels"].items())
        notes.append(f"dataset.json names the labels {labels}")
    training = description.get("training")
    if isinstance(training, list) and training:
        listed = [(root / _path(item, "image"), root / _path(item, "label")) for item in training]
    else:
        labels_by_stem = {stem(p): p for p in image_files(root / "labelsTr")}
        listed = [
            (image, labels_by_stem.get(stem(image), root / "labelsTr" / image.name))
            for image in image_files(root / "imagesTr")
        ]
        notes.append("no list in dataset.json: images and labels were paired by name")
    cases, problems = [], []
    for image, label in listed:
        missing = [p for p in (image, label) if not p.is_file()]
        if missing:
            problems.append(
                Problem(file=missing[0], reason="listed, but not there", remedy="restore it, or take it off the list")
            )
            continue
        cases.append(CaseSource(case=stem(image), patient=stem(image), sequences={name: (image,)}, masks=(label,)))
    return FoundCases(layout="decathlon", cases=tuple(cases), problems=tuple(problems), notes=tuple(notes))


def _description(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"not valid JSON ({error})", where=path, remedy="mend or remove it") from error
    if not isinstance(values, dict):
        raise InputError("not a description of a data set", where=path, remedy="mend or remove it")
    return values


def _path(item: Any, key: str) -> str:
    # Unlabelled test sets list plain strings; a training entry is a pair.
    return str(item.get(key, "")) if isinstance(item, dict) else str(item)


def _sequence_name(channels: Any) -> str:
    if isinstance(channels, dict) and len(channels) == 1:
        return str(next(iter(channels.values())))
    return "image"
