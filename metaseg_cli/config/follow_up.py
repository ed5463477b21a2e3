"""Settings of ``metaseg follow-up``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from metaseg_cli.config.setting import Setting, check
from metaseg_cli.config.shared import Device, Model
from metaseg_cli.core.choices import NON_TARGET
from metaseg_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FollowUpConfig:
    """Lesions over the visits of one patient."""

    when_interrupted: ClassVar[str] = "the follow-up is not complete"

    visits: Annotated[
        tuple[str, ...],
        Setting(
            help="A mask or a scan of each visit, the earliest first; scans are segmented.",
            positional=True,
            cli_name="visit",
        ),
    ] = ()
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
    overwrite: Annotated[bool, Setting(help="Replace results that exist.")] = False
    device: Device = "auto"

    def __post_init__(self) -> None:
        check(self)
        if len(self.visits) < 2:
            raise ConfigError(
                "a follow-up needs two visits or more",
                remedy="name their masks or scans in order, as in metaseg follow-up 2024.nii.gz 2025.nii.gz",
            )
