"""One update of the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metaseg_cli.commands.train import train
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import InputError
from tests.common import tiny_training


@pytest.mark.slow
def test_too_little_memory_splits_the_batch_and_says_so(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metaseg_cli.core.training.step import TrainStep

    said: list[str] = []
    forward = TrainStep._forward

    class Listening(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    def full(self: TrainStep, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        if len(x) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, x)

    monkeypatch.setattr(TrainStep, "_forward", full)
    train(tiny_training(prepared, tmp_path, epochs=1, batch_size=4), Listening())
    assert [line for line in said if "out of memory" in line][-1].endswith("4 micro-batches")
    monkeypatch.setattr(
        TrainStep, "_forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))
    )
    with pytest.raises(InputError, match="--patch"):
        train(tiny_training(prepared, tmp_path / "b", epochs=1), Silent())
