"""Which patch next: around a lesion (small ones as often as large ones), at a hard negative, or anywhere.

Every batch follows from the seed and its number alone. So batches can be read ahead in any order, a resumed run
draws what an undisturbed one would, and several processes share out one global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaseg_cli.core.cache import CaseRecord, Prepared, region_masks
from metaseg_cli.core.intensity import EMPTY_PATCH_DEVIATION

_AROUND_LESION, _HARD_NEGATIVE, _ANYWHERE = range(3)  # kinds of patches
_EMPTY_STEP = 4  # every fourth voxel per axis suffices to see that a patch is empty
_TRIES_FOR_HEAD = 3  # then an empty patch is taken: some are empty in prediction too
_READ_AHEAD = 2  # batches: one being read, one waiting


@dataclass(frozen=True)
class Batch:
    """``image (B, C, *patch)`` float16, as cached, and ``target (B, R, *patch)`` bool; in 2D *patch* is ``(Y, X)``.

    With k adjacent slices on each side there are C·(2k + 1) channels, the slices of a sequence side by side.
    ``available (B, C)`` tells which sequences a case has.
    """

    image: Tensor
    target: Tensor
    available: Tensor
    cases: tuple[str, ...]


@dataclass(frozen=True)
class PatchCentre:
    """A voxel of a training case: its number among the cases, and z, y, x."""

    case: int
    centre: tuple[int, int, int]


class PatchSampler:
    """Draws batches of patches from the cases of a prepared folder, reading nothing but the patches.

    *patch* is ``(Z, Y, X)``, Z = 1 for 2D. *foreground_fraction* of a batch lies around lesions,
    *hard_negative_fraction* at ``hard_negatives`` once there are any. A patch reaches beyond the
    image only where the image is smaller; the edge is repeated there.
    """

    def __init__(
        self,
        prepared: Prepared,
        cases: Sequence[CaseRecord],
        patch: tuple[int, int, int],
        *,
        seed: int,
        foreground_fraction: float = 0.5,
        hard_negative_fraction: float = 0.0,
        context: int = 0,
    ) -> None:
        self.prepared = prepared
        self.cases = tuple(cases)
        self.patch = patch
        self.seed = seed
        self.foreground_fraction, self.hard_negative_fraction = foreground_fraction, hard_negative_fraction
        self.context = context
        self.hard_negatives: tuple[PatchCentre, ...] = ()
        slices = np.array([case.shape[0] for case in self.cases], dtype=float)
        self._anywhere = slices / slices.sum()
        self._lesions = [(i, n) for i, case in enumerate(self.cases) for n in range(len(case.lesion_voxels))]
        voxels = np.array([self.cases[i].lesion_voxels[n] for i, n in self._lesions], dtype=float)
        self._lesion_weight = even_over_sizes(voxels)
        self._points: dict[int, NDArray[np.int32]] = {}

    @property
    def has_lesions(self) -> bool:
        """Whether any training case has foreground at all."""
        return bool(self._lesions)

    def batch(self, number: int, size: int, part: slice = slice(None)) -> Batch:
        """Return batch *number* of *size* patches, or the *part* of it that one of several processes takes."""
        rng = np.random.default_rng([self.seed, number])
        around = round(self.foreground_fraction * size) if self._lesions else 0
        hard = min(round(self.hard_negative_fraction * size), size - around) if self.hard_negatives else 0
        # The kinds are spread over the batch, so that every process's part has some of each.
        kinds = rng.permutation(
            [_AROUND_LESION] * around + [_HARD_NEGATIVE] * hard + [_ANYWHERE] * (size - around - hard)
        )
        seeds = rng.integers(2**63, size=size)
        drawn = [self._patch(int(k), np.random.default_rng(s)) for k, s in zip(kinds[part], seeds[part], strict=True)]
        image = np.stack([image for _, image, _ in drawn])
        target = np.stack([target for _, _, target in drawn])
        if self.patch[0] == 1:
            image, target = image.reshape(len(image), -1, *self.patch[1:]), target[:, :, 0]
        available = np.stack([self.prepared.available(self.cases[i]) for i, _, _ in drawn])
        cases = tuple(self.cases[i].case for i, _, _ in drawn)
        return Batch(torch.from_numpy(image), torch.from_numpy(target), torch.from_numpy(available), cases)

    def _patch(self, kind: int, rng: np.random.Generator) -> tuple[int, NDArray[np.float16], NDArray[np.bool_]]:
        if kind == _AROUND_LESION:
            case, centre = self._around_lesion(rng)
        elif kind == _HARD_NEGATIVE and self.hard_negatives:
            chosen = self.hard_negatives[rng.integers(len(self.hard_negatives))]
            case, centre = chosen.case, np.array(chosen.centre)
        else:
            return self._patch_anywhere(rng)
        # Off centre by up to a third of the patch: a network must not learn that lesions are in the middle.
        reach = np.array(self.patch) // 3
        return case, *self._read(self.cases[case], centre + rng.integers(-reach, reach + 1))

    def _patch_anywhere(self, rng: np.random.Generator) -> tuple[int, NDArray[np.float16], NDArray[np.bool_]]:
        for _ in range(_TRIES_FOR_HEAD):
            case = int(rng.choice(len(self.cases), p=self._anywhere))
            image, target = self._read(self.cases[case], rng.integers(0, self.cases[case].shape))
            sample = image[..., ::_EMPTY_STEP, ::_EMPTY_STEP].astype(np.float32)
            if sample.std() > EMPTY_PATCH_DEVIATION:
                break
        return case, image, target

    def _around_lesion(self, rng: np.random.Generator) -> tuple[int, NDArray[np.int64]]:
        case, lesion = self._lesions[rng.choice(len(self._lesions), p=self._lesion_weight)]
        if case not in self._points:
            self._points[case] = self.prepared.lesion_points(self.cases[case])
        points = self._points[case]
        points = points[points[:, 0] == lesion, 1:]
        return case, points[rng.integers(len(points))].astype(np.int64)

    def _read(self, case: CaseRecord, centre: NDArray[np.int64]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        box, pads = [], []
        for c, size, length in zip(centre, self.patch, case.shape, strict=True):
            # Inside the image where it is large enough; in its middle, padded on both sides, where it is not.
            start = min(max(int(c) - size // 2, 0), length - size) if length >= size else (length - size) // 2
            box.append(slice(max(start, 0), min(start + size, length)))
            pads.append((max(-start, 0), max(start + size - length, 0)))
        where = (box[0], box[1], box[2])
        target = region_masks(self.prepared.label(case, where), self.prepared.regions)
        image_pads = list(pads)
        if self.context:
            first, last = box[0].start - self.context, box[0].start + self.context
            where = (slice(max(first, 0), min(last + 1, case.shape[0])), box[1], box[2])
            image_pads[0] = (max(-first, 0), max(last + 1 - case.shape[0], 0))
        image = self.prepared.image(case, where)
        if any(before or after for before, after in image_pads):
            image = np.pad(image, [(0, 0), *image_pads], mode="edge")
        if any(before or after for before, after in pads):
            target = np.pad(target, [(0, 0), *pads])
        return image, target


class ReadAhead:
    """Batches in order, the next ones read by a thread while the network computes.

    A thread and not a process: HDF5 reads outside Python's lock, nothing is copied between processes, and what goes
    wrong in it is raised here as it is. It computes nothing with torch, which would get processor threads of its own
    for it: measured, they took an eighth of the step from the network.
    """

    def __init__(self, sampler: PatchSampler, first: int, size: int, part: slice = slice(None)) -> None:
        self._sampler, self._next, self._size, self._part = sampler, first, size, part
        self._pool = ThreadPoolExecutor(1, "batches")
        self._waiting: list[Future[Batch]] = []

    def take(self) -> Batch:
        """Return the next batch."""
        while len(self._waiting) <= _READ_AHEAD:
            self._waiting.append(self._pool.submit(self._sampler.batch, self._next, self._size, self._part))
            self._next += 1
        return self._waiting.pop(0).result()

    def restart(self, first: int) -> None:
        """Forget what was read ahead and continue with batch *first*, after the hard negatives have changed."""
        for future in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._next = first

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def even_over_sizes(voxels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities with which every occupied size class (a factor of four in voxels) is drawn equally often."""
    if not len(voxels):
        return voxels
    classes = (np.log2(voxels) // 2).astype(int)
    _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    weight = 1.0 / counts[inverse]
    result: NDArray[np.float64] = weight / weight.sum()
    return result
