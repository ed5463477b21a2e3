"""Settings of ``metaseg serve-ui``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from metaseg_cli.config.setting import Setting, check
from metaseg_cli.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ServeUiConfig:
    """Open the app in a browser."""

    when_interrupted: ClassVar[str] = "nothing is lost"

    model: Annotated[
        str | None,
        Setting(help="Model file, run folder, or architecture to start with.", shown_default="chosen in the app"),
    ] = None
    runs: Annotated[Path, Setting(help="Folder whose runs the app offers.")] = Path("runs")
    host: Annotated[
        str,
        Setting(
            help="Address to listen on; 127.0.0.1 keeps it on this computer, any other one requires --password or "
            "--no-auth."
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Setting(help="Port to listen on.", min=1, max=65535)] = 8501
    password: Annotated[
        bool,
        Setting(
            help="Require a password; it is prompted for, or taken from the environment variable METASEG_UI_PASSWORD."
        ),
    ] = False
    no_auth: Annotated[bool, Setting(help="Allow everyone who can reach the address, without a password.")] = False

    def __post_init__(self) -> None:
        check(self)
        if self.password and self.no_auth:
            raise ConfigError("--password and --no-auth exclude each other", remedy="leave one out")
        if not (is_loopback(self.host) or self.password or self.no_auth):
            raise ConfigError(
                f"--host {self.host} lets other computers use the app",
                remedy="add --password, or --no-auth if everyone who can reach this computer may use it",
            )


def is_loopback(host: str) -> bool:
    """Return whether only this computer reaches *host*."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
