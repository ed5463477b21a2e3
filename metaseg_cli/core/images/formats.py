"""What the end of a file's name says."""

from __future__ import annotations

from pathlib import Path

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".hdr")
_MORE = (".img", ".zip", ".dcm", ".dicom", ".ima")


def suffix_of(path: Path) -> str:
    """The suffix in lower case; ``.nii.gz`` counts as one."""
    name = path.name.lower()
    return next((s for s in VOLUMES + PICTURES + _MORE if name.endswith(s)), path.suffix.lower())


def stem_of(path: Path) -> str:
    """The name without ``suffix_of``; a folder's whole name."""
    return path.name if path.is_dir() else path.name[: len(path.name) - len(suffix_of(path))]


def is_picture(path: Path) -> bool:
    """Whether the name is that of a PNG, JPEG, TIFF, BMP, WebP or GIF."""
    return suffix_of(path) in PICTURES


def is_image_file(path: Path) -> bool:
    """Whether the name is that of a picture or volume file; DICOM files are told by ``is_dicom``."""
    return suffix_of(path) in PICTURES + VOLUMES
