"""What file names say: which are images, which belong together, in what order, and of whom."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from metaseg_cli.core.paths import odd_name_below

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".hdr", *PICTURES)
# Images, or arrays of them, that metaseg does not read: named wherever a folder is searched for images.
_UNREAD = {
    ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jpx", ".jxl", ".svg", ".psd", ".exr", ".tga", ".ico", ".dng",
    ".pgm", ".ppm", ".pbm", ".pnm", ".npy", ".npz", ".czi", ".lif", ".nd2", ".vtk", ".vti", ".mnc",
}  # fmt: skip
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "scans", "scan"}
MASK_FOLDERS = {
    "masks", "mask", "labels", "label", "gt", "groundtruth", "annotations", "annotation",
    "segmentations", "segmentation", "segs", "seg", "labelstr",
}  # fmt: skip
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_MASK_WORDS = (
    "masks?|segmentations?|segs?|labels?|gt|groundtruth|ground_truth|annotations?|annot|rois?|lesions?|tumou?rs?|manual"
)
_IMAGE_WORDS = r"images?|imgs?|scans?|orig(?:inal)?|raw|data"
_MASK_END = re.compile(rf"^(.+?)[ _.\-]+(?:{_MASK_WORDS})$", re.IGNORECASE)
_MASK_START = re.compile(r"^(?:masks?|segmentations?|segs?|labels?|gt)[ _.\-]+(.+)$", re.IGNORECASE)
_IMAGE_END = re.compile(rf"^(.+?)[ _.\-]+(?:{_IMAGE_WORDS})$", re.IGNORECASE)
_IMAGE_START = re.compile(rf"^(?:{_IMAGE_WORDS})[ _.\-]+(.+)$", re.IGNORECASE)
_NUMBERED = re.compile(r"^(.*?)[_\- ]+([A-Za-z]*?)[_\- ]?(\d+)$")


def suffix(path: Path) -> str:
    """The suffix in lower case; ``.nii.gz`` counts as one. Empty for what is no image."""
    return next((s for s in _SUFFIXES if path.name.lower().endswith(s)), "")


def stem(path: Path) -> str:
    """The name without ``suffix``."""
    return path.name[: len(path.name) - len(suffix(path))] if suffix(path) else path.stem


def unread_images(folder: Path) -> list[Path]:
    """Files under *folder* whose names say that they are images of a kind that is not read, in natural order."""
    files = [p for p in folder.rglob("*") if p.suffix.lower() in _UNREAD and p.is_file()]
    return sorted(_visible(files, folder), key=lambda p: natural(str(p.relative_to(folder))))


def image_files(folder: Path) -> list[Path]:
    """Image files under *folder* in natural order; hidden files and archive droppings left out."""
    files = [p for p in folder.rglob("*") if suffix(p) and p.is_file()]
    return sorted(_visible(files, folder), key=lambda p: natural(str(p.relative_to(folder))))


def _visible(files: Iterable[Path], folder: Path) -> list[Path]:
    """Without what is hidden, and without names that no table can hold (``unusable_below`` names those)."""
    return [
        p
        for p in files
        if not any(part.startswith((".", "__MACOSX")) for part in p.relative_to(folder).parts)
        and odd_name_below(p, folder) is None
    ]


def scans_in(folder: Path) -> list[Path]:
    """The images under *folder* that are no masks: neither in a masks folder nor named as the mask of another one."""
    files = [p for p in image_files(folder) if not any(part.lower() in MASK_FOLDERS for part in p.parent.parts)]
    images = {(p.parent, image_key(stem(p))) for p in files if mask_key(stem(p), certain=False) is None}
    return [p for p in files if (p.parent, mask_key(stem(p), certain=False)) not in images]


def split_of(folders: tuple[str, ...]) -> str | None:
    """ "train", "val" or "test" when one of *folders* is named so."""
    return next((_SPLITS[f.lower()] for f in folders if f.lower() in _SPLITS), None)


def natural(text: str) -> tuple[tuple[int, str | int], ...]:
    """A sort key that puts slice_2 before slice_10."""
    parts = re.split(r"(\d+)", text.lower())
    return tuple((1, int(part)) if part.isdigit() else (0, part) for part in parts)


def mask_key(name: str, *, certain: bool) -> str | None:
    """What a mask's stem has in common with its image's; None when the stem is no mask's.

    *certain* for files of a masks folder: there a stem without any mask word is a mask's too.
    """
    for pattern in (_MASK_END, _MASK_START):
        if match := pattern.match(name):
            return image_key(match.group(1))
    return image_key(name) if certain else None


def image_key(name: str) -> str:
    """What an image's stem has in common with its mask's."""
    for pattern in (_IMAGE_END, _IMAGE_START):
        if match := pattern.match(name):
            return match.group(1).lower()
    return name.lower()


def numbered(name: str) -> tuple[str, int] | None:
    """``BraTS-MET-00230-000_1094`` → its patient part and 1094; None unless the part before the number has a digit.

    ``image_12`` is no patient's twelfth slice: a word alone says nothing about whom a picture belongs to.
    """
    match = _NUMBERED.match(name)
    if not match or not re.search(r"\d", match.group(1)):
        return None
    return match.group(1), int(match.group(3))


def patient_folders(places: Iterable[tuple[str, ...]]) -> bool:
    """Whether folders stand for patients: every file of *places* lies in one, and they are not just train and test."""
    last = {place[-1] if place else "" for place in places}
    named = {name for name in last if name and split_of((name,)) is None}
    return len(named) > 1 and "" not in last and not (last - named)


def patients_of(files: Sequence[Path], root: Path) -> dict[Path, str]:
    """Whom each of *files* under *root* belongs to: its folder, or a picture's name without its number, or itself."""
    places = {file: file.relative_to(root).parts[:-1] for file in files}
    if patient_folders(places.values()):
        return {file: place[-1] for file, place in places.items()}
    bare = {file: ended.group(1) if (ended := _MASK_END.match(stem(file))) else stem(file) for file in files}
    found = {file: numbered(name) if suffix(file) in PICTURES else None for file, name in bare.items()}
    return {file: known[0] if known else bare[file] for file, known in found.items()}


def last_number(name: str) -> int:
    """The last number in a stem, 0 when there is none."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else 0
