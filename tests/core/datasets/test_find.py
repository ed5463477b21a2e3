"""Layouts are found by names alone; what does not fit is listed, and the rest goes on."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from metaseg_cli.commands.prepare import prepare
from metaseg_cli.config import PrepareConfig
from metaseg_cli.core.cache import open_prepared
from metaseg_cli.core.datasets import find_cases, read_manifest, scans_under, split_folds
from metaseg_cli.core.datasets.naming import is_predicted, match_names, predicted_name
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import InputError


def tree(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")
    return root


@pytest.mark.parametrize("images", ["images", "image", "imgs", "img", "scans", "Images"])
@pytest.mark.parametrize("masks", ["masks", "mask", "labels", "label", "gt", "annotations", "segmentations"])
def test_sibling_folders_pair_by_stem(tmp_path: Path, images: str, masks: str) -> None:
    found = find_cases(tree(tmp_path, f"{images}/a.png", f"{masks}/a.png", f"{images}/b.jpg", f"{masks}/b.png"))
    assert [c.case for c in found.cases] == ["a", "b"]
    assert found.cases[1].masks[0].name == "b.png"
    assert found.problems == ()


@pytest.mark.parametrize(
    "mask", ["a_mask.png", "a_seg.png", "a_label.png", "a_gt.png", "a-mask.png", "a_segmentation.png", "a_MASK.png"]
)
@pytest.mark.parametrize("folder", ["", "masks/"])
def test_masks_may_differ_by_a_suffix(tmp_path: Path, mask: str, folder: str) -> None:
    image = "images/a.png" if folder else "a.png"
    found = find_cases(tree(tmp_path, image, folder + mask))
    assert [(c.case, c.masks[0].name) for c in found.cases] == [("a", mask)]


def test_train_and_test_folders_are_kept_in_mind(tmp_path: Path) -> None:
    names = [
        f"{split}/{kind}/{i}.png" for split in ("train", "val", "test") for kind in ("images", "masks") for i in "ab"
    ]
    found = find_cases(tree(tmp_path, *names))
    assert len({c.case for c in found.cases}) == 6
    assert sorted(str(c.split) for c in found.cases) == ["test", "test", "train", "train", "val", "val"]


def test_split_folders_may_lie_below_images_and_masks(tmp_path: Path) -> None:
    found = find_cases(
        tree(tmp_path, "images/train/a.png", "masks/train/a.png", "images/test/b.png", "masks/test/b.png")
    )
    assert {c.case: c.split for c in found.cases} == {"a": "train", "b": "test"}


def test_a_folder_per_patient_is_one_case_with_slices_in_numeric_order(tmp_path: Path) -> None:
    names = [f"{p}/{p}_{i}{m}.tif" for p in ("TCGA_1", "TCGA_2") for i in (1, 2, 10) for m in ("", "_mask")]
    found = find_cases(tree(tmp_path, *names))
    assert [c.case for c in found.cases] == ["TCGA_1", "TCGA_2"]
    assert [f.name for f in found.cases[0].sequences["image"]] == ["TCGA_1_1.tif", "TCGA_1_2.tif", "TCGA_1_10.tif"]
    assert [f.name for f in found.cases[0].masks] == ["TCGA_1_1_mask.tif", "TCGA_1_2_mask.tif", "TCGA_1_10_mask.tif"]


def test_patients_are_read_from_names_that_hold_an_identifier(tmp_path: Path) -> None:
    names = [f"{kind}/P-0{p}-000_{i}.jpg" for kind in ("images", "masks") for p in (1, 2) for i in (5, 9)]
    found = find_cases(tree(tmp_path, *names))
    assert len(found.cases) == 4  # not consecutive: no stack
    assert {c.patient for c in found.cases} == {"P-01-000", "P-02-000"}
    assert "file names" in " ".join(found.notes)


def test_consecutive_slices_of_a_named_patient_become_a_stack(tmp_path: Path) -> None:
    names = [f"{kind}/p1_{i}.png" for kind in ("images", "masks") for i in (4, 5, 6)]
    found = find_cases(tree(tmp_path, *names))
    assert [(c.case, len(c.masks)) for c in found.cases] == [("p1", 3)]


def test_a_word_and_a_number_is_no_patient(tmp_path: Path) -> None:
    found = find_cases(tree(tmp_path, *[f"{k}/image_{i}.png" for k in ("images", "masks") for i in range(3)]))
    assert len({c.patient for c in found.cases}) == 3
    assert "flatter" in " ".join(found.notes)


def test_what_has_no_partner_is_listed_and_the_rest_goes_on(tmp_path: Path) -> None:
    found = find_cases(tree(tmp_path, "images/a.png", "masks/a.png", "images/lonely.png", "masks/orphan.png"))
    assert [c.case for c in found.cases] == ["a"]
    assert {(p.file.name, p.reason) for p in found.problems} == {
        ("lonely.png", "no mask of this name"),
        ("orphan.png", "no image of this name"),
    }
    assert all(p.remedy for p in found.problems)


def test_two_masks_for_one_image_are_ambiguous(tmp_path: Path) -> None:
    found = find_cases(tree(tmp_path, "a.png", "a_mask.png", "a_seg.png", "b.png", "b_mask.png"))
    assert [c.case for c in found.cases] == ["b"]
    assert "a_seg.png" in found.problems[0].reason


def test_hidden_files_and_archive_droppings_are_ignored(tmp_path: Path) -> None:
    found = find_cases(
        tree(tmp_path, "images/a.png", "masks/a.png", "images/._a.png", "__MACOSX/images/b.png", "readme.txt")
    )
    assert len(found.cases) == 1
    assert found.problems == ()


def test_decathlon_follows_its_list(tmp_path: Path) -> None:
    tree(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    gone = {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}, "training": [entry, gone]}))
    found = find_cases(tmp_path)
    assert found.layout == "decathlon"
    assert [(c.case, list(c.sequences)) for c in found.cases] == [("a", ["mri"])]
    assert [p.file.name for p in found.problems] == ["b.nii.gz"]


def test_broken_json_is_named(tmp_path: Path) -> None:
    tree(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "dataset.json")
    with pytest.raises(InputError, match="JSON"):
        find_cases(tmp_path)


@pytest.mark.parametrize("files", [[], ["notes.txt"], ["a.png", "b.png"]])
def test_a_folder_that_fits_nothing_says_what_it_holds_and_what_is_expected(tmp_path: Path, files: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        find_cases(tree(tmp_path, *files))
    assert "imagesTr" in caught.value.remedy
    assert files == [] or files[0] in caught.value.what


def test_real_folders_are_found(real_data: Path) -> None:
    counts = {}
    for name in ("lgg", "mets2d", "hippocampus", "brain_nrrd", "brisc2025"):
        found = find_cases(real_data / name)
        counts[name] = (len(found.cases), len({c.patient for c in found.cases}), sum(len(c.masks) for c in found.cases))
        assert found.problems == ()
    assert counts["lgg"] == (32, 32, 1302)
    assert counts["mets2d"] == (11, 3, 11)
    assert counts["hippocampus"] == (44, 44, 44)
    assert counts["brain_nrrd"][0] == 2
    assert counts["brisc2025"][0] == 22


# -- names that differ in form or case --------------------------------------------------------------------------------


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("form", [nfc, nfd])
@pytest.mark.parametrize("other", [nfc, nfd])
def test_unicode_forms_of_a_name_match_in_every_layout(tmp_path: Path, form: object, other: object) -> None:
    assert callable(form)
    assert callable(other)
    image, mask = form("M\u00fcller"), other("M\u00fcller")
    layouts = {
        "pairs": (f"images/{image}.png", f"masks/{mask}.png"),
        "folders": (f"{image}/images/a.png", f"{mask}/masks/a.png"),
        "brats": (f"{image}-t1c.nii.gz", f"{image}-t2f.nii.gz", f"{mask}-seg.nii.gz"),
        "nnunet": (f"imagesTr/{image}_0000.nii.gz", f"labelsTr/{mask}.nii.gz"),
        "decathlon": (f"imagesTr/{image}.nii.gz", f"labelsTr/{mask}.nii.gz"),
    }
    for layout, files in layouts.items():
        found = find_cases(tree(tmp_path / layout, *files))
        assert (len(found.cases), found.problems) == (1, ()), layout
        assert len(found.cases[0].masks) == 1, layout


@pytest.mark.parametrize("form", [nfc, nfd])
@pytest.mark.parametrize("other", [nfc, nfd])
def test_a_manifests_cell_finds_its_file_in_any_unicode_form(tmp_path: Path, form: object, other: object) -> None:
    assert callable(form)
    assert callable(other)
    folder, name = form("M\u00fcller"), form("Sch\u00e4del")
    tree(tmp_path, f"{folder}/{name}.nii.gz", f"{folder}/m.nii.gz")
    cell = other("M\u00fcller/Sch\u00e4del.nii.gz")
    (tmp_path / "t.csv").write_text(f"case,mask,t1c\na,{other(folder)}/m.nii.gz,{cell}\n", encoding="utf-8")
    found = read_manifest(tmp_path / "t.csv", tmp_path)
    assert [(len(c.masks), c.sequences["t1c"][0].is_file()) for c in found.cases] == [(1, True)]


def test_equal_names_match_before_names_that_differ_in_case() -> None:
    assert match_names(["a", "A", "b", "C"], ["A", "a", "B"]) == {"a": "a", "A": "A", "b": "B"}
    assert match_names(["a", "A"], ["a"]) == {"a": "a"}
    assert match_names(["x"], ["X", "x\u0301"]) == {"x": "X"}
    assert match_names(["Ab"], ["aB", "AB"]) == {}  # which of the two cannot be known


def test_names_that_differ_in_case_alone_are_told_apart(tmp_path: Path) -> None:
    found = find_cases(tree(tmp_path, "images/A.png", "images/a.png", "masks/A.png", "masks/a.png"))
    assert {(c.sequences["image"][0].name, c.masks[0].name) for c in found.cases} == {
        ("A.png", "A.png"),
        ("a.png", "a.png"),
    }
    assert len({c.case.casefold() for c in found.cases}) == 2


def test_case_may_differ_where_nothing_else_fits(tmp_path: Path) -> None:
    found = find_cases(tree(tmp_path, "P1.png", "p1_mask.png", "Q-t1c.nii.gz", "q-seg.nii.gz"), "pairs")
    assert ("P1.png", "p1_mask.png") in {(c.first_file.name, c.masks[0].name) for c in found.cases}
    (case,) = find_cases(tmp_path, "brats").cases
    assert case.masks[0].name == "q-seg.nii.gz"


@pytest.mark.parametrize("layout", ["brats", "manifest"])
def test_no_two_cases_have_names_that_a_disk_may_take_for_one(tmp_path: Path, layout: str) -> None:
    files = [f"{f}/{c}-{s}.nii.gz" for f in "xy" for c in ("Case1", "case1") for s in ("t1c", "seg")]
    tree(tmp_path, *files)
    rows = "".join(f"{Path(f).stem[:5]},{f}\n" for f in files if "t1c" in f)
    (tmp_path / "t.csv").write_text("case,t1c\n" + rows.replace("Case1,y", "CASE1,y").replace("case1,y", "cAse1,y"))
    found = find_cases(tmp_path, layout) if layout == "brats" else read_manifest(tmp_path / "t.csv", tmp_path)
    assert len(found.cases) == 4
    assert len({c.case.casefold() for c in found.cases}) == 4


# -- several masks of one image ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "masks",
    [
        ("a_mask.png", "a_mask_1.png"),
        ("a_mask_1.png", "a_mask_2.png"),
        ("a_mask.png", "a_mask_1.png", "a_mask_2.png"),
        ("a-seg1.png", "a-seg2.png"),
        ("masks/a_mask.png", "masks/a_mask_1.png"),
        ("a_lesion (1).png", "a_lesion (2).png"),
    ],
)
def test_several_masks_of_one_image_are_united_and_said(tmp_path: Path, masks: tuple[str, ...]) -> None:
    found = find_cases(tree(tmp_path, "a.png", *masks, "b.png", "b_mask.png"))
    cases = {c.case: c for c in found.cases}
    assert {p.name for p in cases["a"].masks_of(0)} == {Path(m).name for m in masks}
    assert len(cases["b"].masks_of(0)) == 1
    assert found.problems == ()
    assert "united" in " ".join(found.notes)


def test_busi_names_hold_a_number_and_still_pair(tmp_path: Path) -> None:
    names = [f"benign ({i}){end}.png" for i in range(1, 4) for end in ("", "_mask")]
    found = find_cases(tree(tmp_path, *names, "benign (2)_mask_1.png"))
    assert {c.case: len(c.masks_of(0)) for c in found.cases} == {"benign (1)": 1, "benign (2)": 2, "benign (3)": 1}
    assert found.problems == ()


def test_a_numbered_mask_of_a_numbered_slice_is_that_slices(tmp_path: Path) -> None:
    found = find_cases(tree(tmp_path, *[f"p1_{m}{i}.png" for i in (1, 2) for m in ("", "mask_")]))
    assert [[p.name for p in c.masks] for c in found.cases] == [["p1_mask_1.png", "p1_mask_2.png"]]


def test_a_numbered_mask_that_fits_two_images_is_not_guessed(tmp_path: Path) -> None:
    found = find_cases(tree(tmp_path, "a.png", "a_1.png", "a_mask.png", "a_mask_1.png"))
    assert [(c.case, len(c.masks_of(0))) for c in found.cases] == [("a", 1)]
    assert any("several images" in p.reason and p.file.name == "a_mask_1.png" for p in found.problems)


def test_a_picture_whose_name_ends_in_a_number_is_no_mask(tmp_path: Path) -> None:
    found = find_cases(tree(tmp_path, *[f"brain_tumor_{i}{m}.png" for i in (1, 2) for m in ("", "_mask")]))
    assert sorted(c.first_file.name for c in found.cases) == ["brain_tumor_1.png", "brain_tumor_2.png"]


def saved(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


@pytest.mark.parametrize("kind", ["png", "nii.gz"])
def test_the_union_of_the_masks_is_what_is_prepared(tmp_path: Path, kind: str) -> None:
    shape = (24, 24) if kind == "png" else (3, 24, 24)
    first, second = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    first[..., 2:6, 2:6], second[..., 12:15, 12:15] = 1, 1
    saved(tmp_path / f"raw/a.{kind}", np.random.default_rng(0).integers(1, 200, shape).astype(np.uint8))
    saved(tmp_path / f"raw/a_mask.{kind}", first)
    saved(tmp_path / f"raw/a_mask_1.{kind}", second)
    result = prepare(PrepareConfig(raw=tmp_path / "raw", out=tmp_path / "out", workers=1), Silent())
    prepared = open_prepared(tmp_path / "out")
    np.testing.assert_array_equal(prepared.label(prepared.cases[0]).reshape(shape), first | second)
    assert "united" in " ".join(result.notes)
    # A change of the second mask is seen.
    saved(tmp_path / f"raw/a_mask_1.{kind}", second * 0)
    again = prepare(PrepareConfig(raw=tmp_path / "raw", out=tmp_path / "out", workers=1), Silent())
    assert again.reused == 0


def test_masks_of_one_image_on_different_grids_are_refused(tmp_path: Path) -> None:
    for name, size in (("a", 24), ("a_mask", 24), ("a_mask_1", 20), ("b", 24), ("b_mask", 24)):
        array = np.random.default_rng(0).integers(0, 2, (size, size)).astype(np.uint8)
        saved(tmp_path / f"raw/{name}.png", array * 255)
    result = prepare(PrepareConfig(raw=tmp_path / "raw", out=tmp_path / "out", workers=1), Silent())
    assert [c.case for c in result.cases] == ["b"]
    assert "a_mask_1.png" in {p.file.name for p in result.problems}


# -- what predict writes -----------------------------------------------------------------------------------------------

WRITTEN = [
    *("a_mask.nii.gz", "a_probability.nii.gz", "a_probability_ET.nii.gz", "a_uncertainty_WT.nii.gz"),
    *("a_uncertainty.nrrd", "a_disagreement_TC.nii.gz", "a_overlay.png", "a_overview.png"),
]


@pytest.mark.parametrize("name", WRITTEN)
def test_what_predict_has_written_is_no_scan_and_no_image_without_mask(tmp_path: Path, name: str) -> None:
    tree(tmp_path, "a.nii.gz", name, "images/b.nii.gz", "masks/b.nii.gz")
    assert {c.first_file.name for c in scans_under(tmp_path).cases} == {"a.nii.gz", "b.nii.gz"}
    found = find_cases(tmp_path, "pairs")
    assert name not in {p.file.name for p in found.problems}


def test_predicts_names_are_recognised_whatever_the_region() -> None:
    for what in ("probability", "uncertainty", "disagreement"):
        for region in ("", "ET", "whole_tumour"):
            assert is_predicted(predicted_name("p_1", what, region), masks=False)
    assert is_predicted(predicted_name("p", "mask"))
    assert not is_predicted(predicted_name("p", "mask"), masks=False)
    assert not is_predicted("p_probable")


# -- folds -----------------------------------------------------------------------------------------------------------


def test_a_patient_is_never_split() -> None:
    patients = [f"p{i // 3}" for i in range(60)]
    folds = split_folds(patients, [float(i) for i in range(60)], 5)
    assert all(len({f for p, f in zip(patients, folds, strict=True) if p == q}) == 1 for q in set(patients))


def test_every_fold_gets_light_and_heavy_patients() -> None:
    patients = [f"p{i}" for i in range(50)]
    folds = split_folds(patients, [float(i) for i in range(50)], 5)
    burden = [sum(i for i, f in enumerate(folds) if f == fold) for fold in range(5)]
    assert max(burden) < 1.25 * min(burden)
    assert [folds.count(f) for f in range(5)] == [10] * 5


def test_folds_are_the_same_for_the_same_seed_alone() -> None:
    arguments = ([f"p{i}" for i in range(20)], [1.0] * 20, 4)
    assert split_folds(*arguments, seed=1) == split_folds(*arguments, seed=1)
    assert split_folds(*arguments, seed=1) != split_folds(*arguments, seed=2)


def test_fewer_patients_than_folds_make_fewer_folds() -> None:
    assert sorted(split_folds(["a", "b", "c"], [1, 2, 3], 5)) == [0, 1, 2]
    assert split_folds(["a", "a"], [1, 2], 5) == [0, 0]
