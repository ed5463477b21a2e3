"""Settings of ``metaseg export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from metaseg_cli.config.setting import Setting, check


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A trained model for programs without torch."""

    when_interrupted: ClassVar[str] = "no model was written"

    model: Annotated[
        str | None,
        Setting(
            help="Model file, run folder, or architecture.",
            positional=True,
            cli_name="model",
            shown_default="the newest finished run",
        ),
    ] = None
    format: Annotated[str, Setting(help="Format of the file.", choices=("onnx",))] = "onnx"
    out: Annotated[Path | None, Setting(help="File to write.", shown_default="beside the model")] = None
    check: Annotated[
        Path | None, Setting(help="Scan on which the file is compared with torch.", shown_default="a phantom")
    ] = None
    overwrite: Annotated[bool, Setting(help="Replace a file that exists.")] = False

    def __post_init__(self) -> None:
        check(self)
