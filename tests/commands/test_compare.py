"""Several systems on the same cases."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from metaseg_cli.commands.compare import CompareResult, compare
from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.evaluation.comparison import compare_systems
from metaseg_cli.core.evaluation.folder_pairs import evaluate_folder
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import InputError
from metaseg_cli.reports.comparison_page import write_comparison_page
from metaseg_cli.reports.evaluation_summary import compare_summary


def square(at: int, size: int = 8) -> np.ndarray:
    array = np.zeros((40, 40), np.uint8)
    array[at : at + size, at : at + size] = 255
    return array


def folder(path: Path, offset: int) -> Path:
    path.mkdir(parents=True)
    for i in range(8):
        Image.fromarray(square(5 + i + offset + (offset > 0) * (i % 3))).save(path / f"case{i}.png")
    return path


@pytest.fixture
def compared(tmp_path: Path) -> CompareResult:
    names = ("good", "worse", "<b>worst")
    folders = [str(folder(tmp_path / name, i)) for i, name in enumerate(names)]
    truth = folder(tmp_path / "truth", 0)
    config = EvaluateConfig(models=tuple(folders), references=truth, out=tmp_path / "out", workers=1)
    return compare(config, Silent())


def test_the_better_one_wins_every_patient(compared: CompareResult) -> None:
    rows = {(d.first, d.second, d.metric): d for d in compared.document.differences}
    dice = rows["good", "worse", "dice"]
    assert (dice.wins, dice.ties, dice.losses) == (8, 0, 0)
    assert 0 < dice.ci95_low < dice.mean < dice.ci95_high
    assert dice.p < dice.p_holm < 0.2
    distance = rows["good", "worse", "hd95_px"]
    assert distance.mean < 0
    assert distance.wins == 8  # a smaller distance is the better one
    assert compared.document.ranks["metastasis"]["dice"]["good"] == [1, 0, 0]


def test_a_comparison_writes_what_it_shows(compared: CompareResult) -> None:
    document = json.loads((compared.out / "comparison.json").read_text())
    assert document["patients"] == 8
    assert [s["name"] for s in document["systems"]] == ["good", "worse", "<b>worst"]
    rows = list(csv.DictReader((compared.out / "comparison.csv").read_text().splitlines()))
    assert len(rows) == len(document["differences"]) == len(compared.document.differences)
    page = (compared.out / "comparison.html").read_text()
    assert "<b>worst" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert (compared.out / "good" / "metrics.json").exists()


def test_a_comparison_names_its_rules_and_what_it_leaves_out(tmp_path: Path) -> None:
    for name, masks in (("a", (0, 0)), ("b", (0, 6)), ("truth", (0, 0))):
        (tmp_path / name).mkdir()
        for i, size in enumerate(masks):
            Image.fromarray(square(5, size)).save(tmp_path / name / f"case{i}.png")
    config = EvaluateConfig(models=("a", "b"), references=tmp_path / "truth", protocol="brats-mets-2026", workers=1)
    systems = [evaluate_folder(tmp_path / name, tmp_path / "out" / name, config, Silent()) for name in config.models]
    document = compare_systems(systems, ())
    note = next(note for note in document.notes if "not compared" in note)
    assert "lesion_wise_dice" in note  # without a lesion in the reference it is not defined
    write_comparison_page(tmp_path / "comparison.html", document)
    page = re.sub('base64,[^"]*', "", (tmp_path / "comparison.html").read_text())
    assert note in page
    assert "pairs one to one" in page
    assert "of each reference" in page
    console = Console(width=200)
    with console.capture() as capture:
        for part in compare_summary(document, tmp_path, ()):
            console.print(part)
    assert "rules: brats-mets-2026" in capture.get()
    for text in (page, capture.get()):
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_models_are_compared_on_what_none_of_them_has_seen(trained: Path, prepared: Path, tmp_path: Path) -> None:
    same = tmp_path / "again"
    same.mkdir()
    (same / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    models = (str(trained), str(same))
    result = compare(EvaluateConfig(models=models, data=prepared, split="all", out=tmp_path / "out"), Silent())
    cases = [{case.case for case in system.evaluation.cases} for system in result.systems]
    assert cases[0] == cases[1]
    assert all(d.ties == result.document.patients and d.p == 1 for d in result.document.differences)
    with pytest.raises(InputError, match="no such"):
        compare(EvaluateConfig(models=(str(trained), str(tmp_path / "x")), data=prepared), Silent())
