"""The documentation says what the program does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import typer

from metaseg_cli.cli import app
from metaseg_cli.config import COMMANDS
from tests.common import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def test_the_reference_is_that_of_the_code() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))
    written = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert written == page["reference"](), "run: python docs/make_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def options() -> dict[str, set[str]]:
    """Command → its options, as the parser has them."""
    group = typer.main.get_command(app)
    return {
        name: {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for name, command in group.commands.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    known = options()
    for line in re.findall(r"\bmetaseg ([a-z][a-z-]+[^`\n]*)", page.read_text(encoding="utf-8")):
        command = line.split()[0]
        if command not in known:
            continue  # prose
        used = set(re.findall(r"(?<!\S)(--[a-z-]+)", line.split("#")[0].split("&&")[0]))
        assert used <= known[command], f"{page.name}: metaseg {line}"


def test_every_command_is_in_the_readme_or_tutorial() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "docs" / "tutorial.md").read_text(
        encoding="utf-8"
    )
    assert {c for c in COMMANDS if f"metaseg {c}" in text} == set(COMMANDS)


def test_constraints_pin_every_version() -> None:
    lines = (ROOT / "docs" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))
    assert "torch==2.13.0" in lines
