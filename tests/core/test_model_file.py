"""Model files that are damaged, or are not model files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from metaseg_cli import load_model
from metaseg_cli.core.choices import DEFAULT_OPERATING_POINT, OPERATING_POINTS
from metaseg_cli.core.model_file import load_model_file, read_card
from metaseg_cli.core.run_folder import find_model
from metaseg_cli.errors import ConfigError, ModelFileError


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_what_is_no_model_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelFileError):
        read_card(tmp_path / "m.safetensors")


def test_a_damaged_model_file_is_named(trained: Path, tmp_path: Path) -> None:
    data = (trained / "model.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(data[:-100])
    with pytest.raises(ModelFileError):
        load_model_file(tmp_path / "m.safetensors")


def test_no_pickle_comes_near_a_model(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert result["model"].endswith(".safetensors")
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert {"model", "averaged", "optimizer", "best"} <= set(state)


def _rewritten(source: Path, to: Path, **changes: object) -> Path:
    """A copy of a model file whose card is changed, with checksums as they should be."""
    with safe_open(str(source), framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    metadata["metaseg"] = json.dumps({**json.loads(metadata["metaseg"]), **changes})
    metadata["metaseg-card-sha256"] = hashlib.sha256(metadata["metaseg"].encode()).hexdigest()
    save_file(weights, str(to), metadata=metadata)
    return to


def test_the_filter_of_an_older_file_is_not_applied_and_that_is_said(trained: Path, raw: Path, tmp_path: Path) -> None:
    model, scan = find_model(trained), raw / "train" / "patient001" / "patient001_02.png"
    settings = {"threshold": 0.6, "seed": 0.0, "smallest_lesion": 64.0, "sparing": 1.0, "fill_holes": False}
    older = _rewritten(
        model,
        tmp_path / "model.safetensors",
        format=5,
        postprocessing={"metastasis": settings},
        operating_points={},
        froc={},
    )
    card = read_card(older)
    assert card.postprocessing["metastasis"].min_size == 0
    assert card.postprocessing["metastasis"].threshold == 0.6
    notes = load_model(older).predict(scan).notes
    assert any("older version" in note and "not applied" in note for note in notes)
    assert not any("older version" in note for note in load_model(model).predict(scan).notes)
    with pytest.raises(ConfigError, match="knows no operating point specific"):
        load_model(older, operating_point="specific")


def test_each_operating_point_has_its_post_processing(trained: Path) -> None:
    card = read_card(find_model(trained))
    assert list(card.operating_points) == list(OPERATING_POINTS)
    assert card.operating_point == DEFAULT_OPERATING_POINT
    for name, point in card.operating_points.items():
        chosen = card.at_operating_point(name)
        assert chosen.postprocessing == point.postprocessing
        assert chosen.operating_point == name
