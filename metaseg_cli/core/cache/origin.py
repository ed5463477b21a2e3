"""Where a prepared case comes from: its files, how they were read, and whether they are still the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from metaseg_cli.core.cache.case_reading import OriginalScan, read_originals
from metaseg_cli.core.cache.records import CacheSettings, CaseRecord
from metaseg_cli.core.datasets.case_source import CaseSource
from metaseg_cli.core.digests import file_digest
from metaseg_cli.core.typed_json import JsonValue, as_json, build, parsed
from metaseg_cli.errors import Problem

# Attributes of a case in its shard.
FILES = "sources"  # of names, sizes and digests
READING = "reading"  # of how the files make the case; empty in pseudonymised folders, where no path is stored
_PREPARE = "prepare the folder again, or pass --grid prepared"


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of a case as it was when the case was prepared."""

    file: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which files make a case, and the settings that they were read with. Paths are absolute."""

    source: CaseSource
    settings: CacheSettings


@dataclass(frozen=True, kw_only=True)
class CaseOrigin:
    """The original files of a prepared case."""

    reading: Reading
    files: tuple[SourceFile, ...]

    def changed(self) -> Problem | None:
        """Return what is wrong with the first file that is missing or no longer what was prepared; None if none is."""
        known = {each.file: each for each in self.files}
        here = (path for path in self.reading.source.files if not path.name.startswith("."))
        for path in dict.fromkeys((*known, *here)):
            if not path.is_file():
                reason = "it was prepared from this file, which is gone"
            elif path not in known:
                reason = "it was not there when the folder was prepared"
            elif path.stat().st_size != known[path].bytes or file_digest(path) != known[path].sha256:
                reason = "it has changed since the folder was prepared"
            else:
                continue
            return Problem(file=path, reason=reason, remedy=_PREPARE)
        return None

    def read(self, record: CaseRecord, regions: Mapping[str, tuple[int, ...]]) -> list[OriginalScan]:
        """Return the scan of the case, or its pictures, with the *regions* of the original masks. Raises InputError."""
        settings = replace(self.reading.settings, regions=dict(regions))
        return read_originals(self.reading.source, settings, record.sequences, record.images)


def origin_attributes(source: CaseSource, settings: CacheSettings, names: dict[Path, Path]) -> dict[str, JsonValue]:
    """Return the attributes that store the origin of a case, as JSON values.

    *names* are those of its files in a pseudonymised folder, which stores no path.
    """
    if settings.secret:
        return {FILES: as_json([_as_it_is(path, names[path]) for path in source.files]), READING: None}
    files = [_as_it_is(path, _absolute(path)) for path in source.files]
    return {FILES: as_json(files), READING: as_json(Reading(source=source.located(_absolute), settings=settings))}


def read_origin(attributes: Mapping[str, str], record: CaseRecord) -> CaseOrigin | Problem:
    """Invert ``origin_attributes``, of JSON texts. Raises ValueError for what ``prepare`` does not write."""
    if READING not in attributes:
        reason = "the folder was prepared by an older version, which does not say how its files make a case"
        return Problem(file=Path(record.file), reason=reason, remedy=_PREPARE)
    reading = parsed(attributes[READING])
    if reading is None:
        reason = "the folder was prepared with --pseudonymise: it does not say where its scans are"
        return Problem(file=Path(record.file), reason=reason, remedy="pass --grid prepared")
    return build(CaseOrigin, {"reading": reading, "files": parsed(attributes[FILES])})


def _as_it_is(path: Path, name: Path) -> SourceFile:
    return SourceFile(file=name, bytes=path.stat().st_size, sha256=file_digest(path))


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # not resolved: the name of a link says the format
