"""Folders as challenges, other tools and tables lay them out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from metaseg_cli.core.datasets import find_cases, manifest_template, read_manifest, scans_under, sequence_name
from metaseg_cli.errors import ConfigError, InputError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 4, 4), np.uint8)), str(path))


@pytest.mark.parametrize(
    ("text", "name"),
    [("FLAIR", "t2f"), ("T1ce", "t1c"), ("T1-Gd", "t1c"), ("t1w", "t1n"), ("T2", "t2w"), ("DWI b1000", "dwi_b1000")],
)
def test_sequences_have_one_name(text: str, name: str) -> None:
    assert sequence_name(text) == name


def test_brats_visits_of_a_patient_stay_together(tmp_path: Path) -> None:
    for visit in ("BraTS-MET-00110-000", "BraTS-MET-00110-001", "BraTS-MET-00111-000"):
        touch(*(tmp_path / visit / f"{visit}-{s}.nii.gz" for s in ("seg", "t2w", "t1n", "t1c", "t2f")))
    found = find_cases(tmp_path)
    assert found.layout == "brats"
    assert [(c.case, c.patient) for c in found.cases] == [
        ("BraTS-MET-00110-000", "BraTS-MET-00110"),
        ("BraTS-MET-00110-001", "BraTS-MET-00110"),
        ("BraTS-MET-00111-000", "BraTS-MET-00111"),
    ]
    assert all(list(c.sequences) == ["t1n", "t1c", "t2w", "t2f"] and c.masks for c in found.cases)


def test_older_brats_names_mean_the_same_sequences(tmp_path: Path) -> None:
    name = "BraTS19_CBICA_AAB_1"
    touch(*(tmp_path / name / f"{name}_{s}.nii.gz" for s in ("flair", "t1", "t1ce", "t2", "seg")))
    (case,) = find_cases(tmp_path).cases
    assert {n: p[0].name.split("_")[-1] for n, p in case.sequences.items()} == {
        "t1n": "t1.nii.gz",
        "t1c": "t1ce.nii.gz",
        "t2w": "t2.nii.gz",
        "t2f": "flair.nii.gz",
    }
    assert case.patient == "BraTS19_CBICA_AAB"


def test_nnunets_channels_get_the_names_of_its_dataset_json(tmp_path: Path) -> None:
    touch(*(tmp_path / "imagesTr" / f"c{i}_{k:04d}.nii.gz" for i in (1, 2) for k in (0, 1)))
    touch(*(tmp_path / "labelsTr" / f"c{i}.nii.gz" for i in (1, 3)))
    names = {"channel_names": {"0": "FLAIR", "1": "T1ce"}, "labels": {"background": 0, "tumour": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(names | {"file_ending": ".nii.gz", "numTraining": 2}))
    found = find_cases(tmp_path)
    assert found.layout == "nnunet"
    (case,) = found.cases
    assert case.sequences["t2f"][0].name == "c1_0000.nii.gz"
    assert case.sequences["t1c"][0].name == "c1_0001.nii.gz"
    assert len(found.problems) == 2  # c2 without a label, c3 without an image


def test_nnunet_channels_without_names_are_not_guessed(tmp_path: Path) -> None:
    touch(*(tmp_path / "imagesTr" / f"c1_{k:04d}.nii.gz" for k in (0, 1)), tmp_path / "labelsTr" / "c1.nii.gz")
    with pytest.raises(InputError, match="does not name channel"):
        find_cases(tmp_path)


def test_a_decathlon_of_several_modalities_names_the_channels_of_one_file(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr" / "a.nii.gz", tmp_path / "labelsTr" / "a.nii.gz")
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": modality, "training": [entry]}))
    (case,) = find_cases(tmp_path).cases
    assert case.channels == ("t2f", "t1n", "t1c", "t2w")


def test_bids_sessions_and_their_masks_in_derivatives(tmp_path: Path) -> None:
    for session in ("ses-1", "ses-2"):
        anat = tmp_path / "sub-01" / session / "anat"
        touch(anat / f"sub-01_{session}_T1w.nii.gz", anat / f"sub-01_{session}_ce-gadolinium_T1w.nii.gz")
        made = tmp_path / "derivatives" / "manual" / "sub-01" / session / "anat"
        touch(made / f"sub-01_{session}_label-lesion_mask.nii.gz", made / f"sub-01_{session}_desc-brain_mask.nii.gz")
    found = find_cases(tmp_path)
    assert found.layout == "bids"
    assert [(c.case, c.patient, list(c.sequences)) for c in found.cases] == [
        ("sub-01_ses-1", "sub-01", ["t1n", "t1c"]),
        ("sub-01_ses-2", "sub-01", ["t1n", "t1c"]),
    ]
    assert all("lesion" in c.masks[0].name for c in found.cases)


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_a_manifest_lists_anything(tmp_path: Path, delimiter: str) -> None:
    touch(*(tmp_path / f"{n}.nii.gz" for n in ("a1", "a2", "am", "b1", "bm")))
    rows = [
        ["case", "patient", "mask", "FLAIR", "T1ce", "age"],
        ["a", "p", "am.nii.gz", "a1.nii.gz", "a2.nii.gz", "61"],
        ["b", "p", "bm.nii.gz", "b1.nii.gz", "", "62"],
        ["c", "q", "bm.nii.gz", "gone.nii.gz", "", "63"],
    ]
    table = tmp_path / "cases.csv"
    table.write_text("# made by hand\n" + "\n".join(delimiter.join(row) for row in rows))
    found = read_manifest(table, tmp_path)
    assert [(c.case, c.patient, list(c.sequences)) for c in found.cases] == [
        ("a", "p", ["t1c", "t2f"]),
        ("b", "p", ["t2f"]),
    ]
    assert "line 4" in found.problems[0].reason
    assert any("age" in note for note in found.notes)


def test_a_template_is_a_manifest_to_complete(tmp_path: Path) -> None:
    touch(*(tmp_path / "p1" / f"{name}.nii.gz" for name in ("FLAIR_norm", "T1c_norm", "weird")))
    with pytest.raises(InputError, match="--write-manifest"):
        find_cases(tmp_path)
    text = manifest_template(tmp_path)
    assert "p1,p1,,p1/T1c_norm.nii.gz,p1/FLAIR_norm.nii.gz" in text
    assert "# not assigned: p1/weird.nii.gz" in text
    (tmp_path / "t.csv").write_text(text)
    assert len(read_manifest(tmp_path / "t.csv", tmp_path).cases) == 1


def test_an_unknown_layout_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown layout"):
        find_cases(tmp_path, "dropbox")


def test_scans_to_predict_are_grouped_by_case_and_masks_are_none(tmp_path: Path) -> None:
    touch(*(tmp_path / f"BraTS-MET-00001-000-{s}.nii.gz" for s in ("t1c", "t2f", "seg")), tmp_path / "other.nii.gz")
    cases = {c.case: list(c.sequences) for c in scans_under(tmp_path).cases}
    assert cases == {"BraTS-MET-00001-000": ["t1c", "t2f"], "other": ["image"]}
