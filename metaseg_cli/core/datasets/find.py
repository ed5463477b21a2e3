"""Which layout a folder has. Each layout is one module with ``looks_like`` and ``find``, and a row of ``LAYOUTS``."""

from __future__ import annotations

import dataclasses
import importlib
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from metaseg_cli.core.choices import LAYOUTS
from metaseg_cli.core.datasets.case_source import FoundCases
from metaseg_cli.core.datasets.naming import distinct_names, unread_images
from metaseg_cli.core.paths import unusable_below
from metaseg_cli.errors import ConfigError, InputError, Problem

_EXPECTED = (
    "lay it out as one of these, or list the files in a table (--write-manifest cases.csv makes one to complete, "
    f"--manifest cases.csv reads it): {', '.join(each.example for each in reversed(LAYOUTS.values()) if each.example)}"
)


class Layout(Protocol):
    """What the module of a layout offers."""

    def looks_like(self, root: Path) -> str | None:
        """Return why *root* has this layout, or None."""

    def find(self, root: Path) -> FoundCases:
        """Return the cases under *root*."""


def layout_of(name: str) -> Layout:
    """Import the module of the layout *name*."""
    module: Any = importlib.import_module(LAYOUTS[name].module)
    layout: Layout = module
    return layout


def find_cases(root: Path, layout: str = "auto") -> FoundCases:
    """Return the cases under *root*. Raises InputError that says what was found when no layout fits."""
    if not root.exists():
        raise InputError("no such folder", where=root, remedy="check the path")
    if not root.is_dir():
        raise InputError("a file, not a folder", where=root, remedy="name the folder with images and masks")
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}", remedy=f"take auto or one of {', '.join(LAYOUTS)}")
    name, why = layout, "chosen with --layout"
    if layout == "auto":
        reasons = ((name, layout_of(name).looks_like(root)) for name in LAYOUTS)
        name, why = next(((name, reason) for name, reason in reasons if reason), ("", ""))
    found = layout_of(name).find(root) if name else None
    if found is None or not found.cases:
        raise _nothing(root, found)
    names = distinct_names([case.case for case in found.cases])
    cases = (dataclasses.replace(case, case=name) for case, name in zip(found.cases, names, strict=True))
    return dataclasses.replace(found, cases=tuple(cases), why=why, problems=(*found.problems, *unread(root)))


def unread(folder: Path) -> list[Problem]:
    """Return a Problem for each image under *folder* that is not read, for its kind or its name."""
    return [
        *unusable_below(folder),
        *_of_other_kinds(folder),
    ]


def _of_other_kinds(folder: Path) -> list[Problem]:
    return [
        Problem(
            file=path,
            reason=f"an image of a kind that metaseg does not read ({path.suffix.lower()})",
            remedy="convert it to PNG, TIFF or NIfTI, or remove it",
        )
        for path in unread_images(folder)
    ]


def _nothing(root: Path, found: FoundCases | None) -> InputError:
    files = [p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")]
    odd = unusable_below(root)
    if odd:
        return InputError(
            f"no case can be used; the first: {odd[0].file}: {odd[0].reason}", where=root, remedy=odd[0].remedy
        )
    if not files:
        return InputError("the folder is empty", where=root, remedy=_EXPECTED)
    if found is not None and found.problems:
        first = found.problems[0]
        return InputError(
            f"laid out as {found.layout}, but no case can be used; the first: {first.file}: {first.reason}",
            where=root,
            remedy=first.remedy,
        )
    suffixes = ", ".join(f"{n} {s or 'without suffix'}" for s, n in Counter(p.suffix for p in files).most_common(5))
    names = ", ".join(str(p.relative_to(root)) for p in sorted(files)[:3])
    return InputError(f"no image with a mask was found (there are {suffixes}; {names} …)", where=root, remedy=_EXPECTED)
