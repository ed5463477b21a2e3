"""The page that segments: choose a model, upload scans, look, measure, download."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import streamlit as st

from metaseg_cli.commands.predict import predict
from metaseg_cli.config import PredictConfig
from metaseg_cli.core.counts import counted
from metaseg_cli.core.images import write_mask
from metaseg_cli.core.inference.lesion_rows import lesion_rows
from metaseg_cli.core.inference.pipeline import at_threshold
from metaseg_cli.core.inference.predictor import Model, Prediction, load_model
from metaseg_cli.core.inference.scan_job import PredictedScan
from metaseg_cli.core.inference.unlike_training import reasons_in
from metaseg_cli.core.paths import file_name
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.results import UNLIKE_TRAINING, LesionRow
from metaseg_cli.core.run_folder import MODEL_FILE, finished_runs
from metaseg_cli.errors import MetasegError, Problem
from metaseg_cli.outputs.documents import Cell, cells, table_text
from metaseg_cli.ui.text import plain
from metaseg_cli.ui.viewer.component import ViewerArrays, show_viewer, viewer_arrays

_LONGEST_NAME = 120
_ROW_PX, _ROWS_SHOWN = 35, 3  # of the list of lesions: the rest is scrolled to


class Upload(Protocol):
    """What Streamlit knows of an uploaded file."""

    name: str

    def getvalue(self) -> bytes:
        """Return its content."""


def _models() -> dict[str, Path]:
    """What the model box offers: the model given on the command line, then finished runs, newest first."""
    offered: dict[str, Path] = {}
    given = os.environ.get("METASEG_UI_MODEL")
    if given:
        path = Path(given)
        offered[path.parent.name if path.name == MODEL_FILE else path.name] = path
    for run in finished_runs(Path(os.environ.get("METASEG_UI_RUNS", "runs"))):
        offered.setdefault(run.name, run / MODEL_FILE)
    return offered


@st.cache_resource(max_entries=2, show_spinner="Loading the model …")
def _loaded(path: str, changed: float) -> Model:
    """The model, kept between reruns; *changed* reloads a file that was replaced."""
    del changed
    return load_model(path)


@dataclass(frozen=True)
class _Outcome:
    """The terminal's scans, the bytes of the DICOM SEG of each that has one, and what is wrong with other uploads."""

    scans: tuple[PredictedScan, ...]
    segmentations: dict[str, tuple[str, bytes]]
    problems: tuple[str, ...]


@st.cache_resource(max_entries=4, show_spinner="Looking for lesions …")
def _predicted(digest: str, _uploads: Sequence[Upload], model: str, changed: float, sequence: str) -> _Outcome:
    """The terminal's own command on uploaded files, with its results in a folder that is removed at once.

    One file is what ``metaseg predict FILE`` takes; several are a folder, in which it finds what belongs together. A
    *sequence* says what they are, whatever their names say.
    """
    del digest, changed
    with tempfile.TemporaryDirectory(prefix="metaseg-") as folder:
        scans = Path(folder) / "scan"
        scans.mkdir()
        for name, content in zip(_distinct([upload.name for upload in _uploads]), _uploads, strict=True):
            (scans / name).write_bytes(content.getvalue())
        given = scans if len(_uploads) > 1 else next(scans.iterdir())
        named = f"{sequence}={given}" if sequence else str(given)
        config = PredictConfig(inputs=(named,), model=model, out=Path(folder) / "out", overlay=False)
        result = predict(config, Silent(), keep=True)
        written = {scan.result.name: scan.result.segmentation for scan in result.scans}
        return _Outcome(
            result.scans,
            {name: (path.name, path.read_bytes()) for name, path in written.items() if path},
            tuple(_about_upload(problem, scans) for problem in result.problems),
        )


def _about_upload(problem: Problem, folder: Path) -> str:
    """Return a message that names the upload and not the file that it was for a moment."""
    text = f"{problem.file.name}: {problem.reason}. {problem.remedy[:1].upper()}{problem.remedy[1:]}."
    return plain(text.replace(f"{folder}/", "").replace(str(folder), "the uploaded files"))


@dataclass(frozen=True)
class _Finding:
    """One scan at one threshold: the prediction, its lesions, and what the viewer takes of them."""

    mask: tuple[str, bytes]  # name and content of its file
    prediction: Prediction
    lesions: tuple[LesionRow, ...]
    arrays: ViewerArrays


