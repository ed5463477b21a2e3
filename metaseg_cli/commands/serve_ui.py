"""Start the bundled Streamlit app."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from metaseg_cli.config import ServeUiConfig
from metaseg_cli.config.serve_ui import is_loopback
from metaseg_cli.core.password import HASH_VARIABLE, VARIABLE, ask_password, hash_password, is_short
from metaseg_cli.core.progress import Progress
from metaseg_cli.core.run_folder import find_model
from metaseg_cli.errors import InputError


def serve_ui(config: ServeUiConfig, progress: Progress) -> int:
    """Run ``metaseg serve-ui`` and return Streamlit's exit code.

    Raises InputError when the address is taken, ConfigError when there is no password.
    """
    _free_or_raise(config.host, config.port)
    environment = {
        **os.environ,
        "METASEG_UI_MODEL": str(find_model(config.model, config.runs).resolve()) if config.model else "",
        "METASEG_UI_RUNS": str(config.runs.resolve()),
        HASH_VARIABLE: "",
    }
    if config.password:
        password = ask_password()
        environment[HASH_VARIABLE] = hash_password(password)
        if is_short(password):
            progress.say("the password is short; choose a longer one, of several words")
    environment.pop(VARIABLE, None)
    progress.say(f"metaseg is at {url_of(config.host, config.port)}  (Ctrl-C ends it)")
    for warning in _warnings(config):
        progress.say(warning)
    command = [sys.executable, "-m", "metaseg_cli.ui.web_server", config.host, str(config.port)]
    if os.name == "posix":
        # Replace this process by Streamlit: whatever ends it ends the app.
        sys.stderr.flush()
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Streamlit's greeting; ours is enough
        os.execve(sys.executable, command, environment)
    return subprocess.call(command, env=environment, stdout=subprocess.DEVNULL)


def url_of(host: str, port: int) -> str:
    """Return the address to open in a browser on this computer."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _warnings(config: ServeUiConfig) -> list[str]:
    if is_loopback(config.host):
        return []
    how = "after the login" if config.password else "without any login"
    return [
        f"warning: everyone who can reach port {config.port} of this computer can use the app, {how}",
        "warning: nothing is encrypted on the way: others in the network can read scans and password along; for more "
        "than a network that you trust, put a server with HTTPS in front",
    ]


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
