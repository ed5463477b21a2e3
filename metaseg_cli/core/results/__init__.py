"""What a command found, as it is written: the fields of these classes are the JSON keys and CSV columns users rely on.

Lengths and volumes carry their unit in the name. A scan without spacing has ``_px`` values instead of ``_mm`` ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from metaseg_cli import PROGRAM
from metaseg_cli.core.choices import Protocol
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.results.scores import (
    ConfidenceReport,
    PairedDifference,
    RankFrequencies,
    SizeClassScores,
    Summary,
)
from metaseg_cli.core.typed_json import OMIT_NONE
from metaseg_cli.errors import Problem

SCHEMA = 1  # of every document; raised when a key changes its meaning or goes


PREDICTIONS_FILE = "predictions.json"
METRICS_FILE = "metrics.json"
COMPARISON_FILE = "comparison.json"
FOLLOW_UP_FILE = "follow_up.json"

UNLIKE_TRAINING = "unlike the training data: "  # how a note begins that says in what a scan differs from it

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
class RegionTotal:
    """What one region of a scan holds in all; regions may lie in one another, so that their sum means nothing."""

    lesions: int
    voxels: int
    volume_ml: float | None  # None without a spacing


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
    report: Path | None = field(default=None, metadata=OMIT_NONE)
    probability: tuple[Path, ...]
    uncertainty: tuple[Path, ...]
    disagreement: tuple[Path, ...]
    sequences: dict[str, str]
    spacing_mm: tuple[float, float, float] | None
    backend: str  # that ran the network
    notes: tuple[str, ...]
    sum_of_diameters_mm: dict[str, float]  # RANO-BM, by region; empty without a spacing
    lesions: tuple[LesionRow, ...]
    totals: dict[str, RegionTotal] = field(default_factory=dict)  # by region; empty in files of older versions

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that were written for this scan."""
        single = (self.mask, self.segmentation, self.overlay, self.overview, self.report)
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
    operating_point: str
    threshold: float
    tta: bool
    fusion: str
    postprocessing: dict[str, Postprocessing]
    temperature: float
    regions: Regions
    index_region: str  # that lesions are counted and numbered in
    scans: tuple[ScanResult, ...]
    problems: tuple[ProblemRow, ...]
    earlier: tuple[ScanResult, ...] | None = field(default=None, metadata=OMIT_NONE)
    backend_note: str | None = field(default=None, metadata=OMIT_NONE)  # why it is not the backend that is usual


@dataclass(frozen=True, kw_only=True)
class CaseMetrics:
    """Every metric of one case, by region. ``reasons`` say why a metric is null."""

    case: str
    patient: str
    regions: dict[str, dict[str, float]]
    reasons: dict[str, dict[str, str]] | None = field(default=None, metadata=OMIT_NONE)


