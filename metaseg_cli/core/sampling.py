"""Which patch next: half of a batch around lesions, small ones as often as large ones, the rest from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaseg_cli.core.cache import CaseRecord, Prepared, region_masks


@dataclass(frozen=True)
class Batch:
    """``image (B, C, *patch)`` float32 and ``target (B, R, *patch)`` 0 or 1; in 2D *patch* is ``(Y, X)``.

    ``present (B, C)`` tells which sequences a case has.
    """

    image: Tensor
    target: Tensor
    present: Tensor
    cases: tuple[str, ...]


class PatchSampler:
    """Draws batches of patches from the cases of a prepared folder, reading nothing but the patches.

    *patch* is ``(Z, Y, X)``, Z = 1 for 2D. A patch reaches at most half its size beyond the image, where the edge
    is repeated. All randomness is in ``rng``, whose state can be saved and restored.
    """

    def __init__(
        self,
        prepared: Prepared,
        cases: Sequence[CaseRecord],
        patch: tuple[int, int, int],
        *,
        lesion_share: float,
        rng: np.random.Generator,
    ) -> None:
        self.prepared = prepared
        self.cases = tuple(cases)
        self.patch = patch
        self.lesion_share = lesion_share
        self.rng = rng
        slices = np.array([case.shape[0] for case in self.cases], dtype=float)
        self._anywhere = slices / slices.sum()
        self._lesions = [(i, n) for i, case in enumerate(self.cases) for n in range(len(case.lesion_voxels))]
        voxels = np.array([self.cases[i].lesion_voxels[n] for i, n in self._lesions], dtype=float)
        self._lesion_weight = _even_over_sizes(voxels)
        self._points: dict[int, NDArray[np.int32]] = {}

    @property
    def has_lesions(self) -> bool:
        """Whether any training case has foreground at all."""
        return bool(self._lesions)

    def batch(self, size: int) -> Batch:
        """*size* patches; ``round(lesion_share · size)`` of them contain a lesion."""
        with_lesion = round(self.lesion_share * size) if self._lesions else 0
        drawn = [self._around_lesion() if i < with_lesion else self._anywhere_at_all() for i in range(size)]
        images, targets = zip(*(self._read(self.cases[i], centre) for i, centre in drawn), strict=True)
        image, target = torch.stack(images), torch.stack(targets)
        if self.patch[0] == 1:
            image, target = image.squeeze(2), target.squeeze(2)
        present = torch.from_numpy(np.stack([self.prepared.present(self.cases[i]) for i, _ in drawn]))
        return Batch(image, target, present, tuple(self.cases[i].case for i, _ in drawn))

    def _around_lesion(self) -> tuple[int, NDArray[np.int64]]:
        case, lesion = self._lesions[self.rng.choice(len(self._lesions), p=self._lesion_weight)]
        if case not in self._points:
            self._points[case] = self.prepared.lesion_points(self.cases[case])
        points = self._points[case]
        points = points[points[:, 0] == lesion, 1:]
        point = points[self.rng.integers(len(points))].astype(np.int64)
        # Off centre by up to a third of the patch: a network must not learn that lesions sit in the middle.
        reach = np.array(self.patch) // 3
        return case, point + self.rng.integers(-reach, reach + 1)

    def _anywhere_at_all(self) -> tuple[int, NDArray[np.int64]]:
        case = int(self.rng.choice(len(self.cases), p=self._anywhere))
        return case, self.rng.integers(0, self.cases[case].shape).astype(np.int64)

    def _read(self, case: CaseRecord, centre: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        box, pads = [], []
        for c, size, length in zip(centre, self.patch, case.shape, strict=True):
            # Inside the image where it is large enough; in its middle, padded on both sides, where it is not.
            start = min(max(int(c) - size // 2, 0), length - size) if length >= size else (length - size) // 2
            box.append(slice(max(start, 0), min(start + size, length)))
            pads.append((max(-start, 0), max(start + size - length, 0)))
        where = (box[0], box[1], box[2])
        image = self.prepared.image(case, where)
        target = region_masks(self.prepared.label(case, where), self.prepared.regions)
        if any(before or after for before, after in pads):
            image = np.pad(image, [(0, 0), *pads], mode="edge")
            target = np.pad(target, [(0, 0), *pads])
        return torch.from_numpy(np.ascontiguousarray(image)).float(), torch.from_numpy(target).float()

    def state(self) -> dict[str, Any]:
        """Where the random sequence stands."""
        return dict(self.rng.bit_generator.state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``."""
        self.rng.bit_generator.state = state


def _even_over_sizes(voxels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities such that every occupied size class (a factor of four in voxels) is drawn equally often."""
    if not len(voxels):
        return voxels
    classes = (np.log2(voxels) // 2).astype(int)
    _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    weight = 1.0 / counts[inverse]
    result: NDArray[np.float64] = weight / weight.sum()
    return result
