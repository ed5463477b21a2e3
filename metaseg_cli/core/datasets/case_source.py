"""Where the files of one case lie, and what could not be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CaseSource:
    """One imaging visit, found but not yet read.

    ``sequences`` maps a sequence name to its files: one volume or picture, or the pictures of consecutive slices
    in order. A picture in colour holds several channels under the one name ``image``. ``masks`` has one entry per
    slice file, or one for a volume; it is empty for an unlabelled case. ``split`` is "train", "val" or "test" when
    a folder's name said so.
    """

    case: str
    patient: str
    sequences: dict[str, tuple[Path, ...]]
    masks: tuple[Path, ...] = ()
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that was left out or is doubtful: which file, why, and what the user can do."""

    file: Path
    reason: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class FoundCases:
    """What a folder holds; ``layout`` names how it was read, ``notes`` say what was assumed."""

    layout: str
    cases: tuple[CaseSource, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = field(default=())
