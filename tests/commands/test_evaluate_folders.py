"""Two folders of masks from any tool: which belong together, what is said of the rest, and what is written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from metaseg_cli.commands.evaluate import evaluate
from metaseg_cli.config import EvaluateConfig
from metaseg_cli.core.evaluation.system import EvaluatedSystem
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import InputError


def square(at: int, size: int = 6) -> np.ndarray:
    array = np.zeros((32, 32), np.uint8)
    array[at : at + size, at : at + size] = 1
    return array


def save(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii.gz", ".nrrd")):
        image = sitk.GetImageFromArray(np.stack([mask, mask]))
        image.SetSpacing((0.5, 0.5, 2.0))
        sitk.WriteImage(image, str(path))
    else:
        Image.fromarray(mask * 255).save(path)


def run(folder: Path) -> EvaluatedSystem:
    """*folder* holds ``mine`` and ``truth``."""
    config = EvaluateConfig(predictions=folder / "mine", references=folder / "truth", out=folder / "out")
    return evaluate(config, Silent())


def dice(result: EvaluatedSystem) -> dict[str, float]:
    return {case.case: case.regions["metastasis"]["dice"] for case in result.evaluation.cases}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("names", [("a.png", "b.nii.gz"), ("a.nii.gz", "b.png")])
def test_pictures_and_volumes_may_lie_in_one_folder(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        save(tmp_path / "truth" / name, square(3))
        save(tmp_path / "mine" / name, square(3))
    result = run(tmp_path)
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())["summary"]["metastasis"]
    assert summary["dice"]["n"] == 2
    assert summary["volume_px_reference"] == {"mean": 36, "ci95": [None, None], "n": 1}
    assert summary["volume_ml_reference"]["mean"] == pytest.approx(2 * 36 * 0.5 / 1000)
    rows = {row["case"]: row for row in table(tmp_path / "out" / "cases.csv")}
    picture, volume = sorted(names, key=lambda name: name.endswith(".nii.gz"))
    assert rows[picture[0]]["volume_ml_reference"] == rows[volume[0]]["volume_px_reference"] == ""
    assert result.problems == ()


def test_masks_of_one_name_in_a_folder_per_patient_are_all_scored(tmp_path: Path) -> None:
    save(tmp_path / "truth/one/seg.png", square(3))
    save(tmp_path / "truth/two/seg.png", square(13))
    save(tmp_path / "mine/one/seg.png", square(3))
    save(tmp_path / "mine/two/seg_mask.png", square(16))
    result = run(tmp_path)
    assert dice(result) == {"one/seg": 1.0, "two/seg": pytest.approx(2 * 9 / 72)}
    assert result.problems == ()


def test_predictions_of_one_name_in_two_folders_are_never_chosen_by_chance(tmp_path: Path) -> None:
    save(tmp_path / "truth/a.png", square(3))
    save(tmp_path / "mine/first/a.png", square(3))
    save(tmp_path / "mine/second/a.png", square(20))
    result = run(tmp_path)
    assert dice(result) == {"a": 0.0}
    assert len(result.problems) == 3


def test_a_scan_beside_its_mask_is_not_taken_for_it(tmp_path: Path) -> None:
    save(tmp_path / "truth/a.png", np.ones((32, 32), np.uint8))
    save(tmp_path / "truth/a_mask.png", square(3))
    save(tmp_path / "mine/a.png", square(3))
    save(tmp_path / "mine/a_overlay.png", square(9))
    result = run(tmp_path)
    assert dice(result) == {"a": 1.0}
    assert result.problems == ()


def test_two_masks_of_one_name_are_a_problem_not_a_choice(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "truth" / name, square(3))
        save(tmp_path / "mine" / name, square(3))
    save(tmp_path / "truth/a.nii.gz", square(9))
    result = run(tmp_path)
    assert dice(result) == {"b": 1.0}
    assert "a.nii.gz, a.png" in result.problems[0].reason


def test_a_damaged_prediction_is_named_and_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "truth" / name, square(3))
        save(tmp_path / "mine" / name, square(3))
    (tmp_path / "mine/a.png").write_bytes(b"\x89PNG, but no more")
    result = run(tmp_path)
    assert dice(result) == {"a": 0.0, "b": 1.0}  # no cheaper than a missing one
    assert [p.file for p in result.problems] == [tmp_path / "mine/a.png"]


@pytest.mark.parametrize(
    ("truth", "mine"),
    [
        ("X/X-seg.nii.gz", "X.nii.gz"),  # the challenge's own rule
        ("x_gt.nii.gz", "x.nii.gz"),
        ("x.seg.nrrd", "x_mask.nii.gz"),
        ("x_mask.nii.gz", "x.nii.gz"),
        ("x.png", "x_mask.png"),
        ("x_seg.nii.gz", "X.nii.gz"),
        ("x.nii.gz", "x_pred.nii.gz"),
        ("x-label.nrrd", "x_prediction.nii.gz"),
        ("x/seg.nii.gz", "x.nii.gz"),
        ("M\u00fcller-seg.nii.gz", "Mu\u0308ller_mask.nii.gz"),
    ],
)
def test_masks_are_paired_by_the_rules_of_prepare(tmp_path: Path, truth: str, mine: str) -> None:
    save(tmp_path / "truth" / truth, square(3))
    save(tmp_path / "mine" / mine, square(3))
    result = run(tmp_path)
    assert list(dice(result).values()) == [1.0]
    assert result.problems == ()


def test_patients_folders_pair_with_files_named_after_them(tmp_path: Path) -> None:
    for patient, at in (("one", 3), ("two", 13)):
        save(tmp_path / f"truth/{patient}/seg.nii.gz", square(at))
        save(tmp_path / f"mine/{patient}.nii.gz", square(at))
    assert list(dice(run(tmp_path)).values()) == [1.0, 1.0]


def test_names_that_differ_in_case_alone_keep_their_own_masks(tmp_path: Path) -> None:
    for name, at in (("a", 3), ("A", 13)):
        save(tmp_path / f"truth/{name}-seg.png", square(at))
        save(tmp_path / f"mine/{name}.png", square(at))
    assert dice(run(tmp_path)) == {"A": 1.0, "a": 1.0}


def test_what_predict_writes_beside_its_masks_is_no_mask(tmp_path: Path) -> None:
    save(tmp_path / "truth/a-seg.nii.gz", square(3))
    save(tmp_path / "mine/a_mask.nii.gz", square(3))
    for name in ("a_probability_ET", "a_uncertainty_WT", "a_disagreement", "a_probability"):
        save(tmp_path / f"mine/{name}.nii.gz", square(9))
    for name in ("a_overlay", "a_overview"):
        save(tmp_path / f"mine/{name}.png", square(9))
    result = run(tmp_path)
    assert dice(result) == {"a": 1.0}
    assert result.problems == ()


def test_sequences_beside_their_mask_are_no_masks(tmp_path: Path) -> None:
    for name in ("X-t1c", "X-t2f", "X-seg"):
        save(tmp_path / f"truth/X/{name}.nii.gz", square(3))
    save(tmp_path / "mine/X.nii.gz", square(3))
    result = run(tmp_path)
    assert dice(result) == {"X": 1.0}
    assert result.problems == ()


def test_when_not_one_name_matches_nothing_is_scored(tmp_path: Path) -> None:
    for i in range(5):
        save(tmp_path / f"truth/case{i}-seg.png", square(3))
        save(tmp_path / f"mine/result{i}.png", square(3))
    with pytest.raises(InputError) as caught:
        run(tmp_path)
    message = str(caught.value)
    assert "result0.png" in message
    assert "case0-seg.png" in message
    assert "_mask" in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_no_prediction_at_all_is_no_score_of_zero(tmp_path: Path) -> None:
    save(tmp_path / "truth/a.png", square(3))
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="mine: no mask"):
        run(tmp_path)


def test_several_masks_of_one_case_are_united_and_said(tmp_path: Path) -> None:
    save(tmp_path / "truth/a_mask.png", square(3))
    save(tmp_path / "truth/a_mask_1.png", square(20))
    save(tmp_path / "mine/a.png", square(3) | square(20))
    result = run(tmp_path)
    assert dice(result) == {"a": 1.0}
    assert ["united" in p.reason and not p.left_out for p in result.problems] == [True]


def test_numbered_slices_are_no_parts_of_one_mask(tmp_path: Path) -> None:
    for i, at in ((1, 3), (2, 13)):
        save(tmp_path / f"truth/p1_mask_{i}.png", square(at))
        save(tmp_path / f"mine/p1_mask_{i}.png", square(at))
        save(tmp_path / f"truth/q1_seg_{i}.png", square(at))
        save(tmp_path / f"mine/q1_{i}.png", square(at))
    assert dice(run(tmp_path)) == {"p1_mask_1": 1.0, "p1_mask_2": 1.0, "q1_1": 1.0, "q1_2": 1.0}


def test_empty_masks_on_both_sides_are_right_and_finite(tmp_path: Path) -> None:
    save(tmp_path / "truth/a.png", square(3) * 0)
    save(tmp_path / "mine/a.png", square(3) * 0)
    assert dice(run(tmp_path)) == {"a": 1.0}

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((tmp_path / "out/metrics.json").read_text(), parse_constant=refuse)
    assert table(tmp_path / "out/lesions.csv") == []


def test_every_lesion_has_its_row(tmp_path: Path) -> None:
    save(tmp_path / "truth/a.png", square(2) + square(12))
    save(tmp_path / "mine/a.png", square(3) + square(22))
    run(tmp_path)
    rows = table(tmp_path / "out/lesions.csv")
    assert [(r["side"], r["lesion"], r["matched"]) for r in rows] == [
        ("reference", "1", "1"),
        ("reference", "2", "0"),
        ("prediction", "1", "1"),
        ("prediction", "2", "0"),
    ]


def test_odd_names_survive_the_tables(tmp_path: Path) -> None:
    name = 'a, "b" [c'
    save(tmp_path / "truth" / f"{name}.png", square(3))
    save(tmp_path / "mine" / f"{name}_mask.png", square(3))
    run(tmp_path)
    for file in ("cases.csv", "lesions.csv"):
        assert {row["case"] for row in table(tmp_path / "out" / file)} == {name}


def test_a_name_with_a_line_break_is_a_problem_and_the_others_are_scored(tmp_path: Path) -> None:
    for name in ("a", "b\nc"):
        save(tmp_path / "truth" / f"{name}.png", square(3))
        save(tmp_path / "mine" / f"{name}.png", square(3))
    result = run(tmp_path)
    assert dice(result) == {"a": 1.0}
    assert [(p.file.name, p.reason) for p in result.problems] == [("b\nc.png", "its name holds a line break")] * 2


def test_nothing_temporary_is_left(tmp_path: Path) -> None:
    save(tmp_path / "truth/a.png", square(3))
    save(tmp_path / "mine/a.png", square(3))
    run(tmp_path)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "metrics.json",
        "cases.csv",
        "lesions.csv",
        "report.html",
        "worst_cases.png",
    }


def test_a_folder_without_masks_is_named(tmp_path: Path) -> None:
    save(tmp_path / "mine/a.png", square(3))
    (tmp_path / "truth").mkdir()
    with pytest.raises(InputError, match="truth: no mask"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_summary_prints_whatever_the_folders_are_called(tmp_path: Path) -> None:
    from rich.console import Console

    from metaseg_cli.reports.evaluation_summary import evaluate_summary

    folder = tmp_path / "run[" / "1]"  # reads as the end of a Rich style
    save(folder / "truth/a.png", square(3))
    save(folder / "mine/a.png", square(3))
    console = Console(width=80, record=True, file=io.StringIO())
    for part in evaluate_summary(run(folder)):
        console.print(part)
    text = console.export_text()
    assert "run[/1]" in text.replace("\n", "").replace(" ", "")
    assert max(map(len, text.splitlines())) <= 80


def test_slices_of_one_patient_are_one_patient(tmp_path: Path) -> None:
    for name in ("case1_1", "case1_2", "case2_1"):
        save(tmp_path / f"truth/{name}_mask.png", square(3))
        save(tmp_path / f"mine/{name}.png", square(3))
    assert set(run(tmp_path).evaluation.patients) == {"case1", "case2"}


def test_the_challenges_regions_come_from_its_labels(tmp_path: Path) -> None:
    for folder in ("mine", "truth"):
        (tmp_path / folder).mkdir()
        labels = np.zeros((6, 32, 32), np.uint8)
        labels[2:4, 5:10, 5:10], labels[2:4, 6:9, 6:9], labels[2:4, 7, 7] = 2, 3, 1
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / folder / "a.nii.gz"))
    settings: dict[str, Any] = {
        "predictions": tmp_path / "mine",
        "references": tmp_path / "truth",
        "out": tmp_path / "out",
    }
    found = evaluate(EvaluateConfig(**settings, protocol="brats-mets-2023"), Silent()).evaluation
    assert set(found.summary) == {"WT", "TC", "ET"}
    assert found.cases[0].regions["ET"]["volume_ml_reference"] == pytest.approx(16 / 1000)
    own = evaluate(EvaluateConfig(**settings, region=("core=1,3",)), Silent()).evaluation
    assert own.cases[0].regions["core"]["volume_ml_reference"] == pytest.approx(18 / 1000)
    assert set(evaluate(EvaluateConfig(**settings), Silent()).evaluation.summary) == {"metastasis"}


def test_labels_that_no_region_has_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        labels = square(5) * np.uint8(4)
        labels[0, 0] = 2
        save(tmp_path / "truth" / f"{name}.nii.gz", labels)
        save(tmp_path / "mine" / f"{name}.nii.gz", np.minimum(labels, 2))
    config = EvaluateConfig(
        predictions=tmp_path / "mine", references=tmp_path / "truth", out=tmp_path / "out", protocol="brats-mets-2023"
    )
    result = evaluate(config, Silent())
    (problem,) = result.problems
    assert "label 4 (2 references) is in no region" in problem.reason
    assert "--region ET=4" in problem.remedy
    assert not problem.left_out


def test_what_was_assumed_of_masks_is_said_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for side in ("truth", "mine"):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(np.dstack([square(4) * 200, square(4), square(4) * 90])).save(
                tmp_path / side / f"{name}.png"
            )
    (note,) = run(tmp_path).notes
    assert "colour" in note
    assert "(2 times)" in note


def test_an_inverted_mask_is_doubted(tmp_path: Path) -> None:
    save(tmp_path / "truth" / "a.png", square(4))
    save(tmp_path / "mine" / "a.png", 1 - square(4))
    (problem,) = run(tmp_path).problems
    assert "border" in problem.reason or "covers" in problem.reason
    assert not problem.left_out


def test_a_missing_mask_is_null_with_its_reason_and_its_penalty(tmp_path: Path) -> None:
    save(tmp_path / "truth/a.nii.gz", square(3))
    save(tmp_path / "mine/a.nii.gz", square(3) * 0)
    run(tmp_path)
    document = json.loads((tmp_path / "out/metrics.json").read_text())
    (case,) = document["cases"]
    assert case["regions"]["metastasis"]["hd95_mm"] is None
    assert case["reasons"]["metastasis"]["hd95_mm"] == "prediction empty"
    assert document["summary"]["metastasis"]["hd95_mm"]["mean"] == pytest.approx((4**2 + 16**2 + 16**2) ** 0.5)
    (row,) = table(tmp_path / "out/lesions.csv")
    assert (float(row["x_mm"]), float(row["z_mm"])) == pytest.approx((5.5 * 0.5, 1.0))


def test_the_report_escapes_names_and_needs_no_network(tmp_path: Path) -> None:
    name = "<script>alert(1)<"
    save(tmp_path / f"truth/{name}.png", square(3))
    save(tmp_path / f"mine/{name}.png", square(4))
    run(tmp_path)
    page = (tmp_path / "out/report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert "http://" not in page
    assert "https://" not in page
