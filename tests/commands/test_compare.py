"""Several systems on the same cases."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaseg_cli.commands.compare import CompareResult, compare
from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import InputError


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
    return compare(EvaluateConfig(models=tuple(folders), references=truth, out=tmp_path / "out"), Silent())


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