@st.cache_resource(max_entries=8, show_spinner="Measuring …")
def _found(identity: str, model: str, changed: float, threshold: float, usual: float, _scan: PredictedScan) -> _Finding:
    """Post-process and measure at *threshold*; at the *usual* one, as the model file has it to all its digits."""
    assert _scan.prediction is not None  # it was asked for with keep
    exact = None if threshold == usual else threshold
    loaded = _loaded(model, changed)
    prediction = at_threshold(loaded, _scan.prediction, exact)
    used = loaded.card.of_regions()[0].threshold if exact is None else exact
    arrays = viewer_arrays(f"{identity} {model} {changed}", prediction, used, threshold)
    lesions = lesion_rows(Path(_scan.result.scan.name), prediction)
    return _Finding(_mask_file(_scan.result.mask.name, prediction), prediction, lesions, arrays)


def show() -> None:
    """Draw the page."""
    with st.sidebar:
        chosen, changed = _chosen_model()
        if chosen is None:
            return
        uploads = st.file_uploader("Scans", accept_multiple_files=True, key="upload")
    st.caption("Finds brain metastases in MRI. For research use only, not a medical device.")
    if not uploads:
        st.write(
            "Drop scans of the kind the model was trained on into the box on the left: pictures, NIfTI, NRRD or MHA "
            "volumes, the files of a DICOM series, or a ZIP of any of them. Several sequences of one patient become "
            "one scan when their names say what they are."
        )
        return
    digest = _digest(uploads)
    card = _loaded(str(chosen), changed).card
    insisted = card.sequences[0] if len(card.sequences) == 1 and st.session_state.get("insist") == digest else ""
    try:
        outcome = _predicted(digest, uploads, str(chosen), changed, insisted)
    except MetasegError as error:
        st.error(plain(str(error)))
        return
    for message in outcome.problems:
        st.error(message)
    if outcome.problems and len(card.sequences) == 1 and not insisted and not outcome.scans:
        label = f"It is {plain(card.sequences[0])}: read it as that"
        st.button(label, key="insist_button", on_click=lambda: st.session_state.update(insist=digest))
    if not outcome.scans:
        return
    names = [scan.result.name for scan in outcome.scans]
    number = names.index(st.selectbox("Scan", names, key="case")) if len(names) > 1 else 0
    scan = outcome.scans[number]
    _say_notes(scan.result.notes)
    _review(f"{digest} {insisted} {number}", str(chosen), changed, scan, outcome.segmentations.get(scan.result.name))


def _say_notes(notes: Sequence[str]) -> None:
    """Say what is doubtful in few lines: the viewer is to stay in sight."""
    unlike = reasons_in(notes)
    if unlike:
        st.warning(plain(f"{UNLIKE_TRAINING}{'; '.join(unlike)}"))
    others = [note for note in notes if not note.startswith(UNLIKE_TRAINING)]
    if others:
        st.caption(plain(" · ".join(others)))


