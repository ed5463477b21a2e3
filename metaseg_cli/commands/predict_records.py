"""What of a prediction is finished: the same call again, after a kill or with more scans, does only the rest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from metaseg_cli.config import PredictConfig
from metaseg_cli.core.atomic import atomic_write_text, make_folder
from metaseg_cli.core.datasets import CaseSource
from metaseg_cli.core.digests import digests_under, file_digest, key_of

DOCUMENT = "predictions.json"
_UNFINISHED = ".predictions"  # in the output folder while a call is at work: a file for each of its scans


def result_key(source: CaseSource, model: Path, changed: float, config: PredictConfig) -> str:
    """Changes when the model, a setting that results depend on, or a byte of the input does."""
    if source.archive is None:
        files = {name: digests_under(paths) for name, paths in source.sequences.items()}
    else:
        files = {name: [str(path) for path in paths] for name, paths in source.sequences.items()}
        files["archive"] = [file_digest(source.archive)]
    return key_of([_model_digest(model, changed), config.of_results(), files])


@lru_cache(maxsize=2)
def _model_digest(path: Path, changed: float) -> str:
    del changed
    return file_digest(path)


class Records:
    """The scans of earlier calls in the output folder *out*, and those of this one."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._folder = out / _UNFINISHED
        # Those of a call that was killed stand in files of their own.
        begun = [_document(path) for path in sorted(self._folder.glob("*.json"))]
        self._finished = {entry["name"]: entry for entry in (*_entries(out / DOCUMENT), *filter(_is_entry, begun))}

    def earlier(self, name: str) -> dict[str, Any]:
        """What is known of the results under *name*: a scan of ``predictions.json``, its key alone, or nothing."""
        begun = _document(self._file(name))
        return begun if begun.get("key") else self._finished.get(name, {})

    def others(self, names: set[str]) -> list[dict[str, Any]]:
        """The finished scans of earlier calls that are not among *names*, and whose masks are still there."""
        return [e for name, e in self._finished.items() if name not in names and os.path.exists(e["mask"])]

    def begin(self, name: str, key: str) -> None:
        """Before the first result of a scan is written: what lies there after a kill is ours."""
        make_folder(self._folder)
        atomic_write_text(self._file(name), json.dumps({"key": key}))

    def finish(self, name: str, entry: dict[str, Any]) -> None:
        """After the last result of a scan."""
        atomic_write_text(self._file(name), json.dumps(entry))

    def clear(self) -> None:
        """When ``predictions.json`` says it all: what is known of scans that were not finished stays."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if _is_entry(_document(path)):
                    path.unlink()
            self._folder.rmdir()

    def _file(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.json"


def _entries(path: Path) -> list[dict[str, Any]]:
    document = _document(path)
    entries = [*_list(document.get("scans")), *_list(document.get("earlier"))]
    return [entry for entry in entries if _is_entry(entry)]


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(k), str) for k in ("name", "key", "mask"))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _document(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is none, or it is damaged: its scans are then predicted again."""
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
