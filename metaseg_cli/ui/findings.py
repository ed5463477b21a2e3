"""What the app finds in uploaded scans: the terminal's own result, and the same at another threshold."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from metaseg_cli.commands.predict import predict
from metaseg_cli.config import PredictConfig
from metaseg_cli.core.images import write_mask
from metaseg_cli.core.inference.lesion_rows import lesion_rows
from metaseg_cli.core.inference.pipeline import at_threshold
from metaseg_cli.core.inference.predictor import Model, Prediction, load_model
from metaseg_cli.core.inference.scan_job import PredictedScan
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.results import LesionRow
from metaseg_cli.errors import Problem
from metaseg_cli.reports.scan_pictures import save_pictures
from metaseg_cli.reports.scan_report import save_report
from metaseg_cli.ui.text import plain
from metaseg_cli.ui.uploads import Upload, write_uploads
from metaseg_cli.ui.viewer.component import ViewerArrays, viewer_arrays


@dataclass(frozen=True)
class ModelChoice:
    """A model file, and when it was changed: a file that was replaced is another model."""

    path: Path
    changed: float

    def load(self) -> Model:
        """Return the model, kept between reruns and for all sessions. Raises MetasegError."""
        return _loaded(str(self.path), self.changed)

    @property
    def usual_threshold(self) -> float:
        """The model's own threshold as the slider shows it."""
        return round(min(0.99, max(0.01, self.load().card.of_regions()[0].threshold)), 2)


@st.cache_resource(max_entries=2, show_spinner="Loading the model …")
def _loaded(path: str, changed: float) -> Model:
    del changed
    return load_model(path)


@dataclass(frozen=True)
class Outcome:
    """The terminal's scans, the bytes of the DICOM SEG of each that has one, and what is wrong with other uploads."""

    scans: tuple[PredictedScan, ...]
    segmentations: dict[str, tuple[str, bytes]]
    problems: tuple[str, ...]


def predict_uploads(uploads: Sequence[Upload], model: ModelChoice, sequence: str, progress: Progress) -> Outcome:
    """Run the terminal's own command on *uploads*, with its results in a folder that is removed at once.

    One file is what ``metaseg predict FILE`` takes; several are a folder, in which it finds what belongs together. A
    *sequence* says what they are, whatever their names say. Raises MetasegError.
    """
    with tempfile.TemporaryDirectory(prefix="metaseg-") as folder:
        scans = Path(folder) / "scan"
        given = write_uploads(uploads, scans)
        named = f"{sequence}={given}" if sequence else str(given)
        config = PredictConfig(inputs=(named,), model=str(model.path), out=Path(folder) / "out", overlay=False)
        result = predict(config, progress, keep=True)
        written = {scan.result.name: scan.result.segmentation for scan in result.scans}
        return Outcome(
            result.scans,
            {name: (path.name, path.read_bytes()) for name, path in written.items() if path},
            tuple(_about_upload(problem, scans) for problem in result.problems),
        )


def _about_upload(problem: Problem, folder: Path) -> str:
    """Return a message that names the upload, not its temporary file."""
    text = f"{problem.file.name}: {problem.reason}. {problem.remedy[:1].upper()}{problem.remedy[1:]}."
    return plain(text.replace(f"{folder}/", "").replace(str(folder), "the uploaded files"))


@dataclass(frozen=True)
class Finding:
    """One scan at one threshold: the prediction, its lesions, and what the viewer takes of them."""

    mask: tuple[str, bytes]  # name and content of its file
    prediction: Prediction
    lesions: tuple[LesionRow, ...]
    arrays: ViewerArrays


def find(scan: PredictedScan, identity: str, model: ModelChoice, threshold: float) -> Finding:
    """Post-process and measure *scan*, known to the page as *identity*, at the slider's *threshold*.

    The slider rounds: at its usual value the model's exact threshold is used.
    """
    assert scan.prediction is not None  # it was asked for with keep
    exact = None if threshold == model.usual_threshold else threshold
    loaded = model.load()
    prediction = at_threshold(loaded, scan.prediction, exact)
    used = loaded.card.of_regions()[0].threshold if exact is None else exact
    arrays = viewer_arrays(f"{identity} {model.path} {model.changed}", prediction, used, threshold)
    lesions = lesion_rows(Path(scan.result.scan.name), prediction)
    name = scan.result.mask.name
    mask = _written(name, lambda path: write_mask(path, prediction.mask, prediction.source))
    return Finding((name, mask), prediction, lesions, arrays)


def report_of(prediction: Prediction, card: ModelCard) -> bytes:
    """Return the page for the chart, of a volume with a spacing."""
    return _written("report.html", lambda path: save_report(path, prediction, card))


def overlay_of(prediction: Prediction) -> bytes:
    """Return the picture that ``metaseg predict`` writes."""
    return _written("overlay.png", lambda path: save_pictures(prediction, path, None))


def _written(name: str, write: Callable[[Path], None]) -> bytes:
    """Return what *write* puts into a file called *name*."""
    with tempfile.TemporaryDirectory(prefix="metaseg-") as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()
