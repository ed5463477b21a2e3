"""``metaseg train``: what a run leaves, how it stops and how it is resumed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaseg_cli.commands.train import show_plan, train
from metaseg_cli.config import TrainConfig
from metaseg_cli.config_file import merge_config, read_yaml
from metaseg_cli.core.atomic import exclusive_writer
from metaseg_cli.core.cache import open_prepared
from metaseg_cli.core.inference.predictor import load_model
from metaseg_cli.core.model_file import load_model_file, read_card
from metaseg_cli.core.progress import Silent
from metaseg_cli.errors import ConfigError, InputError, Interrupted
from tests.common import history, tiny_training, train_arguments


def test_a_run_leaves_what_it_promises(trained: Path, prepared: Path) -> None:
    names = {p.name for p in trained.iterdir()}
    promised = {"model.safetensors", "config.yaml", "history.csv", "curves.png", "checkpoint.pt", "log.txt"}
    assert promised | {"environment.json", "result.json"} <= names
    assert not [n for n in names if n.startswith(".")]
    assert len(history(trained)) == 2
    card = read_card(trained / "model.safetensors")
    assert card.name == "attention-unet"
    assert card.sequences == ("grey",)
    training, validation = open_prepared(prepared).in_fold(0)
    assert set(card.trained_on) == {r.content for r in training}
    assert set(card.validated_on) == {r.content for r in validation}
    assert "patient001" not in (trained / "model.safetensors").read_bytes().decode("latin1")


@pytest.mark.slow
def test_its_config_repeats_the_run(trained: Path, tmp_path: Path) -> None:
    config = merge_config(TrainConfig, read_yaml(trained / "config.yaml"), {"out": tmp_path, "precision": "fp32"})
    first = train(config, Silent())
    second = train(config, Silent())
    a, b = (load_model_file(r.model)[0].state_dict() for r in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"model": "nested_unet"}, {"loss": "tversky-focal", "optimizer": "sgd"}, {"ema": 0.0}]
)
def test_other_settings_train_too(prepared: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    result = train(tiny_training(prepared, tmp_path, epochs=1, **settings), Silent())
    assert result.epochs == 1
    assert np.isfinite(float(history(result.run)[0]["loss"]))


@pytest.mark.slow
def test_a_nested_network_knows_what_it_is_worth_at_each_depth(prepared: Path, tmp_path: Path) -> None:
    model = train(tiny_training(prepared, tmp_path, epochs=1, model="nested-unet", widths=(4, 8, 8, 8)), Silent()).model
    card = read_card(model)
    assert sorted(card.depths) == [1, 2]
    scan = np.random.default_rng(0).random((1, 64, 64)).astype(np.float32)
    found = [load_model(model, depth=depth).predict(scan).probabilities for depth in ("1", "2", "full")]
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[1], found[2])
    whole = (card.validation["dice"] + card.validation["lesion_f1"]) / 2
    depth, chosen = card.at_depth("auto")
    assert depth == next((d for d in (1, 2) if card.depths[d].score >= whole - 0.01), None)
    assert chosen.postprocessing == (card.depths[depth].postprocessing if depth else card.postprocessing)
    with pytest.raises(ConfigError, match="1 to 3"):
        load_model(model, depth="7")


def test_a_network_of_one_depth_is_not_cut(trained: Path) -> None:
    with pytest.raises(ConfigError, match="one depth"):
        load_model(trained / "model.safetensors", depth="2")
    load_model(trained / "model.safetensors", depth="auto")


@pytest.mark.slow
def test_a_network_learns_what_a_lesion_is(prepared: Path, tmp_path: Path) -> None:
    config = tiny_training(
        prepared,
        tmp_path,
        epochs=4,
        steps_per_epoch=40,
        widths=(8, 16, 32),
        patch=(48,),
        batch_size=8,
        learning_rate=5e-3,
    )
    result = train(config, Silent())
    assert result.scores["dice"] > 0.45


@pytest.mark.slow
def test_resume_runs_only_the_missing_epochs(prepared: Path, tmp_path: Path) -> None:
    first = train(tiny_training(prepared, tmp_path, epochs=2), Silent())
    again = train(TrainConfig(resume=first.run, epochs=3), Silent())
    assert again.run == first.run
    assert again.steps == first.steps + 3
    assert [row["epoch"] for row in history(first.run)] == ["1", "2", "3"]


class StopAt(Silent):
    """Presses Ctrl-C after some steps."""

    def __init__(self, steps: int) -> None:
        self.left, self.trainer = steps, None

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.left -= steps
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "epochs"), [(4, 1), (6, 1), (9, 2)], ids=["amid", "last of an epoch", "last of all"])
def test_ctrl_c_saves_and_the_resumed_run_equals_an_undisturbed_one(
    prepared: Path, tmp_path: Path, steps: int, epochs: int
) -> None:
    # A busy moment may measure another memory format, which rounds differently.
    config = tiny_training(prepared, tmp_path, epochs=3, precision="fp32", memory_format="contiguous")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        undisturbed = train(config, Silent())
        with pytest.raises(Interrupted, match="--resume") as caught:
            train(config, StopAt(steps))
        stopped = Path(str(caught.value.where))
        assert len(history(stopped)) == epochs
        resumed = train(TrainConfig(resume=stopped), Silent())
    finally:
        torch.set_num_threads(threads)
    a, b = (load_model_file(r.model)[0].state_dict() for r in (undisturbed, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [r["loss"] for r in history(resumed.run)] == [r["loss"] for r in history(undisturbed.run)]


def test_a_second_training_in_one_run_is_refused_with_the_process_of_the_first(trained: Path) -> None:
    with (
        exclusive_writer(trained, "metaseg train"),
        pytest.raises(InputError, match=rf"another metaseg train is writing it \(process {os.getpid()}\)"),
    ):
        train(TrainConfig(resume=trained, epochs=3), Silent())


def test_curves_that_a_kill_prevented_are_drawn_when_the_run_is_resumed(prepared: Path, tmp_path: Path) -> None:
    run = train(tiny_training(prepared, tmp_path), Silent()).run
    for name in ("curves.png", "history.csv", "result.json"):
        (run / name).unlink()
    train(TrainConfig(resume=run), Silent())
    assert len(history(run)) == 2
    assert (run / "curves.png").exists()


def test_a_run_that_lost_its_patience_trains_no_more_when_it_is_resumed(prepared: Path, tmp_path: Path) -> None:
    first = train(tiny_training(prepared, tmp_path, epochs=50, patience=1, learning_rate=1e-7), Silent())
    (first.run / "result.json").unlink()  # as when it was killed at its very end
    again = train(TrainConfig(resume=first.run), Silent())
    assert (again.steps, again.stopped) == (first.steps, first.stopped)


@pytest.mark.slow
def test_time_ends_a_run_and_the_learning_rate_follows_the_clock(prepared: Path, tmp_path: Path) -> None:
    ticks = iter(range(100_000))
    config = tiny_training(prepared, tmp_path, epochs=500, max_minutes=3.0)
    result = train(config, Silent(), clock=lambda: float(next(ticks)))
    assert result.epochs < 500
    assert "minutes" in result.stopped
    rates = [float(row["learning_rate"]) for row in history(result.run)]
    assert rates[-1] < 0.2 * rates[0]


@pytest.mark.slow
def test_patience_ends_a_run(prepared: Path, tmp_path: Path) -> None:
    result = train(tiny_training(prepared, tmp_path, epochs=50, patience=1, learning_rate=1e-7), Silent())
    assert result.epochs < 50
    assert "no better score" in result.stopped


def test_a_loss_that_is_not_finite_is_named_and_ends_after_ten(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    monkeypatch.setattr(
        "metaseg_cli.core.training.step.deep_supervision_loss",
        lambda outputs, *_: sum(o.sum() for o in outputs) * float("nan"),
    )
    with pytest.raises(InputError, match="learning-rate"):
        train(tiny_training(prepared, tmp_path, epochs=50), Listening())
    assert len([s for s in said if "not finite" in s and "patient" in s]) == 10


def test_masks_without_any_foreground_are_refused_with_a_remedy(tmp_path: Path) -> None:
    from PIL import Image

    from metaseg_cli.commands.prepare import prepare
    from metaseg_cli.config import PrepareConfig

    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "raw" / kind).mkdir(parents=True)
        for name in "abc":
            array = rng.integers(0, 255, (32, 32), dtype=np.uint8) if kind == "images" else np.zeros((32, 32), np.uint8)
            Image.fromarray(array).save(tmp_path / "raw" / kind / f"{name}.png")
    prepare(PrepareConfig(raw=tmp_path / "raw", out=tmp_path / "out", workers=1), Silent())
    with pytest.raises(InputError, match="foreground"):
        train(tiny_training(tmp_path / "out", tmp_path), Silent())


def test_what_cannot_be_trained_is_said_before_a_run_is_made(prepared: Path, tmp_path: Path) -> None:
    for wrong in ({"fold": 9}, {"model": "resnet"}, {"patch": (2000, 3, 4, 5)}):
        with pytest.raises(ConfigError):
            train(dataclasses.replace(tiny_training(prepared, tmp_path / "runs"), **wrong), Silent())
    assert not (tmp_path / "runs").exists()
    with pytest.raises(InputError, match="metaseg prepare"):
        train(tiny_training(tmp_path, tmp_path), Silent())


def test_volumes_train_in_three_dimensions(tmp_path: Path) -> None:
    from metaseg_cli.commands.predict import predict
    from metaseg_cli.commands.prepare import prepare
    from metaseg_cli.config import PredictConfig, PrepareConfig
    from metaseg_cli.core.synthesis.phantom import PhantomSettings, write_phantom_volumes

    settings = PhantomSettings(shape=(18, 32, 32), spacing_mm=(6.0, 6.0, 6.0), lesions=(2, 4), diameter_mm=(14, 30))
    write_phantom_volumes(tmp_path / "raw", 4, settings)
    prepare(PrepareConfig(raw=tmp_path / "raw", out=tmp_path / "out", workers=1), Silent())
    config = TrainConfig(
        data=tmp_path / "out", out=tmp_path / "runs", epochs=1, widths=(4, 8), steps_per_epoch=2, batch_size=2
    )
    run = train(config, Silent())
    card = read_card(run.model)
    assert card.dims == 3
    scan = tmp_path / "raw" / "imagesTr" / "phantom_001.nii.gz"
    result = predict(PredictConfig(inputs=(str(scan),), model=str(run.run), out=tmp_path / "p"), Silent(), keep=True)
    assert result.problems == ()
    assert result.scans[0].prediction.mask.shape == (18, 32, 32)


def test_the_plan_alone_trains_nothing(prepared: Path, tmp_path: Path) -> None:
    plan = show_plan(tiny_training(prepared, tmp_path / "runs"))
    assert plan.reasons
    assert not (tmp_path / "runs").exists()
    shown = subprocess.run(
        [sys.executable, *train_arguments(prepared, tmp_path / "runs", "--plan-only", "--json")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["patch"] == [1, 32, 32]


def test_tensorboard_is_asked_for_by_name_when_it_is_missing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        train(tiny_training(prepared, tmp_path / "runs", tensorboard=True), Silent())
    assert not (tmp_path / "runs").exists()


def test_a_run_without_its_data_is_refused_and_a_time_is_kept(prepared: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    result = train(TrainConfig(data=prepared, out=tmp_path, widths=(4, 8), patch=(32,), max_minutes=0.05), Silent())
    assert time.monotonic() - began < 30
    assert result.epochs >= 1
