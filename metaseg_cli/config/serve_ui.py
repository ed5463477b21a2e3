"""Settings of ``metaseg serve-ui``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from metaseg_cli.config.setting import Setting, check


@dataclass(frozen=True, kw_only=True)
class ServeUiConfig:
    """Open the app in a browser."""

    when_interrupted: ClassVar[str] = "nothing is lost"

    model: Annotated[
        str | None,
        Setting(help="Model file, run folder, or architecture to start with.", shown_default="chosen in the app"),
    ] = None
    runs: Annotated[Path, Setting(help="Folder whose runs the app offers.")] = Path("runs")
    host: Annotated[str, Setting(help="Address to listen on; 127.0.0.1 keeps it on this computer.")] = "127.0.0.1"
    port: Annotated[int, Setting(help="Port to listen on.", least=1, most=65535)] = 8501

    def __post_init__(self) -> None:
        check(self)
