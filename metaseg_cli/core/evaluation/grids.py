"""A case as it is scored, prediction and reference on one grid: the scan's own, or the prepared one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metaseg_cli.core.cache import CaseRecord, OriginalScan, Prepared, region_masks
from metaseg_cli.core.images import Reorientation, Volume, axial_view, is_constant, resample, same_grid
from metaseg_cli.core.inference.predictor import Model
from metaseg_cli.core.inference.sliding_window import AfterWindow
from metaseg_cli.core.intensity import head_of_normalised
from metaseg_cli.core.postprocessing import Postprocessing

_RESAMPLED = (
    "the mask lies on the grid of another sequence than the prediction, which was resampled onto it (nearest voxel)"
)
_CONSTANT = "a constant picture, of which predict writes no mask: scored as an empty prediction"


@dataclass(frozen=True, kw_only=True)
class CaseOnGrid:
    """Prediction and reference of a case on one grid; regions ``(R, Z, Y, X)`` are in the order of the model's.

    *head* ``(Z, Y, X)`` is where the calibration of *probabilities* counts, *image* ``(C, Z, Y, X)`` what people look
    at, with axial slices in the order of *view*. *affine* is None for pictures and on the prepared grid.
    """

    references: NDArray[np.bool_]
    masks: NDArray[np.bool_]
    probabilities: NDArray[np.float32]
    head: NDArray[np.bool_]
    image: NDArray[Any]
    spacing_mm: tuple[float, float, float] | None
    affine: NDArray[np.float64] | None = None
    view: Reorientation | None = None
    notes: tuple[str, ...] = ()


def regions_of(model: Model, prepared: Prepared) -> dict[str, tuple[int, ...]]:
    """Return the regions and label values of a prepared folder in the order of the model's."""
    return {name: prepared.regions[name] for name in model.card.regions}


def on_prepared_grid(
    prepared: Prepared,
    record: CaseRecord,
    model: Model,
    settings: Sequence[Postprocessing],
    after_window: AfterWindow | None = None,
) -> CaseOnGrid:
    """Predict a prepared case; its mask was resampled with it. *after_window* is that of ``predict_probabilities``."""
    image = torch.from_numpy(np.ascontiguousarray(prepared.image(record))).float()
    probabilities = model.probabilities(image, torch.from_numpy(prepared.available(record)), after_window)
    label = model.label_map(probabilities, record.spacing_mm, settings)
    scan = image.numpy()
    return CaseOnGrid(
        references=region_masks(prepared.label(record), regions_of(model, prepared)),
        masks=region_masks(label, model.card.regions),
        probabilities=probabilities,
        head=head_of_normalised(scan),
        image=prepared.shown(record, scan),
        spacing_mm=record.spacing_mm,
    )


def on_scan_grid(
    originals: Sequence[OriginalScan],
    model: Model,
    settings: Sequence[Postprocessing],
    after_window: AfterWindow | None = None,
) -> CaseOnGrid:
    """Predict the files of a case as ``predict`` does; each picture by itself, then all of them as one stack.

    *after_window* is that of ``predict_probabilities``; of several pictures each counts as one window. Raises
    InputError for what ``predict`` refuses.
    """
    if len(originals) == 1:
        return _on_scan_grid(originals[0], model, settings, after_window)
    parts = []
    for done, original in enumerate(originals, start=1):
        parts.append(_on_scan_grid(original, model, settings, None))
        if after_window is not None:
            after_window(done, len(originals))
    return replace(
        parts[0],
        references=np.concatenate([part.references for part in parts], axis=1),
        masks=np.concatenate([part.masks for part in parts], axis=1),
        probabilities=np.concatenate([part.probabilities for part in parts], axis=1),
        head=np.concatenate([part.head for part in parts]),
        image=np.concatenate([part.image for part in parts], axis=1),
        notes=tuple(note for part in parts for note in part.notes),
    )


def _on_scan_grid(
    original: OriginalScan, model: Model, settings: Sequence[Postprocessing], after_window: AfterWindow | None
) -> CaseOnGrid:
    if isinstance(original.scan, Volume) and all(map(is_constant, original.scan.array)):
        return _without_prediction(original)
    model_input = model.load_input(original.scan)
    scan, raw = model_input.volume, model.infer(model_input, after_window=after_window)
    head = head_of_normalised(model_input.image)
    predicted = CaseOnGrid(
        references=original.masks,
        masks=region_masks(model.label_map(raw.probabilities, scan.spacing_mm, settings), model.card.regions),
        probabilities=raw.probabilities,
        head=model_input.mapping.invert(head[None].astype(np.float32))[0] >= 0.5,
        image=scan.shown,
        spacing_mm=scan.spacing_mm,
        affine=None if scan.spacing_mm is None else scan.affine,
        view=axial_view(scan),
        notes=(*scan.notes, *raw.notes),
    )
    return predicted if same_grid(scan, original.reference) else _moved(predicted, scan, original.reference)


def _without_prediction(original: OriginalScan) -> CaseOnGrid:
    image = original.reference
    return CaseOnGrid(
        references=original.masks,
        masks=np.zeros_like(original.masks),
        probabilities=np.zeros(original.masks.shape, np.float32),
        head=np.zeros(image.shape, bool),
        image=image.array,
        spacing_mm=image.spacing_mm,
        affine=None if image.spacing_mm is None else image.affine,
        notes=(_CONSTANT,),
    )


def _moved(case: CaseOnGrid, scan: Volume, reference: Volume) -> CaseOnGrid:
    """Bring the prediction from the grid of *scan* onto that of the original mask, which stays as it is."""

    def nearest(values: NDArray[np.bool_]) -> NDArray[np.bool_]:
        moved = resample(replace(scan, array=values.astype(np.uint8)), reference, labels=True)
        return np.asarray(moved.array > 0)

    probabilities = resample(replace(scan, array=case.probabilities), reference).array
    return replace(
        case,
        masks=nearest(case.masks),
        probabilities=np.clip(probabilities, 0.0, 1.0),
        head=nearest(case.head[None])[0],
        image=reference.array,
        spacing_mm=reference.spacing_mm,
        affine=reference.affine,
        view=axial_view(reference),
        notes=(*case.notes, _RESAMPLED),
    )
