"""False-positive lesions on training cases, fed back as hard negatives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.detection import describe_labels, label_lesions
from metaseg_cli.core.sampling import PatchCentre
from metaseg_cli.core.typed_json import parsed

# Chosen, not measured: one bad case cannot fill the list, and centres of earlier epochs leave it after a few.
_MAX_PER_CASE = 8
_MAX_CENTRES = 64
_CASES_PER_VALIDATION_CASE = 0.5  # searched after an epoch: half of what validation costs


class HardNegatives:
    """Where the network sees lesions that are not there, on training cases; a few cases are searched per epoch.

    Validation cases are never searched: they must stay unseen.
    """

    def __init__(self, training_cases: int, validation_cases: int) -> None:
        self.centres: tuple[PatchCentre, ...] = ()
        self._training_cases = training_cases
        self._per_epoch = min(max(1, round(_CASES_PER_VALIDATION_CASE * validation_cases)), training_cases)
        self._next = 0

    def cases_to_search(self) -> list[int]:
        """Return the numbers of the training cases whose turn it is."""
        return [(self._next + i) % self._training_cases for i in range(self._per_epoch)]

    def update(self, searched: Sequence[int], found: Sequence[PatchCentre]) -> None:
        """Replace what was known of the *searched* cases by the centres *found* in them now."""
        kept = [centre for centre in self.centres if centre.case not in searched]
        self.centres = tuple([*found, *kept][:_MAX_CENTRES])
        self._next = (self._next + len(searched)) % self._training_cases

    def to_json(self) -> str:
        """Return the state as the checkpoint keeps it."""
        return json.dumps([self._next, [asdict(centre) for centre in self.centres]])

    def load_json(self, text: str) -> None:
        """Take over the state that ``to_json`` gave."""
        self._next, centres = parsed(text)
        self.centres = tuple(PatchCentre(each["case"], tuple(each["centre"])) for each in centres)


def false_positive_centres(
    case: int,
    probabilities: NDArray[np.floating[Any]],
    reference: NDArray[np.bool_],
    threshold: float = 0.5,
    *,
    per_slice: bool = False,
) -> list[PatchCentre]:
    """Return the centres of predicted components that touch no reference lesion, the most confident ones first.

    *probabilities* and *reference* are ``(R, Z, Y, X)``; *case* is the case's number among the training cases;
    *per_slice* as in ``label_lesions``.
    """
    false: list[tuple[float, PatchCentre]] = []
    for probability, truth in zip(probabilities, reference, strict=True):
        labels, count = label_lesions(probability >= threshold, per_slice=per_slice)
        true = {int(number) for number in np.unique(labels[truth])}
        for lesion in describe_labels(labels, count, probability=probability):
            if lesion.number not in true:
                z, y, x = (round(c) for c in lesion.centroid_voxel)
                false.append((-(lesion.confidence or 0.0), PatchCentre(case, (z, y, x))))
    return [centre for _, centre in sorted(false, key=lambda pair: (pair[0], pair[1].centre))[:_MAX_PER_CASE]]