def _digest(uploads: Sequence[Upload]) -> str:
    """Return what is equal for the same files under the same names."""
    digest = hashlib.sha256()
    for upload in uploads:
        content = upload.getvalue()
        digest.update(f"{upload.name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _chosen_model() -> tuple[Path | None, float]:
    """Let the visitor choose a model, and show its card; None where there is none, or it cannot be read."""
    st.header("Model")
    offered = _models()
    if not offered:
        st.info("There is no trained model yet. In a terminal, run `metaseg demo` or `metaseg train`, then reload.")
        return None, 0.0
    chosen = offered[st.selectbox("Model", list(offered), label_visibility="collapsed", key="model")]
    changed = chosen.stat().st_mtime
    try:
        card = _loaded(str(chosen), changed).card
    except MetasegError as error:
        st.error(plain(str(error)))
        return None, 0.0
    st.caption(plain(f"{card.name}, {card.dims}D · sequences: {', '.join(card.sequences)}"))
    if card.validation:
        st.caption(
            f"On its validation cases: Dice {card.validation['dice']:.2f}, lesion F1 {card.validation['lesion_f1']:.2f}"
        )
    return chosen, changed


@st.fragment
def _review(
    identity: str, model: str, changed: float, scan: PredictedScan, segmentation: tuple[str, bytes] | None
) -> None:
    """Threshold, viewer, the table of lesions, and what can be taken home."""
    card = _loaded(model, changed).card
    usual = round(min(0.99, max(0.01, card.of_regions()[0].threshold)), 2)
    if st.session_state.get("threshold_of") != model:  # another model's threshold means nothing to this one
        st.session_state["threshold_of"], st.session_state["threshold"] = model, usual
    left, right = st.columns([3, 2])
    threshold = left.slider(
        "Threshold", 0.01, 0.99, step=0.01, key="threshold", help="Probability from which a voxel counts."
    )
    found = _found(identity, model, changed, threshold, usual, scan)
    index = found.prediction.index_region
    mine = [lesion for lesion in found.lesions if lesion.region == index]
    of_region = f" of {plain(index)}" if len(found.prediction.lesions) > 1 else ""
    summary = f"**{counted(len(mine), 'lesion')}**{of_region} at threshold {found.arrays.data['threshold']:.2f}"
    with right.container(key="found"):
        st.markdown(summary)
    with right.container(horizontal=True):
        name, content = found.mask
        st.download_button("Mask", content, file_name=name, on_click="ignore", key="download_mask", type="primary")
        if segmentation and threshold == usual:  # it holds what the model's own threshold gives
            st.download_button(
                "DICOM SEG", segmentation[1], file_name=segmentation[0], on_click="ignore", key="download_seg"
            )
        table = table_text(LesionRow, found.lesions)
        csv_name = f"{file_name(scan.result.name)}_lesions.csv"
        st.download_button("Table", table, file_name=csv_name, on_click="ignore", key="download_csv")
    focus = _chosen_lesion(mine)
    show_viewer(found.arrays, focus)
    if not found.lesions:
        st.info("No lesion was found. That does not mean that there is none.")
        return
    st.dataframe(
        _readable(mine),
        hide_index=True,
        key="lesions",
        on_select="rerun",
        selection_mode="single-row",
        height=_ROW_PX * (1 + min(len(mine), _ROWS_SHOWN)) + 3,
    )


def _chosen_lesion(lesions: Sequence[LesionRow]) -> int | None:
    """Return the lesion whose row was chosen last, the largest at first."""
    state = st.session_state.get("lesions")
    rows = state["selection"]["rows"] if state else []
    if rows and rows[0] < len(lesions):
        return lesions[rows[0]].lesion
    return lesions[0].lesion if lesions else None


def _readable(lesions: Sequence[LesionRow]) -> list[dict[str, Cell]]:
    """Return the table as people read it, with words and units."""
    rows = []
    for lesion in lesions:
        row = cells(lesion)
        unit = "mm" if lesion.longest_axial_px is None else "px"
        volume = lesion.volume_mm3
        rows.append(
            {
                "lesion": lesion.lesion,
                **({"volume (ml)": round(volume / 1000, 3)} if volume is not None else {"voxels": lesion.voxels}),
                f"longest diameter ({unit})": row[f"longest_axial_{unit}"],
                f"perpendicular ({unit})": row[f"perpendicular_{unit}"],
                "confidence": lesion.confidence,
                **({} if lesion.measurable is None else {"measurable": "yes" if lesion.measurable else "no"}),
            }
        )
    return rows


def _distinct(names: Sequence[str]) -> list[str]:
    """Return a valid file name for each of *names*, none of them twice: files of two folders may be called alike."""
    bases = [_base_name(name) for name in names]
    counts = Counter(base.casefold() for base in bases)
    return [base if counts[base.casefold()] == 1 else f"{i}_{base}" for i, base in enumerate(bases, start=1)]


def _base_name(name: str) -> str:
    """The name of an uploaded file without any folder; it is not hidden, and not too long."""
    base = file_name(re.split(r"[/\\\\]", name)[-1].lstrip("."))
    return base if len(base) <= _LONGEST_NAME else base[-_LONGEST_NAME:]


def _mask_file(name: str, prediction: Prediction) -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="metaseg-") as folder:
        path = Path(folder) / name
        write_mask(path, prediction.mask, prediction.source)
        return path.name, path.read_bytes()
