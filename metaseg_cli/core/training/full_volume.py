"""Full-volume inference on prepared cases: to validate a network, and to find its false positives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metaseg_cli.core.cache import CaseRecord, Prepared, region_masks
from metaseg_cli.core.inference.sliding_window import InferenceSettings, predict_probabilities
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.sampling import PatchCentre
from metaseg_cli.core.training.detections import DEFAULT_THRESHOLD, CaseDetections, detect
from metaseg_cli.core.training.distributed import ProcessGroup
from metaseg_cli.core.training.hard_negatives import false_positive_centres

_PREVIEWS = 8  # slices in validation.png: two rows of four


@dataclass(frozen=True)
class PreviewSlice:
    """A slice of a case to look at: ``image (C, Y, X)``, ``reference`` and ``predicted (Y, X)``."""

    case: str
    image: NDArray[np.float16]
    reference: NDArray[np.bool_]
    predicted: NDArray[np.bool_]


class CasePredictor:
    """Predicts cases of *prepared* with networks of *card*; the processes of *group* share the cases."""

    def __init__(
        self, prepared: Prepared, card: ModelCard, *, device: torch.device, precision: str, group: ProcessGroup
    ) -> None:
        self.prepared, self.card, self.device, self.precision, self.group = prepared, card, device, precision, group

    def detections(
        self,
        model: nn.Module,
        records: Sequence[CaseRecord],
        *,
        previews: list[PreviewSlice] | None = None,
        keep: Callable[[str, NDArray[np.float16]], None] | None = None,
    ) -> list[CaseDetections]:
        """Return what *model* detects in each of *records*; *previews* receives some slices.

        *keep* receives each case's probabilities ``(R, Z, Y, X)`` in the main process.
        """
        result: list[CaseDetections] = []
        for first in range(0, len(records), self.group.size):
            found, seen, final = [], [], []
            for record in self.group.shard(records[first : first + self.group.size]):
                probabilities, truth = self._predict(model, record)
                found.append(
                    detect(
                        record.case,
                        record.patient,
                        record.spacing_mm,
                        probabilities,
                        truth,
                        per_slice=self.prepared.per_slice,
                    )
                )
                if previews is not None and len(previews) < _PREVIEWS:
                    seen.append(self._preview(record, probabilities, truth))
                if keep is not None:
                    final.append((record.case, probabilities.astype(np.float16)))
            result += self.group.all_gather(found)
            if previews is not None:
                previews += self.group.all_gather(seen)
            for case, values in self.group.all_gather(final):
                if keep is not None and self.group.is_main:
                    keep(case, values)
        return result

    def false_positives(self, model: nn.Module, cases: Sequence[tuple[int, CaseRecord]]) -> list[PatchCentre]:
        """Return the centres of the false-positive lesions of *model* in numbered *cases*."""
        found: list[PatchCentre] = []
        for number, record in self.group.shard(cases):
            found += false_positive_centres(number, *self._predict(model, record), per_slice=self.prepared.per_slice)
        return self.group.all_gather(found)

    def _predict(self, model: nn.Module, record: CaseRecord) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return probabilities and reference of one case, both ``(R, Z, Y, X)``."""
        image = torch.from_numpy(np.ascontiguousarray(self.prepared.image(record))).to(self.device).float()
        probabilities: NDArray[np.float32] = predict_probabilities(
            model,
            image,
            InferenceSettings.of(self.card, self.precision),
            torch.from_numpy(self.prepared.available(record)) if self.card.presence else None,
        ).numpy()
        return probabilities, region_masks(self.prepared.label(record), self.prepared.regions)

    def _preview(
        self, record: CaseRecord, probabilities: NDArray[np.float32], reference: NDArray[np.bool_]
    ) -> PreviewSlice:
        """Return the slice with most lesion, or the middle one."""
        truth: NDArray[np.bool_] = np.asarray(reference.any(axis=0))
        z = int(truth.sum(axis=(1, 2)).argmax()) if truth.any() else len(truth) // 2
        image = self.prepared.image(record, (slice(z, z + 1), slice(None), slice(None)))[:, 0]
        predicted = np.asarray((probabilities[:, z] >= DEFAULT_THRESHOLD).any(axis=0))
        return PreviewSlice(record.case, self.prepared.shown(record, image), truth[z], predicted)
