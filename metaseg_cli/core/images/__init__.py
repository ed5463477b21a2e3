"""Read and write one scan with its geometry."""

from metaseg_cli.core.dicom import dicom_files, is_dicom
from metaseg_cli.core.images.alignment import Alignment, align, align_rigidly
from metaseg_cli.core.images.archive import unpacked
from metaseg_cli.core.images.dicom_masks import padding_value
from metaseg_cli.core.images.dicom_rtstruct import write_rtstruct
from metaseg_cli.core.images.dicom_seg import write_seg
from metaseg_cli.core.images.geometry import (
    Reorientation,
    axial_view,
    describe_difference,
    on_grid_of,
    on_one_grid,
    reorient,
    resample,
    resample_to,
    same_grid,
    size_text,
    spacing_text,
    to_canonical,
)
from metaseg_cli.core.images.mask_checks import inverted_mask, orient_like_image
from metaseg_cli.core.images.mask_formats import MaskToWrite, mask_writer, own_suffix
from metaseg_cli.core.images.masks import read_mask, write_mask, write_volume
from metaseg_cli.core.images.pictures import as_grey, channels_are_equal
from metaseg_cli.core.images.reading import read_geometry, read_image, read_scan
from metaseg_cli.core.images.volume import Volume, is_constant, shown_channel

__all__ = [
    "Alignment",
    "MaskToWrite",
    "Reorientation",
    "Volume",
    "align",
    "align_rigidly",
    "as_grey",
    "axial_view",
    "channels_are_equal",
    "describe_difference",
    "dicom_files",
    "inverted_mask",
    "is_constant",
    "is_dicom",
    "mask_writer",
    "on_grid_of",
    "on_one_grid",
    "orient_like_image",
    "own_suffix",
    "padding_value",
    "read_geometry",
    "read_image",
    "read_mask",
    "read_scan",
    "reorient",
    "resample",
    "resample_to",
    "same_grid",
    "shown_channel",
    "size_text",
    "spacing_text",
    "to_canonical",
    "unpacked",
    "write_mask",
    "write_rtstruct",
    "write_seg",
    "write_volume",
]
