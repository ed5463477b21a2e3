"""The tables of ``metaseg predict``: ``predictions.json`` and ``lesions.csv``."""

from __future__ import annotations

from metaseg_cli.core.results import PREDICTIONS_FILE, LesionRow, Predictions
from metaseg_cli.outputs.documents import write_document, write_table


def write_predictions(predictions: Predictions) -> None:
    """Write both into the output folder, the document last."""
    rows = [lesion for scan in predictions.scans for lesion in scan.lesions]
    write_table(predictions.out / "lesions.csv", LesionRow, rows)
    write_document(predictions.out / PREDICTIONS_FILE, predictions)
