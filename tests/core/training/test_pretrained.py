"""Training that starts from another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metaseg_cli.commands.train import train
from metaseg_cli.core.model_file import load_model_file
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import ConfigError, InputError
from tests.common import tiny_training


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_model_file(model)[0].state_dict()


@pytest.mark.slow
def test_a_model_starts_from_another_by_the_names_of_its_sequences(prepared: Path, tmp_path: Path) -> None:
    first = train(tiny_training(prepared, tmp_path / "a", epochs=1), Silent())
    said: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    config = tiny_training(prepared, tmp_path / "b", epochs=1, init=first.run, learning_rate=1e-7, context=1)
    second = train(config, Listening())
    assert any("% of the weights from" in line for line in said)
    mine, theirs = weights(second.model), weights(first.model)
    name = next(n for n, t in mine.items() if t.dim() == 4)
    torch.testing.assert_close(mine[name][:, 1:2], theirs[name], rtol=0, atol=1e-4)  # the slice itself, not a neighbour
    with pytest.raises(ConfigError, match="--model attention-unet"):
        train(tiny_training(prepared, tmp_path / "c", model="nested-unet", init=first.run), Silent())
    with pytest.raises(InputError, match="no such model"):
        train(tiny_training(prepared, tmp_path / "c", init=tmp_path / "nothing.safetensors"), Silent())
    assert not (tmp_path / "c").exists()
