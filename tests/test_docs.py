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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_stand_in_code_blocks(page: Path) -> None:
    """In running text the site makes a dash of the two hyphens of an option."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not [line for line in text.splitlines() if re.match(r"(python|metaseg|nox|pip) .*--", line)]


def test_every_command_is_in_the_readme_or_tutorial() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "docs" / "tutorial.md").read_text(
        encoding="utf-8"
    )
    assert {c for c in COMMANDS if f"metaseg {c}" in text} == set(COMMANDS)


def test_constraints_pin_every_version() -> None:
    lines = (ROOT / "docs" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))
    assert "torch==2.13.0" in lines


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_in_the_text_is_python(page: Path) -> None:
    for block in python_blocks(page):
        compile(block, str(page), "exec")


RUN = [page for page in PAGES if python_blocks(page) and (page.parent == ROOT or page.parent.name == "how-to")]


@pytest.mark.parametrize("page", RUN, ids=lambda p: p.name)
def test_python_in_the_text_runs(page: Path, trained: Path, raw: Path) -> None:
    """With a model and a scan of the tests in place of those that the text names."""
    scan = next(path for path in sorted((raw / "test").rglob("*.png")) if "mask" not in path.name)
    for block in python_blocks(page):
        with_ours = re.sub(r'"runs/[^"]*"', repr(str(trained / "model.safetensors")), block)
        with_ours = re.sub(r'"scan\.[a-z.]+"', repr(str(scan)), with_ours)
        exec(compile(with_ours, str(page), "exec"), {})
