"""What was found in one scan, as it stands in ``predictions.json`` and comes back from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metaseg_cli.core.inference.predictor import Prediction

MAPS = ("probability", "uncertainty", "disagreement")  # a file for each region


@dataclass(frozen=True, kw_only=True)
class PredictedScan:
    """What was found in one scan, and where it was written. ``prediction`` is kept on demand only: it is large.

    ``key`` is that of ``result_key``; ``kept`` says that an earlier call predicted it.
    """

    name: str
    key: str
    source: Path
    sequences: dict[str, str]
    mask: Path
    segmentation: Path | None  # DICOM SEG or RTSTRUCT
    overlay: Path | None
    overview: Path | None
    maps: dict[str, tuple[Path, ...]]  # probability, uncertainty, disagreement: a file for each region
    spacing_mm: tuple[float, float, float] | None
    backend: str  # the program that ran the network
    lesions: tuple[dict[str, Any], ...]
    sum_of_diameters_mm: dict[str, float]  # RANO-BM's, of each region; empty where the scan has no spacing
    notes: tuple[str, ...] = ()
    prediction: Prediction | None = None
    kept: bool = False

    def document(self) -> dict[str, Any]:
        """As ``predictions.json`` has it."""
        return {
            "scan": str(self.source),
            "name": self.name,
            "key": self.key,
            "mask": str(self.mask),
            "segmentation": str(self.segmentation) if self.segmentation else None,
            "overlay": str(self.overlay) if self.overlay else None,
            "overview": str(self.overview) if self.overview else None,
            **{what: [str(p) for p in files] for what, files in self.maps.items()},
            "sequences": self.sequences,
            "spacing_mm": self.spacing_mm,
            "backend": self.backend,
            "notes": list(self.notes),
            "sum_of_diameters_mm": self.sum_of_diameters_mm,
            "lesions": list(self.lesions),
        }

    @classmethod
    def from_document(cls, values: Mapping[str, Any]) -> PredictedScan:
        """The inverse of ``document``, of a scan that was finished before. Raises KeyError or TypeError."""
        path = {name: Path(values[name]) if values[name] else None for name in ("segmentation", "overlay", "overview")}
        spacing = values["spacing_mm"]
        return cls(
            name=values["name"],
            key=values["key"],
            source=Path(values["scan"]),
            sequences=dict(values["sequences"]),
            mask=Path(values["mask"]),
            segmentation=path["segmentation"],
            overlay=path["overlay"],
            overview=path["overview"],
            maps={what: tuple(map(Path, values[what])) for what in MAPS},
            spacing_mm=None if spacing is None else (spacing[0], spacing[1], spacing[2]),
            backend=values["backend"],
            lesions=tuple(values["lesions"]),
            sum_of_diameters_mm=dict(values["sum_of_diameters_mm"]),
            notes=tuple(values["notes"]),
            kept=True,
        )

    @property
    def files(self) -> list[Path]:
        """Everything that was written of it."""
        single = (self.mask, self.segmentation, self.overlay, self.overview)
        return [p for p in single if p is not None] + [p for files in self.maps.values() for p in files]
