"""Scores of a predicted mask against a reference, each saying what empty masks mean."""

from __future__ import annotations

from metaseg_cli.core.choices import BRATS_REGIONS, PROTOCOLS, TOLERANCES, Protocol, find_protocol
from metaseg_cli.core.metrics.lesions import (
    LesionComparison,
    Matching,
    ScoredLesion,
    lesion_scores,
    match_lesions,
)
from metaseg_cli.core.metrics.scoring import Comparison, compare, score
from metaseg_cli.core.metrics.summary import bootstrap_mean
from metaseg_cli.core.metrics.table import policy
from metaseg_cli.core.metrics.voxels import Confusion, confusion

__all__ = [
    "BRATS_REGIONS",
    "PROTOCOLS",
    "TOLERANCES",
    "Comparison",
    "Confusion",
    "LesionComparison",
    "Matching",
    "Protocol",
    "ScoredLesion",
    "bootstrap_mean",
    "compare",
    "confusion",
    "find_protocol",
    "lesion_scores",
    "match_lesions",
    "policy",
    "score",
]
