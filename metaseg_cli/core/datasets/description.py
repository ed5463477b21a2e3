"""dataset.json, as the Decathlon and nnU-Net write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metaseg_cli.errors import InputError


def read_description(path: Path) -> dict[str, Any]:
    """The file's content, empty when there is no file. Raises InputError when it is broken."""
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"not valid JSON ({error})", where=path, remedy="mend or remove it") from error
    if not isinstance(values, dict):
        raise InputError("not a description of a data set", where=path, remedy="mend or remove it")
    return values
