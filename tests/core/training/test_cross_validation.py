"""All folds and their ensemble."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import torch

from metaseg_cli.commands.train import train
from metaseg_cli.core.model_file import Ensemble, load_model_file, read_card
from metaseg_cli.core.progress import Silent
from tests.common import tiny_training


@pytest.mark.slow
def test_all_folds_make_an_ensemble_tuned_out_of_fold(prepared: Path, tmp_path: Path) -> None:
    config = tiny_training(prepared, tmp_path, fold="all", epochs=1)
    result = train(config, Silent())
    assert len(result.folds) >= 2
    card = read_card(result.model)
    assert card.members == len(result.folds)
    network, _ = load_model_file(result.model)
    assert isinstance(network, Ensemble)
    x = torch.randn(1, card.in_channels, 32, 32)
    with torch.inference_mode():
        single = [load_model_file(fold / "model.safetensors")[0](x) for fold in result.folds]
        torch.testing.assert_close(network(x), torch.stack(single).mean(0), rtol=1e-4, atol=1e-5)
    seen = []
    for fold in result.folds:
        with h5py.File(fold / "out_of_fold.h5") as file:
            seen += list(file)
    assert len(seen) == len(set(seen)) == result.validation_cases
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.safetensors") if "fold" in p.parent.name}
    again = train(config, Silent())
    assert again.run == result.run
    assert {p: p.stat().st_mtime_ns for p in before} == before
