"""The page that segments: choose a model, upload scans, look, measure, download."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from metaseg_cli.commands.predict import PredictResult, predict
from metaseg_cli.config import PredictConfig
from metaseg_cli.core.counts import counted
from metaseg_cli.core.images import write_mask
from metaseg_cli.core.inference.lesion_rows import lesion_rows
from metaseg_cli.core.inference.pipeline import at_threshold
from metaseg_cli.core.inference.predictor import Model, Prediction, load_model
from metaseg_cli.core.paths import file_name
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.results import UNLIKE_TRAINING, LesionRow
from metaseg_cli.core.run_folder import MODEL_FILE, finished_runs
from metaseg_cli.errors import MetasegError
from metaseg_cli.outputs.documents import Cell, cells, table_text
from metaseg_cli.ui.text import plain
from metaseg_cli.ui.viewer.component import ViewerArrays, show_viewer, viewer_arrays

_LONGEST_NAME = 120
_ROW_PX, _ROWS_SHOWN = 35, 3  # of the list of lesions: the rest is scrolled to
_FORMATS = ["png", "jpg", "jpeg", "tif", "tiff", "bmp", "webp", "gif", "nii", "gz", "nrrd", "mha"]


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


@st.cache_resource(max_entries=4, show_spinner="Looking for lesions …")
def _predicted(name: str, digest: str, _content: bytes, model: str, changed: float) -> PredictResult:
    """The terminal's own command on one uploaded file, with its results in a folder that is removed at once."""
    del digest, changed
    with tempfile.TemporaryDirectory(prefix="metaseg-") as folder:
        scan = Path(folder) / _base_name(name)
        scan.write_bytes(_content)
        config = PredictConfig(inputs=(str(scan),), model=model, out=Path(folder) / "out", overlay=False)
        return predict(config, Silent(), keep=True)


@dataclass(frozen=True)
class _Finding:
    """One scan at one threshold: the prediction, its lesions, and what the viewer takes of them."""

    name: str
    mask_name: str
    prediction: Prediction
    lesions: tuple[LesionRow, ...]
    arrays: ViewerArrays


@st.cache_resource(max_entries=8, show_spinner="Measuring …")
def _found(
    name: str, digest: str, model: str, changed: float, threshold: float, usual: float, _result: PredictResult
) -> _Finding:
    """Post-process and measure at *threshold*; at the *usual* one, as the model file has it to all its digits."""
    scan = _result.scans[0]
    assert scan.prediction is not None  # it was asked for with keep
    exact = None if threshold == usual else threshold
    loaded = _loaded(model, changed)
    prediction = at_threshold(loaded, scan.prediction, exact)
    used = loaded.card.of_regions()[0].threshold if exact is None else exact
    arrays = viewer_arrays(f"{digest} {model} {changed}", prediction, used, threshold)
    return _Finding(name, scan.result.mask.name, prediction, lesion_rows(Path(name), prediction), arrays)


def show() -> None:
    """Draw the page."""
    with st.sidebar:
        chosen, changed = _chosen_model()
        if chosen is None:
            return
        uploads = st.file_uploader("Scans", type=_FORMATS, accept_multiple_files=True, key="upload")
    st.caption("Finds brain metastases in MRI. For research use only, not a medical device.")
    if not uploads:
        st.write(
            "Drop a PNG, JPEG or TIFF slice, or a NIfTI, NRRD or MHA volume, of the kind the model was trained on, "
            "into the box on the left."
        )
        return
    names = [upload.name for upload in uploads]
    upload = uploads[names.index(st.selectbox("Scan", names, key="case"))] if len(uploads) > 1 else uploads[0]
    content = upload.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    result = _predicted(upload.name, digest, content, str(chosen), changed)
    if result.problems:
        problem = result.problems[0]
        st.error(plain(f"{upload.name}: {problem.reason}. {problem.remedy.capitalize()}."))
        return
    for note in result.scans[0].result.notes:
        (st.warning if note.startswith(UNLIKE_TRAINING) else st.caption)(plain(note))
    _review(upload.name, digest, str(chosen), changed, result)


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
def _review(name: str, digest: str, model: str, changed: float, result: PredictResult) -> None:
    """Threshold, viewer, the table of lesions, and what can be taken home."""
    card = _loaded(model, changed).card
    usual = round(min(0.99, max(0.01, card.of_regions()[0].threshold)), 2)
    left, right = st.columns([3, 2])
    threshold = left.slider(
        "Threshold", 0.01, 0.99, usual, 0.01, key="threshold", help="Probability from which a voxel counts."
    )
    found = _found(name, digest, model, changed, threshold, usual, result)
    index = found.prediction.index_region
    mine = [lesion for lesion in found.lesions if lesion.region == index]
    of_region = f" of {plain(index)}" if len(found.prediction.lesions) > 1 else ""
    summary = f"**{counted(len(mine), 'lesion')}**{of_region} at threshold {found.arrays.data['threshold']:.2f}"
    with right.container(key="found"):
        st.markdown(summary)
    with right.container(horizontal=True):
        file_name, content = _mask_file(found)
        st.download_button("Mask", content, file_name=file_name, on_click="ignore", key="download_mask", type="primary")
        table = table_text(LesionRow, found.lesions)
        stem = file_name.partition("_mask")[0]
        st.download_button("Table", table, file_name=f"{stem}_lesions.csv", on_click="ignore", key="download_csv")
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


def _base_name(name: str) -> str:
    """The name of an uploaded file without any folder; it is not hidden, and not too long."""
    base = file_name(re.split(r"[/\\\\]", name)[-1].lstrip("."))
    return base if len(base) <= _LONGEST_NAME else base[-_LONGEST_NAME:]


def _mask_file(found: _Finding) -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="metaseg-") as folder:
        path = Path(folder) / found.mask_name
        write_mask(path, found.prediction.mask, found.prediction.source)
        return path.name, path.read_bytes()
