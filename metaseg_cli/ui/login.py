"""The login of the app. Sessions are known by the server's own identifier, not by what a browser sends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from metaseg_cli.core.password import HASH_VARIABLE, is_password

DELAY_S = 2.0
_UPLOADS = "upload_file"  # in the path of an upload, before the session
_one_at_a_time = threading.Lock()
_admitted: set[str] = set()


def logged_in() -> bool:
    """Return whether the visitor may see the app, and show the login form if not. Without a password everyone may."""
    hashed = os.environ.get(HASH_VARIABLE)
    if not hashed:
        return True
    context = get_script_run_ctx()
    session = context.session_id if context is not None else ""
    if session in _admitted:
        return True
    with st.form("login"):
        password = st.text_input("Password", type="password")
        sent = st.form_submit_button("Log in")
    if sent:
        if session and _check(password, hashed):
            _admitted.add(session)
            st.rerun()
        st.error("That is not the password.")
    return False


def _check(password: str, hashed: str) -> bool:
    """Check one password at a time, and delay after each wrong one: guessing takes long."""
    with _one_at_a_time:
        if is_password(password, hashed):
            return True
        time.sleep(DELAY_S)
        return False


class UploadsAfterLogin:
    """ASGI middleware: a session that has not logged in cannot upload."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer 403, or pass the request on."""
        parts = str(scope.get("path", "")).split("/")
        if scope["type"] == "http" and _UPLOADS in parts:
            behind = parts[parts.index(_UPLOADS) + 1 :]
            if not behind or behind[0] not in _admitted:
                await send({"type": "http.response.start", "status": 403, "headers": []})
                await send({"type": "http.response.body", "body": b"log in first"})
                return
        await self.app(scope, receive, send)
