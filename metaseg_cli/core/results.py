"""What a command found, as it is written: the fields of these classes are the JSON keys and CSV columns users rely on.

Lengths and volumes carry their unit in the name. A scan without spacing has ``_px`` values instead of ``_mm`` ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import metaseg_cli
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.typed_json import OMIT_NONE
from metaseg_cli.errors import Problem

SCHEMA = 1  # of every document; raised when a key changes its meaning or goes
PROGRAM = f"metaseg {metaseg_cli.__version__}"

PREDICTIONS_FILE = "predictions.json"
METRICS_FILE = "metrics.json"
COMPARISON_FILE = "comparison.json"
FOLLOW_UP_FILE = "follow_up.json"

Regions = dict[str, tuple[int, ...]]  # region → its label values


@dataclass(frozen=True, kw_only=True)
class ProblemRow:
    """One input that could not be used, or is doubtful."""

    file: Path
    reason: str
    remedy: str


def problem_rows(problems: Iterable[Problem]) -> tuple[ProblemRow, ...]:
    """Return *problems* as documents list them."""
    return tuple(ProblemRow(file=p.file, reason=p.reason, remedy=p.remedy) for p in problems)


@dataclass(frozen=True, kw_only=True)
class LesionRow:
    """One predicted lesion: a row of ``lesions.csv``, an entry of ``predictions.json``.

    ``z``, ``y``, ``x`` are voxel coordinates of its centre, ``x_mm``, ``y_mm``, ``z_mm`` patient coordinates (LPS).
    """

    scan: Path
    region: str
    lesion: int
    voxels: int
    volume_mm3: float | None
    diameter_mm: float | None = field(default=None, metadata=OMIT_NONE)
    diameter_px: float | None = field(default=None, metadata=OMIT_NONE)
    longest_axial_mm: float | None = field(default=None, metadata=OMIT_NONE)
    longest_axial_px: float | None = field(default=None, metadata=OMIT_NONE)
    perpendicular_mm: float | None = field(default=None, metadata=OMIT_NONE)
    perpendicular_px: float | None = field(default=None, metadata=OMIT_NONE)
    feret_mm: float | None = field(default=None, metadata=OMIT_NONE)
    feret_px: float | None = field(default=None, metadata=OMIT_NONE)
    axial_slices: int
    measurable: bool | None  # by RANO-BM; None without a spacing
    z: float
    y: float
    x: float
    x_mm: float | None = field(default=None, metadata=OMIT_NONE)
    y_mm: float | None = field(default=None, metadata=OMIT_NONE)
    z_mm: float | None = field(default=None, metadata=OMIT_NONE)
    confidence: float | None  # mean probability over the lesion


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """What was found in one scan, and where it was written.

    ``key`` identifies model, settings and input: a scan with the same key is complete and need not run again.
    ``probability``, ``uncertainty`` and ``disagreement`` are one file per region.
    """

    scan: Path
    name: str
    key: str
    mask: Path
    segmentation: Path | None  # DICOM SEG or RTSTRUCT
    overlay: Path | None
    overview: Path | None
    probability: tuple[Path, ...]
    uncertainty: tuple[Path, ...]
    disagreement: tuple[Path, ...]
    sequences: dict[str, str]
    spacing_mm: tuple[float, float, float] | None
    backend: str  # that ran the network
    notes: tuple[str, ...]
    sum_of_diameters_mm: dict[str, float]  # RANO-BM, by region; empty without a spacing
    lesions: tuple[LesionRow, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that were written for this scan."""
        single = (self.mask, self.segmentation, self.overlay, self.overview)
        maps = (*self.probability, *self.uncertainty, *self.disagreement)
        return (*(path for path in single if path is not None), *maps)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """``predictions.json``. ``earlier`` are complete scans of earlier calls; the terminal's JSON leaves them out."""

    schema: int = SCHEMA
    program: str = PROGRAM
    out: Path
    model: Path
    architecture: str
    threshold: float
    tta: bool
    fusion: str
    postprocessing: dict[str, Postprocessing]
    temperature: float
    regions: Regions
    scans: tuple[ScanResult, ...]
    problems: tuple[ProblemRow, ...]
    earlier: tuple[ScanResult, ...] | None = field(default=None, metadata=OMIT_NONE)
