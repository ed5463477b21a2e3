"""All folds and their ensemble."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest
import torch

from metaseg_cli.commands.evaluate import evaluate
from metaseg_cli.commands.train import train
from metaseg_cli.config import EvaluateConfig, TrainConfig
from metaseg_cli.core.model_file import Ensemble, load_model_file, read_card
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.training import cross_validation
from metaseg_cli.errors import InputError, Interrupted
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


@pytest.mark.slow
def test_a_run_of_all_folds_is_resumed_by_its_name_and_scored_out_of_fold(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cross_validation.train_fold

    def stops_in_the_second_fold(config: TrainConfig, *given: object, **named: object) -> object:
        if config.fold == "1":
            raise Interrupted("stopped in epoch 1 of 1; everything is saved", where=tmp_path, remedy="")
        return real(config, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(cross_validation, "train_fold", stops_in_the_second_fold)
    with pytest.raises(Interrupted, match="fold 1 of") as stop:
        train(tiny_training(prepared, tmp_path, fold="all", epochs=1), Silent())
    (run,) = tmp_path.iterdir()
    assert stop.value.remedy.endswith(f"metaseg train --resume {run}")
    finished = (run / "fold0" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(cross_validation, "train_fold", real)
    result = train(TrainConfig(resume=run), Silent())  # without --fold all
    assert result.run == run
    assert len(result.folds) > 1
    assert (run / "fold0" / "model.safetensors").stat().st_mtime_ns == finished

    together = evaluate(EvaluateConfig(models=(str(run),), data=prepared), Silent())
    apart = [
        evaluate(EvaluateConfig(models=(str(fold),), data=prepared, out=tmp_path / fold.name), Silent())
        for fold in result.folds
    ]
    assert together.evaluation.summary["metastasis"]["dice"].n == result.validation_cases
    assert {case.case: case.regions for case in together.evaluation.cases} == {
        case.case: case.regions for system in apart for case in system.evaluation.cases
    }
    document = json.loads((run / "evaluation" / "metrics.json").read_text())
    for fold, system in zip(result.folds, apart, strict=True):
        alone = system.evaluation.summary["metastasis"]["dice"]
        assert document["folds"][fold.name]["metastasis"]["dice"]["mean"] == pytest.approx(alone.mean)
        assert document["folds"][fold.name]["metastasis"]["dice"]["n"] == alone.n
    assert "all folds" in (run / "evaluation" / "report.html").read_text()
    ensemble = evaluate(EvaluateConfig(models=(str(run),), data=prepared, split="test"), Silent())
    assert ensemble.folds == {}
    (run / "fold1" / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="model of a fold is missing"):
        evaluate(EvaluateConfig(models=(str(run),), data=prepared), Silent())
