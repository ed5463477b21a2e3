"""Checkpoints in two generations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metaseg_cli.core.training.checkpoint import load_checkpoint, save_checkpoint
from metaseg_cli.errors import InputError


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"x": torch.ones(1000)})
    save_checkpoint(tmp_path, {"x": torch.zeros(1000)})
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:700])
    state: dict[str, Any] = {}
    _, note = load_checkpoint(tmp_path, state.update)
    assert state["x"].sum() == 1000
    assert "checkpoint.pt cannot be read" in note
    (tmp_path / "checkpoint.before.pt").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(tmp_path, state.update)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, {"x": torch.ones(10)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"the disk is full.*--resume"):
        save_checkpoint(tmp_path, {"x": torch.zeros(10)})
    monkeypatch.undo()
    state: dict[str, torch.Tensor] = {}
    load_checkpoint(tmp_path, state.update)
    assert state["x"].sum() == 10


def test_a_checkpoint_has_the_keys_that_earlier_versions_wrote_and_read(trained: Path) -> None:
    saved = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert set(saved) == {
        *("model", "averaged", "averaged_updates", "best", "optimizer", "scaler", "setting", "mistakes", "state")
    }
    assert set(json.loads(saved["setting"])) == {"precision", "channels_last", "pieces"}
    counts = {"step", "epoch", "best_score", "best_epoch", "loss_sum", "loss_count"}
    assert set(json.loads(saved["state"])) == counts | {"seconds", "reserved", "history"}
    _, mistakes = json.loads(saved["mistakes"])
    assert all(set(each) == {"case", "centre"} for each in mistakes)
