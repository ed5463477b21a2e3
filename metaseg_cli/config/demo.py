"""Settings of ``metaseg demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from metaseg_cli.config.setting import Setting, check
from metaseg_cli.core.choices import DEFAULT_NETWORK, NETWORKS


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Make phantom brains with metastases and run prepare, train, evaluate and predict on them."""

    when_interrupted: ClassVar[str] = "the next call starts over"

    out: Annotated[Path, Setting(help="Folder for everything the demo makes.")] = Path("demo")
    model: Annotated[str, Setting(help=f"Network: {' or '.join(NETWORKS)}.")] = DEFAULT_NETWORK
    minutes: Annotated[float, Setting(help="Time for the training.", min=0.05)] = 1.5
    seed: Annotated[int, Setting(help="Seed of phantoms and training.", min=0)] = 0

    def __post_init__(self) -> None:
        check(self)
