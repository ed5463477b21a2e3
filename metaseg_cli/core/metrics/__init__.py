"""Scores of a predicted mask against a reference, each saying what empty masks mean."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from metaseg_cli.core.metrics import lesions, voxels
from metaseg_cli.core.metrics.lesions import (
    Lesion,
    Matching,
    describe_lesions,
    equivalent_diameter,
    label_lesions,
    lesion_scores,
    match_lesions,
)
from metaseg_cli.core.metrics.summary import bootstrap_mean
from metaseg_cli.core.metrics.voxels import Confusion, confusion
from metaseg_cli.errors import ConfigError, InputError

__all__ = [
    "POLICY",
    "Confusion",
    "Lesion",
    "Matching",
    "bootstrap_mean",
    "confusion",
    "describe_lesions",
    "equivalent_diameter",
    "label_lesions",
    "lesion_scores",
    "match_lesions",
    "score",
]

POLICY = {**voxels.POLICY, **lesions.POLICY}


def score(
    reference: NDArray[Any],
    prediction: NDArray[Any],
    spacing_mm: tuple[float, ...] | None = None,
    protocol: str | None = None,
) -> dict[str, float]:
    """Every metric of two masks ``(Z, Y, X)`` or ``(Y, X)``; non-zero is foreground, *spacing_mm* in the same order.

    Raises InputError when the shapes differ or have other than 2 or 3 axes, ConfigError for a protocol that does not
    exist.
    """
    if reference.shape != prediction.shape:
        raise InputError(
            f"reference {reference.shape} and prediction {prediction.shape} differ in shape",
            remedy="bring them onto one grid",
        )
    if reference.ndim not in (2, 3):
        raise InputError(f"masks with {reference.ndim} axes", remedy="give (Y, X) or (Z, Y, X), one channel at a time")
    if protocol not in (None, "default"):
        raise ConfigError(f"unknown protocol {protocol!r}", remedy="take default")
    if reference.ndim == 3 and reference.shape[0] == 1:
        reference, prediction = reference[0], prediction[0]
    return {
        **confusion(reference, prediction).scores(),
        **voxels.volumes(reference, prediction, spacing_mm),
        **match_lesions(reference, prediction).scores(),
    }
