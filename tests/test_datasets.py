"""Layouts are found by names alone; what does not fit is listed, and the rest goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metaseg_cli.core.datasets import find_cases, split_folds
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
