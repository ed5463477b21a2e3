"""The page that segments: choose a model, upload scans, look, measure, download."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import streamlit as st

from metaseg_cli.core.counts import counted
from metaseg_cli.core.inference.scan_job import PredictedScan
from metaseg_cli.core.inference.unlike_training import reasons_in
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.paths import file_name
from metaseg_cli.core.results import UNLIKE_TRAINING, LesionRow
from metaseg_cli.core.run_folder import MODEL_FILE, finished_runs
from metaseg_cli.errors import MetasegError
from metaseg_cli.outputs.documents import Cell, cells, table_text
from metaseg_cli.ui.findings import Finding, ModelChoice, Outcome, find, overlay_of, predict_uploads, report_of
from metaseg_cli.ui.kept import kept
from metaseg_cli.ui.page_progress import running
from metaseg_cli.ui.text import plain
from metaseg_cli.ui.uploads import Upload, digest_of
from metaseg_cli.ui.viewer.component import show_viewer

_ROW_PX, _ROWS_SHOWN = 35, 3  # of the list of lesions: the rest is scrolled to
_OUTCOMES, _FINDINGS = 3, 4  # that a session keeps
_TAKES_FUNCTIONS = (1, 52)  # the release of Streamlit since which a download may be made when it is asked for


def show() -> None:
    """Draw the page."""
    with st.sidebar:
        model = _chosen_model()
        if model is None:
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
    identity = digest_of(uploads)
    only_sequence = _only_sequence(model.load().card)
    sequence = only_sequence if st.session_state.get("insist") == identity else ""
    outcome = _outcome(uploads, identity, model, sequence)
    if outcome is None:
        return
    for message in outcome.problems:
        st.error(message)
    if outcome.problems and only_sequence and not sequence and not outcome.scans:
        label = f"It is {plain(only_sequence)}: read it as that"
        st.button(label, key="insist_button", on_click=lambda: st.session_state.update(insist=identity))
    if not outcome.scans:
        return
    names = [scan.result.name for scan in outcome.scans]
    number = names.index(st.selectbox("Scan", names, key="case")) if len(names) > 1 else 0
    scan = outcome.scans[number]
    _say_notes(scan.result.notes)
    _review(f"{identity} {sequence} {number}", model, scan, outcome.segmentations.get(scan.result.name))


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


def _chosen_model() -> ModelChoice | None:
    """Let the visitor choose a model, and show its card; None where there is none, or it cannot be read."""
    st.header("Model")
    offered = _models()
    if not offered:
        st.info("There is no trained model yet. In a terminal, run `metaseg demo` or `metaseg train`, then reload.")
        return None
    path = offered[st.selectbox("Model", list(offered), label_visibility="collapsed", key="model")]
    try:
        model = ModelChoice(path, path.stat().st_mtime)
        card = model.load().card
    except (MetasegError, OSError) as error:
        st.error(plain(str(error)))
        return None
    st.caption(plain(f"{card.name}, {card.dims}D · sequences: {', '.join(card.sequences)}"))
    if card.validation:
        st.caption(
            f"On its validation cases: Dice {card.validation['dice']:.2f}, lesion F1 {card.validation['lesion_f1']:.2f}"
        )
    return model


def _only_sequence(card: ModelCard) -> str:
    return card.sequences[0] if len(card.sequences) == 1 else ""


def _outcome(uploads: Sequence[Upload], identity: str, model: ModelChoice, sequence: str) -> Outcome | None:
    """Predict *uploads*, or return what was found before; None after Cancel, or where nothing can be done at all."""
    if st.session_state.get("cancelled") == identity:
        st.info("Cancelled.")
        st.button("Start again", key="restart", on_click=lambda: st.session_state.pop("cancelled"))
        return None

    def make() -> Outcome:
        cancel = st.empty()
        cancel.button("Cancel", key="cancel", on_click=lambda: st.session_state.update(cancelled=identity))
        with running("Reading …") as progress:
            found = predict_uploads(uploads, model, sequence, progress)
        cancel.empty()
        return found

    try:
        return kept("outcomes", (identity, model, sequence), make, _OUTCOMES)
    except MetasegError as error:
        st.error(plain(str(error)))
        return None


def _say_notes(notes: Sequence[str]) -> None:
    """Say what is doubtful in few lines: the viewer is to stay in sight."""
    unlike = reasons_in(notes)
    if unlike:
        st.warning(plain(f"{UNLIKE_TRAINING}{'; '.join(unlike)}"))
    others = [note for note in notes if not note.startswith(UNLIKE_TRAINING)]
    if others:
        st.caption(plain(" · ".join(others)))


@st.fragment
def _review(identity: str, model: ModelChoice, scan: PredictedScan, segmentation: tuple[str, bytes] | None) -> None:
    """Threshold, viewer, the table of lesions, and what can be taken home."""
    if st.session_state.get("threshold_of") != model:  # another model's threshold means nothing to this one
        st.session_state["threshold_of"], st.session_state["threshold"] = model, model.usual_threshold
    left, right = st.columns([2, 3])
    threshold = left.slider(
        "Threshold", 0.01, 0.99, step=0.01, key="threshold", help="Probability from which a voxel counts."
    )
    found = kept("findings", (identity, model, threshold), lambda: find(scan, identity, model, threshold), _FINDINGS)
    index = found.prediction.index_region
    mine = [lesion for lesion in found.lesions if lesion.region == index]
    of_region = f" of {plain(index)}" if len(found.prediction.lesions) > 1 else ""
    with right.container(key="found"):
        st.markdown(f"**{counted(len(mine), 'lesion')}**{of_region} at threshold {found.arrays.data['threshold']:.2f}")
    with right.container(horizontal=True):
        # The SEG holds what the model's own threshold gives.
        own = segmentation if threshold == model.usual_threshold else None
        _downloads(found, own, scan.result.name, model.load().card)
    show_viewer(found.arrays, _chosen_lesion(mine))
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


def _downloads(found: Finding, segmentation: tuple[str, bytes] | None, name: str, card: ModelCard) -> None:
    """Offer what ``metaseg predict`` writes; pictures and report are made when they are asked for."""
    mask_name, mask = found.mask
    stem, prediction = file_name(name), found.prediction
    st.download_button("Mask", mask, file_name=mask_name, on_click="ignore", key="download_mask", type="primary")
    if segmentation:
        seg_name, seg = segmentation
        st.download_button("SEG", seg, file_name=seg_name, on_click="ignore", key="download_seg", help="DICOM SEG")
    table = table_text(LesionRow, found.lesions)
    st.download_button("Table", table, file_name=f"{stem}_lesions.csv", on_click="ignore", key="download_csv")
    picture = _when_asked(lambda: overlay_of(prediction))
    st.download_button("Picture", picture, file_name=f"{stem}_overlay.png", on_click="ignore", key="download_overlay")
    if prediction.source.spacing_mm is not None and prediction.source.shape[0] > 1:
        report = _when_asked(lambda: report_of(prediction, card))
        st.download_button("Report", report, file_name=f"{stem}_report.html", on_click="ignore", key="download_report")


def _when_asked(make: Callable[[], bytes]) -> Callable[[], bytes] | bytes:
    """Return *make* where a button takes it, and calls it when it is pressed; else what it returns."""
    release = tuple(int(part) for part in st.__version__.split(".")[:2])
    return make if release >= _TAKES_FUNCTIONS else make()


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
