"""What is measured in the masks of a follow-up: the labels that the user chose, or the only ones there are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.config import FollowUpConfig
from metaseg_cli.core.choices import BRATS_REGIONS
from metaseg_cli.core.dicom import is_dicom, quiet, read_header, text_of
from metaseg_cli.core.formats import is_image_file
from metaseg_cli.core.images import Volume
from metaseg_cli.core.images.seg_nrrd import segments_of
from metaseg_cli.core.regions import index_region, region_kind
from metaseg_cli.errors import InputError

Regions = Mapping[str, tuple[int, ...]]
# Regions of BraTS label maps: 1 necrosis, 2 oedema, 3 enhancing tumour, 4 resection cavity.
_BRATS: Regions = BRATS_REGIONS["brats-mets-2026"]
_ONLY_ONE = (1,)


@dataclass(frozen=True, kw_only=True)
class LabelledMask:
    """The mask of a visit before a choice: label values ``(L, Z, Y, X)``, and names of labels where the file has them.

    ``regions`` are those of the model that made it, empty for a mask that was read.
    """

    volume: Volume
    names: dict[int, str] = field(default_factory=dict)
    regions: Regions = field(default_factory=dict)

    def labels(self) -> tuple[int, ...]:
        """Return the label values that occur, without 0."""
        return tuple(int(value) for value in np.unique(self.volume.array) if value)

    def volumes_text(self) -> str:
        """Return ``label 1 (ET) 0.52 ml, label 3 12.10 ml``."""
        voxel = float(np.prod(self.volume.spacing_mm or (1.0, 1.0, 1.0))) / 1000
        parts = []
        for label in self.labels():
            voxels = int((self.volume.array == label).any(axis=0).sum())
            name = f" ({self.names[label]})" if self.names.get(label) else ""
            parts.append(f"label {label}{name} {voxels * voxel:.2f} ml")
        return ", ".join(parts)


def names_of_labels(path: Path) -> dict[int, str]:
    """Return the names that a DICOM SEG or a ``.seg.nrrd`` gives its labels; empty for other files."""
    if not is_image_file(path) and is_dicom(path):
        head = read_header(path, ["SegmentSequence"])
        with quiet():
            return {int(s.SegmentNumber): text_of(s, "SegmentLabel") for s in head.get("SegmentSequence") or []}
    return {segment.value: segment.name for segment in segments_of(path)}


def choose_region(
    masks: Sequence[LabelledMask], config: FollowUpConfig, model_regions: Regions | None = None
) -> tuple[str, list[Volume], list[str]]:
    """Return the name of what is measured, it alone as ``(1, Z, Y, X)`` of 0 and 1 for each mask, and notes.

    ``--labels`` or ``--region`` decide; else *model_regions*, those of the model that is used; else the only label that
    the masks have. Raises InputError for several labels without a choice, and for a choice that a mask does not have.
    """
    if not config.labels and not config.region and model_regions is None:
        _check_one_label(masks)
    name, notes = _name_of_choice(config, model_regions), []
    chosen, found = [], False
    for mask in masks:
        labels = _labels_of(mask, config, model_regions)
        present = mask.labels()
        if labels and present and not set(labels) & set(present):
            _check_missing(mask, labels, config)
            notes.append(f"{mask.volume.source}: nothing of {name} (it has {mask.volumes_text()})")
        foreground = np.isin(mask.volume.array, labels) if labels else mask.volume.array > 0
        found |= bool(foreground.any())
        chosen.append(_binary(mask.volume, np.asarray(foreground.any(axis=0))))
    if not found and any(mask.labels() for mask in masks):
        first = next(mask for mask in masks if mask.labels())
        raise InputError(
            f"no visit has {name}: there is {first.volumes_text()}", where=first.volume.source, remedy="choose others"
        )
    return name, chosen, notes


def _binary(volume: Volume, foreground: NDArray[np.bool_]) -> Volume:
    return dataclasses.replace(volume, array=foreground[None].astype(np.uint8))


def _name_of_choice(config: FollowUpConfig, model_regions: Regions | None) -> str:
    if config.labels:
        return "all labels" if config.labels == "all" else f"label {config.labels}"
    if config.region:
        return config.region
    return index_region(model_regions) if model_regions else "lesions"


def _check_one_label(masks: Sequence[LabelledMask]) -> None:
    """Raise InputError where the masks have labels that mean different things."""
    labels = {label for mask in masks for label in mask.labels()}
    if len(labels) < 2:
        return
    several = max(masks, key=lambda mask: len(mask.labels()))
    if all(_one_region(mask) for mask in masks):  # metastasis 1, metastasis 2: one segment for each lesion
        return
    named = {name: (label,) for label, name in several.names.items()}
    if len(set(named)) > 1:
        usual = f"--region '{index_region(named)}'"
    elif labels <= {1, 2, 3, 4}:
        usual = "--labels 3 (in BraTS masks the enhancing tumour: 1 is necrosis, 2 oedema)"
    else:
        usual = "--labels N for the one that RANO-BM measures, the enhancing tumour"
    what = several.volumes_text() if len(several.labels()) > 1 else f"labels {', '.join(map(str, sorted(labels)))}"
    raise InputError(
        f"several labels, and no choice of what is measured: {what}",
        where=several.volume.source,
        remedy=f"usually {usual}; where every label is a lesion, --labels all",
    )


def _one_region(mask: LabelledMask) -> bool:
    """Return whether all labels are lesions of one kind by their names, which differ in a number at most."""
    present = mask.labels()
    if not present:
        return True
    if any(not mask.names.get(label) for label in present):
        return False
    kinds = {region_kind(mask.names[label]) for label in present}
    bases = {re.sub(r"[\s_\-#]*\d+$", "", mask.names[label]).casefold() for label in present}
    return len(bases) == 1 or kinds == {"metastasis"}


def _labels_of(mask: LabelledMask, config: FollowUpConfig, model_regions: Regions | None) -> tuple[int, ...]:
    """Return the label values that are measured in *mask*; empty for all."""
    if config.labels:
        return config.label_values()
    if config.region:
        return _labels_of_region(mask, config, model_regions)
    regions = mask.regions or model_regions
    if not regions or (not mask.regions and mask.labels() in ((), _ONLY_ONE)):
        return ()  # a mask of 0 and 1 is what it is
    return regions[index_region(regions)]


def _labels_of_region(mask: LabelledMask, config: FollowUpConfig, model_regions: Regions | None) -> tuple[int, ...]:
    name, values = config.region_and_labels()
    if values:
        return values
    if mask.names:
        named = tuple(label for label, text in mask.names.items() if _same_region(name, text))
        if named:
            return named
        raise InputError(
            f"it has no region {name}: there is {', '.join(mask.names.values())}",
            where=mask.volume.source,
            remedy="name one of these with --region",
        )
    known = {**_BRATS, **(model_regions or {}), **mask.regions}
    for region, labels in known.items():
        if _same_region(name, region):
            return labels
    raise InputError(
        f"which labels are the region {name} is not known",
        where=mask.volume.source,
        remedy=f"write them, as in --region {name}=3, or take one of {', '.join(known)}",
    )


def _same_region(wanted: str, name: str) -> bool:
    if wanted.casefold() == name.casefold():
        return True
    kind = region_kind(wanted)
    return kind not in ("unknown", "metastasis") and kind == region_kind(name)


def _check_missing(mask: LabelledMask, labels: tuple[int, ...], config: FollowUpConfig) -> None:
    """Raise InputError for a mask of 0 and 1: it does not say which region it is."""
    if mask.labels() != _ONLY_ONE or mask.names or mask.regions or config.force:
        return
    raise InputError(
        f"a mask of 0 and 1, without the label {' or '.join(map(str, labels))}: it does not say what 1 is",
        where=mask.volume.source,
        remedy="name the label map; or pass --force if label 1 is another region and this one has gone",
    )
