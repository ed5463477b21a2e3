"""A network on whole prepared cases: what it finds where it must not learn, and what it gets wrong where it may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from metaseg_cli.core.cache import CaseRecord, Prepared, region_masks
from metaseg_cli.core.inference.sliding_window import predict_probabilities
from metaseg_cli.core.inference.windows import largest_window
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.sampling import Place
from metaseg_cli.core.training.distributed import Group
from metaseg_cli.core.training.mistakes import false_places
from metaseg_cli.core.training.validation import MIDDLE, CaseFindings, findings

_PICTURES = 8


@dataclass(frozen=True)
class Example:
    """A slice of a case to look at: ``image (C, Y, X)``, ``reference`` and ``predicted (Y, X)``."""

    case: str
    image: NDArray[np.float16]
    reference: NDArray[np.bool_]
    predicted: NDArray[np.bool_]


class WholeCases:
    """Predicts cases of *prepared* with networks of *card*; the processes of *group* share them out, one at a time."""

    def __init__(self, prepared: Prepared, card: ModelCard, *, device: torch.device, group: Group) -> None:
        self.prepared, self.card, self.device, self.group = prepared, card, device, group

    def findings(
        self,
        model: nn.Module,
        records: Sequence[CaseRecord],
        precision: str,
        *,
        examples: list[Example] | None = None,
        keep: Callable[[str, NDArray[np.float16]], None] | None = None,
    ) -> list[CaseFindings]:
        """Of every one of *records*. *examples* receives some slices to look at.

        *keep* receives each case's probabilities ``(R, Z, Y, X)`` in the leading process.
        """
        every: list[CaseFindings] = []
        for first in range(0, len(records), self.group.size):
            found, seen, final = [], [], []
            for record in self.group.share(records[first : first + self.group.size]):
                probabilities, truth = self._probabilities(model, record, precision)
                found.append(findings(record.case, record.patient, record.spacing_mm, probabilities, truth))
                if examples is not None and len(examples) < _PICTURES:
                    seen.append(self._example(record, probabilities, truth))
                if keep is not None:
                    final.append((record.case, probabilities.astype(np.float16)))
            every += self.group.together(found)
            if examples is not None:
                examples += self.group.together(seen)
            for case, values in self.group.together(final):
                if keep is not None and self.group.leads:
                    keep(case, values)
        return every

    def false_places(self, model: nn.Module, cases: Sequence[tuple[int, CaseRecord]], precision: str) -> list[Place]:
        """Where *model* sees lesions that are none, in numbered *cases*."""
        found: list[Place] = []
        for number, record in self.group.share(cases):
            found += false_places(number, *self._probabilities(model, record, precision))
        return self.group.together(found)

    def _probabilities(
        self, model: nn.Module, record: CaseRecord, precision: str
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Of one case, with its reference; both ``(R, Z, Y, X)``."""
        image = torch.from_numpy(np.ascontiguousarray(self.prepared.image(record))).to(self.device).float()
        probabilities: NDArray[np.float32] = predict_probabilities(
            model,
            image,
            dims=self.card.dims,
            context=self.card.context,
            patch=self.card.patch[-self.card.dims :],
            largest=largest_window(self.card.norm),
            regions=len(self.prepared.regions),
            precision=precision,
            available=torch.from_numpy(self.prepared.available(record)) if self.card.presence else None,
        ).numpy()
        return probabilities, region_masks(self.prepared.label(record), self.prepared.regions)

    def _example(self, record: CaseRecord, probabilities: NDArray[np.float32], reference: NDArray[np.bool_]) -> Example:
        """The slice with most lesion, or the middle one."""
        truth: NDArray[np.bool_] = np.asarray(reference.any(axis=0))
        z = int(truth.sum(axis=(1, 2)).argmax()) if truth.any() else len(truth) // 2
        image = self.prepared.image(record, (slice(z, z + 1), slice(None), slice(None)))[:, 0]
        predicted = np.asarray((probabilities[:, z] >= MIDDLE).any(axis=0))
        return Example(record.case, self.prepared.shown(record, image), truth[z], predicted)
