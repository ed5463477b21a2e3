"""Which kinds of image files there are, by the ends of their names: the one list of suffixes."""

from __future__ import annotations

from pathlib import Path

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
NIFTI = (".nii.gz", ".nii", ".hdr", ".img")  # .hdr and .img are NIfTI or Analyze in two files
MGH = (".mgz", ".mgh")
NRRD = (".nrrd", ".nhdr")
METAIMAGE = (".mha", ".mhd")
VOLUMES = (".nii.gz", ".nii", *NRRD, *METAIMAGE, *MGH, ".hdr")  # an .img is read, but its .hdr names the pair
DICOM = (".dcm", ".dicom", ".ima")  # files of other and of no suffix may be DICOM too: ``core.dicom.is_dicom`` tells
ARCHIVES = (".zip",)
ALL_READ = (*VOLUMES, ".img", *ARCHIVES, *DICOM, *PICTURES)

# A scan of one of these gets its mask as PNG: JPEG and lossy WebP change labels, GIF and WebP are not written.
MASK_AS_PNG = (".jpg", ".jpeg", ".webp", ".gif")
LOSSY = (".jpg", ".jpeg")
TWO_FILES = (".mhd", ".nhdr", ".hdr", ".img")  # a header that names the file with its voxels

# Images, or arrays of them, that are not read: they are reported wherever a folder is searched for images.
NOT_READ = {
    ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".svg", ".psd", ".exr", ".tga", ".ico", ".dng",
    ".pgm", ".ppm", ".pbm", ".pnm", ".npy", ".npz", ".czi", ".lif", ".nd2", ".vtk", ".vti", ".mnc",
}  # fmt: skip


def suffix_of(path: Path) -> str:
    """Return the suffix in lower case; ``.nii.gz`` counts as one."""
    name = path.name.lower()
    return next((s for s in ALL_READ if name.endswith(s)), path.suffix.lower())


def stem_of(path: Path) -> str:
    """Return the name without ``suffix_of``; a folder's whole name."""
    return path.name if path.is_dir() else path.name[: len(path.name) - len(suffix_of(path))]


def image_suffix(path: Path) -> str:
    """Return the suffix of a picture or volume file in lower case; empty for any other file."""
    return next((s for s in VOLUMES + PICTURES if path.name.lower().endswith(s)), "")


def is_picture(path: Path) -> bool:
    """Return whether the name is that of a PNG, JPEG, TIFF, BMP, WebP or GIF."""
    return suffix_of(path) in PICTURES


def is_image_file(path: Path) -> bool:
    """Return whether the name is that of a picture or volume file."""
    return suffix_of(path) in PICTURES + VOLUMES
