"""Small real things that many tests start from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from metaseg_cli.config import PrepareConfig, TrainConfig
from metaseg_cli.core.model_file import ModelCard
from metaseg_cli.core.postprocessing import Postprocessing
from metaseg_cli.core.progress import Silent


@pytest.fixture(scope="session", autouse=True)
def _plain_terminal() -> None:
    """Messages are compared: neither colours nor the width of somebody's window may change them."""
    os.environ.update({"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120"})


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images, or a skipped test."""
    folder = os.environ.get("METASEG_TEST_DATA", "")
    if not folder:
        pytest.skip("METASEG_TEST_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom pictures of five patients to train on and one to test with, four slices each."""
    from metaseg_cli.core.phantom import PhantomSettings, write_phantom_pictures

    folder = tmp_path_factory.mktemp("raw")
    settings = PhantomSettings(shape=(4, 64, 64), lesions=(2, 5), diameter_mm=(8.0, 25.0))
    write_phantom_pictures(folder / "train", 5, 4, settings, seed=1)
    write_phantom_pictures(folder / "test", 1, 4, settings, seed=1, first=6)
    return folder


@pytest.fixture(scope="session")
def prepared(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``raw`` prepared."""
    from metaseg_cli.commands.prepare import prepare

    out = tmp_path_factory.mktemp("work") / "prepared"
    prepare(PrepareConfig(raw=raw, out=out, workers=1), Silent())
    return out


def tiny_training(prepared: Path, out: Path, **settings: object) -> TrainConfig:
    """A training of a few seconds."""
    tiny = {"epochs": 2, "widths": (4, 8, 8), "patch": (32,), "batch_size": 4, "steps_per_epoch": 3, "warmup_steps": 2}
    return TrainConfig(data=prepared, out=out, **{**tiny, **settings})


def small_card(name: str = "attention-unet", dims: int = 2, norm: str = "batch") -> ModelCard:
    """Of a small network with three regions, temperature and thresholds."""
    return ModelCard(
        name=name,
        in_channels=2,
        out_channels=3,
        dims=dims,
        widths=(4, 8, 8),
        strides=((2,) * dims,) * 2 if dims == 2 else ((1, 2, 2), (2, 2, 2)),
        norm=norm,
        activation="leaky-relu",
        sequences=("t1c", "t2f"),
        regions={"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)},
        preprocessing={"normalisation": "case", "oriented": True, "spacing_mm": [1.0, 1.0, 1.0]},
        patch=(16, 32, 32),
        temperature=1.5,
        postprocessing={"ET": Postprocessing(threshold=0.4, smallest_lesion=3)},
    )


@pytest.fixture(scope="session")
def trained(prepared: Path) -> Path:
    """A finished run of a tiny attention-unet."""
    from metaseg_cli.commands.train import train

    torch.set_num_threads(2)
    return train(tiny_training(prepared, prepared.parent / "runs"), Silent()).run
