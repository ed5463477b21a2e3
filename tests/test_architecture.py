"""Who may import whom, read from the imports themselves; and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from metaseg_cli.core.run_folder import find_model
from tests.common import PACKAGE

ROOT = "metaseg_cli"

# Leaves that anyone may import: they import nothing of the package but one another.
LEAVES = {"errors", "config", "config_file"}
LEAVES |= {
    "core.atomic",
    "core.choices",
    "core.counts",
    "core.csv_text",
    "core.descriptors",
    "core.detection",
    "core.dicom",
    "core.digests",
    "core.formats",
    "core.input_statistics",
    "core.intensity",
    "core.label_maps",
    "core.memory",
    "core.password",
    "core.paths",
    "core.progress",
    "core.regions",
    "core.run_folder",
    "core.typed_json",
    "core.words",
}

ALLOWED = {
    "cli": {"commands", "outputs", "reports", "options", "config", "config_file"},
    "options": set(),
    "commands": {"core", "outputs", "reports"},
    "outputs": {"core"},
    "reports": {"core"},
    "ui": {"commands", "outputs", "reports", "core", "ui"},
    "core.images": set(),
    "core.datasets": set(),
    "core.models": set(),
    "core.losses": set(),
    "core.augmentation": set(),
    "core.measurements": set(),
    "core.metrics": {"core.results"},
    "core.evaluation": {
        "core.cache",
        "core.datasets",
        "core.executor",
        "core.images",
        "core.inference",
        "core.intensity",
        "core.label_maps",
        "core.metrics",
        "core.model_file",
        "core.postprocessing",
        "core.results",
    },
    "core.results": {"core.postprocessing"},
    "core.lesion_tracking": {"core.measurements"},
    "core.rano_bm": {"core.lesion_tracking", "core.measurements"},
    "core.follow_up": {"core.lesion_tracking", "core.rano_bm"},
    "core.postprocessing": set(),
    "core.preprocessing": {"core.images"},
    "core.synthesis": {"core.images"},
    "core.executor": set(),
    "core.pseudonyms": {"core.datasets"},
    "core.cache": {"core.images", "core.datasets", "core.preprocessing", "core.pseudonyms", "core.executor"},
    "core.sampling": {"core.cache"},
    "core.model_file": {"core.models", "core.postprocessing", "core.results"},
    "core.inference": {
        "core.models",
        "core.model_file",
        "core.postprocessing",
        "core.preprocessing",
        "core.images",
        "core.datasets",
        "core.executor",
        "core.follow_up",
        "core.lesion_tracking",
        "core.measurements",
        "core.metrics",
        "core.results",
    },
    "core.training": {
        "core.models",
        "core.losses",
        "core.sampling",
        "core.augmentation",
        "core.inference",
        "core.metrics",
        "core.model_file",
        "core.cache",
        "core.postprocessing",
        "core.preprocessing",
        "core.results",
    },
}
WITHOUT_TORCH = [
    "core.detection",
    "core.dicom",
    "core.images",
    "core.datasets",
    "core.cache",
    "core.metrics",
    "core.postprocessing",
    "core.measurements",
    "core.results",
    "core.lesion_tracking",
    "core.rano_bm",
    "core.follow_up",
    "core.preprocessing",
    "core.intensity",
    "core.descriptors",
    "core.input_statistics",
    "core.label_maps",
]


def package(module: str) -> str:
    """``metaseg_cli.core.images.masks`` → ``core.images``; ``metaseg_cli.cli`` → ``cli``."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["core"] else parts[:1])


def imports(path: Path) -> set[str]:
    """Modules of this package that *path* imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith(ROOT + ".")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == ROOT:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            exists = {n for n in names if (PACKAGE.parent / Path(*n.split("."))).with_suffix(".py").exists()}
            found |= exists or ({node.module} if node.module and node.module != ROOT else set())
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_package_imports_only_what_the_map_allows(path: Path) -> None:
    module = ".".join((ROOT, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    own = package(module)
    if own in ("", "core", "__main__") or own in LEAVES:
        return
    allowed = ALLOWED[own]
    for target in imports(path):
        to = package(target)
        if to == own or to in LEAVES or to == "":
            continue
        assert to in allowed or to.split(".")[0] in allowed, f"{module} imports {target}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "commands").glob("*.py")), ids=lambda p: p.stem)
def test_no_command_imports_another_but_the_demo(path: Path) -> None:
    if path.stem != "demo":
        assert {target for target in imports(path) if package(target) == "commands"} == set()


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    return set(result.stdout.split())


def test_help_loads_nothing_heavy() -> None:
    run_help = (
        "import sys; sys.argv = ['metaseg', '--help']\n"
        "from metaseg_cli.cli import app\n"
        "try: app()\nexcept SystemExit: pass"
    )
    heavy = {"torch", "numpy", "scipy", "h5py", "SimpleITK", "skimage", "streamlit", "matplotlib", "PIL", "pandas"}
    assert loaded_by(run_help) & heavy == set()


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_packages_that_workers_load_stay_free_of_torch(name: str) -> None:
    assert "torch" not in loaded_by(f"import {ROOT}.{name}")


def test_importing_the_package_is_light() -> None:
    assert loaded_by(f"import {ROOT}") & {"torch", "numpy"} == set()


def test_reading_a_model_does_not_load_the_compiler_of_torch(trained: Path) -> None:
    # It takes two seconds, which every prediction would pay.
    path = str(find_model(trained))
    read = (
        f"from pathlib import Path\nfrom {ROOT}.core.model_file import load_model_file\nload_model_file(Path({path!r}))"
    )
    assert loaded_by(read) & {"torch._dynamo", "sympy"} == set()
