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
class CasePart:
    """A case, or its slices from *first* to *last*, which is not included."""

    record: CaseRecord
    first: int
    last: int

    @classmethod
    def whole(cls, record: CaseRecord) -> CasePart:
        """Return all slices of *record*."""
        return cls(record, 0, record.shape[0])

    @property
    def voxels(self) -> int:
        """Voxels of one sequence."""
        _, y, x = self.record.shape
        return (self.last - self.first) * y * x

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Where it lies in the case, as ``Prepared`` reads it."""
        return slice(self.first, self.last), slice(None), slice(None)


@dataclass(frozen=True)
class PreviewSlice:
    """A slice of a case to look at: ``image (C, Y, X)``; ``reference`` and ``predicted (R, Y, X)``, one per region."""

    case: str
    image: NDArray[np.float16]
    reference: NDArray[np.bool_]
    predicted: NDArray[np.bool_]


class OutOfTime(Exception):
    """Raised by what watches over the windows of a case to leave it unfinished."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Watches over the time while cases are predicted.

    ``may_start`` is asked before *voxels* are predicted, and answers alike in all processes; ``measured`` hears what
    they took; ``after_window`` may raise OutOfTime within a case.
    """

    may_start: Callable[[int], bool]
    measured: Callable[[float, int], None]
    after_window: Callable[[int, int], None] | None
    clock: Callable[[], float]


class CasePredictor:
    """Predicts cases of *prepared* with networks of *card*; the processes of *group* share the cases."""

    def __init__(
        self, prepared: Prepared, card: ModelCard, *, device: torch.device, precision: str, group: ProcessGroup
    ) -> None:
        self.prepared, self.card, self.device, self.precision, self.group = prepared, card, device, precision, group

    def detections(
        self,
        model: nn.Module,
        parts: Sequence[CasePart],
        watch: Watch,
        *,
        previews: list[PreviewSlice] | None = None,
        keep: Callable[[CasePart, NDArray[np.float16]], None] | None = None,
    ) -> list[CaseDetections]:
        """Return what *model* detects in each of *parts*, or in the first of them where *watch* ends it.

        *previews* receives some slices, *keep* each part's probabilities ``(R, Z, Y, X)`` in the main process.
        """
        result: list[CaseDetections] = []
        for first in range(0, len(parts), self.group.size):
            chunk = parts[first : first + self.group.size]
            if not watch.may_start(max(part.voxels for part in chunk)):
                break
            found, seen, final = [], [], []
            began, unfinished = watch.clock(), False
            for part in self.group.shard(chunk):
                try:
                    probabilities, truth = self._predict(model, part, watch.after_window)
                except OutOfTime:
                    unfinished = True
                    break
                record = part.record
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
                watch.measured(watch.clock() - began, part.voxels)
                if previews is not None and len(previews) < _PREVIEWS:
                    seen.append(self._preview(part, probabilities, truth))
                if keep is not None:
                    final.append((part, probabilities.astype(np.float16)))
            result += self.group.all_gather(found)
            if previews is not None:
                previews += self.group.all_gather(seen)
            for part, values in self.group.all_gather(final):
                if keep is not None and self.group.is_main:
                    keep(part, values)
            if self.group.all_reduce_max([float(unfinished)])[0]:
                break
        return result

    def false_positives(self, model: nn.Module, cases: Sequence[tuple[int, CaseRecord]]) -> list[PatchCentre]:
        """Return the centres of the false-positive lesions of *model* in numbered *cases*."""
        found: list[PatchCentre] = []
        for number, record in self.group.shard(cases):
            part = CasePart.whole(record)
            found += false_positive_centres(number, *self._predict(model, part), per_slice=self.prepared.per_slice)
        return self.group.all_gather(found)

    def _predict(
        self, model: nn.Module, part: CasePart, after_window: Callable[[int, int], None] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return probabilities and reference of one part, both ``(R, Z, Y, X)``."""
        record = part.record
        image = torch.from_numpy(np.ascontiguousarray(self.prepared.image(record, part.box))).to(self.device).float()
        probabilities: NDArray[np.float32] = predict_probabilities(
            model,
            image,
            InferenceSettings.of(self.card, self.precision),
            torch.from_numpy(self.prepared.available(record)) if self.card.presence else None,
            after_window,
        ).numpy()
        return probabilities, region_masks(self.prepared.label(record, part.box), self.prepared.regions)

    def _preview(
        self, part: CasePart, probabilities: NDArray[np.float32], reference: NDArray[np.bool_]
    ) -> PreviewSlice:
        """Return the slice with most lesion, or the middle one."""
        truth: NDArray[np.bool_] = np.asarray(reference.any(axis=0))
        z = int(truth.sum(axis=(1, 2)).argmax()) if truth.any() else len(truth) // 2
        where = slice(part.first + z, part.first + z + 1)
        image = self.prepared.image(part.record, (where, slice(None), slice(None)))[:, 0]
        predicted = probabilities[:, z] >= DEFAULT_THRESHOLD
        shown = self.prepared.shown(part.record, image)
        return PreviewSlice(part.record.case, shown, reference[:, z].copy(), predicted)
