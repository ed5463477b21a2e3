"""What ``metaseg train`` returns, and ``result.json`` holds."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from metaseg_cli.core.atomic import atomic_write_text
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.results.operating_points import FrocPoint, OperatingPoint, SizeClassScore
from metaseg_cli.core.run_folder import RESULT_FILE
from metaseg_cli.core.typed_json import as_json


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where the run is and how good its best model is on the validation fold."""

    run: Path
    model: Path
    epochs: int
    best_epoch: int
    steps: int
    stopped: str
    scores: dict[str, float]
    by_size: tuple[SizeClassScore, ...]
    unit: str  # of the size classes: mm or px
    postprocessing: dict[str, Postprocessing]
    operating_point: str  # whose post-processing that is
    operating_points: dict[str, OperatingPoint]
    froc: dict[str, tuple[FrocPoint, ...]]  # of each region
    temperature: float
    minutes: float
    images_per_second: float
    milliseconds_per_step: dict[str, float]
    precision: str
    validation_cases: int
    folds: tuple[Path, ...] = ()  # the runs whose models the ensemble holds


def write_result(result: TrainResult) -> None:
    """Write ``result.json``, whose presence marks the run as finished."""
    written = {name: as_json(getattr(result, name)) for name in ("postprocessing", "operating_points")}
    document = {**dataclasses.asdict(result), **written}
    atomic_write_text(result.run / RESULT_FILE, json.dumps(document, indent=1, default=str))
