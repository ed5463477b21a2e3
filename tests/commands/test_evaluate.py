"""Evaluation: only on what the model has not seen, and any two folders of masks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaseg_cli.commands.evaluate import evaluate
from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.cache import open_prepared
from metaseg_cli.core.evaluation.system import EvaluatedSystem
from metaseg_cli.core.model_file import read_card
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import ConfigError, InputError


def run(**settings: Any) -> EvaluatedSystem:
    return evaluate(EvaluateConfig(**settings), Silent())


def masks(folder: Path, **named: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in named.items():
        Image.fromarray((array * 255).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


def square(at: int, size: int = 6) -> np.ndarray:
    array = np.zeros((32, 32), np.uint8)
    array[at : at + size, at : at + size] = 1
    return array


def test_validation_scores_only_the_validation_fold(trained: Path, prepared: Path, tmp_path: Path) -> None:
    result = run(models=(str(trained),), data=prepared, out=tmp_path)
    _, validation = open_prepared(prepared).in_fold(0)
    assert {c.case for c in result.evaluation.cases} == {r.case for r in validation}
    assert "expect a little less" in " ".join(result.notes)


def test_no_split_ever_holds_a_training_case(trained: Path, prepared: Path, tmp_path: Path) -> None:
    seen = set(read_card(trained / "model.safetensors").trained_on)
    content = {r.case: r.content for r in open_prepared(prepared).cases}
    for split in ("validation", "test", "all"):
        result = run(models=(str(trained),), data=prepared, out=tmp_path / split, split=split)
        assert not seen & {content[c.case] for c in result.evaluation.cases}


def test_the_test_split_is_the_test_folder(trained: Path, prepared: Path, tmp_path: Path) -> None:
    result = run(models=(str(trained),), data=prepared, out=tmp_path, split="test")
    assert [c.case for c in result.evaluation.cases] == ["patient006"]
    assert result.evaluation.headline.keys() >= {"dice", "lesion_f1", "lesion_recall"}


def test_metrics_json_has_the_promised_form(trained: Path, prepared: Path, tmp_path: Path) -> None:
    run(models=(str(trained),), data=prepared, out=tmp_path, split="all")
    document = json.loads((tmp_path / "metrics.json").read_text())
    assert document["schema"] == 1
    assert {"protocol", "policy", "cases", "summary"} <= set(document)
    case = document["cases"][0]
    wanted = {"dice", "iou", "precision", "recall", "specificity", "lesion_tp", "lesion_fp", "lesion_fn", "lesion_f1"}
    assert wanted <= set(case["regions"]["metastasis"])
    dice = document["summary"]["metastasis"]["dice"]
    assert dice["n"] == len(document["cases"])
    low, high = dice["ci95"]
    assert low <= dice["mean"] <= high
    rows = list(csv.DictReader((tmp_path / "cases.csv").read_text().splitlines()))
    assert float(rows[0]["dice"]) == pytest.approx(case["regions"]["metastasis"]["dice"])
    assert (tmp_path / "worst_cases.png").exists()


def test_folders_are_scored_by_stem_with_any_format(tmp_path: Path) -> None:
    truth = masks(tmp_path / "truth", a=square(3), b=square(10))
    mine = masks(tmp_path / "mine", a_mask=square(3))
    Image.fromarray(square(13) * 255).save(mine / "b.tif")
    result = run(predictions=mine, references=truth, out=tmp_path / "out")
    dice = {c.case: c.regions["metastasis"]["dice"] for c in result.evaluation.cases}
    assert dice == {"a": 1.0, "b": pytest.approx(2 * 9 / 72)}
    assert result.problems == ()


def test_a_missing_prediction_counts_as_missed_never_as_absent(tmp_path: Path) -> None:
    truth = masks(tmp_path / "truth", a=square(3), b=square(10))
    mine = masks(tmp_path / "mine", a=square(3), extra=square(5))
    result = run(predictions=mine, references=truth, out=tmp_path / "out")
    assert result.evaluation.summary["metastasis"]["dice"].mean == pytest.approx(0.5)
    assert result.evaluation.headline["lesion_recall"] == 0.5
    assert {p.file.name for p in result.problems} == {"b.png", "extra.png"}


def test_masks_of_another_size_are_named_and_count_as_missed(tmp_path: Path) -> None:
    truth = masks(tmp_path / "truth", a=square(3), b=square(3))
    mine = masks(tmp_path / "mine", a=square(3)[:20], b=square(3))
    result = run(predictions=mine, references=truth, out=tmp_path / "out")
    assert {c.case: c.regions["metastasis"]["dice"] for c in result.evaluation.cases} == {"a": 0.0, "b": 1.0}
    assert "size" in result.problems[0].reason


def test_voxels_of_a_patient_are_pooled(trained: Path, prepared: Path, tmp_path: Path) -> None:
    result = run(models=(str(trained),), data=prepared, out=tmp_path, split="all")
    for case in result.evaluation.cases:  # one case per patient here: pooling changes nothing
        assert result.evaluation.patients[case.patient]["metastasis"]["dice"] == case.regions["metastasis"]["dice"]


def test_a_model_for_other_sequences_is_refused(trained: Path, tmp_path: Path) -> None:
    from metaseg_cli.commands.prepare import prepare
    from metaseg_cli.config import PrepareConfig

    for kind in ("images", "masks"):
        (tmp_path / "raw" / kind).mkdir(parents=True)
        for name in "ab":
            colour = np.random.default_rng(ord(name)).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(colour if kind == "images" else square(3) * 255).save(
                tmp_path / "raw" / kind / f"{name}.png"
            )
    prepare(PrepareConfig(raw=tmp_path / "raw", out=tmp_path / "out", workers=1), Silent())
    with pytest.raises(InputError, match="red"):
        run(models=(str(trained),), data=tmp_path / "out")


def test_half_a_pair_of_folders_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="together"):
        EvaluateConfig(predictions=Path("x"))
