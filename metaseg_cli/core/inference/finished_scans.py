"""Which scans of an output folder are complete: the same call again, after a kill or with more scans, does the rest."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from metaseg_cli.config import PredictConfig
from metaseg_cli.core.atomic import atomic_write_text, make_folder
from metaseg_cli.core.datasets import CaseSource
from metaseg_cli.core.digests import digests_under, file_digest, key_of
from metaseg_cli.core.results import PREDICTIONS_FILE, ScanResult
from metaseg_cli.core.typed_json import build, json_text, parsed

_IN_PROGRESS = ".predictions"  # in the output folder during a call: one file per scan


def result_key(source: CaseSource, model: Path, changed: float, config: PredictConfig) -> str:
    """Return a key that changes with the model, with a setting that results depend on, and with the input's bytes."""
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


@dataclass(frozen=True, kw_only=True)
class EarlierScan:
    """A scan of an earlier call: its key, and its ``result`` if that call completed it."""

    key: str
    result: ScanResult | None = None


class FinishedScans:
    """The scans of earlier calls in the output folder *out*, and those of this call."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._folder = out / _IN_PROGRESS
        document = _document(out / PREDICTIONS_FILE)
        entries = [*_list(document.get("scans")), *_list(document.get("earlier"))]
        # A call that was killed leaves the scans that it completed in files of their own.
        entries += [_document(path) for path in sorted(self._folder.glob("*.json"))]
        results = (_result(entry) for entry in entries)
        self._finished = {result.name: result for result in results if result is not None}

    def earlier(self, name: str) -> EarlierScan | None:
        """Return what is known of the results under *name*."""
        begun = _document(self._file(name))
        key = begun.get("key")
        if isinstance(key, str) and key:
            return EarlierScan(key=key, result=_result(begun))
        result = self._finished.get(name)
        return None if result is None else EarlierScan(key=result.key, result=result)

    def others(self, names: Collection[str]) -> tuple[ScanResult, ...]:
        """Return the complete scans of earlier calls that are not among *names* and whose masks still exist."""
        return tuple(r for name, r in self._finished.items() if name not in names and os.path.isfile(r.mask))

    def begin(self, name: str, key: str) -> None:
        """Note that files of a scan are about to be written: after a kill, the next call may replace them."""
        make_folder(self._folder)
        atomic_write_text(self._file(name), json_text({"key": key}))

    def finish(self, result: ScanResult) -> None:
        """Note that all files of a scan are written."""
        atomic_write_text(self._file(result.name), json_text(result))

    def clear(self) -> None:
        """Remove the notes on complete scans once ``predictions.json`` lists them."""
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if _result(_document(path)) is not None:
                    path.unlink()
            self._folder.rmdir()

    def _file(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.json"


def _result(entry: object) -> ScanResult | None:
    """Return a scan as it was written; None if it is damaged or of another version, so that it is predicted again."""
    try:
        return build(ScanResult, entry)
    except ValueError:
        return None


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _document(path: Path) -> Mapping[str, object]:
    """Return a JSON object; empty when there is none or it is damaged."""
    if not path.is_file():
        return {}
    try:
        document = parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
