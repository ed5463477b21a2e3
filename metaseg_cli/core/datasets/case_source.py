"""The files of one case, found but not yet read, and what could not be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from metaseg_cli.errors import Problem


@dataclass(frozen=True, kw_only=True)
class CaseSource:
    """One imaging visit, found but not yet read.

    ``sequences`` maps a sequence name to its files. A case of *slices* has one picture per slice, in order, and in
    ``masks`` one mask per picture; any other case has one volume per sequence (a file, a folder with a DICOM series,
    or the files of one) and at most one mask. Where an image has several masks, ``extra_masks`` holds the others, by
    the position of the first in ``masks``: they are united. ``channels`` names the sequences inside one file of
    several channels. A picture in colour holds its channels under the single name ``image``. ``split`` is "train",
    "val" or "test" where the layout says so. The paths of a case in the ZIP ``archive`` are those inside it.
    """

    case: str
    patient: str
    sequences: dict[str, tuple[Path, ...]]
    masks: tuple[Path, ...] = ()
    extra_masks: dict[int, tuple[Path, ...]] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    slices: bool = False
    split: str | None = None
    archive: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Every file of the case; a folder stands for the files in it, a ZIP for what it holds."""
        if self.archive is not None:
            return [self.archive]
        named = [f for files in self.sequences.values() for f in files]
        named += [f for i in range(len(self.masks)) for f in self.masks_of(i)]
        return [f for p in named for f in (sorted(q for q in p.rglob("*") if q.is_file()) if p.is_dir() else [p])]

    def masks_of(self, index: int) -> tuple[Path, ...]:
        """Return the masks of the picture at *index*, or of the volume at 0; none where the case has no mask."""
        return (self.masks[index], *self.extra_masks.get(index, ())) if self.masks else ()

    @property
    def first_file(self) -> Path:
        """A file to name in messages."""
        return self.archive or next(iter(self.sequences.values()))[0]

    def packed_in(self, archive: Path, folder: Path) -> CaseSource:
        """Return the case found where *archive* was unpacked, as one of the ZIP."""
        return dataclasses.replace(self.located(lambda file: file.relative_to(folder)), archive=archive)

    def located(self, where: Callable[[Path], Path]) -> CaseSource:
        """Return the same case with *where* of each of its paths; of one in a ZIP, of the ZIP's."""
        if self.archive is not None:
            return dataclasses.replace(self, archive=where(self.archive))
        return dataclasses.replace(
            self,
            sequences={name: tuple(map(where, files)) for name, files in self.sequences.items()},
            masks=tuple(map(where, self.masks)),
            extra_masks={number: tuple(map(where, files)) for number, files in self.extra_masks.items()},
        )


@dataclass(frozen=True, kw_only=True)
class FoundCases:
    """What a folder holds; ``layout`` names how it was read and ``why``, ``notes`` say what was assumed."""

    layout: str
    cases: tuple[CaseSource, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = field(default=())
    why: str = ""