@dataclass(frozen=True, kw_only=True)
class PatientMetrics:
    """Overlap and detection of one patient by region: voxels and lesions of all the patient's cases added up."""

    patient: str
    regions: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What was evaluated: a model on prepared cases."""

    model: Path
    data: Path
    split: str
    postprocessing: dict[str, Postprocessing]
    grid: str  # that masks, lesions and probabilities were compared on


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """What was evaluated: a folder of masks."""

    predictions: Path
    references: Path
    grid: str = "of each reference"


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """``metrics.json``. ``policy`` says what empty masks mean for each metric."""

    schema: int = SCHEMA
    program: str = PROGRAM
    protocol: Protocol
    policy: dict[str, str]
    settings: ModelSettings | FolderSettings
    cases: tuple[CaseMetrics, ...]
    patients: tuple[PatientMetrics, ...]
    summary: Summary
    by_size: dict[str, dict[str, SizeClassScores]]
    confidence: dict[str, ConfidenceReport]
    notes: tuple[str, ...]
    problems: tuple[ProblemRow, ...]
    folds: dict[str, Summary] | None = field(default=None, metadata=OMIT_NONE)  # of a cross-validation


@dataclass(frozen=True, kw_only=True)
class CaseRow:
    """The first columns of ``cases.csv``; those of the metrics follow."""

    case: str
    patient: str
    region: str


@dataclass(frozen=True, kw_only=True)
class EvaluatedLesionRow:
    """One reference or predicted lesion: a row of the ``lesions.csv`` of an evaluation.

    ``matched_with`` are numbers of the other side's lesions; ``counted``: it enters counts and means. ``x_mm``,
    ``y_mm``, ``z_mm`` are patient coordinates (LPS) of its centre.
    """

    case: str
    patient: str
    region: str
    side: str  # reference or prediction
    lesion: int
    matched: int  # 0 or 1
    matched_with: str
    counted: int  # 0 or 1
    voxels: int
    volume_mm3: float | None
    diameter_mm: float | None = None
    diameter_px: float | None = None
    z: float
    y: float
    x: float
    x_mm: float | None = None
    y_mm: float | None = None
    z_mm: float | None = None
    dice: float | None = None  # of reference lesions
    hd95_mm: float | None = None
    hd95_px: float | None = None
    confidence: float | None = None  # of predicted lesions


@dataclass(frozen=True, kw_only=True)
class SystemSummary:
    """One of the systems that are compared."""

    name: str
    what: str
    summary: Summary


@dataclass(frozen=True, kw_only=True)
class SystemComparison:
    """``comparison.json``. ``ranks``: by region, how often each system has each rank when patients are resampled."""

    schema: int = SCHEMA
    program: str = PROGRAM
    protocol: Protocol
    systems: tuple[SystemSummary, ...]
    patients: int
    differences: tuple[PairedDifference, ...]
    ranks: dict[str, RankFrequencies]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class VisitRow:
    """One visit: a row of ``visits.csv``. Numbers of lesions that are new, or uncertain, are separated by spaces.

    ``uncertain`` are equivocal new lesions, on a single slice. ``basis`` says what the category rests on: the columns
    after it are to be filled in by hand, and are empty here.
    """

    visit: str
    lesions: int
    volume_ml: float
    sum_of_diameters_mm: float  # of the target lesions
    from_baseline_percent: float | None
    from_nadir_percent: float | None
    category: str
    reason: str
    new: str
    uncertain: str
    remarks: str = ""
    basis: str = "imaging only"
    confirmed_after_4_weeks: str = ""
    corticosteroids: str = ""
    clinical_state: str = ""
    date: str = ""  # YYYY-MM-DD, from DICOM headers
    mask: Path | None = None  # that was made from a scan
    overlay: Path | None = None
    structured_report: Path | None = None  # DICOM SR


@dataclass(frozen=True, kw_only=True)
class LesionVisitRow:
    """One lesion at one visit, from the first that shows it: a row of ``follow_up.csv``."""

    lesion: int
    visit: str
    state: str
    target: bool
    longest_axial_mm: float
    perpendicular_mm: float
    volume_mm3: float
    from_first_percent: float | None
    from_nadir_percent: float | None
    x_mm: float
    y_mm: float
    z_mm: float


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """``follow_up.json``. ``region`` is what was measured; ``model`` made the masks of visits that had none."""

    schema: int = SCHEMA
    program: str = PROGRAM
    out: Path
    visits: tuple[VisitRow, ...]
    lesions: tuple[LesionVisitRow, ...]
    notes: tuple[str, ...]
    region: str = ""
    model: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """``difference`` is the largest one between torch's probabilities and ONNX Runtime's, on ``checked_on``."""

    model: Path
    onnx: Path
    description: Path
    difference: float
    checked_on: str


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo leaves, and how good its model is on phantoms that it has not seen."""

    out: Path
    model: Path
    overlay: Path
    scan: Path
    scores: dict[str, float]
    patients: int
    seconds: float
