"""Random names in place of those of patients, cases and files, and the key that maps them back.

The key is a separate table that stays with those who prepared the data. With it, preparing again gives the same names.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from metaseg_cli.core.atomic import atomic_write
from metaseg_cli.core.csv_text import safe_cell
from metaseg_cli.core.datasets import CaseSource, FoundCases
from metaseg_cli.core.datasets.naming import IMAGE_FOLDERS, MASK_FOLDERS, split_of
from metaseg_cli.core.datasets.sequence_names import known_sequence
from metaseg_cli.core.formats import image_suffix
from metaseg_cli.core.paths import check_openable
from metaseg_cli.errors import Problem, decoding

_COLUMNS = ("kind", "pseudonym", "original")
_HIDDEN = "[name]"  # in a sentence
_QUOTED = re.compile(r"""(?<!\w)(?:'[^']*'|"[^"]*")(?!\w)""")
_LOST = "restore it from a copy, or remove it: all cases then get new names"
# Words of layouts and sentences, which identify no person.
_PLAIN_WORDS = IMAGE_FOLDERS | MASK_FOLDERS | {"anat", "case", "data", "derivatives", "dicom", "dose", "file", "folder"}
_PLAIN_WORDS |= {"imagestr", "imagests", "labelstr", "labelsts", "patient", "raw", "series", "slice", "study", "volume"}


class Pseudonyms:
    """The random names given so far. ``secret`` makes the keys of cases in the cache unguessable."""

    def __init__(self, path: Path) -> None:
        """Read the key *path* where there is one. Raises InputError for a damaged one: names must not change."""
        self.path = path
        self._names: dict[tuple[str, str], str] = {}
        if os.path.lexists(path):
            self._read()
        self.secret = self.name("secret", "") if ("secret", "") in self._names else self._give("secret", "")

    def name(self, kind: str, original: str) -> str:
        """Return the random name of the *kind* (patient, case, file) for *original*; a new one if needed."""
        return self._names.get((kind, str(safe_cell(original)))) or self._give(kind, original)

    def note(self, kind: str, pseudonym: str, original: str) -> None:
        """Add a name that was derived from another one."""
        self._names[kind, str(safe_cell(original))] = pseudonym

    def _give(self, kind: str, original: str) -> str:
        taken = set(self._names.values())
        size = 32 if kind == "secret" else 4
        while (random := secrets.token_hex(size) if kind == "secret" else f"{kind}-{secrets.token_hex(size)}") in taken:
            pass
        self._names[kind, str(safe_cell(original))] = random
        return random

    def save(self) -> None:
        """Write the key, readable by its owner alone."""
        rows = [
            {"kind": kind, "pseudonym": name, "original": original} for (kind, original), name in self._names.items()
        ]
        text = io.StringIO()
        # The originals are safe cells already: they are written, and read back, as they are.
        writer = csv.DictWriter(text, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        atomic_write(self.path, lambda to: _write_private(to, text.getvalue()))

    def _read(self) -> None:
        check_openable(self.path)
        with decoding(self.path, "not the key of a prepared folder", remedy=_LOST):
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file, strict=True))
            for row in rows:
                if set(row) != set(_COLUMNS) or None in row.values():
                    raise ValueError("its columns differ")
                self._names[row["kind"], row["original"]] = row["pseudonym"]
            if not re.fullmatch("[0-9a-f]{64}", self._names.get(("secret", ""), "")):
                raise ValueError("it has no secret")
            if len(set(self._names.values())) < len(self._names):
                raise ValueError("a name is given twice")


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        os.chmod(path, 0o600)
        file.write(text)


def key_path(out: Path) -> Path:
    """Return the path of the key of the prepared folder *out*: beside it, so that the folder can be shared alone."""
    out = out.resolve()
    return out.with_name(f"{out.name}.key.csv")


def pseudonymise(found: FoundCases, names: Pseudonyms) -> FoundCases:
    """Return *found* with random names of cases and patients, sorted by them; the files stay what they are."""
    cases = [
        dataclasses.replace(c, case=names.name("case", c.case), patient=names.name("patient", c.patient))
        for c in found.cases
    ]
    return dataclasses.replace(found, cases=tuple(sorted(cases, key=lambda c: c.case)))


def file_aliases(source: CaseSource) -> dict[Path, Path]:
    """Return the names of the files of a pseudonymised case: ``case-1f3a/file2.nii.gz``."""
    aliases = {source.first_file: Path(source.case) / "files"}  # it may be a folder
    return aliases | {
        path: Path(source.case) / f"file{number}{image_suffix(path)}"
        for number, path in enumerate(source.files, start=1)
    }


class NameRedactor:
    """Removes names from sentences and paths."""

    def __init__(self, replacements: dict[str, str]) -> None:
        self._replacements = dict(sorted(replacements.items(), key=lambda each: -len(each[0])))

    def text(self, text: str) -> str:
        """Return *text* with known names replaced, and without anything that it quotes from a file."""
        text = _QUOTED.sub(_HIDDEN, text)
        for original, other in self._replacements.items():
            if original in text:
                text = re.sub(rf"(?<![^\W_]){re.escape(original)}(?![^\W_])", other.replace("\\", r"\\"), text)
        return text


def redactor_of_source(source: CaseSource) -> NameRedactor:
    """Return the redactor for what is said of one case while its files are read."""
    return NameRedactor(dict.fromkeys(_names_in(f.parts[-4:] for f in source.files), _HIDDEN))


def redactor_of_found(found: FoundCases, root: Path, names: Pseudonyms) -> NameRedactor:
    """Return the redactor for what is said of *found*, under its own names, before and after it is pseudonymised."""
    files = [f for case in found.cases for f in case.files] + [p.file for p in found.problems]
    below = (f.relative_to(root).parts if f.is_relative_to(root) else f.parts[-4:] for f in files)
    replacements = dict.fromkeys(_names_in(below), _HIDDEN)
    for case in found.cases:
        replacements |= {case.patient: names.name("patient", case.patient)} if _tells(case.patient) else {}
        replacements |= {case.case: names.name("case", case.case)} if _tells(case.case) else {}
    return NameRedactor(replacements)


def redact_problem(problem: Problem, alias: str | Path, redactor: NameRedactor) -> Problem:
    """Return *problem* with *alias* as its file, and names masked."""
    return dataclasses.replace(
        problem, file=Path(alias), reason=redactor.text(problem.reason), remedy=redactor.text(problem.remedy)
    )


def _names_in(places: Iterable[tuple[str, ...]]) -> set[str]:
    """Return names of files and folders that may identify a person, with and without suffix."""
    parts = {part for place in places for part in place}
    stems = {part[: -len(ending)] for part in parts if (ending := image_suffix(Path(part)))}
    return {name for name in parts | stems if _tells(name)}


def _tells(name: str) -> bool:
    """Return whether a name may identify a person: not words of layouts, sequences, or one- or two-digit numbers."""
    low = name.lower()
    if low in _PLAIN_WORDS or split_of((name,)) is not None or known_sequence(name) is not None:
        return False
    return len(name) > 2 if name.isdecimal() else len(name) > 1
