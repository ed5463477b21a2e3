"""A layout is one module and one row: this file is such a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.choices import LAYOUTS, LayoutChoice
from metaseg_cli.core.datasets import find_cases
from metaseg_cli.core.datasets.case_source import CaseSource, FoundCases
from metaseg_cli.errors import ConfigError, InputError


def looks_like(root: Path) -> str | None:
    return "it holds scans.txt" if (root / "scans.txt").exists() else None


def find(root: Path) -> FoundCases:
    names = (root / "scans.txt").read_text().split()
    cases = (CaseSource(case=n, patient=n, sequences={"t1c": (root / n,)}) for n in names)
    return FoundCases(layout="listed", cases=tuple(cases))


def test_a_layout_is_added_by_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scans.txt").write_text("a.nii.gz b.nii.gz")
    with pytest.raises(ConfigError, match="listed"):
        PrepareConfig(raw=tmp_path, layout="listed")
    monkeypatch.setitem(LAYOUTS, "listed", LayoutChoice(module=__name__, example="scans.txt"))
    assert PrepareConfig(raw=tmp_path, layout="listed").layout == "listed"
    for layout in ("auto", "listed"):
        found = find_cases(tmp_path, layout)
        assert found.layout == "listed"
        assert [case.case for case in found.cases] == ["a.nii.gz", "b.nii.gz"]
    (tmp_path / "scans.txt").rename(tmp_path / "other.txt")
    with pytest.raises(InputError, match="no image with a mask"):
        find_cases(tmp_path)
