"""The page that segments: choose a model, upload scans, look, measure, download."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
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
from metaseg_cli.core.results import UNLIKE_TRAINING
from metaseg_cli.core.run_folder import MODEL_FILE, finished_runs
from metaseg_cli.errors import MetasegError
from metaseg_cli.outputs.documents import cells
from metaseg_cli.ui.pictures import blended, enlarged, grey_or_colour
from metaseg_cli.ui.text import plain

_LONGEST_NAME = 120
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


@st.cache_data(max_entries=8, show_spinner="Looking for lesions …")
def _predicted(name: str, content: bytes, model: str, changed: float) -> PredictResult:
    """The terminal's own command on one uploaded file, with its results in a folder that is removed at once."""
    del changed
    with tempfile.TemporaryDirectory(prefix="metaseg-") as folder:
        scan = Path(folder) / _base_name(name)
        scan.write_bytes(content)
        config = PredictConfig(inputs=(str(scan),), model=model, out=Path(folder) / "out", overlay=False)
        return predict(config, Silent(), keep=True)


def show() -> None:
    """Draw the page."""
    st.caption("Finds brain metastases in MRI. For research, not a medical device.")
    with st.sidebar:
        st.header("Model")
        offered = _models()
        if not offered:
            st.info("There is no trained model yet. In a terminal, run `metaseg demo` or `metaseg train`, then reload.")
            return
        chosen = offered[st.selectbox("Model", list(offered), label_visibility="collapsed")]
        changed = chosen.stat().st_mtime
        try:
            model = _loaded(str(chosen), changed)
        except MetasegError as error:
            st.error(plain(str(error)))
            return
        card = model.card
        st.caption(plain(f"{card.name}, {card.dims}D · sequences: {', '.join(card.sequences)}"))
        if card.validation:
            st.caption(
                f"On its validation cases: Dice {card.validation['dice']:.2f}, "
                f"lesion F1 {card.validation['lesion_f1']:.2f}"
            )
        st.header("Display")
        usual = round(min(0.99, max(0.01, card.of_regions()[0].threshold)), 2)
        threshold = st.slider("Threshold", 0.01, 0.99, usual, 0.01, help="Probability from which a voxel counts.")
        opacity = st.slider("Opacity", 0.0, 1.0, 0.4, 0.05, help="Of the coloured overlay; the outline stays.")
    uploads = st.file_uploader("Upload scans", type=_FORMATS, accept_multiple_files=True)
    if not uploads:
        st.write(
            "Drop a PNG, JPEG or TIFF slice, or a NIfTI, NRRD or MHA volume, of the kind the model was trained on."
        )
        return
    names = [upload.name for upload in uploads]
    upload = uploads[names.index(st.selectbox("Scan", names))] if len(uploads) > 1 else uploads[0]
    result = _predicted(upload.name, upload.getvalue(), str(chosen), changed)
    if result.problems:
        problem = result.problems[0]
        st.error(plain(f"{upload.name}: {problem.reason}. {problem.remedy.capitalize()}."))
        return
    _show_result(upload.name, result, model, None if threshold == usual else threshold, opacity)


def _show_result(name: str, result: PredictResult, model: Model, threshold: float | None, opacity: float) -> None:
    """Image beside overlay, the table of lesions, and the mask to take home. No *threshold*: the model's."""
    scan = result.scans[0]
    assert scan.prediction is not None  # it was asked for with keep
    prediction = at_threshold(model, scan.prediction, threshold)
    image, mask = prediction.source.shown, prediction.mask
    lesions = lesion_rows(Path(name), prediction)
    depth = mask.shape[0]
    z = 0
    if depth > 1:
        start = int(lesions[0].z) if lesions else depth // 2
        key = hashlib.sha256(f"{name}{depth}".encode()).hexdigest()[:8]
        z = st.slider("Slice", 1, depth, start + 1, key=f"slice-{key}") - 1
    left, right = st.columns(2)
    picture = enlarged(grey_or_colour(image, z))
    left.image(picture, caption="Scan", width="stretch")
    mine = [lesion for lesion in lesions if lesion.region == prediction.index_region]
    of_region = f" of {plain(prediction.index_region)}" if len(prediction.lesions) > 1 else ""
    found = counted(len(mine), "lesion") + of_region + (f" at threshold {threshold:.2f}" if threshold else "")
    right.image(blended(picture, mask[z] > 0, opacity), caption=found, width="stretch")
    for note in scan.result.notes:
        (st.warning if note.startswith(UNLIKE_TRAINING) else st.caption)(plain(note))
    if lesions:
        st.subheader("Lesions")
        rows = [cells(lesion) for lesion in lesions]
        empty = {key for key in rows[0] if all(row[key] is None for row in rows)} | {"scan"}
        st.dataframe([{k: v for k, v in row.items() if k not in empty} for row in rows], hide_index=True)
    else:
        st.info("No lesion was found. That does not mean that there is none.")
    file_name, content = _mask_file(scan.result.mask.name, prediction)
    st.download_button("Download mask", content, file_name=file_name, mime="application/octet-stream", type="primary")


def _base_name(name: str) -> str:
    """The name of an uploaded file without any folder; it is not hidden, and not too long."""
    base = file_name(re.split(r"[/\\\\]", name)[-1].lstrip("."))
    return base if len(base) <= _LONGEST_NAME else base[-_LONGEST_NAME:]


def _mask_file(name: str, prediction: Prediction) -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="metaseg-") as folder:
        path = Path(folder) / name
        write_mask(path, prediction.mask, prediction.source)
        return path.name, path.read_bytes()
