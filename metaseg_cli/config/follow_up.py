"""Settings of ``metaseg follow-up``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from metaseg_cli.config.setting import Setting, check
from metaseg_cli.config.shared import Device, Model, Strict, label_values
from metaseg_cli.core.choices import NON_TARGET
from metaseg_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FollowUpConfig:
    """Lesions over the visits of one patient."""

    when_interrupted: ClassVar[str] = "the follow-up is not complete"

    visits: Annotated[
        tuple[str, ...],
        Setting(
            help="A mask, scan, case folder, DICOM study or ZIP of each visit, the earliest first, or the files of its "
            "sequences, as in t1c=a.nii.gz,t2f=b.nii.gz; scans are segmented.",
            positional=True,
            cli_name="visit",
        ),
    ] = ()
    labels: Annotated[
        str | None,
        Setting(help="Label values that are measured, such as 3; all: every label.", shown_default="the only one"),
    ] = None
    region: Annotated[
        str | None,
        Setting(
            help="Region that is measured: ET, or with its label values ET=3.", shown_default="the model's index region"
        ),
    ] = None
    model: Model = None
    out: Annotated[Path, Setting(help="Folder for the results.")] = Path("follow_up")
    match_distance: Annotated[
        float,
        Setting(help="Lesions of two visits that do not overlap are the same within this distance (mm).", min=0),
    ] = 3.0
    non_target: Annotated[
        str,
        Setting(
            help="Whether clear growth of lesions that are no targets makes a progression, or is a remark only.",
            choices=NON_TARGET,
        ),
    ] = "count"
    immunotherapy: Annotated[
        bool, Setting(help="Under immunotherapy: new lesions alone do not make a progression.")
    ] = False
    same_patient: Annotated[bool, Setting(help="Visits are of one patient although their PatientIDs differ.")] = False
    strict: Strict = False
    force: Annotated[bool, Setting(help="Go on where an alignment, or the order of dates, is doubtful.")] = False
    format: Annotated[
        str,
        Setting(
            help="With sr, also write a DICOM Structured Report, and the SEG that it refers to, of each DICOM visit.",
            choices=("auto", "sr"),
        ),
    ] = "auto"
    overwrite: Annotated[bool, Setting(help="Replace results that exist.")] = False
    device: Device = "auto"

    def __post_init__(self) -> None:
        check(self)
        self.label_values()
        self.region_and_labels()
        if self.labels and self.region:
            raise ConfigError("--labels and --region exclude each other", remedy="leave one out")
        if len(self.visits) < 2:
            raise ConfigError(
                "a follow-up needs two visits or more",
                remedy="name their masks or scans in order, as in metaseg follow-up 2024.nii.gz 2025.nii.gz",
            )

    def label_values(self) -> tuple[int, ...]:
        """Return what --labels lists; empty for all."""
        if self.labels is None or self.labels == "all":
            return ()
        return label_values(self.labels, f"--labels {self.labels}")

    def region_and_labels(self) -> tuple[str, tuple[int, ...]]:
        """Return the name in --region, and its label values where they are given: ``ET=3``."""
        name, sign, values = (self.region or "").partition("=")
        return name.strip(), label_values(values, f"--region {self.region}") if sign else ()
