"""Which layout a folder has. Each layout is one module with ``looks_like`` and ``find``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

from metaseg_cli.core.datasets import decathlon, pairs
from metaseg_cli.core.datasets.case_source import FoundCases
from metaseg_cli.errors import ConfigError, InputError

# The more particular ones first: the first that fits is taken.
LAYOUTS: dict[str, ModuleType] = {"decathlon": decathlon, "pairs": pairs}

_EXPECTED = """expected, for example, images/case7.png beside masks/case7.png, patient3/slice_07.png beside \
patient3/slice_07_mask.png, or imagesTr/case.nii.gz with labelsTr/case.nii.gz and a dataset.json"""


def find_cases(root: Path, layout: str = "auto") -> FoundCases:
    """The cases under *root*. Raises InputError that says what was found when no layout fits."""
    if not root.exists():
        raise InputError("no such folder", where=root, remedy="check the path")
    if not root.is_dir():
        raise InputError("a file, not a folder", where=root, remedy="name the folder with images and masks")
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}", remedy=f"take auto or one of {', '.join(LAYOUTS)}")
    chosen = [layout] if layout != "auto" else [name for name, module in LAYOUTS.items() if module.looks_like(root)]
    found = LAYOUTS[chosen[0]].find(root) if chosen else None
    if found is None or not found.cases:
        files = [p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")]
        if not files:
            raise InputError("the folder is empty", where=root, remedy=_EXPECTED)
        suffixes = ", ".join(f"{n} {s or 'without suffix'}" for s, n in Counter(p.suffix for p in files).most_common(5))
        names = ", ".join(str(p.relative_to(root)) for p in sorted(files)[:3])
        raise InputError(
            f"no image with a mask was found (there are {suffixes}; {names} …)", where=root, remedy=_EXPECTED
        )
    return found
