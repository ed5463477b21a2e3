"""Every metric of two masks, from one labelling and one pair of surfaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaseg_cli.core.choices import TOLERANCES, Protocol, find_protocol
from metaseg_cli.core.metrics import voxels
from metaseg_cli.core.metrics.lesions import (
    LesionComparison,
    compare_lesions,
    compare_lesions_per_slice,
    comparison_scores,
)
from metaseg_cli.core.metrics.surfaces import surface_distances
from metaseg_cli.core.metrics.voxels import Confusion, confusion
from metaseg_cli.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The scores of two masks. ``penalty`` replaces an infinite distance in means, in the unit of the scores."""

    scores: dict[str, float]
    confusion: Confusion
    lesions: LesionComparison
    unit: str
    penalty: float

    def reason(self, metric: str) -> str | None:
        """Return why *metric* is not a finite number; None if it is."""
        value = self.scores[metric]
        if math.isfinite(value):
            return None
        if math.isnan(value):
            return "no such lesion in the reference" if self.confusion.tp + self.confusion.fn else "reference empty"
        if not self.confusion.tp + self.confusion.fn:
            return "reference empty"
        return "prediction empty" if not self.confusion.tp + self.confusion.fp else "no pair of lesions"


def compare(
    reference: NDArray[Any],
    prediction: NDArray[Any],
    spacing_mm: tuple[float, ...] | None = None,
    protocol: Protocol | None = None,
    tolerances: Sequence[float] = TOLERANCES,
    probability: NDArray[np.floating[Any]] | None = None,
    *,
    per_slice: bool = False,
) -> Comparison:
    """Compare masks ``(Z, Y, X)`` or ``(Y, X)``, non-zero is foreground; *spacing_mm* in the same order.

    A volume of one slice is a picture, except for protocols that know only volumes. *probability* of the prediction
    gives each predicted lesion a confidence. *per_slice*: the slices are pictures, and lesions lie in one. Raises
    InputError when the masks do not fit together.
    """
    protocol = protocol or Protocol()
    r, p = _checked(reference, prediction, spacing_mm)
    spacing = None
    if spacing_mm is not None:
        z, y, x = (1.0,) * (3 - len(spacing_mm)) + tuple(float(s) for s in spacing_mm)
        spacing = (z, y, x)
    unit = "px" if spacing is None else "mm"
    flat = protocol.is_flat(len(r), spacing_mm)
    counts = confusion(r, p)
    step = (spacing or (1.0, 1.0, 1.0))[1 if flat else 0 :]
    distances = surface_distances(r[0], p[0], step) if flat else surface_distances(r, p, step)
    diagonal = math.hypot(*(n * s for n, s in zip(r.shape[1 if flat else 0 :], step, strict=True)))
    penalty = diagonal if protocol.penalty_mm is None else protocol.penalty_mm
    # The challenge of 2026 measures lesions within one voxel.
    near = (min(step),) if protocol.border_voxels else tuple(tolerances)
    if per_slice and not flat:
        found = compare_lesions_per_slice(r, p, spacing, protocol, near, probability)
    else:
        found = compare_lesions(r, p, spacing, protocol, near, probability, flat=flat)
    surface = {
        f"hd_{unit}": distances.hd(),
        f"hd95_{unit}": distances.hd95(),
        f"assd_{unit}": distances.assd(),
        **{f"nsd_{t:g}{unit}": distances.nsd(t) for t in tolerances},
    }
    if protocol.name == "brats-mets-2023" and math.isinf(surface[f"hd95_{unit}"]):
        surface[f"hd95_{unit}"] = penalty
    scores = {
        **counts.scores(),
        **surface,
        **voxels.volumes(r, p, spacing),
        **comparison_scores(found, unit, near, penalty),
    }
    return Comparison(scores=scores, confusion=counts, lesions=found, unit=unit, penalty=penalty)


def score(
    reference: NDArray[Any],
    prediction: NDArray[Any],
    spacing_mm: tuple[float, ...] | None = None,
    protocol: str | None = None,
) -> dict[str, float]:
    """Return every metric of masks ``(Z, Y, X)`` or ``(Y, X)``; non-zero is foreground, *spacing_mm* in the same order.

    A distance to an empty mask is infinite, a score that a protocol does not define for the masks is NaN. Without a
    spacing, lengths are in pixels and so named. Raises InputError when the shapes differ or have other than 2 or 3
    axes, ConfigError for a protocol that does not exist.
    """
    return compare(reference, prediction, spacing_mm, find_protocol(protocol)).scores


def _checked(
    reference: NDArray[Any], prediction: NDArray[Any], spacing_mm: tuple[float, ...] | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if reference.shape != prediction.shape:
        raise InputError(
            f"reference {reference.shape} and prediction {prediction.shape} differ in shape",
            remedy="bring them onto one grid",
        )
    if reference.ndim not in (2, 3):
        raise InputError(f"masks with {reference.ndim} axes", remedy="give (Y, X) or (Z, Y, X), one channel at a time")
    if spacing_mm is not None and (
        len(spacing_mm) not in (reference.ndim, 3) or not all(s > 0 and math.isfinite(s) for s in spacing_mm)
    ):
        raise InputError(
            f"a spacing of {tuple(spacing_mm)} for masks of shape {reference.shape}",
            remedy="give one positive length per axis",
        )
    r, p = reference != 0, prediction != 0
    return (r[None], p[None]) if r.ndim == 2 else (r, p)
