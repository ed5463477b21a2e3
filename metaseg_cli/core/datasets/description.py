"""dataset.json, as the Decathlon and nnU-Net write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metaseg_cli.core.typed_json import read_json


def read_description(path: Path) -> dict[str, Any]:
    """Return the file's content, empty when there is no file. Raises InputError when it is broken."""
    if not path.exists():
        return {}
    return read_json(path, remedy="correct or remove it")
