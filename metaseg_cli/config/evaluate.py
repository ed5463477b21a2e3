"""Settings of ``metaseg evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from metaseg_cli.config.setting import Setting, check
from metaseg_cli.config.shared import (
    Cluster,
    Device,
    OperatingPoint,
    Structures,
    Threshold,
    named_regions,
    structure_names,
)
from metaseg_cli.core.choices import GRIDS, MATCHINGS, PROTOCOLS, TOLERANCES
from metaseg_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score models on prepared cases that they have not seen, or folders of masks against another; compare several."""

    when_interrupted: ClassVar[str] = "the evaluation is not complete"

    models: Annotated[
        tuple[str, ...],
        Setting(
            help="Runs or model files; several are compared. With --references: folders of masks.",
            positional=True,
            cli_name="model",
            shown_default="the newest finished run",
        ),
    ] = ()
    data: Annotated[Path, Setting(help="Prepared folder.")] = Path("prepared")
    split: Annotated[
        str,
        Setting(
            help="Which cases: the validation fold, those of a test folder, or every one not trained on.",
            choices=("validation", "test", "all"),
        ),
    ] = "validation"
    grid: Annotated[
        str,
        Setting(
            help="Where a model is scored: on the grid of the original scan, as predict writes masks, or on the "
            "prepared one. auto: the scan's, unless no original file is left.",
            choices=GRIDS,
        ),
    ] = "auto"
    predictions: Annotated[Path | None, Setting(help="Folder of predicted masks, from any tool.")] = None
    references: Annotated[Path | None, Setting(help="Folder of reference masks.")] = None
    region: Annotated[
        tuple[str, ...],
        Setting(
            help="A region of the masks and its label values, such as ET=3 or TC=1,3; repeatable.",
            shown_default="every label together, or the challenge's regions",
        ),
    ] = ()
    structures: Structures = None
    out: Annotated[
        Path | None, Setting(help="Folder for the results.", shown_default="evaluation inside the run, or ./evaluation")
    ] = None
    operating_point: OperatingPoint = None
    threshold: Threshold = None
    protocol: Annotated[
        str,
        Setting(
            help="By which rules lesions are scored.",
            choices=tuple(PROTOCOLS),
            panel="Lesions",
        ),
    ] = "default"
    tolerance: Annotated[
        tuple[float, ...],
        Setting(
            help="Distances at which surfaces count as equal, in mm (or pixels), such as 1,2.", min=0, panel="Lesions"
        ),
    ] = TOLERANCES
    connectivity: Annotated[
        int | None,
        Setting(
            help="Neighbours that join voxels to a lesion: 6, 18 or 26.",
            panel="Lesions",
            shown_default="the protocol's",
        ),
    ] = None
    dilation: Annotated[
        int | None,
        Setting(
            help="Voxels by which reference lesions are widened to join and to match.",
            min=0,
            max=20,
            panel="Lesions",
            shown_default="the protocol's",
        ),
    ] = None
    smallest_lesion: Annotated[
        float | None,
        Setting(
            help="Reference lesions of up to this many mm³ (or pixels) do not count.",
            min=0,
            panel="Lesions",
            shown_default="the protocol's",
        ),
    ] = None
    matching: Annotated[
        str | None,
        Setting(
            help="Lesions match by any overlap, or one to one.",
            choices=MATCHINGS,
            panel="Lesions",
            shown_default="the protocol's",
        ),
    ] = None
    penalty: Annotated[
        float | None,
        Setting(
            help="Distance assigned to a missed or false lesion, in mm (or pixels).",
            min=0,
            panel="Lesions",
            shown_default="the protocol's, or the image's diagonal",
        ),
    ] = None
    device: Device = "auto"
    workers: Annotated[
        int | None, Setting(help="Processes that score two folders.", min=1, shown_default="one per processor")
    ] = None
    cluster: Cluster = None

    def __post_init__(self) -> None:
        check(self)
        self.regions()
        self.structure_names()
        if self.predictions is not None and self.references is None:
            raise ConfigError("--predictions and --references come together", remedy="name both folders")
        if self.references is not None and (self.predictions is None) == (not self.models):
            raise ConfigError(
                "--references requires folders to score",
                remedy="name one with --predictions, or several without it",
            )

    def structure_names(self) -> tuple[str, ...]:
        """Return the names given with ``--structures``; empty for what the names themselves say."""
        return structure_names(self.structures)

    def regions(self) -> dict[str, tuple[int, ...]]:
        """Return region → label values; empty when none are named."""
        return named_regions(self.region)
