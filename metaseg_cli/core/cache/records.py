"""Records of a case, and of how it was prepared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from metaseg_cli.core.datasets.case_source import CaseSource
from metaseg_cli.core.preprocessing import Preprocessing
from metaseg_cli.errors import Problem

SCHEMA = 4  # of dataset.json and the shards; another number is refused, and prepare writes all again
# The files of a prepared folder; the report of ``prepare`` is in ``reports.prepare_page``.
INDEX_FILE = "dataset.h5"
LISTING_FILE = "dataset.json"
SHARDS = "shards"  # a folder
PATIENT_KEY = ".patient_key"


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Everything that determines a case in the cache; another value means another cache."""

    kind: str  # "pictures" or "volumes"
    preprocessing: Preprocessing
    sequences: tuple[str, ...]
    grey: bool = False  # pictures in colour whose channels agree are stored as one channel
    foreground: tuple[int, ...] = ()  # label values of lesions; empty: every value but 0
    secret: str = ""  # of pseudonymised folders: no name or path is stored, and case keys cannot be guessed
    regions: dict[str, tuple[int, ...]] = field(default_factory=dict)  # to which named segments of masks belong
    structures: tuple[str, ...] = ()  # of an RTSTRUCT or SEG, those that are lesions; empty: by their names


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """One case of the prepared folder, as ``dataset.json`` lists it. Shapes and spacings are those in the cache.

    ``smallest_lesions`` holds the size of the smallest lesion of each region that has any, as ``predict`` would measure
    it in these files: on their own grid, in mm³ (mm² in one slice, voxels without a spacing).
    """

    case: str
    patient: str
    file: str  # one of its images, to name in messages
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    source_spacing_mm: tuple[float, float, float] | None
    sequences: tuple[str, ...]  # the available ones
    lesion_voxels: tuple[int, ...]
    labels: tuple[int, ...]
    content: str  # hash of the images' numbers; recognises a case under any name
    images: tuple[str, ...]  # hash of each image that is not constant; recognises parts of a case
    key: str
    shard: str
    labelled: bool = True
    split: str | None = None
    fold: int | None = None
    region_voxels: dict[str, int] = field(default_factory=dict)
    smallest_lesions: dict[str, float] = field(default_factory=dict)
    per_slice: bool = False  # each slice is a picture of its own, which predict meets by itself

    def record(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class WrittenCase:
    """What a worker reports of one case: its record (None when nothing of it was usable), problems and notes."""

    record: CaseRecord | None
    problems: tuple[Problem, ...] = field(default=())
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PrepareResult:
    """What ``metaseg prepare`` read (``cases``), excluded or doubts (``problems``), and assumed (``notes``).

    ``found`` are the cases before they were read; ``out`` is None where nothing was written.
    """

    out: Path | None
    layout: str
    why: str
    cases: tuple[CaseRecord, ...]
    found: tuple[CaseSource, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    sequences: tuple[str, ...]
    regions: dict[str, tuple[int, ...]]
    folds: int
    reused: int
    spacing_mm: tuple[float, float, float] | None = None
    manifest: Path | None = None
    key: Path | None = None  # of a pseudonymised folder
