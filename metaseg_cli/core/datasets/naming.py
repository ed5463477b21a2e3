"""What file names say: which are images, which belong together, in what order, and of which patient.

Names are compared in one Unicode form. Equal names belong together; where there is none, those that differ in upper and
lower case alone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli.core.formats import NOT_READ, image_suffix, is_picture
from metaseg_cli.core.paths import odd_name_below, path_exists
from metaseg_cli.core.words import nfc

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
_ANY_NAME = re.IGNORECASE | re.DOTALL  # file names may contain line breaks
_MASK_END = re.compile(rf"^(.+?)[ _.\-]+({_MASK_WORDS})$", _ANY_NAME)
_MASK_START = re.compile(r"^(masks?|segmentations?|segs?|labels?|gt)[ _.\-]+(.+)$", _ANY_NAME)
_NUMBERED_MASK = re.compile(rf"^(.+?)[ _.\-]+({_MASK_WORDS})[ _.\-]*\(?(\d{{1,3}})\)?$", _ANY_NAME)
_ONLY_MASK = re.compile(rf"^(?:{_MASK_WORDS})$", re.IGNORECASE)
_IMAGE_END = re.compile(rf"^(.+?)[ _.\-]+(?:{_IMAGE_WORDS})$", _ANY_NAME)
_IMAGE_START = re.compile(rf"^(?:{_IMAGE_WORDS})[ _.\-]+(.+)$", _ANY_NAME)
_NUMBERED = re.compile(r"^(.*?)[_\- ]+([A-Za-z]*?)[_\- ]?(\d+)$")

# What ``predict`` writes of a case, by the ending of its name: CASE_mask, CASE_probability_ET, CASE_overview …
PREDICTED_MASK = "mask"
PREDICTED_MAPS = ("probability", "uncertainty", "disagreement")  # followed by the region where there are several
OVERLAY, OVERVIEW = PREDICTED_PICTURES = ("overlay", "overview")
REPORT = "report"  # an HTML page
_PREDICTED = re.compile(
    rf"^(?P<case>.+)_(?:(?P<mask>{PREDICTED_MASK})|{'|'.join(PREDICTED_PICTURES)}|"
    rf"(?:{'|'.join(PREDICTED_MAPS)})(?:_.+)?)$",
    re.DOTALL,
)


def predicted_name(case: str, what: str, region: str = "") -> str:
    """Return the stem of a file that ``predict`` writes: ``p1_probability_ET``."""
    return "_".join(filter(None, (case, what, region)))


def is_predicted(name: str, *, masks: bool = True) -> bool:
    """Return whether a stem is that of a file of ``predict``; without *masks*, of one that is not a mask."""
    match = _PREDICTED.match(name)
    return match is not None and (masks or match["mask"] is None)


def stem(path: Path) -> str:
    """Return the name without ``image_suffix``, in one Unicode form."""
    ending = image_suffix(path)
    return nfc(path.name[: len(path.name) - len(ending)] if ending else path.stem)


def unread_images(folder: Path) -> list[Path]:
    """Return files under *folder* that are images of a kind that is not read, by their names, in natural order."""
    files = [p for p in folder.rglob("*") if p.suffix.lower() in NOT_READ and p.is_file()]
    return sorted(_visible(files, folder), key=lambda p: natural(str(p.relative_to(folder))))


def image_files(folder: Path) -> list[Path]:
    """Return image files under *folder* in natural order, except hidden files and leftovers of archives."""
    files = [p for p in folder.rglob("*") if image_suffix(p) and p.is_file()]
    return sorted(_visible(files, folder), key=lambda p: natural(str(p.relative_to(folder))))


def _visible(files: Iterable[Path], folder: Path) -> list[Path]:
    """Exclude hidden files, and names that no table can hold (``unusable_below`` reports those)."""
    return [
        p
        for p in files
        if not any(part.startswith((".", "__MACOSX")) for part in p.relative_to(folder).parts)
        and odd_name_below(p, folder) is None
    ]


def scans_in(folder: Path) -> list[Path]:
    """Return the images under *folder* to predict.

    Excluded are masks (in a masks folder, or named as that of another image) and what ``predict`` has written.
    """
    files = [
        p
        for p in image_files(folder)
        if not any(part.lower() in MASK_FOLDERS for part in p.parent.parts) and not is_predicted(stem(p))
    ]
    images = {(p.parent, image_key(stem(p)).casefold()) for p in files if mask_key(stem(p), certain=False) is None}
    return [p for p in files if not any((p.parent, key.casefold()) in images for key in _mask_keys(stem(p)))]


def _mask_keys(name: str) -> list[str]:
    """Return names of images that a mask of this stem may belong to."""
    part = numbered_mask(name)
    return list(filter(None, (mask_key(name, certain=False), part.key if part else None)))


def split_of(folders: tuple[str, ...]) -> str | None:
    """Return "train", "val" or "test" when one of *folders* is named so; else None."""
    return next((_SPLITS[f.lower()] for f in folders if f.lower() in _SPLITS), None)


def natural(text: str) -> tuple[tuple[int, str | int], ...]:
    """Return a sort key that puts slice_2 before slice_10."""
    parts = re.split(r"(\d+)", nfc(text).lower())
    return tuple((1, int(part)) if part.isdecimal() else (0, part) for part in parts)


# -- what belongs together -------------------------------------------------------------------------------------------


def mask_key(name: str, *, certain: bool) -> str | None:
    """Return what a mask's stem has in common with its image's; None when the stem is not that of a mask.

    *certain* for files of a masks folder: there a stem without any mask word belongs to a mask too.
    """
    if match := _MASK_END.match(name):
        return image_key(match.group(1))
    if match := _MASK_START.match(name):
        return image_key(match.group(2))
    return image_key(name) if certain else None


def image_key(name: str) -> str:
    """Return what an image's stem has in common with its mask's."""
    for pattern in (_IMAGE_END, _IMAGE_START):
        if match := pattern.match(name):
            return match.group(1)
    return name


@dataclass(frozen=True)
class NumberedMask:
    """``benign (2)_mask_1``: one of several masks of ``benign (2)``, or the mask of a picture ``benign (2)_1``."""

    key: str
    word: str
    number: str


def numbered_mask(name: str) -> NumberedMask | None:
    """Split a stem that ends in a mask word and a number; None for any other."""
    match = _NUMBERED_MASK.match(name)
    return NumberedMask(image_key(match[1]), match[2].lower(), match[3]) if match else None


def are_parts(names: Sequence[str]) -> bool:
    """Return whether masks of these stems are parts of one: they differ only by a number after the same mask word."""
    words = {part.word if (part := numbered_mask(n)) else _word_of(n) for n in names}
    return len(words) == 1 and None not in words


def _word_of(name: str) -> str | None:
    match = _MASK_END.match(name)
    return match[2].lower() if match else None


def match_names(left: Iterable[str], right: Iterable[str]) -> dict[str, str]:
    """Match names that belong together, *left* → *right*: equal ones first, then those that differ in case alone.

    Case is ignored only where that leaves one candidate on each side.
    """
    left, right = list(left), set(right)
    pairs = {name: name for name in left if name in right}
    rest: dict[str, list[str]] = defaultdict(list)
    for name in sorted(right - set(pairs)):
        rest[name.casefold()].append(name)
    open_: dict[str, list[str]] = defaultdict(list)
    for name in left:
        if name not in pairs:
            open_[name.casefold()].append(name)
    for folded, names in open_.items():
        if len(names) == 1 and len(rest.get(folded, [])) == 1:
            pairs[names[0]] = rest[folded][0]
    return pairs


def distinct_names(names: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """Append a number to each name that equals an earlier one, upper and lower case being the same.

    Results are named after cases, and some file systems do not distinguish ``a`` from ``A``.
    """
    seen = {nfc(name).casefold() for name in taken}
    result = []
    for name in names:
        unique, number = name, 2
        while nfc(unique).casefold() in seen:
            unique, number = f"{name}_{number}", number + 1
        seen.add(nfc(unique).casefold())
        result.append(unique)
    return result


def mask_name(name: str) -> str:
    """Return the name without its mask word (``a_mask`` → a), or unchanged where it has none."""
    if match := _MASK_END.match(name):
        return match.group(1)
    match = _MASK_START.match(name)
    return match.group(2) if match else name


def is_bare_mask_name(name: str) -> bool:
    """Return whether a stem is a mask word and nothing else, as in ``patient1/seg``."""
    return _ONLY_MASK.match(name) is not None


def find_file(folder: Path, relative: str) -> Path | None:
    """Find *relative*, as a table spells it, under *folder*, in the Unicode form of the disk; None if missing."""
    path = folder / relative
    if not relative or path_exists(path):
        return path if relative else None
    place = Path(path.anchor) if path.is_absolute() else Path()
    for part in path.parts[1:] if path.is_absolute() else path.parts:
        if path_exists(place / part):
            place = place / part
            continue
        try:
            inside = [p for p in place.iterdir() if nfc(p.name) == nfc(part)]
        except OSError:
            return None
        if len(inside) != 1:
            return None
        place = inside[0]
    return place


# -- patients --------------------------------------------------------------------------------------------------------


def numbered(name: str) -> tuple[str, int] | None:
    """Split ``BraTS-MET-00230-000_1094`` into patient and 1094; None unless the part before the number has a digit.

    ``image_12`` is not the twelfth slice of a patient: a word alone does not identify one.
    """
    match = _NUMBERED.match(name)
    if not match or not re.search(r"\d", match.group(1)):
        return None
    return match.group(1), int(match.group(3))


def patient_folders(places: Iterable[tuple[str, ...]]) -> bool:
    """Return whether folders stand for patients: every file lies in one, and they are not just train and test."""
    last = {place[-1] if place else "" for place in places}
    named = {name for name in last if name and split_of((name,)) is None}
    return len(named) > 1 and "" not in last and not (last - named)


def patients_of(files: Sequence[Path], root: Path) -> dict[Path, str]:
    """Return the patient of each file: its folder, or a picture's name without its number, or its own name."""
    places = {file: file.relative_to(root).parts[:-1] for file in files}
    if patient_folders(places.values()):
        return {file: place[-1] for file, place in places.items()}
    bare = {file: ended.group(1) if (ended := _MASK_END.match(stem(file))) else stem(file) for file in files}
    found = {file: numbered(name) if is_picture(file) else None for file, name in bare.items()}
    return {file: known[0] if known else bare[file] for file, known in found.items()}


def last_number(name: str) -> int:
    """Return the last number in a stem, 0 when there is none."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else 0
