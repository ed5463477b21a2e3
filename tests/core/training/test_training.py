"""Training: what a run leaves, how it stops and goes on, and the parts it is made of."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaseg_cli.commands.train import train
from metaseg_cli.config import TrainConfig
from metaseg_cli.config_file import merge_config, read_yaml
from metaseg_cli.core import augmentation
from metaseg_cli.core.atomic import exclusive_writer
from metaseg_cli.core.cache import open_prepared
from metaseg_cli.core.inference.predictor import load_model
from metaseg_cli.core.inference.sliding_window import with_neighbours
from metaseg_cli.core.model_file import load_model_file, read_card
from metaseg_cli.core.postprocessing import Postprocessing, to_label_map, to_mask
from metaseg_cli.core.progress import Silent
from metaseg_cli.core.sampling import PatchCentre, PatchSampler, ReadAhead
from metaseg_cli.core.training.budget import Budget
from metaseg_cli.core.training.checkpoint import load_checkpoint, save_checkpoint
from metaseg_cli.core.training.detections import detect, score_by_size, score_cases
from metaseg_cli.core.training.ema import EmaModel
from metaseg_cli.core.training.hard_negatives import false_positive_centres
from metaseg_cli.core.training.lr_schedule import learning_rate_factor
from metaseg_cli.core.training.plan import DeviceInfo, Plan, PlanOverrides, make_plan
from metaseg_cli.core.training.select_postprocessing import choose_temperature, search_postprocessing
from metaseg_cli.core.training.state import TrainingState
from metaseg_cli.errors import ConfigError, InputError, Interrupted, ModelFileError
from tests.common import history, tiny_training

# -- runs ------------------------------------------------------------------------------------------------------------


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
    config = tiny_training(prepared, tmp_path, epochs=3, precision="fp32")
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


def test_a_resumed_run_goes_on_counting_and_keeps_time_for_the_last_validations() -> None:
    now = [100.0]
    budget = Budget(1.0, lambda: now[0])
    budget.validation_reserve = 20.0
    now[0] += 30.0
    written = TrainingState(step=7).to_json(budget)
    assert (json.loads(written)["seconds"], json.loads(written)["reserved"]) == (30.0, 20.0)
    later = Budget(1.0, lambda: now[0])
    assert TrainingState.from_json(written, later).step == 7
    assert (later.previous_sessions, later.validation_reserve) == (30.0, 20.0)
    assert (later.elapsed(), later.remaining(), later.fraction()) == (30.0, 30.0, 0.75)
    assert not later.is_spent(39.0)
    assert later.is_spent(40.0)
    endless = Budget(None, lambda: now[0])
    assert (endless.remaining(), endless.fraction(), endless.is_spent(1e9)) == (None, 0.0, False)


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


# -- parts -----------------------------------------------------------------------------------------------------------


def sampler(prepared: Path, patch: tuple[int, int, int] = (1, 32, 32), share: float = 0.5) -> PatchSampler:
    folder = open_prepared(prepared)
    return PatchSampler(folder, folder.in_fold(0)[0], patch, foreground_fraction=share, seed=0)


def test_batches_hold_patches_and_the_promised_share_of_lesions(prepared: Path) -> None:
    draw = sampler(prepared, share=1.0)
    batches = [draw.batch(i, 8) for i in range(10)]
    assert batches[0].image.shape == (8, 1, 32, 32)
    assert batches[0].target.shape == (8, 1, 32, 32)
    share = torch.cat([b.target.flatten(1).any(1) for b in batches]).float().mean()
    assert share > 0.9


def test_patches_larger_than_the_image_are_padded(prepared: Path) -> None:
    batch = sampler(prepared, (1, 96, 80)).batch(0, 2)
    assert batch.image.shape == (2, 1, 96, 80)
    assert batch.target[..., :16, :].sum() == 0  # the picture has 64 rows: padding lies on both sides


def test_a_batch_follows_from_its_number_alone(prepared: Path) -> None:
    draw = sampler(prepared)
    expected = draw.batch(7, 6)
    again = sampler(prepared)
    again.batch(0, 6)
    assert torch.equal(again.batch(7, 6).image, expected.image)
    parts = [again.batch(7, 6, slice(rank, None, 2)) for rank in (0, 1)]
    assert torch.equal(parts[1].image, expected.image[1::2])
    assert torch.equal(parts[0].target, expected.target[::2])


def test_batches_read_ahead_are_those_asked_for(prepared: Path) -> None:
    draw = sampler(prepared)
    ahead = ReadAhead(draw, 3, 2)
    try:
        assert torch.equal(ahead.take().image, draw.batch(3, 2).image)
        ahead.restart(9)
        assert torch.equal(ahead.take().image, draw.batch(9, 2).image)
    finally:
        ahead.close()


def test_mistakes_are_met_again(prepared: Path) -> None:
    folder = open_prepared(prepared)
    cases = folder.in_fold(0)[0]
    draw = PatchSampler(folder, cases, (1, 16, 16), seed=0, foreground_fraction=0.0, hard_negative_fraction=1.0)
    draw.hard_negatives = (PatchCentre(1, (0, 30, 30)),)
    assert set(draw.batch(0, 8).cases) == {cases[1].case}


def test_neighbour_slices_are_channels_side_by_side(prepared: Path) -> None:
    folder = open_prepared(prepared)
    draw = PatchSampler(folder, folder.in_fold(0)[0], (1, 16, 16), seed=0, context=1)
    plain = PatchSampler(folder, folder.in_fold(0)[0], (1, 16, 16), seed=0)
    batch = draw.batch(0, 4)
    assert batch.image.shape == (4, 3, 16, 16)
    assert torch.equal(batch.image[:, 1:2], plain.batch(0, 4).image)
    image = torch.arange(2 * 3 * 4.0).view(2, 3, 2, 2)
    stacked = with_neighbours(image, 1)
    assert stacked.shape == (6, 3, 2, 2)
    assert torch.equal(stacked[3:, 1], image[1])  # the second sequence's slices before, at and after slice 1
    assert torch.equal(stacked[0, 0], image[0, 0])  # beyond the end the last slice is repeated


def test_false_lesions_are_found_and_true_ones_are_not() -> None:
    probability = np.zeros((1, 1, 30, 30), np.float32)
    reference = np.zeros((1, 1, 30, 30), bool)
    reference[0, 0, 2:8, 2:8] = True
    probability[0, 0, 5:10, 5:10], probability[0, 0, 20:23, 20:23] = 0.9, 0.8
    assert false_positive_centres(3, probability, reference) == [PatchCentre(3, (0, 21, 21))]


def test_small_lesions_are_drawn_as_often_as_large_ones() -> None:
    from metaseg_cli.core.sampling import even_over_sizes

    weights = even_over_sizes(np.array([4.0, 5000, 5000, 5000, 5000]))
    assert weights[0] == pytest.approx(0.5)
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(6, 2, 24, 28), (3, 2, 10, 24, 20)])
def test_augmentation_moves_image_and_target_together(shape: tuple[int, ...]) -> None:
    settings = augmentation.Augmentation(spatial=1.0, elastic=1.0, each=0.0, rarely=0.0)
    target = torch.zeros(shape[0], 1, *shape[2:])
    target[(slice(None), slice(None), *[slice(n // 4, n // 2) for n in shape[2:]])] = 1
    image = target.expand(-1, 2, *[-1] * (len(shape) - 2)).clone()
    moved_image, moved_target = augmentation.apply(
        image, target, augmentation.draw(settings, shape, np.random.default_rng(0))
    )
    assert not torch.equal(moved_target, target)
    assert moved_target.min() >= 0
    assert moved_target.max() <= 1 + 1e-6  # interpolation rounds
    torch.testing.assert_close(moved_image[:, :1], moved_target)


def test_augmentation_repeats_with_the_same_parameters() -> None:
    shape = (4, 1, 16, 16)
    image, target = torch.randn(shape), (torch.rand(shape) > 0.9).float()
    before = image.clone()
    p = augmentation.draw(
        augmentation.Augmentation(each=1.0, rarely=1.0, elastic=1.0, paste=1.0), shape, np.random.default_rng(1)
    )
    first, second = augmentation.apply(image, target, p), augmentation.apply(image, target, p)
    assert torch.equal(first[0], second[0])
    assert torch.equal(image, before)
    assert not torch.equal(first[0], image)


def test_nothing_drawn_changes_nothing() -> None:
    shape = (2, 1, 16, 16)
    image, target = torch.randn(shape), torch.zeros(shape)
    settings = augmentation.Augmentation(spatial=0.0, elastic=0.0, each=0.0, rarely=0.0, flip_axes=())
    changed, _ = augmentation.apply(image, target, augmentation.draw(settings, shape, np.random.default_rng(0)))
    torch.testing.assert_close(changed, image)


@pytest.mark.parametrize("shape", [(2, 20, 30), (1, 6, 20, 30)])
def test_blur_is_a_gaussian_filter(shape: tuple[int, ...]) -> None:
    from scipy.ndimage import gaussian_filter

    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    sigma = [0.0] * (len(shape) - 2) + [0.8, 0.8]
    expected = gaussian_filter(image.numpy(), sigma, mode="nearest", radius=3)
    np.testing.assert_allclose(augmentation._blurred(image, 0.8).numpy(), expected, atol=1e-6)


def test_rotation_keeps_proportions_in_patches_that_are_not_square() -> None:
    y, x = torch.meshgrid(torch.arange(40) - 20.0, torch.arange(80) - 40.0, indexing="ij")
    disc = ((y**2 + x**2) < 100).float()[None, None]
    settings = augmentation.Augmentation(
        spatial=1.0, rotation=90, scale=(1.0, 1.0), elastic=0.0, each=0.0, rarely=0.0, flip_axes=()
    )
    for seed in range(5):
        p = augmentation.draw(settings, tuple(disc.shape), np.random.default_rng(seed))
        _, moved = augmentation.apply(disc, disc, p)
        assert abs(moved.sum() / disc.sum() - 1) < 0.25
        rows, columns = moved[0, 0].any(1).sum(), moved[0, 0].any(0).sum()
        assert 0.75 < rows / columns < 1.33


def test_the_schedule_warms_up_and_decays() -> None:
    factors = [learning_rate_factor(s / 100, s, schedule="poly", warmup_steps=10) for s in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9]
    assert factors[-1] < 0.05
    assert learning_rate_factor(0.5, 50, schedule="cosine", warmup_steps=0) == pytest.approx(0.5)


def test_the_average_follows_slowly_and_first_quickly() -> None:
    model: Any = torch.nn.Linear(2, 2)
    averaged = EmaModel(model, decay=0.9)
    start = averaged.model.weight.clone()
    with torch.no_grad():
        model.weight += 1
    averaged.update(model)
    torch.testing.assert_close(averaged.model.weight, start + 1 - 2 / 11)
    for _ in range(200):
        averaged.update(model)
    torch.testing.assert_close(averaged.model.weight, model.weight.detach())


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


def test_postprocessing_drops_only_what_is_small() -> None:
    probability = np.zeros((1, 20, 20), np.float32)
    probability[0, 2:6, 2:6], probability[0, 15, 15] = 0.9, 0.9
    assert to_mask(probability, Postprocessing()).sum() == 17
    assert to_mask(probability, Postprocessing(min_size=2)).sum() == 16
    assert to_mask(probability, Postprocessing(threshold=0.95)).sum() == 0


def test_a_lesion_counts_where_it_is_bright_somewhere() -> None:
    probability = np.zeros((1, 20, 20), np.float32)
    probability[0, 2:6, 2:6], probability[0, 3, 3], probability[0, 12:16, 12:16] = 0.4, 0.9, 0.6
    mask = to_mask(probability, Postprocessing(threshold=0.3, high_threshold=0.8))
    assert mask[0, 2:6, 2:6].all()
    assert mask.sum() == 16


def test_a_small_lesion_is_spared_when_it_is_sure() -> None:
    probability = np.zeros((4, 20, 20), np.float32)
    probability[1, 2, 2:4], probability[2, 12, 12:14] = 0.95, 0.6
    settings = Postprocessing(min_size=4.5, keep_confidence=0.9)
    assert to_mask(probability, settings, (1.0, 1.5, 1.5)).sum() == 4  # 2 voxels are 4.5 mm³
    assert np.argwhere(to_mask(probability, settings, (1.0, 1.0, 1.0))).tolist() == [[1, 2, 2], [1, 2, 3]]


def test_holes_are_filled_when_asked() -> None:
    probability = np.zeros((5, 9, 9), np.float32)
    probability[1:4, 2:7, 2:7] = 0.9
    probability[2, 4, 4] = 0
    assert to_mask(probability, Postprocessing(fill_holes=True)).sum() == 75
    assert to_mask(probability[2:3], Postprocessing(fill_holes=True)).sum() == 25
    assert to_mask(probability, Postprocessing()).sum() == 74


def test_settings_for_calibrated_probabilities_give_the_same_mask() -> None:
    logit = np.random.default_rng(0).normal(0, 3, (6, 30, 30))
    settings = Postprocessing(threshold=0.6, high_threshold=0.9, min_size=3, keep_confidence=0.8)
    raw, divided = (1 / (1 + np.exp(-logit / t)) for t in (1.0, 2.5))
    np.testing.assert_array_equal(to_mask(raw, settings), to_mask(divided, settings.calibrated(2.5)))


def test_nested_regions_are_painted_outermost_first() -> None:
    regions = {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)}
    label = np.array([[[0, 1, 2, 3]]], np.uint8)
    masks = np.stack([np.isin(label, v) for v in regions.values()])
    np.testing.assert_array_equal(to_label_map(masks, regions), label)


def test_the_filter_never_reaches_the_size_of_small_training_lesions() -> None:
    probability = np.zeros((1, 1, 30, 30), np.float16)
    reference = np.zeros((1, 1, 30, 30), bool)
    reference[0, 0, 2:12, 2:12] = True
    probability[reference] = 0.9
    for i in range(4):
        probability[0, 0, 25, 5 + 5 * i] = 0.9
    cases = [detect("c", "p", None, probability, reference)]
    assert search_postprocessing(cases, [100] * 20)[0][0].min_size >= 2
    assert search_postprocessing(cases, [1, 2, 3])[0][0].min_size == 0


@pytest.mark.parametrize(
    "settings",
    [
        Postprocessing(threshold=0.8, min_size=3),
        Postprocessing(threshold=0.7, high_threshold=0.95),
        Postprocessing(threshold=0.8, min_size=4, keep_confidence=0.9, high_threshold=0.9),
    ],
)
def test_validation_scores_equal_those_of_the_masks(settings: Postprocessing) -> None:
    from metaseg_cli.core.metrics import confusion, lesion_scores, match_lesions

    rng = np.random.default_rng(0)
    pairs = [(rng.random((1, 4, 16, 16)).astype(np.float32), rng.random((1, 4, 16, 16)) > 0.93) for _ in range(4)]
    cases = [detect(f"c{i}", f"p{i % 2}", None, *pair) for i, pair in enumerate(pairs)]
    masks = [to_mask(p[0], settings) for p, _ in pairs]
    matches = [match_lesions(r[0], m) for (_, r), m in zip(pairs, masks, strict=True)]
    lesions = lesion_scores(*(sum(getattr(m, k) for m in matches) for k in ("lesion_tp", "lesion_fp", "lesion_fn")))
    pooled = [confusion(pairs[i][1][0], masks[i]) + confusion(pairs[i + 2][1][0], masks[i + 2]) for i in (0, 1)]
    score = score_cases(cases, [settings])
    assert score.dice == pytest.approx(np.mean([c.scores()["dice"] for c in pooled]))
    assert score.lesion_f1 == pytest.approx(lesions["lesion_f1"])
    assert score.lesion_recall == pytest.approx(lesions["lesion_recall"])
    assert score.false_positives_per_case == pytest.approx(lesions["lesion_fp"] / 4)
    assert sum(each.found for each in score_by_size(cases, [settings])) == lesions["lesion_tp"]


def test_the_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, (1, 8, 64, 64))
    reference = rng.random(logit.shape) < 1 / (1 + np.exp(-logit))
    overconfident = 1 / (1 + np.exp(-2.5 * logit))
    assert choose_temperature([detect("c", "p", None, overconfident, reference)]) == pytest.approx(2.5, rel=0.05)


def test_the_plan_is_explained_and_can_be_overridden(prepared: Path) -> None:
    folder = open_prepared(prepared)
    plan = make_plan(folder, folder.cases, model="attention-unet", overrides=PlanOverrides())
    assert plan.dims == 2
    assert plan.patch == (1, 64, 64)
    assert len(plan.reasons) >= 4
    overrides = PlanOverrides(patch=(32,), batch_size=3, widths=(4, 8), context=2, foreground_prior=0.1)
    other = make_plan(folder, folder.cases, model="unet++", overrides=overrides)
    assert (other.patch, other.batch_size, other.widths) == ((1, 32, 32), 3, (4, 8))
    assert (other.context, other.foreground_prior) == (2, 0.1)
    nested = [
        make_plan(folder, folder.cases, model="unet++", device=DeviceInfo(gpu=gpu), overrides=PlanOverrides())
        for gpu in (False, True)
    ]
    assert [each.widths[0] for each in nested] == [16, 32]
    assert any("nested-unet on a processor" in reason for reason in nested[0].reasons)
    small = make_plan(
        folder, folder.cases, model="unet++", device=DeviceInfo(memory_bytes=10_000_000), overrides=PlanOverrides()
    )
    assert small.batch_size < plan.batch_size
    assert any("would not fit" in reason for reason in small.reasons)


def test_small_lesions_in_3d_get_small_patches_and_a_narrow_network(prepared: Path) -> None:
    folder = dataclasses.replace(open_prepared(prepared), kind="volumes")

    def plan(*lesions: int, gpu: bool = False) -> Plan:
        case = dataclasses.replace(
            folder.cases[0], shape=(80, 160, 160), spacing_mm=(1.0, 1.0, 1.0), lesion_voxels=lesions
        )
        return make_plan(folder, [case], model="attention-unet", device=DeviceInfo(gpu=gpu), overrides=PlanOverrides())

    small = plan(4, 14, 60, 200)
    assert (small.patch, small.batch_size, small.widths[0]) == ((32, 32, 32), 4, 16)
    assert any("lesions of up to" in reason for reason in small.reasons)
    for usual in (plan(4, 14, 4000), plan()):
        assert (usual.patch, usual.widths[0]) == ((64, 64, 64), 32)
    assert plan(4, 14, gpu=True).widths[0] == 32


def test_a_coarse_axis_is_pooled_last(prepared: Path) -> None:
    folder = dataclasses.replace(open_prepared(prepared), kind="volumes")

    def plan(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Plan:
        case = dataclasses.replace(folder.cases[0], shape=shape, spacing_mm=spacing)
        return make_plan(folder, [case], model="attention-unet", overrides=PlanOverrides())

    thick = plan((40, 256, 256), (2.5, 1.0, 1.0))
    assert thick.dims == 3
    assert thick.strides[0] == (1, 2, 2)
    assert thick.strides[1] == (2, 2, 2)
    slices = plan((23, 256, 256), (6.5, 0.8, 0.8))
    assert (slices.dims, slices.context) == (2, 1)


# -- model files -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("size", [(6, 9), (4, 5, 7)])
def test_the_sampling_grid_is_that_of_torch(size: tuple[int, ...]) -> None:
    affine = torch.randn(2, len(size), len(size) + 1)
    expected = torch.nn.functional.affine_grid(affine, [2, 1, *size], align_corners=False)
    torch.testing.assert_close(augmentation._affine_grid(affine, torch.Size(size)), expected)
