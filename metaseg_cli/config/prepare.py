"""Settings of ``metaseg prepare``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from metaseg_cli.config.setting import Setting, check
from metaseg_cli.config.shared import Cluster, Structures, label_values, named_regions, structure_names
from metaseg_cli.core.choices import LAYOUTS
from metaseg_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Read a folder of images and masks, check it, and cache it for training."""

    when_interrupted: ClassVar[str] = "the cases that are prepared are kept"

    raw: Annotated[Path, Setting(help="Folder with images and masks.", positional=True)]
    out: Annotated[Path, Setting(help="Prepared folder to write.")] = Path("prepared")
    layout: Annotated[
        str,
        Setting(
            help="How the folder is laid out; auto finds out.",
            choices=("auto", *LAYOUTS),
        ),
    ] = "auto"
    manifest: Annotated[
        Path | None,
        Setting(help="Table of the cases (CSV or TSV: case, patient, mask, one column per sequence) instead."),
    ] = None
    write_manifest: Annotated[
        Path | None, Setting(help="Write a table of what was found, to complete by hand, and stop.")
    ] = None
    sequences: Annotated[
        str | None, Setting(help="Sequences to use, such as t1c,t2f.", shown_default="all that are found")
    ] = None
    labels: Annotated[
        str | None,
        Setting(
            help="Label values that make the one region 'metastasis', such as 1,3.",
            shown_default="every non-zero label",
        ),
    ] = None
    region: Annotated[
        tuple[str, ...], Setting(help="A region and its label values, such as ET=3 or TC=1,3; repeatable.")
    ] = ()
    structures: Structures = None
    spacing: Annotated[
        str,
        Setting(
            help="Voxel size of volumes: auto (the median), native (as they are), or Z Y X in mm.", accepts_triplet=True
        ),
    ] = "auto"
    folds: Annotated[int, Setting(help="Folds for validation; a patient is never split.", min=2, max=100)] = 5
    seed: Annotated[int, Setting(help="Seed of the split into folds.", min=0)] = 0
    workers: Annotated[
        int | None, Setting(help="Processes that read cases.", min=1, shown_default="one per processor")
    ] = None
    cluster: Cluster = None
    pseudonymise: Annotated[
        bool,
        Setting(
            help="Random names instead of those of patients, cases and files; the key to them goes into a file of its "
            "own beside the prepared folder."
        ),
    ] = False
    strict: Annotated[bool, Setting(help="Fail when any file has a problem or is doubtful.")] = False
    dry_run: Annotated[bool, Setting(help="Only show what would be read, and why.")] = False

    def __post_init__(self) -> None:
        check(self)
        self.regions()
        self.spacing_mm()
        self.structure_names()
        if self.manifest is not None and self.layout != "auto":
            raise ConfigError("--manifest and --layout exclude each other", remedy="leave one out")
        if self.pseudonymise and (self.dry_run or self.write_manifest is not None):
            other = "--dry-run" if self.dry_run else "--write-manifest"
            raise ConfigError(
                f"--pseudonymise and {other}, which shows names, exclude each other", remedy="leave one out"
            )

    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Return the voxel size (z, y, x) that was asked for; None for auto and native."""
        if self.spacing in ("auto", "native"):
            return None
        try:
            sizes = [float(part) for part in re.split(r"[,\sx×]+", self.spacing.strip())]
        except ValueError:
            sizes = []
        if len(sizes) not in (1, 3) or not all(0.05 <= size <= 50 for size in sizes):
            raise ConfigError(
                f"--spacing {self.spacing!r} is not a voxel size",
                remedy="take auto, native, or three numbers in mm, as in --spacing 1 1 1",
            )
        z, y, x = sizes * 3 if len(sizes) == 1 else sizes
        return (z, y, x)

    def chosen_sequences(self) -> tuple[str, ...]:
        """Return the names given with ``--sequences``; empty for all."""
        return tuple(part.strip() for part in (self.sequences or "").split(",") if part.strip())

    def structure_names(self) -> tuple[str, ...]:
        """Return the names given with ``--structures``; empty for what the names themselves say."""
        return structure_names(self.structures)

    def regions(self) -> dict[str, tuple[int, ...]]:
        """Return region → label values; an empty tuple means every non-zero label."""
        if self.labels and self.region:
            raise ConfigError("--labels and --region exclude each other", remedy="name the regions with --region alone")
        if self.region:
            return named_regions(self.region)
        return {"metastasis": label_values(self.labels, f"--labels {self.labels}") if self.labels else ()}
