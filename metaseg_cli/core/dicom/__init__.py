"""DICOM files before their pixels: which files are DICOM, whether they are whole, and which of them form a series."""

from metaseg_cli.core.dicom.files import dicom_files, is_dicom, is_skipped, quiet, read_data_set, read_header
from metaseg_cli.core.dicom.series import (
    DRIFT_MM,
    SAME_SLICE_MM,
    UNEVEN,
    ImageHeader,
    group_series,
    header_of,
    image_header,
    remove_copies,
    text_of,
)

__all__ = [
    "DRIFT_MM",
    "SAME_SLICE_MM",
    "UNEVEN",
    "ImageHeader",
    "dicom_files",
    "group_series",
    "header_of",
    "image_header",
    "is_dicom",
    "is_skipped",
    "quiet",
    "read_data_set",
    "read_header",
    "remove_copies",
    "text_of",
]
