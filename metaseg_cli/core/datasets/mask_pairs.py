"""Match the masks of two folders, from any tool, by case."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metaseg_cli.core.datasets.naming import (
    are_parts,
    is_bare_mask_name,
    is_predicted,
    mask_key,
    mask_name,
    match_names,
    natural,
    numbered_mask,
    stem,
)
from metaseg_cli.core.datasets.sequence_names import case_and_sequence
from metaseg_cli.core.formats import is_picture
from metaseg_cli.core.words import nfc

_PREDICTION_END = re.compile(r"^(.+?)[ _.\-]+(?:preds?|predictions?|predicted)$", re.IGNORECASE)


@dataclass(frozen=True)
class MaskFolder:
    """The masks of one folder by the names of their cases; several files under one name are one case's."""

    files: dict[str, tuple[Path, ...]]
    # Other names that a case of this folder may have in another one, if nothing there has its own.
    aliases: dict[str, str] = field(default_factory=dict)


def mask_folders(
    references: Sequence[Path], references_root: Path, predictions: Sequence[Path], predictions_root: Path
) -> tuple[MaskFolder, MaskFolder]:
    """Return the masks of both folders by case: ``X-seg``, ``x_gt``, ``X.seg``, ``X_mask`` all belong to X.

    Where one name lies in several folders, the folder is part of the name. What ``predict`` writes beside its masks is
    not a mask, nor is a scan beside its own. ``X_mask_1`` and ``X_mask_2`` are X, unless the other folder has them too.
    """
    names = [_names(_only_masks(references)), _names(_only_masks(predictions))]
    named = [_without_numbers(mine, set(other.values())) for mine, other in (names, names[::-1])]
    repeated = set().union(*(_repeated(each) for each in named))
    truth, found = (
        _folder(each, root, repeated) for each, root in zip(named, (references_root, predictions_root), strict=True)
    )
    return truth, found


def pair_masks(truth: MaskFolder, found: MaskFolder) -> dict[str, str]:
    """Return reference name → prediction name: equal, equal but for case, or equal to an alias of either."""
    pairs = match_names(truth.files, found.files)
    for left, right in ((truth.aliases, {}), ({}, found.aliases), (truth.aliases, found.aliases)):
        open_truth = {left.get(name, name): name for name in truth.files if name not in pairs}
        open_found = {right.get(name, name): name for name in found.files if name not in pairs.values()}
        pairs |= {open_truth[a]: open_found[b] for a, b in match_names(open_truth, open_found).items()}
    return pairs


def share_a_name(truth: MaskFolder, found: MaskFolder) -> bool:
    """Return whether any file of one folder has the name of one in the other, wherever they lie."""
    bare = [{name.rsplit("/", 1)[-1].casefold() for name in folder.files} for folder in (truth, found)]
    return bool(bare[0] & bare[1])


def the_mask(paths: Sequence[Path], dicom: Iterable[Path] = ()) -> tuple[Path, ...] | None:
    """Return the mask among the files of one case, or its parts, to be united; None when that is ambiguous.

    A file that is named as a mask is preferred, and any other format to *dicom* files, which ``predict`` writes as
    well.
    """
    says = [p for p in paths if mask_key(stem(p), certain=False) is not None or numbered_mask(stem(p))]
    masks = says or list(paths)
    other = set(dicom)
    masks = [p for p in masks if p not in other] or masks
    if (len(masks) > 1 and not are_parts([stem(p) for p in masks])) or len({stem(p) for p in masks}) < len(masks):
        return None
    return tuple(sorted(masks, key=lambda p: natural(stem(p))))


def _only_masks(files: Sequence[Path]) -> list[Path]:
    """Exclude what ``predict`` writes beside its masks, and a case's sequences beside its mask."""
    kept = [file for file in files if not is_predicted(stem(file), masks=False)]
    masks = {(f.parent, _case_of(f).casefold()) for f in kept if _says_mask(stem(f))}
    return [f for f in kept if (f.parent, _case_if_scan(f)) not in masks]


def _says_mask(name: str) -> bool:
    return mask_key(name, certain=False) is not None or is_bare_mask_name(name)


def _case_of(file: Path) -> str:
    return "" if is_bare_mask_name(stem(file)) else mask_name(stem(file))


def _case_if_scan(file: Path) -> str | None:
    found = None if is_picture(file) else case_and_sequence(stem(file))
    return found[0].casefold() if found and not _says_mask(stem(file)) else None


def _names(files: Sequence[Path]) -> dict[Path, str]:
    return {file: mask_name(stem(file)) for file in files}


def _without_numbers(mine: Mapping[Path, str], others: set[str]) -> dict[Path, str]:
    """Take ``a_mask_1`` as a part of ``a``, unless the other folder has a mask of that very name, or of ``a_1``."""
    theirs = {name.casefold() for name in others}
    own = {(file.parent, name.casefold()) for file, name in mine.items()}
    result = {}
    for file, name in mine.items():
        result[file] = name
        numbered = numbered_mask(stem(file))
        if numbered and name.casefold() not in theirs:
            single = [f"{numbered.key}{sign}{numbered.number}" for sign in "_- "]
            single = [each for each in single if each.casefold() in theirs]
            whole = numbered.key.casefold() in theirs or (file.parent, numbered.key.casefold()) in own
            if whole != bool(single):
                result[file] = numbered.key if whole else single[0]
    return result


def _repeated(names: Mapping[Path, str]) -> set[str]:
    """Return names that occur in more than one folder, as in ``patient1/seg.nii.gz`` and ``patient2/seg.nii.gz``."""
    places = {(file.parent, name) for file, name in names.items()}
    return {name for name, count in Counter(name for _, name in places).items() if count > 1}


def _folder(names: Mapping[Path, str], root: Path, repeated: set[str]) -> MaskFolder:
    files: dict[str, list[Path]] = defaultdict(list)
    aliases: dict[str, str] = {}
    for file, name in names.items():
        folder = nfc(file.relative_to(root).parent.as_posix())
        key = f"{folder}/{name}" if name in repeated and folder != "." else name
        files[key].append(file)
        if is_bare_mask_name(name) and folder != ".":
            aliases[key] = folder.rsplit("/", 1)[-1]
        elif match := _PREDICTION_END.match(name):
            aliases[key] = key[: len(key) - len(name)] + match.group(1)
    return MaskFolder({key: tuple(paths) for key, paths in files.items()}, aliases)
