"""Model files that are damaged, or are not model files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metaseg_cli.core.model_file import load_model_file, read_card
from metaseg_cli.errors import ModelFileError


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
