"""A damaged DICOM file is refused, or gives what the whole one gives; nothing but InputError ever comes out."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from metaseg_cli.core.images import Volume, read_image, read_mask, read_scan
from metaseg_cli.errors import InputError
from tests.dicom_files import (
    SHAPE,
    enhanced,
    lesions,
    make_seg,
    numbers,
    square,
    to_jpeg2000,
    write_rtstruct,
    write_series,
)

Read = Callable[[Path], Volume]


def one_image(folder: Path, syntax: str | None = None) -> tuple[Path, Read]:
    path = write_series(folder, numbers()[:1])[0].rename(folder / "image.dcm")
    if syntax is not None:
        data = pydicom.dcmread(path)
        if syntax == RLELossless:
            data.compress(syntax, generate_instance_uid=False)
        else:
            data.file_meta.TransferSyntaxUID = UID(syntax)
        data.save_as(path, enforce_file_format=True)
    return path, read_image


def jpeg2000(folder: Path) -> tuple[Path, Read]:
    path, read = one_image(folder)
    to_jpeg2000(path)
    return path, read


def multi_frame(folder: Path) -> tuple[Path, Read]:
    folder.mkdir()
    enhanced(folder / "image.dcm", [3, 0, 5, 1, 4, 2])
    return folder / "image.dcm", read_image


def seg(folder: Path) -> tuple[Path, Read]:
    files = write_series(folder / "scan", numbers())
    make_seg(folder / "mask.dcm", files, lesions(SHAPE).astype(np.uint8), "BINARY")
    return folder / "mask.dcm", read_mask


def rtstruct(folder: Path) -> tuple[Path, Read]:
    scan = read_scan(write_series(folder / "scan", numbers()))
    rois = {"GTV_1": [square(3.5, 12.5, 2), square(3.5, 9.5, 3)], "Brainstem": [square(0.5, 8.5, 0)]}
    write_rtstruct(folder / "rt.dcm", scan, generate_uid(), generate_uid(), rois)
    return folder / "rt.dcm", lambda path: read_mask(path, scan)


KINDS: dict[str, Callable[[Path], tuple[Path, Read]]] = {
    "explicit": one_image,
    "implicit": lambda folder: one_image(folder, ImplicitVRLittleEndian),
    "deflated": lambda folder: one_image(folder, DeflatedExplicitVRLittleEndian),
    "rle": lambda folder: one_image(folder, RLELossless),
    "jpeg2000": jpeg2000,
    "multi-frame": multi_frame,
    "seg": seg,
    "rtstruct": rtstruct,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused_or_gives_what_the_whole_one_gives(tmp_path: Path, kind: str) -> None:
    path, read = KINDS[kind](tmp_path / "whole")
    whole, data = read(path), path.read_bytes()
    rng = random.Random(0)
    cuts = {*rng.sample(range(len(data)), 250), *range(len(data) - 40, len(data)), *range(0, 140, 7)}
    cut = tmp_path / path.name
    refused = 0
    for length in sorted(cuts):
        cut.write_bytes(data[:length])
        try:
            found = read(cut)
        except InputError:
            refused += 1
        else:
            np.testing.assert_array_equal(found.array, whole.array)
            np.testing.assert_array_equal(found.affine, whole.affine)
    assert refused > 0.9 * len(cuts)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_bytes_are_changed_only_an_input_error_comes_out(tmp_path: Path, kind: str) -> None:
    path, read = KINDS[kind](tmp_path / "whole")
    data = path.read_bytes()
    header = len(data) if kind in ("seg", "rtstruct", "deflated", "rle") else data.rindex(b"\xe0\x7f\x10\x00")
    rng = random.Random(1)
    mutant = tmp_path / path.name
    for _ in range(200):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            changed[rng.randrange(128, header)] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
        mutant.write_bytes(changed)
        with suppress(InputError):
            read(mutant)


def test_a_damaged_report_beside_the_images_does_not_spoil_them(tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    write_series(folder, numbers())
    whole = read_scan([folder])
    report = pydicom.Dataset()
    report.SOPClassUID = pydicom.uid.BasicTextSRStorage
    report.SOPInstanceUID = generate_uid()
    report.Modality = "SR"
    report.TextValue = "no new lesion " * 40
    report.file_meta = pydicom.dataset.FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    data = (folder / "report.dcm").read_bytes()
    (folder / "report.dcm").write_bytes(data[:-100])
    beside = read_scan([folder])
    np.testing.assert_array_equal(beside.array, whole.array)
    np.testing.assert_allclose(beside.affine, whole.affine)
