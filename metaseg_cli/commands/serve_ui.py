"""Start the bundled Streamlit app."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from metaseg_cli.commands.runs import find_model
from metaseg_cli.config import ServeUiConfig
from metaseg_cli.core.progress import Progress
from metaseg_cli.errors import InputError

APP = Path(__file__).parent.parent / "ui" / "app.py"


def serve_ui(config: ServeUiConfig, progress: Progress) -> int:
    """Run ``metaseg serve-ui``; returns Streamlit's exit code. Raises InputError when the address is taken."""
    _free_or_raise(config.host, config.port)
    model = str(find_model(config.model, config.runs).resolve()) if config.model else ""
    shown = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    progress.say(f"metaseg is at http://{shown}:{config.port}  (Ctrl-C ends it)")
    settings = {
        "server.headless": "true",
        "server.address": config.host,
        "server.port": str(config.port),
        "server.fileWatcherType": "none",
        "server.maxUploadSize": "2000",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    environment = {**os.environ, "METASEG_UI_MODEL": model, "METASEG_UI_RUNS": str(config.runs.resolve())}
    command = [sys.executable, "-m", "streamlit", "run", str(APP), *flags]
    if os.name == "posix":
        # Become Streamlit instead of starting it: whoever ends this process ends the app, however they do it.
        sys.stderr.flush()
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Streamlit's greeting; ours is enough
        os.execve(sys.executable, command, environment)
    return subprocess.call(command, env=environment, stdout=subprocess.DEVNULL)


def _free_or_raise(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"cannot listen there ({error.strerror})",
                where=f"{host}:{port}",
                remedy=f"another program may use it; try --port {port + 1 if port < 65535 else 8600}",
            ) from error
