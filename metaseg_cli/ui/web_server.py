"""The web server of the app: ``python -m metaseg_cli.ui.web_server HOST PORT``, as ``metaseg serve-ui`` starts it.

Streamlit itself would ask a server on the internet for its own address when it starts on all interfaces, and again
whenever a page of another site calls it. That is switched off here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from metaseg_cli.config.serve_ui import is_loopback
from metaseg_cli.core.password import HASH_VARIABLE

APP = Path(__file__).parent / "app.py"
_MAX_UPLOAD_MB = 2000
_THIS_COMPUTER = ("localhost", "127.0.0.1", "::1")


def serve(host: str, port: int) -> None:
    """Run until the process is told to stop."""
    from streamlit import net_util

    net_util.get_external_ip = lambda: None
    net_util.get_internal_ip = lambda: None
    if os.environ.get(HASH_VARIABLE):
        _guard_uploads()
    from streamlit import config
    from streamlit.web import bootstrap

    known = set(config._config_options_template)
    options = {name: value for name, value in settings(host, port).items() if name in known}
    bootstrap.load_config_options(options)
    bootstrap.run(str(APP), False, [], options)


def settings(host: str, port: int) -> dict[str, Any]:
    """Return Streamlit's options; they override the user's configuration file."""
    local = is_loopback(host)
    return {
        "server.headless": True,
        "server.address": host,
        "server.port": port,
        "server.fileWatcherType": "none",
        "server.maxUploadSize": _MAX_UPLOAD_MB,
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        # DNS rebinding: a page of another site whose name points to this computer is refused.
        "server.allowedHosts": (*_THIS_COMPUTER, host) if local else (),
        "browser.serverAddress": host if local else "localhost",
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "full" if local else "type",
    }


def _guard_uploads() -> None:
    """Put the login in front of Streamlit's upload address, which does not go through the app."""
    from starlette.middleware import Middleware
    from streamlit.web.server.starlette import starlette_app

    from metaseg_cli.ui.login import UploadsAfterLogin

    made = starlette_app.create_streamlit_middleware
    starlette_app.create_streamlit_middleware = lambda: [Middleware(UploadsAfterLogin), *made()]


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
