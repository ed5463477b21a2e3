"""Read any format."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from metaseg_cli.core.dicom import dicom_files, is_dicom
from metaseg_cli.core.formats import ARCHIVES, PICTURES, VOLUMES, is_picture, suffix_of
from metaseg_cli.core.images.archive import unpacked
from metaseg_cli.core.images.dicom import read_dicom
from metaseg_cli.core.images.pictures import read_picture
from metaseg_cli.core.images.volume import Volume
from metaseg_cli.core.images.volumes import read_volume, read_volume_geometry
from metaseg_cli.core.paths import check_openable
from metaseg_cli.errors import COPY_AGAIN, InputError


def read_image(path: Path) -> Volume:
    """Read a picture, a volume, a DICOM image, a folder or ZIP of one DICOM series, as ``(C, Z, Y, X)``.

    The numbers are those of the file. Raises InputError for what is missing, not an image, damaged, or not finite.
    """
    check_openable(path)
    if path.is_dir():
        files = dicom_files(path)
        if not files:
            raise InputError("a folder without DICOM files, not an image", where=path, remedy="name the files in it")
        return dataclasses.replace(read_dicom(files), source=path)
    if path.stat().st_size == 0:
        raise InputError("the file is empty (0 bytes)", where=path, remedy=COPY_AGAIN)
    if is_picture(path):
        return read_picture(path)
    if suffix_of(path) in (*VOLUMES, ".img"):
        return read_volume(path)
    if suffix_of(path) in ARCHIVES:
        return _read_zip(path)
    if is_dicom(path):
        return read_dicom([path])
    formats = ", ".join(s[1:] for s in PICTURES + VOLUMES)
    raise InputError(
        f"not a format that metaseg reads ({suffix_of(path) or 'no suffix'})",
        where=path,
        remedy=f"convert it to DICOM or one of {formats}",
    )


def read_scan(files: Sequence[Path]) -> Volume:
    """Read one scan: a single file as ``read_image`` does, several as the slices of a DICOM series."""
    return read_image(files[0]) if len(files) == 1 else read_dicom(files)


def read_geometry(files: Sequence[Path]) -> Volume:
    """Return the grid of ``read_scan(files)``, from headers alone where the format allows; its voxels are all 0."""
    path = files[0]
    if len(files) > 1:
        return read_dicom(files, geometry_only=True)
    if path.is_file() and suffix_of(path) in VOLUMES:
        return read_volume_geometry(path)
    if path.is_dir():
        return read_dicom(dicom_files(path), geometry_only=True)
    return read_image(path)


def _read_zip(path: Path) -> Volume:
    with unpacked(path) as folder:
        files = dicom_files(folder)
        if files:
            return dataclasses.replace(read_dicom(files), source=path)
        images = [p for p in sorted(folder.rglob("*")) if p.is_file() and suffix_of(p) in PICTURES + VOLUMES]
        if len(images) != 1:
            raise InputError(
                f"a ZIP with {len(images)} images and no DICOM file", where=path, remedy="unpack it and name the files"
            )
        return dataclasses.replace(read_image(images[0]), source=path)
