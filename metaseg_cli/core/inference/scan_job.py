"""A case on its way through predict: what is asked for, what is ready for the network, what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli.config import PredictConfig
from metaseg_cli.core.datasets import CaseSource
from metaseg_cli.core.datasets.naming import predicted_name
from metaseg_cli.core.inference.finished_scans import FinishedScans
from metaseg_cli.core.inference.inputs import ScanFiles
from metaseg_cli.core.inference.predictor import Model, ModelInput, Prediction
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.results import ScanResult

# Draws the overlay, and the overview of a volume; this package draws nothing itself.
DrawPictures = Callable[[Prediction, Path, Path | None], None]
WriteReport = Callable[[Path, Prediction, ModelCard], None]  # the report for the chart, of a volume with a spacing


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """One case to predict, as it travels to a worker."""

    source: CaseSource
    name: str
    model: Path
    changed: float  # modification time of the model file: a worker must not use an older one
    config: PredictConfig
    finished: FinishedScans
    draw: DrawPictures
    write_report: WriteReport
    keep: bool = False  # the arrays, in the result

    def picture(self, what: str) -> Path:
        """Return where the overlay or the overview goes."""
        return self.config.out / f"{predicted_name(self.name, what)}.png"


@dataclass(frozen=True, kw_only=True)
class PredictedScan:
    """*result* as it is written; ``kept`` says that an earlier call completed it.

    ``prediction`` holds the arrays, on demand only: they are large.
    """

    result: ScanResult
    prediction: Prediction | None = None
    kept: bool = False


@dataclass(frozen=True, kw_only=True)
class OutputFiles:
    """Where the label map goes, and the DICOM SEG or RTSTRUCT of a series; in which formats, and the suffix of maps.

    With a DICOM format alone, both are one file.
    """

    mask: Path
    mask_format: str  # a row of MASK_FORMATS
    segmentation: Path | None
    segmentation_format: str
    maps_suffix: str


@dataclass(frozen=True, kw_only=True)
class PreparedScan:
    """A case that is ready for the network, and where its results go."""

    job: ScanJob
    key: str
    model: Model
    scan: ScanFiles
    series: Sequence[Path]  # the files of a DICOM series
    outputs: OutputFiles
    model_input: ModelInput
    unpacked: ExitStack  # holds the folder of a ZIP until the results, which repeat its headers, are written


@dataclass(frozen=True, kw_only=True)
class InferredScan:
    """A prepared case with what the model found."""

    prepared: PreparedScan
    prediction: Prediction
