"""The writers of ``choices.MASK_FORMATS``: every mask format through one call."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.choices import MASK_FORMATS
from metaseg_cli.core.formats import MASK_AS_PNG, is_image_file, suffix_of
from metaseg_cli.core.images.dicom_rtstruct import write_rtstruct
from metaseg_cli.core.images.dicom_seg import write_seg
from metaseg_cli.core.images.masks import write_mask
from metaseg_cli.core.images.volume import Volume


@dataclass(frozen=True, kw_only=True)
class MaskToWrite:
    """A segmentation of one scan, with all that any format needs of it."""

    label: NDArray[np.uint8]  # (Z, Y, X) label map
    structures: Sequence[tuple[str, NDArray[np.bool_]]]  # (Z, Y, X) each: regions or lesions, which may overlap
    image: Volume  # the scan, whose grid both have
    series: Sequence[Path] = ()  # the files of a DICOM series; none for other scans


MaskWriter = Callable[[Path, MaskToWrite], None]


def mask_writer(name: str) -> MaskWriter:
    """Return the writer of the format *name*. It writes a file whole or not at all, and raises InputError."""
    module, _, function = MASK_FORMATS[name].writer.partition(":")
    writer: MaskWriter = getattr(importlib.import_module(module), function)
    return writer


def own_suffix(scan: Path) -> str:
    """Return the suffix of a mask in the format of *scan*: PNG where that cannot hold labels, NIfTI for DICOM."""
    if not is_image_file(scan):
        return MASK_FORMATS["nifti"].suffix
    return MASK_FORMATS["png"].suffix if suffix_of(scan) in MASK_AS_PNG else suffix_of(scan)


def write_image_file(path: Path, mask: MaskToWrite) -> None:
    """Write the label map as a picture or volume, in the format of *path*'s suffix."""
    write_mask(path, mask.label, mask.image)


def write_dicom_seg(path: Path, mask: MaskToWrite) -> None:
    """Write the structures as segments of a DICOM SEG that refers to the series."""
    write_seg(path, mask.structures, mask.series)


def write_dicom_rtstruct(path: Path, mask: MaskToWrite) -> None:
    """Write the structures as contours of an RTSTRUCT that refers to the series."""
    write_rtstruct(path, mask.structures, mask.series, mask.image)
