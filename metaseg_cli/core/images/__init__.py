"""Read and write one scan with its geometry."""

from metaseg_cli.core.images.formats import is_image_file, is_picture, stem_of, suffix_of
from metaseg_cli.core.images.masks import read_mask, write_mask, write_volume
from metaseg_cli.core.images.pictures import as_grey, channels_are_equal
from metaseg_cli.core.images.reading import read_image
from metaseg_cli.core.images.volume import Volume

__all__ = [
    "Volume",
    "as_grey",
    "channels_are_equal",
    "is_image_file",
    "is_picture",
    "read_image",
    "read_mask",
    "stem_of",
    "suffix_of",
    "write_mask",
    "write_volume",
]
