"""What cases and files are called in all that ``prepare`` writes and prints: by their own names, or by random ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.atomic import make_folder
from metaseg_cli.core.datasets import FoundCases
from metaseg_cli.core.pseudonyms import (
    Pseudonyms,
    file_aliases,
    key_path,
    pseudonymise,
    redact_problem,
    redactor_of_found,
)
from metaseg_cli.errors import ERROR_LOG, Problem

_RAW = "raw"  # instead of the raw folder's name


class ShownNames:
    """``found`` are the cases under the names to show; with --pseudonymise, ``key`` is the file that explains them.

    The key is written before anything else, so that no random name exists that it does not explain.
    """

    def __init__(self, found: FoundCases, config: PrepareConfig) -> None:
        """Raises InputError for a damaged key."""
        self.key: Path | None = None
        self.secret = ""
        self.log_folder: Path | None = config.out
        self.found = found
        if not config.pseudonymise:
            return
        self.key, self.log_folder = key_path(config.out), None  # tracebacks name files
        self._raw = config.raw
        self._names = Pseudonyms(self.key)
        self._redactor = redactor_of_found(found, config.raw, self._names)
        self.secret = self._names.secret
        random = pseudonymise(found, self._names)
        self._aliases = {path: str(alias) for c in random.cases for path, alias in file_aliases(c).items()}
        self._originals = {alias: path for path, alias in self._aliases.items()}
        problems = self.problems(found.problems)
        self.found = dataclasses.replace(
            random, problems=tuple(problems), notes=tuple(self.notes(found.notes)), why=self._redactor.text(found.why)
        )
        make_folder(self.key.parent)
        self._names.save()
        (config.out / ERROR_LOG).unlink(missing_ok=True)

    def problems(self, problems: Sequence[Problem]) -> list[Problem]:
        """Return *problems* as they may be shown; ``save`` writes the names given to further files into the key."""
        return (
            list(problems)
            if self.key is None
            else [redact_problem(p, self._alias(p.file), self._redactor) for p in problems]
        )

    def notes(self, notes: Sequence[str]) -> list[str]:
        """Return *notes* as they may be shown."""
        return list(notes) if self.key is None else [self._redactor.text(note) for note in notes]

    def save(self) -> None:
        """Complete the key."""
        if self.key is not None:
            self._names.save()

    def _alias(self, path: Path) -> str:
        if path == self._raw:
            return _RAW
        alias = self._aliases.get(path, str(path) if str(path) in self._originals else "")
        if not alias:
            return self._names.name("file", str(path))
        self._names.note("file", alias, str(self._originals[alias]))
        return alias
