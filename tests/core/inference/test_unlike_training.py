"""A scan that is unlike the training data is said to be, with the reason, and refused with --strict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from metaseg_cli.core.images import Volume
from metaseg_cli.core.inference.unlike_training import described, differences
from metaseg_cli.core.input_statistics import InputStatistics, LengthRange
from metaseg_cli.core.model_file import ModelCard, read_card
from metaseg_cli.core.preprocessing import Preprocessing, preprocess
from metaseg_cli.core.results import UNLIKE_TRAINING
from tests.common import metaseg, small_card


def head(*sizes: int, spacing: tuple[float, float, float], name: str = "scan.nii.gz") -> Volume:
    """A bright box in the dark."""
    array = np.zeros((1, *sizes), np.float32)
    array[0, 1:-1, 4:-4, 4:-4] = 1 + np.random.default_rng(0).random((sizes[0] - 2, sizes[1] - 8, sizes[2] - 8))
    return Volume(array=array, spacing_mm=spacing, source=Path(name))


def notes(volume: Volume, card: ModelCard) -> list[str]:
    image, mapping = preprocess(volume, Preprocessing.from_record(card.preprocessing))
    rows = described(card, image, np.ones(1, bool), mapping)
    return [note.removeprefix(UNLIKE_TRAINING) for note in differences(card, volume, mapping, rows)]


@pytest.fixture
def card() -> ModelCard:
    lengths = [(0.9, 0.8, 0.8), (1.2, 1.0, 1.0)] * 10
    known = InputStatistics(
        patients=20, voxel_mm=LengthRange.of(lengths), head_mm=LengthRange.of([(20.0, 30.0, 30.0)] * 20)
    )
    return replace(small_card(dims=3), sequences=("t1c",), inputs=known)


def test_thick_slices_and_another_field_of_view_are_said(card: ModelCard) -> None:
    assert notes(head(20, 32, 32, spacing=(1.0, 0.9, 0.9)), card) == []
    said = notes(head(20, 32, 32, spacing=(6.5, 0.9, 0.9)), card)
    assert said[0] == "its voxels are 6.5 mm thick; the model was trained on 0.9–1.2 mm"
    assert said[1] == "what it shows is 130 mm high, in the training data 20 mm (is it a whole head?)"


def test_a_picture_is_no_volume_and_the_other_way_round(card: ModelCard) -> None:
    picture = replace(head(3, 32, 32, spacing=(1, 1, 1), name="scan.png"), spacing_mm=None)
    assert notes(picture, card) == ["it is a picture; the model was trained on volumes"]
    of_pictures = replace(card, preprocessing={"normalisation": "slice"}, inputs=None)
    assert notes(picture, of_pictures) == []
    said = notes(head(3, 32, 32, spacing=(1, 1, 1)), of_pictures)
    assert said == ["it is a volume; the model was trained on pictures, and sees its slices as they are stored"]


def test_older_model_files_say_nothing(card: ModelCard) -> None:
    assert notes(head(20, 32, 32, spacing=(6.5, 0.9, 0.9)), replace(card, inputs=None)) == []
    assert card.inputs is not None
    other = replace(card, inputs=replace(card.inputs, version=0))
    assert notes(head(20, 32, 32, spacing=(6.5, 0.9, 0.9)), other) == []


def test_training_writes_what_its_cases_look_like(trained: Path) -> None:
    known = read_card(trained / "model.safetensors").inputs
    assert known is not None
    assert known.patients == 4
    assert known.picture_px is not None
    assert known.picture_px.largest == (1.0, 64.0, 64.0)
    assert list(known.distributions) == ["grey"]


def test_predict_warns_and_strict_refuses_that_scan_alone(trained: Path, raw: Path, tmp_path: Path) -> None:
    like = raw / "test" / "patient006" / "patient006_02.png"
    odd = tmp_path / "odd.png"
    Image.fromarray(np.indices((300, 300)).sum(axis=0).astype(np.uint8)).save(odd)
    call = ("predict", like, odd, "--model", trained, "--out", tmp_path / "out")
    warned = metaseg(*call)
    assert warned.returncode == 0
    assert "unlike the training data: it has 300 × 300 pixels; the model was trained on 64 × 64" in " ".join(
        warned.stdout.split()
    )
    scans = json.loads((tmp_path / "out" / "predictions.json").read_text())["scans"]
    unlike = {Path(s["scan"]).name: [n for n in s["notes"] if n.startswith(UNLIKE_TRAINING)] for s in scans}
    assert unlike["odd.png"]
    assert not unlike["patient006_02.png"]
    for out in ("out", "fresh"):  # what was finished before is refused too
        refused = metaseg(*call[:-1], tmp_path / out, "--strict", "--json")
        document = json.loads(refused.stdout)
        assert refused.returncode == 1
        assert [Path(s["scan"]).name for s in document["scans"]] == ["patient006_02.png"]
        (problem,) = document["problems"]
        assert problem["file"] == str(odd)
        assert problem["reason"].startswith(UNLIKE_TRAINING)
        assert problem["remedy"]
    assert not (tmp_path / "fresh" / "odd_mask.png").exists()


def test_a_model_of_pictures_says_that_it_sees_a_volume(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    array = np.random.default_rng(0).random((64, 64, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    done = metaseg("predict", path, "--model", trained, "--out", tmp_path / "out", "--json")
    assert any("it is a volume" in note for note in json.loads(done.stdout)["scans"][0]["notes"])
