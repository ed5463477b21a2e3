"""The password of the app: asked for, never on a command line that other users can see, and kept only as a hash."""

from __future__ import annotations

import getpass
import hashlib
import hmac
import os
import sys
import unicodedata

from metaseg_cli.errors import ConfigError

VARIABLE = "METASEG_UI_PASSWORD"  # set by whoever starts the app without a terminal
HASH_VARIABLE = "METASEG_UI_PASSWORD_HASH"  # from serve-ui to the app's process
_MIN_LENGTH = 12  # characters; shorter ones are guessed


def ask_password() -> str:
    """Return the password from the environment, else from the terminal. Raises ConfigError where neither gives one."""
    password = os.environ.get(VARIABLE, "")
    if not password and sys.stdin.isatty():
        password = getpass.getpass("Password for the app: ")
        if getpass.getpass("Once more: ") != password:
            raise ConfigError("the two passwords differ", remedy="start again")
    if not password:
        raise ConfigError(
            "--password found no password", remedy=f"start it in a terminal, or set the environment variable {VARIABLE}"
        )
    return password


def is_short(password: str) -> bool:
    """Return whether a program may guess it."""
    return len(password) < _MIN_LENGTH


def hash_password(password: str) -> str:
    """Return a salted scrypt hash: slow to compute, and therefore slow to guess."""
    salt = os.urandom(16)
    return f"{salt.hex()}:{_scrypt(password, salt).hex()}"


def is_password(password: str, hashed: str) -> bool:
    """Return whether *password* is the one that was hashed; takes the same time either way."""
    salt, _, expected = hashed.partition(":")
    return hmac.compare_digest(_scrypt(password, bytes.fromhex(salt)), bytes.fromhex(expected))


def _scrypt(password: str, salt: bytes) -> bytes:
    text = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    return hashlib.scrypt(text, salt=salt, n=2**14, r=8, p=1)
